"""Reference pages written from the code: tables, metrics, job files and the command line.

A MkDocs hook. Each `<!-- generate: NAME -->` line of a page becomes Markdown when the site is built, so these pages
cannot differ from the code. Links from a page to a file outside `docs/` work in the repository; the site shows them as
plain text.
"""

import inspect
import json
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raygen.core.config import config_classes

ROOT: Final = Path(__file__).parent.parent
PLACEHOLDER: Final = re.compile(r"^<!-- generate: (\w+) -->$", re.M)
LINK: Final = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)")
#: Addresses of scripts that the theme loads where a page needs them.
REMOTE_SCRIPT: Final = re.compile(r"https?://[^\"'`\s]+?/(?=iframe-worker|mermaid@|resize-observer)[^\"'`\s]*")
#: Longer types are cut in the middle.
LONGEST: Final = 120
#: Longer lists of values are not repeated in a cell.
MAX_CHOICES: Final = 14

COMMON: Final = {
    "plan": "name of the planning function",
    "seed": "seed of the plan",
    "source": "`face_id` of the real image that the conditions come from",
    "group_id": "rows that belong together, such as all samples of one mask",
    "mask": "segmentation mask, 8-bit class ids 0 to 18, PNG",
    "attributes": "40 CelebA attributes by name: 1 present, -1 absent, 0 unknown",
    "text": "caption",
    "hint": "image that a ControlNet reads",
    "style_reference_a": "face whose style is used, with the sha256 of its image",
    "style_reference_b": "face whose style replaces the first one in `style_parts`",
    "style_parts": "class ids that take their style from b",
    "style_mix": "0 is style a, 1 is style b",
    "identity_id": "person",
    "variant": "number of the image within its identity or group",
    "edit_id": "edit that the row belongs to",
    "alpha": "strength of the edit: 0 is the input, 1 the target",
}
LANDMARKS: Final = (
    "`points`: left eye, right eye, nose, left and right corner of the mouth as fractions of the sides; `source`: "
    "`mask` or a network; `error`: why there are no points. Null where none were asked for"
)
ROW: Final = {
    "sample_id": "id of the row",
    "attempt": "0 is the first attempt, higher ones are retries",
    "run_id": "run that wrote the row",
    "metric": "name of the measurement, with its network after the colon",
}
#: What each column holds, by table. A build fails where a column has no text here, or a text has no column.
COLUMNS: Final[Mapping[str, Mapping[str, str]]] = {
    "faces": {
        **{name: COMMON[name] for name in ("mask", "attributes", "identity_id", "hint")},
        "face_id": "id of the face; also a safe file name",
        "split": "`train`, `val` or `test`",
        "image": "encoded bytes",
        "texts": "captions: a list of `key`, such as `overall`, and `value`",
        "boxes": "left, top, right, bottom of each face, as fractions of the sides",
        "keypoints": "x, y (fractions of the sides) and weight",
        "mask_confidence": "confidence of the parser that made the mask, 0 to 1; null for masks of the data set",
        "landmarks": LANDMARKS,
    },
    "conditions": {**COMMON, "sample_id": ROW["sample_id"]},
    "samples": {
        **COMMON,
        **{name: ROW[name] for name in ("sample_id", "attempt", "run_id")},
        "image": "generated image as encoded bytes; null where `error` is set",
        "error": "why there is no image: a stable word, then the detail",
        "checkpoint": "sha256 of the model folder",
        "sampler": "name of the sampler",
        "steps": "sampler steps",
        "guidance": "guidance weights: `joint` of all conditions, or one a condition",
        "image_sha256": "sha256 of the encoded image",
        "method": "name of another method that made the image; null where raygen made it",
        "landmarks": LANDMARKS,
    },
    "scores": {
        **ROW,
        "value": "the row as one number, such as the mIoU of the image; null for features",
        "names": "names of the values in `vector`, such as `hair/wanted` or `Smiling`; null where they have none",
        "vector": "a scalar, features, or exact counts",
    },
    "selection": {
        **{name: ROW[name] for name in ("sample_id", "attempt")},
        "accepted": "whether this attempt is the one that is used",
        "reason": "why it was rejected, or why it is used although a gate rejected it",
    },
    "latents": {
        "face_id": "face that was encoded",
        "transform": "`none` or `flip`; a mirrored image is a row of its own",
        "autoencoder": "sha256 of the first stage",
        "moments": "KL moments, or latents before quantization",
        "shape": "shape of `moments`",
    },
    "influence": {
        "sample_id": ROW["sample_id"],
        "step": "number of the step, from 0, the first out of noise",
        "timestep": "timestep t of that step",
        "name": "expert, or `x0`",
        "map": "influence map of the expert; for `x0` the estimate of the image",
    },
    "metrics": {
        "run_id": "run that was judged",
        "metric": "name, with protocol or network: `fid@clean`, `miou:bisenet`",
        "slice": "`all`, a set such as `reference`, or a part of it such as `all/hair`",
        "value": "the number",
        "n": "rows that it was computed from",
        "ci_low": "lower end of the 95% interval",
        "ci_high": "upper end of the 95% interval",
        "reference": "digest of the reference set",
        "protocol": "JSON: network and sha256, resize, precision, window, level",
        "created": "time of computation",
    },
    "exported": {
        "sample_id": ROW["sample_id"],
        "path": "file in the data set",
        "piece": "part of a shard that was joined into that file",
        "offset": "place in the file or piece, bytes",
        "bytes": "size of the image",
        "mask_bytes": "size of the mask",
        "label": "number of the identity",
        "sha256": "sha256 of the exported image",
    },
    "files": {"path": "file in the data set", "bytes": "size", "sha256": "sha256 of the file"},
}
WRITES: Final = {
    "faces": "`raygen ingest`, `raygen parse`, `raygen select` with `faces`",
    "conditions": "`raygen plan`",
    "samples": "`raygen generate`, `raygen edit`, `raygen select`",
    "scores": "`raygen evaluate`, and `raygen generate` with `score`",
    "selection": "`raygen select`, `raygen edit`",
    "latents": "`raygen encode`",
    "influence": "`raygen generate` and `raygen edit` with `influence_steps`",
    "metrics": "`raygen evaluate`, `raygen sweep`, `raygen ablation`, `raygen select`",
    "exported": "`raygen export`",
    "files": "`raygen export`",
}


def tables() -> str:
    """Every table of `raygen.store.schemas` with its columns."""
    from raygen.store.schemas import IMAGE, SCHEMAS
    from raygen.store.set_digest import KEYS

    parts = []
    for name, schema in SCHEMAS.items():
        if set(schema.names) != set(COLUMNS[name]):
            raise ValueError(f"docs/generate.py: COLUMNS[{name!r}] differs: {set(schema.names) ^ set(COLUMNS[name])}")
        key = ", ".join(f"`{column}`" for column in KEYS.get(name, ()))
        parts += [f"## {name.upper()}", f"Written by {WRITES[name]}." + (f" Key: {key}." if key else "")]
        lines = ["| column | type | may be null | content |", "|---|---|---|---|"]
        for field in schema:
            kind = "image" if field.type == IMAGE else _arrow(field.type)
            lines.append(
                f"| `{field.name}` | {kind} | {'yes' if field.nullable else ''} | {COLUMNS[name][field.name]} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _arrow(kind: pa.DataType) -> str:
    text = re.sub(r"(?:element|item): ", "", str(kind))
    text = re.sub(r"^(struct<\w+: \w+), .*(, \w+: \w+>)$", r"\1, …\2", text) if len(text) > LONGEST else text
    return f"`{text.replace('struct<bytes: binary, path: string>', 'image')}`"


def labels() -> str:
    """The 19 classes and the 40 attributes."""
    from raygen.core.face_labels import ATTRIBUTES, CLASSES

    classes = "\n".join(f"| {number} | `{name}` |" for number, name in enumerate(CLASSES))
    attributes = ", ".join(f"`{name}`" for name in ATTRIBUTES)
    return f"## Classes\n\n| id | class |\n|---|---|\n{classes}\n\n## Attributes\n\nIn this order: {attributes}."


def metrics() -> str:
    """Every metric of the registry."""
    from raygen.metrics.registry import REGISTRY

    lines = ["| metric | title | better | warns below n | meaning |", "|---|---|---|---|---|"]
    for record in REGISTRY.values():
        low = f"{record.min_n:,}" if record.min_n else ""
        lines.append(f"| `{record.name}` | {record.title} | {record.better} | {low} | {record.meaning} |")
    return "\n".join(lines)


# --- job files --------------------------------------------------------------------------------------------------


def config() -> str:
    """Every key of every job file, and of the models nested in them."""
    from raygen.commands.base import Job
    from raygen.commands.registry import COMMANDS, job_type

    nested: dict[str, type[BaseModel]] = {}
    _collect(Job, nested)
    kind = {"kind": FieldInfo(annotation=str, description="name of the command")}
    parts = ["## Every job", _rows({**kind, **Job.model_fields})]
    for name, command in COMMANDS.items():
        job = job_type(name)
        _collect(job, nested)
        own = {key: field for key, field in job.model_fields.items() if key not in ("kind", *Job.model_fields)}
        parts += [f"## {name}", command.summary, _rows(own)]
    parts += ["## Nested settings", "Settings that are groups of keys, by the name of their class."]
    for name, model in sorted(nested.items()):
        text = inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        kind = model.model_fields.get("kind")
        if kind is not None:
            text = f"`kind: {get_args(kind.annotation)[0]}`. {text}"
        own = {key: field for key, field in model.model_fields.items() if key != "kind"}
        parts += [f"### {name}", text, *([_rows(own)] if own else [])]
    return "\n\n".join(parts)


def _collect(annotation: Any, into: dict[str, type[BaseModel]]) -> None:
    """The models below an annotation, or below the fields of a model, by class name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for field in annotation.model_fields.values():
            for model in config_classes(field.annotation):
                if model.__name__ not in into:
                    into[model.__name__] = model
                    _collect(model, into)


def _rows(fields: Mapping[str, FieldInfo]) -> str:
    lines = ["| key | type | default | range | description |", "|---|---|---|---|---|"]
    for key, field in fields.items():
        cells = (f"`{key}`", _type(field.annotation), _default(field), _range(field), field.description or "")
        lines.append("| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _type(annotation: Any) -> str:
    """A type in words; models are links to their table."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is Literal:
        return _choices(arguments)
    if origin is tuple:
        many = len(arguments) == 2 and arguments[1] is Ellipsis
        return f"list of {_type(arguments[0])}" if many else f"{len(arguments)} x {_type(arguments[0])}"
    if origin is dict:
        return f"map of {_type(arguments[0])} to {_type(arguments[1])}"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        label = get_args(kind.annotation)[0] if kind is not None else annotation.__name__
        return f"[{label}](#{annotation.__name__.lower()})"
    return {str: "string", int: "integer", float: "number", bool: "true, false"}.get(annotation, "any")


def _choices(values: tuple[Any, ...]) -> str:
    if len(values) > MAX_CHOICES:
        target = "classes" if "skin" in values else "attributes"
        return f"[one of {len(values)} names](../concepts/tables.md#{target})"
    return ", ".join(f"`{value}`" for value in values)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        changed = value.model_dump(mode="json", exclude_defaults=True)
        kind = getattr(value, "kind", None)
        return f"`{_flow({**({} if kind is None else {'kind': kind}), **changed})}`"
    return f"`{_flow(value)}`"


def _flow(value: Any) -> str:
    def plain(item: Any) -> Any:
        return item.model_dump(mode="json") if isinstance(item, BaseModel) else list(item)

    return re.sub(r'"([\w.-]+)"', r"\1", json.dumps(value, default=plain))


def _range(field: FieldInfo) -> str:
    signs = (
        ("ge", "≥ "),
        ("gt", "> "),
        ("le", "≤ "),
        ("lt", "< "),
        ("min_length", "length ≥ "),
        ("max_length", "length ≤ "),
    )
    bounds = [
        f"{sign}{getattr(rule, name):,}" for rule in field.metadata for name, sign in signs if hasattr(rule, name)
    ]
    return ", ".join(bounds)


# --- command line -----------------------------------------------------------------------------------------------


def cli() -> str:
    """Every command with its arguments and options."""
    import typer.main

    from raygen.cli import app

    group = typer.main.get_command(app)
    parts = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        parameters = [p for p in command.params if p.name != "help"]
        usage = " ".join(["raygen", name, *(_argument(p) for p in parameters if p.param_type_name == "argument")])
        parts += [f"## raygen {name}", f"```text\n{usage}\n```", str(command.help or "")]
        lines = ["| parameter | default | meaning |", "|---|---|---|"]
        for parameter in parameters:
            argument = parameter.param_type_name == "argument"
            label = parameter.make_metavar_name() if hasattr(parameter, "make_metavar_name") else parameter.name.upper()
            names = label if argument else ", ".join((*parameter.opts, *parameter.secondary_opts))
            value = "" if parameter.default is None or parameter.default is False else f"`{parameter.default}`"
            lines.append(f"| `{names}` | {'required' if parameter.required else value} | {parameter.help or ''} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper()) + ("…" if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


# --- the hook ---------------------------------------------------------------------------------------------------

PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "tables": tables,
    "labels": labels,
    "metrics": metrics,
    "config": config,
    "cli": cli,
}


def fill(text: str) -> str:
    """The Markdown of a page with its placeholders filled."""
    return PLACEHOLDER.sub(lambda match: PAGES[match[1]](), text)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fill placeholders; links to files outside `docs/` become plain text."""
    folder = Path(page.file.abs_src_path).parent

    def plain(match: re.Match[str]) -> str:
        target = match[2].partition("#")[0]
        outside = "://" not in target and target and not (folder / target).resolve().is_relative_to(ROOT / "docs")
        return match[1] if outside else match[0]

    return LINK.sub(plain, fill(markdown))


def on_post_build(*, config: Any, **_: Any) -> None:
    """Remove the addresses that the theme would load scripts from: pages need no network."""
    for script in Path(config["site_dir"]).rglob("*.js"):
        text = script.read_text(encoding="utf-8")
        script.write_text(REMOTE_SCRIPT.sub("", text), encoding="utf-8")
