"""The tables every stage reads and writes: Arrow schemas, the picture codec, Parquet bytes.

Knows what a row of FACES, CONDITIONS, SAMPLES, SCORES, SELECTION, LATENTS, INFLUENCE and METRICS is and how
pictures and masks become bytes and back, safely. Knows nothing of where tables are stored or who makes them.

Pictures are `struct<bytes, path>` with the Hugging Face feature metadata in the schema, so other tools show
them as pictures. Parquet is written with page checksums, and with neither a dictionary nor a second
compression for picture columns.
"""

import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from raygen.faces import ATTRIBUTES, CLASSES, from_palette
from raygen.spec import InputError

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
    "Codec",
    "cast",
    "check_id",
    "decode_image",
    "decode_mask",
    "encode_image",
    "encode_mask",
    "from_parquet",
    "picture",
    "picture_column",
    "picture_schema",
    "reason_of",
    "to_parquet",
]

UInt8Array = npt.NDArray[np.uint8]
Codec = Literal["webp", "png"]

#: A picture larger than this many pixels is refused before it is decoded (a bomb of 100 KB can ask for gigabytes).
MAX_PIXELS: Final = 4096 * 4096
FORMATS: Final = ("PNG", "JPEG", "WEBP", "PPM", "BMP", "TIFF")
ID_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

IMAGE: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ATTRIBUTE_LIST: Final = pa.list_(pa.int8(), len(ATTRIBUTES))
STYLE: Final = pa.struct([("face_id", pa.string()), ("sha256", pa.string())])


def picture_schema(fields: Sequence[tuple[str, pa.DataType]], required: Sequence[str] = ()) -> pa.Schema:
    """A schema whose picture columns carry the feature metadata that makes viewers show them."""
    features = {name: {"_type": "Image"} for name, kind in fields if kind == IMAGE}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    return pa.schema([pa.field(n, k, nullable=n not in required) for n, k in fields], metadata=metadata)


#: `boxes`: left, top, right, bottom of each face. `keypoints`: x, y and how much each counts. In parts of the sides.
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
    ("style_a", STYLE),
    ("style_b", STYLE),
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

#: Begin of the error of a SAMPLES row of which no try counts.
REFUSED: Final = "refused: "
#: A row a try: whether it is the one that counts, and why or why not.
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

#: What an export wrote of each row: where its picture lies (`path`, seen from the data set's folder), the piece that
#: was put together into that file, its place in the one or the other, and the size of its mask.
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

#: Files that a shard of an export wrote, seen from the data set's folder, byte for byte.
FILES: Final = picture_schema(
    [("path", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())], required=("path", "bytes", "sha256")
)

#: Rows that could not become rows of the table they were meant for, with the reason.
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
    return text.replace("\n", " ")[:300]


# --- pictures -----------------------------------------------------------------------------------------------


def picture(data: bytes | None) -> dict[str, Any] | None:
    """One value of a picture column."""
    return None if data is None else {"bytes": data, "path": None}


def picture_column(values: Sequence[bytes | None]) -> pa.Array:
    """A picture column from encoded bytes; None stays null."""
    return pa.array([picture(value) for value in values], IMAGE)


def encode_image(pixels: UInt8Array, codec: Codec = "webp") -> bytes:
    """uint8 [H, W, 3] or [H, W] -> lossless bytes.

    `webp` at method 0 is several times faster than PNG at Pillow's default and about 15 % smaller; `png` is
    for tools that read nothing else.
    """
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if codec == "webp":
        image.convert("RGB").save(buffer, "WEBP", lossless=True, method=0, quality=0, exact=True)
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_mask(mask: UInt8Array) -> bytes:
    """Class indices uint8 [H, W] -> PNG of mode L, whose grey values are the indices."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _open(data: bytes | None, max_pixels: int) -> Image.Image:
    """A fully decoded picture; every way of being bad becomes an `InputError` with its own reason."""
    if not data:
        raise InputError("no bytes", reason="empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise InputError(f"{image.width}x{image.height} pixels, {max_pixels} allowed", reason="bomb")
            image.load()
            if image.format == "PNG":  # load() skips the checksums of pixel data: a flipped bit would be another class
                Image.open(io.BytesIO(data), formats=("PNG",)).verify()
        return image
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError("not a picture in a known format", reason="not_an_image") from error
    except Image.DecompressionBombError as error:
        raise InputError(str(error), reason="bomb") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise InputError(str(error)[:200], reason=reason) from error


def decode_image(data: bytes | None, *, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Encoded picture -> RGB uint8 [H, W, 3]; `InputError` with reason empty, truncated, corrupt, bomb …"""
    return np.asarray(_open(data, max_pixels).convert("RGB"))


def decode_mask(data: bytes | None, *, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Encoded mask -> class indices uint8 [H, W].

    Modes L and P hold indices (a palette never changes them); an RGB picture is inverted through the official
    palette. `InputError`: as for pictures, `label` for an id above 18, `palette` for an unknown colour,
    `mode` for anything else.
    """
    image = _open(data, max_pixels)
    if image.mode in ("L", "P"):
        mask = np.array(image, dtype=np.uint8)
    elif image.mode in ("RGB", "RGBA"):
        mask = _invert(np.asarray(image.convert("RGB")))
    else:
        raise InputError(f"mode {image.mode} cannot hold class indices", reason="mode")
    if int(mask.max(initial=0)) >= len(CLASSES):
        raise InputError(f"label {int(mask.max())} is above {len(CLASSES) - 1}", reason="label")
    return mask


def _invert(pixels: UInt8Array) -> UInt8Array:
    try:
        return from_palette(pixels)
    except ValueError as error:
        raise InputError(str(error), reason="palette") from error


# --- tables -------------------------------------------------------------------------------------------------


def cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` in exactly `schema`: order, types and metadata; absent nullable columns become null.

    `InputError`: `columns` for unknown ones or missing required ones, `type` where a value does not fit,
    `null` for a null in a required column.
    """
    unknown = sorted(set(table.column_names) - set(schema.names))
    if unknown:
        raise InputError(f"unknown columns {unknown}", reason="columns")
    columns = [_column(table, field) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _column(table: pa.Table, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    if field.name not in table.column_names:
        if not field.nullable:
            raise InputError(f"column {field.name!r} is missing", reason="columns")
        return pa.nulls(table.num_rows, field.type)
    column = table.column(field.name)
    if not field.nullable and column.null_count:
        raise InputError(f"column {field.name!r} has {column.null_count} nulls", reason="null")
    try:
        return column if column.type == field.type else column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise InputError(f"column {field.name!r}: {error}", reason="type") from error


def to_parquet(table: pa.Table, *, row_group_rows: int = 128) -> bytes:
    """One Parquet file as bytes: page checksums on, small row groups, statistics for plain columns only."""
    pictures = {f.name for f in table.schema if pa.types.is_nested(f.type) or pa.types.is_binary(f.type)}
    plain = [name for name in table.schema.names if name not in pictures]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=row_group_rows,
        compression={**dict.fromkeys(plain, "zstd")} if plain else "none",
        use_dictionary=plain,
        write_statistics=plain,
        write_page_checksum=True,
        store_schema=True,
    )
    return bytes(sink.getvalue().to_pybytes())


def from_parquet(data: bytes | pa.Buffer, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Parquet bytes -> table with page checksums verified; `InputError` (`parquet`) where they do not hold."""
    try:
        reader = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        return reader.read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(str(error)[:200], reason="parquet") from error
