"""Configs of jobs: reading YAML, dotted overrides, validation with readable errors, and `Resources`.

The errors that configs and jobs raise:

    RaygenError                 exit code
    ├── ConfigError             2   the job as written cannot run
    ├── InputError              2   a file or row is not what it says (has a short machine-readable `reason`)
    ├── TooManyBadRows          3   more rows failed than the job allows
    ├── InfrastructureError     4   storage, workers or time failed; the same command may work later
    └── IntegrityError          5   something stored is not what was committed
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from raygen.core.documents import load_json, load_yaml
from raygen.core.errors import ConfigError
from raygen.core.location import check_text, redact

__all__ = [
    "Config",
    "Resources",
    "config_classes",
    "nearest",
    "override",
    "parse",
    "read_yaml",
    "tagged_union",
    "texts_in",
]


MAX_YAML_BYTES = 1 << 20
T = TypeVar("T")


class Config(BaseModel):
    """Base class of all settings: frozen; unknown keys are errors, and so are credentials in any text."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    @field_validator("*", mode="after")
    @classmethod
    def _has_no_credentials(cls, value: T) -> T:
        for text in texts_in(value):
            check_text(text)
        return value


def texts_in(value: object) -> Iterator[str]:
    """Every text in plain values; other configs have checked their own."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from texts_in(pair)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from texts_in(item)


def tagged_union(table: Mapping[str, type[Config]]) -> Any:
    """The pydantic type "one of `table`", chosen by the key `kind`.

    `TypeError` where a class is not listed under the value of its field `kind: Literal[...]`.
    """
    for name, member in table.items():
        if _tags(member) != (name,):
            raise TypeError(f"{member.__name__} is listed as {name!r}, and its `kind` is {_tags(member)}")
    return Annotated[Union[tuple(table.values())], Field(discriminator="kind")]  # noqa: UP007 - of a computed tuple


class Resources(Config):
    """Where and how wide a job runs. Not part of `run_id`: the rows are the same everywhere."""

    runner: Literal["local", "ray"] = Field("local", description="local: a loop in this process; ray: Ray actors")
    workers: int = Field(1, ge=1, le=4096, description="number of Ray actors, or of ranks for a training")
    cpus: float = Field(1, ge=0, le=1024, description="CPUs that Ray reserves for each worker")
    gpus: float = Field(0, ge=0, le=64, description="GPUs that Ray reserves for each worker; a fraction shares a GPU")
    threads: int = Field(
        1,
        ge=1,
        le=1024,
        description="compute threads of each worker; on a CPU, another number can change the last bits",
    )
    address: str | None = Field(
        None, description="address of a Ray cluster; default: $RAY_ADDRESS, or else a local Ray is started"
    )
    max_attempts: int = Field(
        3, ge=1, le=100, description="attempts to process a shard before it is set aside (quarantined)"
    )
    shard_timeout_s: float = Field(
        1800, gt=0, description="seconds after which a shard is stopped; the stack trace is logged"
    )
    stall_timeout_s: float = Field(
        1800,
        gt=0,
        description="seconds without a finished shard after which the run fails with exit code 4; less once shards "
        "have finished: 5 times the 95th percentile of their seconds, at least 300",
    )

    wait_s: float = Field(
        1800,
        ge=0,
        le=604_800,
        description="seconds that a job waits for nodes where the cluster can grow: shards for the first worker, a "
        "training for all ranks; then it fails with exit code 4",
    )

    def idle(self) -> str:
        """A sentence about settings that the local runner does not use; empty where there are none."""
        if self.runner == "ray" or (self.workers == 1 and self.address is None):
            return ""
        unused = [f"workers={self.workers}"] if self.workers > 1 else []
        unused += [f"address={self.address}"] if self.address is not None else []
        need = "needs" if len(unused) == 1 else "need"
        return f"the local runner is one worker; {' and '.join(unused)} {need} resources.runner=ray"


def nearest(value: str, known: Iterable[str]) -> str:
    """The end of an error message: `; did you mean 'hair'?`, or empty where no known word is similar."""
    spelled = value.lower().replace("+", "p")  # dpm++ is dpmpp wherever a plus sign is not allowed
    similar = difflib.get_close_matches(spelled, list(known), n=1, cutoff=0.5)
    return f"; did you mean {similar[0]!r}?" if similar else ""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A job file as a dictionary; `ConfigError` where it is missing, too large or not a mapping."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(data) > MAX_YAML_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_YAML_BYTES} bytes")
    document = load_yaml(data, str(path))
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: a job is a mapping of keys to values")
    return document


def override(document: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of `document` with `a.b=c` words applied; values are read as YAML scalars, lists or maps.

    `ConfigError` for another word, and for a document that JSON cannot hold.
    """
    try:
        result: dict[str, Any] = load_json(json.dumps(document, default=str))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the job is not made of plain values ({error})") from None
    for word in map(str, assignments):
        key, equals, text = word.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"{_quoted(word, 80)}: an override is written a.b=value")
        value = load_yaml(text, _quoted(word, 80)) if text else None
        node, path = result, key.split(".")
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{_quoted(word, 80)}: {part!r} is a value, not a group of keys")
        node[path[-1]] = value
    return result


def parse(kind: type[T] | Any, document: object, source: str = "job") -> T:
    """Validate `document` as `kind`, a Config or a union of them.

    `ConfigError` has a line for each problem: the path, the allowed values, and the nearest known key or value.
    """
    try:
        return cast(T, TypeAdapter(kind).validate_python(document))
    except ValidationError as error:
        problems: list[dict[str, Any]] = [dict(problem) for problem in error.errors(include_url=False)]
        inner = {tuple(problem["loc"][:n]) for problem in problems for n in range(len(problem["loc"]))}
        # Pydantic counts only the valid members of a container, and so calls it too short as well.
        problems = [p for p in problems if p["type"] != "too_short" or tuple(p["loc"]) not in inner]
        lines = [_explain(kind, document, problem) for problem in problems]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def _explain(kind: Any, document: object, problem: Mapping[str, Any]) -> str:
    # Pydantic's path also names the chosen members of unions, which the document does not contain.
    location, keys, node = problem["loc"], [], document
    named = isinstance(kind, type)  # a union at the top names its member first
    for depth, part in enumerate(location):
        # `kind` names the chosen member, and a key of it may have the same name: planning.identities.
        if not named and isinstance(node, Mapping) and node.get("kind") == part:
            named = True
            continue
        try:
            node = node[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            if problem["type"] != "missing" or depth < len(location) - 1:
                continue
        named = False
        keys.append(str(part))
    where = ".".join(keys) or "(top)"
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key" + nearest(str(problem["loc"][-1]), _known_keys(kind, problem["loc"]))
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        return f"{where}: {message}" if keys else message
    if problem["type"] == "union_tag_not_found":
        kinds = [str(tag) for model in _members(kind, location) for tag in _tags(model)]
        return f"{where}.kind: is missing; it is one of {', '.join(kinds)}"
    message, value = f"{where}: {problem['msg']}", problem.get("input")
    if problem["type"] in ("literal_error", "union_tag_invalid"):
        if problem["type"] == "union_tag_invalid":
            where, value = f"{where}.kind", problem["ctx"]["tag"]
        known = problem["ctx"].get("expected") or problem["ctx"]["expected_tags"]
        names = [text or number for text, number in re.findall(r"'([^']*)'|(-?[0-9]+)", known)]
        message = f"{where}: {_quoted(value, 200)} is not one of {', '.join(names)}"
        return message + nearest(str(value), names)
    if problem["type"] != "missing":
        message += f" (got {_quoted(problem.get('input'), 190)})"
    return message


def _quoted(value: object, length: int) -> str:
    """The beginning of `value` as it is shown. What is cut off could be the part by which a password is known."""
    try:
        return repr(redact(value)[:length]) if isinstance(value, str) else redact(repr(value))[:length]
    except ValueError:  # Python writes no number of 4,300 digits
        return "a very large number"


def _known_keys(kind: Any, loc: Sequence[str | int]) -> list[str]:
    """The valid field names at `loc`; in a union of configs those of the chosen member."""
    return [name for model in _members(kind, loc[:-1]) for name in model.model_fields]


def _members(kind: Any, loc: Sequence[str | int]) -> list[type[BaseModel]]:
    """The configs that may be at `loc`; in a union the chosen member."""
    models = config_classes(kind)
    for part in loc:
        chosen = [model for model in models if part in _tags(model)]
        fields = [model.model_fields[str(part)] for model in models if part in model.model_fields]
        models = chosen or [inner for field in fields for inner in config_classes(field.annotation)] or models
    return models


def config_classes(kind: Any) -> list[type[BaseModel]]:
    """The Config classes that an annotation mentions, in order: itself, members of a union, elements of a container."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for argument in get_args(kind) for model in config_classes(argument)]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """The allowed values of the key `kind`."""
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()
