"""Arrow schemas of the tables that stages read and write, and checks of ids and columns.

Pictures are `struct<bytes, path>` with the Hugging Face feature metadata in the schema, so that other tools show them
as pictures. No column is a map: `datasets` opens no file that has one. What has names is a struct where all names are
known, and a list of structs where they are not.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import pyarrow as pa

from raygen.core.errors import InputError
from raygen.core.face_labels import ATTRIBUTES
from raygen.core.location import redact

__all__ = [
    "ATTRIBUTE_VALUES",
    "CONDITIONS",
    "EXPORTED",
    "FACES",
    "FILES",
    "INFLUENCE",
    "LATENTS",
    "METRICS",
    "QUARANTINE",
    "REFUSED",
    "SAMPLES",
    "SCHEMAS",
    "SCORES",
    "SELECTION",
    "cast",
    "check_id",
    "picture_schema",
    "reason_of",
    "texts_by_name",
]


ID_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

IMAGE: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
#: The 40 attributes by name: 1, -1, or 0 where unknown.
ATTRIBUTE_VALUES: Final = pa.struct([(name, pa.int8()) for name in ATTRIBUTES])
#: Captions by name. The names depend on the data set.
TEXTS: Final = pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))
#: Weights of guidance: `joint` of all conditions together, or one a condition; null where there is none.
GUIDANCE: Final = pa.struct([(name, pa.float32()) for name in ("joint", "mask", "attributes", "text", "hint", "style")])
STYLE: Final = pa.struct([("face_id", pa.string()), ("sha256", pa.string())])
#: Five landmarks [x, y], see `raygen.core.landmarks`; `source` is `mask` or a network. Without points, `error` is why.
LANDMARKS: Final = pa.struct(
    [("points", pa.list_(pa.list_(pa.float32(), 2))), ("source", pa.string()), ("error", pa.string())]
)


def picture_schema(fields: Sequence[tuple[str, pa.DataType]], required: Sequence[str] = ()) -> pa.Schema:
    """A schema whose picture columns carry the feature metadata that makes viewers show them."""
    features = {name: {"_type": "Image"} for name, kind in fields if kind == IMAGE}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    return pa.schema([pa.field(n, k, nullable=n not in required) for n, k in fields], metadata=metadata)


#: `boxes`: left, top, right, bottom of each face. `keypoints`: x, y, weight. Coordinates are fractions of the sides.
#: `mask_confidence`: of a mask that a parser made; null for masks of the data set.
FACES: Final = picture_schema(
    [
        ("face_id", pa.string()),
        ("split", pa.string()),
        ("image", IMAGE),
        ("mask", IMAGE),
        ("attributes", ATTRIBUTE_VALUES),
        ("texts", TEXTS),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("identity_id", pa.string()),
        ("keypoints", pa.list_(pa.list_(pa.float32(), 3))),
        ("hint", IMAGE),
        ("mask_confidence", pa.float32()),
        ("landmarks", LANDMARKS),
    ],
    required=("face_id", "split"),
)

_CONDITIONS: Final[list[tuple[str, pa.DataType]]] = [
    ("plan", pa.string()),
    ("seed", pa.int64()),
    ("source", pa.string()),
    ("group_id", pa.string()),
    ("mask", IMAGE),
    ("attributes", ATTRIBUTE_VALUES),
    ("text", pa.string()),
    ("hint", IMAGE),
    ("style_reference_a", STYLE),
    ("style_reference_b", STYLE),
    ("style_parts", pa.list_(pa.uint8())),
    ("style_mix", pa.float32()),
    ("identity_id", pa.string()),
    ("variant", pa.int32()),
    ("edit_id", pa.string()),
    ("alpha", pa.float32()),
]
CONDITIONS: Final = picture_schema([("sample_id", pa.string()), *_CONDITIONS], required=("sample_id", "plan", "seed"))

#: `method`: of pictures that another program made, its name; they have neither a seed nor a checkpoint.
SAMPLES: Final = picture_schema(
    [
        ("sample_id", pa.string()),
        ("attempt", pa.int32()),
        ("image", IMAGE),
        ("error", pa.string()),
        *_CONDITIONS,
        ("run_id", pa.string()),
        ("checkpoint", pa.string()),
        ("sampler", pa.string()),
        ("steps", pa.int32()),
        ("guidance", GUIDANCE),
        ("image_sha256", pa.string()),
        ("method", pa.string()),
        ("landmarks", LANDMARKS),
    ],
    required=("sample_id", "attempt", "run_id"),
)

#: `value`: the row as one number, such as the mIoU of a picture; null for features. `names`: of the values of `vector`,
#: where they have names. `raygen.metrics.score_rows` fills both.
SCORES: Final = picture_schema(
    [
        ("sample_id", pa.string()),
        ("attempt", pa.int32()),
        ("metric", pa.string()),
        ("run_id", pa.string()),
        ("value", pa.float64()),
        ("names", pa.list_(pa.string())),
        ("vector", pa.list_(pa.float32())),
    ],
    required=("sample_id", "attempt", "metric", "run_id"),
)

#: Prefix of the error of a SAMPLES row of which no attempt was accepted.
REFUSED: Final = "refused: "
#: A row an attempt: whether it was accepted, and the reason.
SELECTION: Final = picture_schema(
    [("sample_id", pa.string()), ("attempt", pa.int32()), ("accepted", pa.bool_()), ("reason", pa.string())],
    required=("sample_id", "attempt", "accepted"),
)

LATENTS: Final = picture_schema(
    [
        ("face_id", pa.string()),
        ("transform", pa.string()),
        ("autoencoder", pa.string()),
        ("moments", pa.list_(pa.float16())),
        ("shape", pa.list_(pa.int32())),
    ],
    required=("face_id", "transform", "autoencoder"),
)

#: A row a map: of an expert by its name, or of `x0`.
INFLUENCE: Final = picture_schema(
    [
        ("sample_id", pa.string()),
        ("step", pa.int32()),
        ("timestep", pa.int32()),
        ("name", pa.string()),
        ("map", IMAGE),
    ],
    required=("sample_id", "step", "timestep", "name"),
)

METRICS: Final = picture_schema(
    [
        ("run_id", pa.string()),
        ("metric", pa.string()),
        ("slice", pa.string()),
        ("value", pa.float64()),
        ("n", pa.int64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("reference", pa.string()),
        ("protocol", pa.string()),
        ("created", pa.timestamp("us", tz="UTC")),
    ],
    required=("run_id", "metric", "slice", "n"),
)

#: An exported row: `path` of the file with its picture, relative to the data set; the piece that became part of that
#: file; the offset and size of the picture in the piece or the file; the size of its mask.
EXPORTED: Final = picture_schema(
    [
        ("sample_id", pa.string()),
        ("path", pa.string()),
        ("piece", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("mask_bytes", pa.int64()),
        ("label", pa.int64()),
        ("sha256", pa.string()),
    ],
    required=("sample_id", "path", "bytes"),
)

#: Files that a shard of an export wrote; paths are relative to the data set.
FILES: Final = picture_schema(
    [("path", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())], required=("path", "bytes", "sha256")
)

#: Failed rows of other tables, with the reason.
QUARANTINE: Final = picture_schema(
    [("id", pa.string()), ("table", pa.string()), ("error", pa.string())], required=("id",)
)

SCHEMAS: Final[Mapping[str, pa.Schema]] = {
    "faces": FACES,
    "conditions": CONDITIONS,
    "samples": SAMPLES,
    "scores": SCORES,
    "selection": SELECTION,
    "latents": LATENTS,
    "influence": INFLUENCE,
    "metrics": METRICS,
    "exported": EXPORTED,
    "files": FILES,
}


def check_id(value: object) -> str:
    """`value` as a row id that is also a safe file name; `InputError` (`bad_id`) otherwise."""
    if not isinstance(value, str) or not ID_PATTERN.fullmatch(value) or ".." in value:
        raise InputError(f"id {value!r} is not 1-128 letters, digits, '.', '_' or '-'"[:200], reason="bad_id")
    return value


def texts_by_name(texts: Iterable[Mapping[str, str]] | None) -> dict[str, str]:
    """A value of `FACES.texts` -> captions by name; empty for null."""
    return {entry["key"]: entry["value"] for entry in texts or ()}


def reason_of(error: BaseException) -> str:
    """The text stored for a failed row: a stable first word, then the detail, at most 300 characters."""
    text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return redact(text).replace("\n", " ")[:300]


def cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` in exactly `schema`: order, types and metadata; absent nullable columns become null.

    `InputError`: `columns` for unknown ones or missing required ones, `type` where a value does not fit,
    `null` for a null in a required column.
    """
    unknown = sorted(set(table.column_names) - set(schema.names))
    if unknown:
        raise InputError(f"unknown columns {unknown}", reason="columns")
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            if not field.nullable:
                raise InputError(f"column {field.name!r} is missing", reason="columns")
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        if not field.nullable and column.null_count:
            raise InputError(f"column {field.name!r} has {column.null_count} nulls", reason="null")
        try:
            columns.append(column if column.type == field.type else column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise InputError(f"column {field.name!r}: {error}", reason="type") from error
    return pa.Table.from_arrays(columns, schema=schema)
