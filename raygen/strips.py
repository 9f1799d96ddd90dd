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

from raygen import galleries
from raygen.spec import InputError
from raygen.storage import Slice, read_slice
from raygen.tables import decode_image

__all__ = ["AlphaCurve", "EditStrip", "Edits", "Influence", "Line", "Strip", "edits", "influence"]

X0: Final = "x0"
SAMPLES: Final = 4
EDITS: Final = 8
COLUMNS: Final = ("sample_id", "alpha", "image", "mask", "text", "source")
#: Side of a picture in a strip, pixels.
SIDE: Final = 80
#: Dark to bright for 0 to 1: five colours, linear between them.
HEAT: Final = np.array([(14, 16, 48), (84, 32, 112), (176, 58, 98), (240, 136, 62), (252, 240, 190)], dtype=np.float64)


class Line(NamedTuple):
    """A curve over steps or alphas: its name, its SVG path (area 1000 x 100) and its last and mean value."""

    name: str
    path: str
    mean: float
    last: float


class Strip(NamedTuple):
    """Pictures in a row: what they are, and all of them as one data address."""

    name: str
    image: str


@dataclass(frozen=True)
class Influence:
    """Strips of a few samples over t, and the mean influence of each expert over the steps."""

    steps: Sequence[int]
    samples: Sequence[tuple[str, Sequence[Strip]]]
    lines: Sequence[Line]
    n: int


class AlphaCurve(NamedTuple):
    """Means over all edits at one alpha; `chosen` is the share of edits that took it."""

    alpha: float
    fidelity: float | None
    similarity: float
    chosen: float


class EditStrip(NamedTuple):
    """One edit: the input, its pictures over alpha, which of them was chosen, and what was asked for."""

    name: str
    source: str | None
    pictures: Sequence[tuple[str, float, bool]]
    mask: str | None
    text: str
    verdict: str


@dataclass(frozen=True)
class Edits:
    """All edits of a run as curves over alpha, and a few as strips."""

    n: int
    similarity: str
    curve: Sequence[AlphaCurve]
    lines: Sequence[Line]
    strips: Sequence[EditStrip]


# --- influence ----------------------------------------------------------------------------------------------


def influence(maps: Sequence[Slice], scores: Sequence[Slice]) -> Influence | None:
    """What INFLUENCE and SCORES slices say; None where there are no maps."""
    samples = list(_chosen(maps))
    if not samples:
        return None
    means, n = _mean_influence(scores)
    steps = sorted({row["step"] for rows in samples for row in rows}, reverse=True)
    return Influence(
        steps, [(rows[0]["sample_id"], _strips(rows)) for rows in samples],
        [_line(name, values) for name, values in means.items()], n,
    )  # fmt: skip


def _chosen(pieces: Sequence[Slice]) -> Iterator[list[dict[str, Any]]]:
    """The rows of the first sample of a few files at equal distances."""
    count = min(SAMPLES, len(pieces))
    for piece in (pieces[int((i + 0.5) * len(pieces) / count)] for i in range(count)):
        ids = read_slice(piece, ["sample_id"])["sample_id"]
        places = pc.indices_nonzero(pc.equal(ids, ids[0])).to_pylist()
        rows = [read_slice(piece._replace(start=piece.start + at, rows=1)).to_pylist()[0] for at in places]
        yield sorted(rows, key=lambda row: -int(row["step"]))


def _strips(rows: Sequence[Mapping[str, Any]]) -> list[Strip]:
    """The estimates of the picture, then the map of every expert."""
    maps = [dict(row["maps"]) for row in rows]
    names = [name for name in maps[0] if name != X0]
    result = []
    for name in [X0, *sorted(names)]:
        tiles = [_tile(one[name]["bytes"], heat=name != X0) for one in maps if name in one]
        if tiles:
            result.append(Strip(name, galleries.address(_row(tiles), quality=88, method=4)))
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


def _line(name: str, values: Sequence[float], at: Sequence[float] | None = None) -> Line:
    """Values in 0..1 over equal steps, or at places in 0..1."""
    places = at if at is not None else [i / max(len(values) - 1, 1) for i in range(len(values))]
    points = [f"{1000 * x:.1f} {100 - 100 * y:.1f}" for x, y in zip(places, values, strict=True)]
    return Line(name, "M" + "L".join(points), float(np.mean(values)), float(values[-1]))


# --- edits --------------------------------------------------------------------------------------------------


def edits(samples: Sequence[Slice], scores: Sequence[Slice], faces: Sequence[Slice]) -> Edits | None:
    """What SAMPLES and SCORES slices of an edit run say; None where it is none. `faces`: of the pictures edited."""
    found = list(_vectors(scores, "edit:"))
    if not found:
        return None
    vectors = np.concatenate([values for _, values in found])
    curve = [_at(vectors[vectors[:, 0] == alpha], float(alpha)) for alpha in np.unique(vectors[:, 0])]
    return Edits(
        int(vectors[:, 3].sum()),
        found[0][0].partition(":")[2],
        curve,
        _curves(curve),
        list(_shown(samples, scores, faces)),
    )


def _at(rows: npt.NDArray[np.float64], alpha: float) -> AlphaCurve:
    judged = rows[~np.isnan(rows[:, 1])]
    fidelity = float(judged[:, 1].mean()) if len(judged) else None
    return AlphaCurve(alpha, fidelity, float(rows[:, 2].mean()), float(rows[:, 3].mean()))


def _curves(curve: Sequence[AlphaCurve]) -> list[Line]:
    low, high = curve[0].alpha, curve[-1].alpha
    places = [(point.alpha - low) / ((high - low) or 1) for point in curve]
    lines = [_line("similarity", [max(point.similarity, 0.0) for point in curve], places)]
    if all(point.fidelity is not None for point in curve):
        lines.insert(0, _line("fidelity", [point.fidelity or 0.0 for point in curve], places))
    return lines


def _shown(samples: Sequence[Slice], scores: Sequence[Slice], faces: Sequence[Slice]) -> Iterator[EditStrip]:
    """A few edits at equal distances through all, each with its pictures in the order of alpha."""
    verdicts = dict(_judged(scores))
    ids = dict.fromkeys(row["edit_id"] for row in galleries.evenly(samples, 8 * EDITS, ["edit_id"]))
    chosen = list(ids)[:: max(1, len(ids) // EDITS)][:EDITS]
    for edit in chosen:
        rows = sorted(galleries.together(samples, "edit_id", edit, COLUMNS), key=lambda r: float(r["alpha"]))
        rows = [r for r in rows if r["image"] is not None]
        if rows:
            yield _strip(rows, verdicts, galleries.find(faces, "face_id", [rows[0]["source"]], ["image"]))


def _judged(scores: Sequence[Slice]) -> Iterator[tuple[str, Sequence[float]]]:
    """[alpha, fidelity, similarity, chosen] by sample."""
    for piece in scores:
        table = read_slice(piece, ["sample_id", "metric", "vector"])
        table = table.filter(pc.starts_with(table["metric"], "edit:"))
        yield from zip(table["sample_id"].to_pylist(), table["vector"].to_pylist(), strict=True)


def _strip(
    rows: Sequence[Mapping[str, Any]], verdicts: Mapping[str, Sequence[float]], sources: Mapping[str, Mapping[str, Any]]
) -> EditStrip:
    pictures, verdict = [], ""
    for row in rows:
        judged = verdicts.get(row["sample_id"])
        chosen = bool(judged and judged[3])
        shown = galleries.image_thumb(row["image"]["bytes"])
        if shown is not None:
            pictures.append((shown, float(row["alpha"]), chosen))
        if judged and chosen:
            change = "" if np.isnan(judged[1]) else f"fidelity {judged[1]:.2f}, "
            verdict = f"alpha {judged[0]:g}: {change}similarity {judged[2]:.2f}"
    source = next(iter(sources.values()), None)
    mask = rows[0]["mask"]
    return EditStrip(
        str(rows[0]["edit_id"]), _thumb(source), pictures,
        None if mask is None else galleries.mask_thumb(mask["bytes"]), str(rows[0]["text"] or ""), verdict,
    )  # fmt: skip


def _thumb(row: Mapping[str, Any] | None) -> str | None:
    try:
        return None if row is None or row["image"] is None else galleries.image_thumb(row["image"]["bytes"])
    except InputError:
        return None
