"""Arrow schemas of the tables that stages read and write, and checks of ids and columns.

Pictures are `struct<bytes, path>` with the Hugging Face feature metadata in the schema, so that other tools show them
as pictures.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa

from raygen.core.errors import InputError
from raygen.core.face_labels import ATTRIBUTES
from raygen.core.location import redact

__all__ = [
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
]


ID_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

IMAGE: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ATTRIBUTE_LIST: Final = pa.list_(pa.int8(), len(ATTRIBUTES))
STYLE: Final = pa.struct([("face_id", pa.string()), ("sha256", pa.string())])


def picture_schema(fields: Sequence[tuple[str, pa.DataType]], required: Sequence[str] = ()) -> pa.Schema:
    """A schema whose picture columns carry the feature metadata that makes viewers show them."""
    features = {name: {"_type": "Image"} for name, kind in fields if kind == IMAGE}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    return pa.schema([pa.field(n, k, nullable=n not in required) for n, k in fields], metadata=metadata)


#: `boxes`: left, top, right, bottom of each face. `keypoints`: x, y, weight. Coordinates are fractions of the sides.
FACES: Final = picture_schema(
    [
        ("face_id", pa.string()),
        ("split", pa.string()),
        ("image", IMAGE),
        ("mask", IMAGE),
        ("attributes", ATTRIBUTE_LIST),
        ("texts", pa.map_(pa.string(), pa.string())),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("identity_id", pa.string()),
        ("keypoints", pa.list_(pa.list_(pa.float32(), 3))),
        ("hint", IMAGE),
    ],
    required=("face_id", "split"),
)

_CONDITIONS: Final[list[tuple[str, pa.DataType]]] = [
    ("plan", pa.string()),
    ("seed", pa.int64()),
    ("source", pa.string()),
    ("group_id", pa.string()),
    ("mask", IMAGE),
    ("attributes", ATTRIBUTE_LIST),
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
        ("guidance", pa.map_(pa.string(), pa.float32())),
        ("image_sha256", pa.string()),
    ],
    required=("sample_id", "attempt", "run_id"),
)

SCORES: Final = picture_schema(
    [
        ("sample_id", pa.string()),
        ("attempt", pa.int32()),
        ("metric", pa.string()),
        ("run_id", pa.string()),
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

INFLUENCE: Final = picture_schema(
    [("sample_id", pa.string()), ("step", pa.int32()), ("maps", pa.map_(pa.string(), IMAGE))],
    required=("sample_id", "step"),
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
