"""Rows of committed tables that a report shows, and thumbnails of their images as data URLs.

Reads the key column of a table and the image rows that are shown, never all images.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from raygen.core.errors import InputError
from raygen.core.face_labels import PALETTE
from raygen.store.images import decode_image, decode_mask
from raygen.store.parquet import Slice, read_slice

__all__ = [
    "ImageWithMask",
    "data_url",
    "find_rows",
    "group_rows",
    "image_thumb",
    "image_with_mask",
    "mask_thumb",
]


#: Longest side of an embedded image; smaller ones are enlarged by a whole factor so that no browser blurs them.
SIDE: Final = 160


class ImageWithMask(NamedTuple):
    """An image and its mask as data URLs (mask None where there is none); `source` is the face that it refers to."""

    id: str
    image: str
    mask: str | None
    source: str | None


def group_rows(pieces: Sequence[Slice], column: str, value: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows whose `column` is `value`. They follow each other, though a file may end between them."""
    rows: list[dict[str, Any]] = []
    for piece in pieces:
        places = pc.indices_nonzero(pc.equal(read_slice(piece, [column])[column], value)).to_pylist()
        if places:
            part = piece._replace(start=piece.start + places[0], rows=places[-1] - places[0] + 1)
            rows += [row for row in read_slice(part, [column, *columns]).to_pylist() if row[column] == value]
        if rows and (not places or places[-1] + 1 < piece.rows):
            break
    return rows


def find_rows(
    pieces: Iterable[Slice], key: str, ids: Iterable[str], columns: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Rows by id. Only the key column is read until a shard is known to hold one."""
    missing = set(ids)
    rows: dict[str, dict[str, Any]] = {}
    for piece in pieces:
        if not missing:
            break
        names = read_slice(piece, [key])[key]
        for place in pc.indices_nonzero(pc.is_in(names, pa.array(sorted(missing), pa.string()))).to_pylist():
            row = read_slice(piece._replace(start=piece.start + place, rows=1), [key, *columns]).to_pylist()[0]
            rows[row[key]] = row
            missing.discard(row[key])
    return rows


def image_with_mask(row: Mapping[str, Any], key: str) -> ImageWithMask | None:
    """A row's image and mask ready to show; None where the row has no image that opens."""
    image = image_thumb(row.get("image"))
    if image is None:
        return None
    return ImageWithMask(str(row[key]), image, mask_thumb(row.get("mask")), row.get("source"))


def image_thumb(value: Mapping[str, Any] | None) -> str | None:
    """Stored image (`{"bytes": …}`) -> data URL of a WebP at most `SIDE` pixels wide; None where it does not open."""
    try:
        image = Image.fromarray(decode_image((value or {}).get("bytes")))
    except InputError:
        return None
    factor = SIDE / max(image.size)
    if factor < 1 or factor >= 2:
        scale = factor if factor < 1 else min(int(factor), 4)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return data_url(image, quality=86, method=4)


def mask_thumb(value: Mapping[str, Any] | None) -> str | None:
    """Stored mask -> data URL of a lossless WebP in the official colours, its pixels untouched up to `SIDE`."""
    try:
        image = Image.fromarray(decode_mask((value or {}).get("bytes")))
    except InputError:
        return None
    if max(image.size) > SIDE:
        scale = SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.NEAREST)
    return data_url(Image.fromarray(PALETTE[np.asarray(image)]), lossless=True, method=4)


def data_url(image: Image.Image, **options: Any) -> str:
    """An image as the data URL of a WebP; `options` of its encoder."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
