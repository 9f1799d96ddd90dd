"""What a report shows of influence and of edits: strips of pictures over steps and over alphas, and their curves.

Knows INFLUENCE rows and the SCORES of edits. Reads the few rows it shows and the scores, never all pictures. Knows no
HTML and no model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from PIL import Image

from raygen.report import pictures as picture_rows
from raygen.store.images import decode_image
from raygen.store.parquet import Slice, read_slice

__all__ = ["InfluenceSection", "InfluenceStrip", "Series", "influence_section"]


X0: Final = "x0"
SAMPLES: Final = 4
#: Side of a picture in a strip, pixels.
SIDE: Final = 80
#: Dark to bright for 0 to 1: five colours, linear between them.
HEAT: Final = np.array([(14, 16, 48), (84, 32, 112), (176, 58, 98), (240, 136, 62), (252, 240, 190)], dtype=np.float64)


class Series(NamedTuple):
    """A curve over steps or alphas: its name, its SVG path (area 1000 x 100) and its last and mean value."""

    name: str
    path: str
    mean: float
    last: float


class InfluenceStrip(NamedTuple):
    """Pictures in a row: what they are, and all of them as one data address."""

    name: str
    image: str


@dataclass(frozen=True)
class InfluenceSection:
    """Strips of a few samples over t, and the mean influence of each expert over the steps."""

    steps: Sequence[int]
    samples: Sequence[tuple[str, Sequence[InfluenceStrip]]]
    lines: Sequence[Series]
    n: int


# --- influence ----------------------------------------------------------------------------------------------


def influence_section(maps: Sequence[Slice], scores: Sequence[Slice]) -> InfluenceSection | None:
    """What INFLUENCE and SCORES slices say; None where there are no maps."""
    samples = list(_chosen(maps))
    if not samples:
        return None
    means, n = _mean_influence(scores)
    steps = sorted({row["step"] for rows in samples for row in rows}, reverse=True)
    return InfluenceSection(
        steps,
        [(rows[0]["sample_id"], _strips(rows)) for rows in samples],
        [_line(name, values) for name, values in means.items()],
        n,
    )


def _chosen(pieces: Sequence[Slice]) -> Iterator[list[dict[str, Any]]]:
    """The rows of the first sample of a few files at equal distances."""
    count = min(SAMPLES, len(pieces))
    for piece in (pieces[int((i + 0.5) * len(pieces) / count)] for i in range(count)):
        ids = read_slice(piece, ["sample_id"])["sample_id"]
        places = pc.indices_nonzero(pc.equal(ids, ids[0])).to_pylist()
        rows = [read_slice(piece._replace(start=piece.start + at, rows=1)).to_pylist()[0] for at in places]
        yield sorted(rows, key=lambda row: -int(row["step"]))


def _strips(rows: Sequence[Mapping[str, Any]]) -> list[InfluenceStrip]:
    """The estimates of the picture, then the map of every expert."""
    maps = [dict(row["maps"]) for row in rows]
    names = [name for name in maps[0] if name != X0]
    result = []
    for name in [X0, *sorted(names)]:
        tiles = [_tile(one[name]["bytes"], heat=name != X0) for one in maps if name in one]
        if tiles:
            result.append(InfluenceStrip(name, picture_rows.address(_row(tiles), quality=88, method=4)))
    return result


def _tile(data: bytes, *, heat: bool) -> Image.Image:
    pixels = decode_image(data)
    image = Image.fromarray(_heat(pixels[..., 0]) if heat else pixels)
    return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR if heat else Image.Resampling.LANCZOS)


def _heat(share: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """uint8 [h, w] -> RGB."""
    at = np.linspace(0, 255, len(HEAT))
    return np.stack([np.interp(share, at, HEAT[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def _row(tiles: Sequence[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (len(tiles) * (SIDE + 4) - 4, SIDE), (128, 128, 128))
    for i, tile in enumerate(tiles):
        canvas.paste(tile, (i * (SIDE + 4), 0))
    return canvas


def _mean_influence(scores: Sequence[Slice]) -> tuple[dict[str, list[float]], int]:
    """Mean over samples of the share of each expert at each step, and the number of samples."""
    sums: dict[str, npt.NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for name, vectors in _vectors(scores, "influence:"):
        half = vectors[:, : vectors.shape[1] // 2]
        sums[name] = sums.get(name, np.zeros(half.shape[1])) + half.sum(axis=0)
        counts[name] = counts.get(name, 0) + len(half)
    means = {name.partition(":")[2]: (sums[name] / counts[name]).tolist() for name in sorted(sums)}
    return means, max(counts.values(), default=0)


def _vectors(pieces: Sequence[Slice], prefix: str) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    for piece in pieces:
        table = read_slice(piece, ["metric", "vector"])
        for name in table["metric"].unique().to_pylist():
            if name.startswith(prefix):
                rows = table.filter(pc.equal(table["metric"], name))["vector"].to_pylist()
                yield name, np.array(rows, dtype=np.float64)


def _line(name: str, values: Sequence[float], at: Sequence[float] | None = None) -> Series:
    """Values in 0..1 over equal steps, or at places in 0..1."""
    places = at if at is not None else [i / max(len(values) - 1, 1) for i in range(len(values))]
    points = [f"{1000 * x:.1f} {100 - 100 * y:.1f}" for x, y in zip(places, values, strict=True)]
    return Series(name, "M" + "L".join(points), float(np.mean(values)), float(values[-1]))
