"""YAML and JSON from untrusted hands as plain values: bounded, without repeated keys, one kind of error each."""

import json
from typing import Any, Final

import yaml

from raygen.core.errors import ConfigError

__all__ = ["MAX_YAML_DEPTH", "load_json", "load_yaml"]


MAX_YAML_DEPTH: Final = 64
#: Digits of the longest whole number. Python writes none of 4,300 digits or more, and no setting needs one of 400.
MAX_DIGITS: Final = 400
_OPENING: Final = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
_CLOSING: Final = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


def load_json(text: str | bytes) -> Any:
    """A JSON document.

    `ValueError` for another text, too deep nesting, whole numbers of 400 digits or more, and half surrogate pairs.
    """
    try:
        document = json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    json.dumps(document, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return document


def _whole_number(text: str) -> int:
    if len(text) >= MAX_DIGITS:
        raise ValueError(f"a number has {len(text):,} digits")
    return int(text)


def load_yaml(data: str | bytes, source: str) -> object:
    """A YAML document; `ConfigError` names `source`, the line and what is wrong with it.

    Documents that could take gigabytes or hours are refused before they are parsed.
    """
    try:
        depth = 0
        for token in yaml.scan(data, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):  # nested aliases can expand to gigabytes
                raise ConfigError(f"{source}: YAML aliases (*name) are not allowed in a job")
            depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
            if depth > MAX_YAML_DEPTH:  # the parser would take quadratic time and overflow the stack
                raise ConfigError(f"{source}: nested deeper than {MAX_YAML_DEPTH} levels")
        value: object = yaml.load(data, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        # Its own text quotes the line, perhaps without the part by which a password is known.
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = "; ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{source}: {place}not valid YAML ({problem})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML ({str(error).partition(chr(10))[0]})") from None
    return value


class _Loader(yaml.SafeLoader):
    """Plain values that JSON can hold, with each key once."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # the makers of numbers, dates and others raise whatever they meet
            raise self._refusal(node, "a value is not of its type") from error
        if isinstance(value, int) and value.bit_length() > MAX_DIGITS * 3:
            raise self._refusal(node, f"a number has more than {MAX_DIGITS} digits")
        if isinstance(value, str) and any("\ud800" <= letter < "\ue000" for letter in value):
            raise self._refusal(node, "a text has half of a surrogate pair")
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | None):
                raise self._refusal(key_node, f"a key is a {type(key).__name__}, not a text")
            name, line = key if isinstance(key, str) else json.dumps(key), key_node.start_mark.line + 1
            if name in lines:
                both = f"lines {lines[name]} and {line}" if line != lines[name] else f"line {line}"
                raise self._refusal(key_node, f"the key {name[:80]!r} is there twice, in {both}")
            lines[name] = line
        return super().construct_mapping(node, deep)

    @staticmethod
    def _refusal(node: yaml.Node, problem: str) -> yaml.YAMLError:
        return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
