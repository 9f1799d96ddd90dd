"""Which pictures a report shows, and the small copies of them that go into it.

Knows how to take rows evenly from a committed table, how to rank samples by their segmentation counts, and how
to make a thumbnail. Never holds more than one shard of scores and one row group of pictures. Knows no HTML.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from raygen.core.errors import InputError
from raygen.core.face_labels import CLASSES, PALETTE
from raygen.store.images import decode_image, decode_mask
from raygen.store.parquet import Slice, read_slice

__all__ = [
    "ImageWithMask",
    "RankedSample",
    "Ranking",
    "address",
    "evenly",
    "find",
    "identities_section",
    "image_thumb",
    "mask_thumb",
    "pair",
    "rank",
    "together",
]


SEGMENTATION: Final = "segmentation:"
BINS: Final = 40
#: Longest side of an embedded picture; smaller ones are enlarged by a whole factor so that no browser blurs them.
SIDE: Final = 160


class ImageWithMask(NamedTuple):
    """A picture beside its mask, both as data addresses (None where there is none)."""

    id: str
    image: str
    mask: str | None
    source: str | None


class RankedSample(NamedTuple):
    """One sample with its own mIoU and the class that it got most wrong."""

    id: str
    value: float
    weakest: str
    weakest_value: float


@dataclass
class Ranking:
    """The best and worst samples by mIoU, and how all of them are spread; holds `keep` rows of each end."""

    keep_best: int = 6
    keep_worst: int = 12
    best: list[RankedSample] = field(default_factory=list)
    worst: list[RankedSample] = field(default_factory=list)
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    total: float = 0.0
    metric: str = ""

    @property
    def n(self) -> int:
        """Number of ranked samples."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Mean of the samples' own mIoU: not the mIoU of the set, which sums counts first."""
        return self.total / max(self.n, 1)

    def add(self, ids: Sequence[str], vectors: npt.NDArray[np.float64]) -> None:
        """Take in the counts [n, 3, classes] (intersection, prediction, target) of `ids`."""
        values, classes = _miou(vectors)
        self.counts += np.histogram(values, BINS, (0.0, 1.0))[0]
        self.total += float(values.sum())
        order = np.argsort(values, kind="stable")
        ends = {*order[: self.keep_worst].tolist(), *order[-self.keep_best :].tolist()}
        rows = [_scored(ids[i], values[i], classes[i], vectors[i]) for i in ends]
        self.worst = sorted([*self.worst, *rows], key=lambda row: (row.value, row.id))[: self.keep_worst]
        self.best = sorted([*self.best, *rows], key=lambda row: (-row.value, row.id))[: self.keep_best]


def _miou(vectors: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean IoU [n] over the classes that the mask or the parser has, and IoU [n, classes] (nan where neither)."""
    union = vectors[:, 1] + vectors[:, 2] - vectors[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        classes = np.where(union > 0, vectors[:, 0] / union, np.nan)
        values = np.nansum(classes, axis=1) / np.maximum((union > 0).sum(axis=1), 1)
    return values, classes


def _scored(name: str, value: float, classes: npt.NDArray[np.float64], vector: npt.NDArray[np.float64]) -> RankedSample:
    """The row, with the class of the mask (or, in an empty one, of the picture) that fits worst."""
    asked = np.where(vector[2] > 0, classes, np.inf)
    if np.isinf(asked).all():
        asked = np.nan_to_num(classes, nan=np.inf)
    lowest = int(asked.argmin())
    at = float(asked[lowest])
    return RankedSample(name, float(value), CLASSES[lowest], at if np.isfinite(at) else 0.0)


def rank(pieces: Iterable[Slice]) -> Ranking | None:
    """Rank the samples of SCORES slices by their segmentation rows; None where there are none."""
    ranking = Ranking()
    for piece in pieces:
        table = read_slice(piece, ["sample_id", "metric", "vector"])
        table = table.filter(pc.starts_with(table["metric"], SEGMENTATION))
        ranking.metric = ranking.metric or (table["metric"][0].as_py() if table.num_rows else "")
        table = table.filter(pc.equal(table["metric"], ranking.metric))
        table = table.filter(pc.equal(pc.list_value_length(table["vector"]), 3 * len(CLASSES)))
        if table.num_rows:
            flat = pc.list_flatten(table["vector"]).to_numpy().astype(np.float64)
            ranking.add(table["sample_id"].to_pylist(), flat.reshape(-1, 3, len(CLASSES)))
    return ranking if ranking.n else None


# --- rows ---------------------------------------------------------------------------------------------------


def evenly(pieces: Sequence[Slice], count: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """`count` rows at equal distances through all pieces: nobody chose them."""
    total = sum(piece.rows for piece in pieces)
    count = min(count, total)
    wanted = [int((i + 0.5) * total / count) for i in range(count)]
    start = 0
    for piece in pieces:
        for place in (w - start for w in wanted if start <= w < start + piece.rows):
            yield from read_slice(piece._replace(start=piece.start + place, rows=1), columns).to_pylist()
        start += piece.rows


def together(slices: Sequence[Slice], column: str, value: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one group, whose `column` is `value`. They follow each other, though a file may end between them."""
    found: list[dict[str, Any]] = []
    for piece in slices:
        places = pc.indices_nonzero(pc.equal(read_slice(piece, [column])[column], value)).to_pylist()
        if places:
            part = piece._replace(start=piece.start + places[0], rows=places[-1] - places[0] + 1)
            found += [row for row in read_slice(part, [column, *columns]).to_pylist() if row[column] == value]
        if found and (not places or places[-1] + 1 < piece.rows):
            break
    return found


def find(pieces: Iterable[Slice], key: str, ids: Iterable[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows by id: only the key column is read until a shard is known to hold one."""
    missing = set(ids)
    found: dict[str, dict[str, Any]] = {}
    for piece in pieces:
        if not missing:
            break
        names = read_slice(piece, [key])[key]
        for place in pc.indices_nonzero(pc.is_in(names, pa.array(sorted(missing), pa.string()))).to_pylist():
            row = read_slice(piece._replace(start=piece.start + place, rows=1), [key, *columns]).to_pylist()[0]
            found[row[key]] = row
            missing.discard(row[key])
    return found


# --- pictures -----------------------------------------------------------------------------------------------


def pair(row: Mapping[str, Any], key: str) -> ImageWithMask | None:
    """A row's picture and mask ready to show; None where the row has no picture that opens."""
    image = image_thumb(_bytes(row.get("image")))
    if image is None:
        return None
    return ImageWithMask(str(row[key]), image, mask_thumb(_bytes(row.get("mask"))), row.get("source"))


def _bytes(value: Mapping[str, Any] | None) -> bytes | None:
    return None if value is None else value.get("bytes")


def image_thumb(data: bytes | None) -> str | None:
    """Encoded picture -> data address of a WebP at most `SIDE` pixels wide."""
    try:
        image = Image.fromarray(decode_image(data))
    except InputError:
        return None
    factor = SIDE / max(image.size)
    if factor < 1 or factor >= 2:
        scale = factor if factor < 1 else min(int(factor), 4)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return address(image, quality=86, method=4)


def mask_thumb(data: bytes | None) -> str | None:
    """Encoded mask -> data address of a lossless WebP in the official colours, its pixels untouched up to `SIDE`."""
    try:
        image = Image.fromarray(decode_mask(data))
    except InputError:
        return None
    if max(image.size) > SIDE:
        scale = SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.NEAREST)
    return address(Image.fromarray(PALETTE[np.asarray(image)]), lossless=True, method=4)


def address(image: Image.Image, **options: Any) -> str:
    """A picture as the data address of a WebP; `options` of its encoder."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


MAX_IDENTITIES = 8
#: Pictures of each; a set in which nobody has two shows nobody.
PICTURES = 10


def identities_section(slices: Sequence[Slice], key: str) -> list[tuple[str, list[ImageWithMask]]]:
    """Names and pictures of people in the rows of `slices`, whose ids are in `key`; empty where rows name nobody."""
    found: list[tuple[str, list[ImageWithMask]]] = []
    for row in evenly(slices, MAX_IDENTITIES, ["identity_id"]):
        name = row.get("identity_id")
        if name is None or name in [other for other, _ in found]:
            continue
        rows = together(slices, "identity_id", name, (key, "image", "mask", "source"))
        pairs = [shown for one in rows if one["image"] and (shown := pair(one, key))][:PICTURES]
        if len(pairs) > 1:
            found.append((name, pairs))
    return found
