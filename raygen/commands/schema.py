"""The configuration of a command as a JSON schema, and as a commented job file to begin with."""

import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raygen.commands.base import Sharding
from raygen.commands.registry import COMMANDS, PLACEHOLDER, job_type
from raygen.core.config import Resources

__all__ = ["job_schema", "job_template", "schema_text"]

WIDTH = 120


def job_schema(name: str) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the job files of a command; `ConfigError` names the known commands."""
    kind = job_type(name)
    schema = kind.model_json_schema()
    schema["required"] = ["kind", *schema.get("required", ())]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"raygen {name}",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def schema_text(name: str) -> str:
    """`job_schema` as the text of a file."""
    return json.dumps(job_schema(name), indent=1, ensure_ascii=False) + "\n"


def job_template(name: str) -> str:
    """A commented job file with every setting of a command at its default.

    A value that has no default stands as `???`; `load` names those that were not filled in.
    """
    kind = job_type(name)
    fields = kind.model_fields
    settings = [key for key in fields if key not in ("kind", "resources", "out")]
    lines = [f"# raygen {name} JOB.yaml    {COMMANDS[name].summary}", f"kind: {name}"]
    # Required settings first; how rows are cut into shards is seldom changed and comes last.
    for key in sorted(settings, key=lambda key: (not fields[key].is_required(), key in Sharding.model_fields)):
        lines += _entry(key, fields[key], "")
    lines += ["resources:", *_block(Resources, "  ")]
    return "\n".join([*lines, *_entry("out", fields["out"], ""), ""])


def _block(model: type[BaseModel], indent: str) -> Iterator[str]:
    for key, field in model.model_fields.items():
        yield from _entry(key, field, indent)


def _entry(key: str, field: FieldInfo, indent: str) -> list[str]:
    """The lines of one setting: its comment, then the value."""
    models = _models(field.annotation)
    comment = [f"{indent}# {line}" for line in _comment(field, models)]
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined and models:
        return [*comment, f"{indent}{key}:", *_block(models[0], indent + "  ")]
    if default is PydanticUndefined:
        value = f'["{PLACEHOLDER}"]' if get_origin(field.annotation) is tuple else PLACEHOLDER
        return [*comment, f"{indent}{key}: {value}"]
    if default is None:
        return [*comment, f"{indent}# {key}: null"]
    if isinstance(default, BaseModel):
        return [*comment, f"{indent}{key}:", *_values(default, indent + "  ")]
    return [*comment, f"{indent}{key}: {_flow(default)}"]


def _values(config: BaseModel, indent: str) -> Iterator[str]:
    """The settings of a default, each with its comment."""
    for key, field in type(config).model_fields.items():
        value = getattr(config, key)
        models = _models(field.annotation)
        yield from (f"{indent}# {line}" for line in _comment(field, models))
        if value is None:
            yield f"{indent}# {key}: null"
        elif isinstance(value, BaseModel):
            yield f"{indent}{key}:"
            yield from _values(value, indent + "  ")
        else:
            yield f"{indent}{key}: {_flow(value)}"


def _comment(field: FieldInfo, models: list[type[BaseModel]]) -> list[str]:
    """Description, allowed values or range, and the kinds of a union."""
    parts = [field.description] if field.description else []
    choices = _choices(field.annotation)
    if len(choices) > 1:
        parts.append(f"one of {', '.join(choices)}")
    bounds = [
        f"{sign} {getattr(rule, name):g}" for rule in field.metadata for name, sign in BOUNDS if hasattr(rule, name)
    ]
    if bounds:
        parts.append(" and ".join(bounds))
    kinds = [
        str(get_args(model.model_fields["kind"].annotation)[0]) for model in models if "kind" in model.model_fields
    ]
    if len(kinds) > 1:
        parts.append(f"kind: {', '.join(kinds)}")
    if field.is_required():
        parts.append("required")
    return ["; ".join(parts)] if parts else []


BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The Config classes that a value may be, first one first."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [model for argument in get_args(annotation) for model in _models(argument)]
    return []


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [choice for argument in get_args(annotation) for choice in _choices(argument)]
    return []


def _flow(value: Any) -> str:
    """One line of YAML."""
    plain = (
        value.model_dump(mode="json") if isinstance(value, BaseModel) else json.loads(json.dumps(value, default=_plain))
    )
    return (
        yaml.safe_dump(plain, default_flow_style=True, width=float("inf"), allow_unicode=True)
        .removesuffix("\n...\n")
        .strip()
    )


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else list(value)
