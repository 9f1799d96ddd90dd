"""The settings of a command as a JSON schema, and as a commented job file to start from."""

import json
import textwrap
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from raygen.commands.base import Sharding
from raygen.commands.registry import COMMANDS, PLACEHOLDER, job_type
from raygen.core.config import nearest
from raygen.core.errors import ConfigError

__all__ = ["job_schema", "job_template", "schema_text"]


#: Columns of a line of comment.
WIDTH: Final = 120
#: Attributes of a field's metadata that bound its value, and how the bound is written.
BOUNDS: Final = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
#: Larger bounds are those of the integer type, and are not worth a comment.
LARGEST_BOUND: Final = 2**53


def job_schema(name: str) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the job files of a command; `ConfigError` lists the known commands."""
    job = job_type(name)
    schema = job.model_json_schema()
    schema["required"] = ["kind", *schema.get("required", ())]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"raygen {name}",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def schema_text(name: str) -> str:
    """`job_schema` as the text of a file."""
    return json.dumps(job_schema(name), indent=1, ensure_ascii=False) + "\n"


def job_template(name: str, kinds: Mapping[str, str] | None = None) -> str:
    """A commented job file with every setting of a command at its default.

    A value without a default is written as `???`; `load` lists those that were not filled in. `kinds` chooses among
    the kinds of a setting, such as `{"data": "folder"}`; without it the first kind is written. `ConfigError` names
    the kinds of a setting, or the settings that have kinds.
    """
    job = job_type(name)
    unused = dict(kinds or {})
    fields = {key: job.model_fields[key] for key in job.model_fields if key not in ("kind", "resources", "out")}
    lines = [
        f"# raygen {name} JOB.yaml",
        f"# {COMMANDS[name].help}",
        f"# {COMMANDS[name].reads} -> {COMMANDS[name].writes}",
        "# Replace every ??? and delete what you do not need.",
        f"kind: {name}",
    ]
    # Required settings first; those of the shards are seldom changed and come last.
    for key in sorted(fields, key=lambda key: (not fields[key].is_required(), key in Sharding.model_fields)):
        lines += _entry(key, fields[key], fields[key].get_default(call_default_factory=True), unused)
    for key in ("resources", "out"):
        field = job.model_fields[key]
        lines += _entry(key, field, field.get_default(call_default_factory=True), unused)
    for path in unused:
        known = [key for key, field in fields.items() if len(_kinds(_models(field.annotation))) > 1]
        raise ConfigError(f"{path}: not a setting with kinds of `raygen {name}`{nearest(path, known)}")
    return "\n".join([*lines, ""])


def _entry(path: str, field: FieldInfo, value: Any, kinds: dict[str, str]) -> Iterator[str]:
    """The lines of the setting at a dotted path: its comment, then the value. Removes what it uses from `kinds`."""
    indent, key = "  " * path.count("."), path.rpartition(".")[2]
    models, chosen = _models(field.annotation), None
    for line in textwrap.wrap(_comment(field, models), WIDTH - len(indent) - 2, break_on_hyphens=False):
        yield f"{indent}# {line}"
    if path in kinds:
        chosen, members = kinds.pop(path), _kinds(models)
        if chosen not in members:
            raise ConfigError(f"{path}: must be one of {', '.join(members)} (got {chosen!r}){nearest(chosen, members)}")
        models, value = [members[chosen]], PydanticUndefined
    if value is PydanticUndefined and not models:
        yield (
            f'{indent}{key}: ["{PLACEHOLDER}"]'
            if get_origin(field.annotation) is tuple
            else f"{indent}{key}: {PLACEHOLDER}"
        )
    elif value is PydanticUndefined or isinstance(value, BaseModel):
        model = type(value) if isinstance(value, BaseModel) else models[0]
        yield f"{indent}{key}:"
        for name in sorted(model.model_fields, key=lambda name: name != "kind"):
            inner = model.model_fields[name]
            default = (
                getattr(value, name) if isinstance(value, BaseModel) else inner.get_default(call_default_factory=True)
            )
            # A class of several kinds has no default for the one that was chosen.
            yield from _entry(f"{path}.{name}", inner, chosen if name == "kind" and chosen else default, kinds)
    elif value is None:
        yield f"{indent}# {key}: null"
    else:
        plain = to_jsonable_python(value)
        text = yaml.safe_dump(plain, default_flow_style=True, width=float("inf"), allow_unicode=True)
        yield f"{indent}{key}: {text.removesuffix('...' + chr(10)).strip()}"


def _comment(field: FieldInfo, models: list[type[BaseModel]]) -> str:
    """Description, allowed values or range, and the kinds of a union."""
    parts = [field.description] if field.description else []
    choices = _choices(field.annotation)
    if len(choices) > 1:
        parts.append(f"one of {', '.join(choices)}")
    bounds = [
        f"{sign} {bound:,}" if isinstance(bound, int) else f"{sign} {bound:g}"
        for rule in field.metadata
        for name, sign in BOUNDS
        if (bound := getattr(rule, name, None)) is not None and bound < LARGEST_BOUND
    ]
    if bounds:
        parts.append(" and ".join(bounds))
    if len(kinds := _kinds(models)) > 1:
        parts.append(f"kinds: {', '.join(kinds)}")
    if field.is_required():
        parts.append("required")
    return "; ".join(parts)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The Config classes that a value may be an instance of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [model for argument in get_args(annotation) for model in _models(argument)]
    return []


def _kinds(models: list[type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """The Config classes of a union by their `kind`."""
    tagged = [model for model in models if "kind" in model.model_fields]
    return {str(kind): model for model in tagged for kind in get_args(model.model_fields["kind"].annotation)}


def _choices(annotation: Any) -> list[str]:
    """The allowed values of a Literal."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [choice for argument in get_args(annotation) for choice in _choices(argument)]
    return []
