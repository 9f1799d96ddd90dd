"""The report's section on edits: alpha curves and one strip of pictures an edit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from raygen.core.errors import InputError
from raygen.report import pictures as picture_rows
from raygen.report.influence import Series, _line, _vectors
from raygen.store.parquet import Slice, read_slice

__all__ = ["AlphaCurve", "EditStrip", "EditsSection", "edits_section"]

EDITS: Final = 8
COLUMNS: Final = ("sample_id", "alpha", "image", "mask", "text", "source")


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
class EditsSection:
    """All edits of a run as curves over alpha, and a few as strips."""

    n: int
    similarity: str
    curve: Sequence[AlphaCurve]
    lines: Sequence[Series]
    strips: Sequence[EditStrip]


# --- edits --------------------------------------------------------------------------------------------------


def edits_section(samples: Sequence[Slice], scores: Sequence[Slice], faces: Sequence[Slice]) -> EditsSection | None:
    """What SAMPLES and SCORES slices of an edit run say; None where it is none. `faces`: of the pictures edited."""
    found = list(_vectors(scores, "edit:"))
    if not found:
        return None
    vectors = np.concatenate([values for _, values in found])
    curve = [_at(vectors[vectors[:, 0] == alpha], float(alpha)) for alpha in np.unique(vectors[:, 0])]
    return EditsSection(
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


def _curves(curve: Sequence[AlphaCurve]) -> list[Series]:
    low, high = curve[0].alpha, curve[-1].alpha
    places = [(point.alpha - low) / ((high - low) or 1) for point in curve]
    lines = [_line("similarity", [max(point.similarity, 0.0) for point in curve], places)]
    if all(point.fidelity is not None for point in curve):
        lines.insert(0, _line("fidelity", [point.fidelity or 0.0 for point in curve], places))
    return lines


def _shown(samples: Sequence[Slice], scores: Sequence[Slice], faces: Sequence[Slice]) -> Iterator[EditStrip]:
    """A few edits at equal distances through all, each with its pictures in the order of alpha."""
    verdicts = dict(_judged(scores))
    ids = dict.fromkeys(row["edit_id"] for row in picture_rows.evenly(samples, 8 * EDITS, ["edit_id"]))
    chosen = list(ids)[:: max(1, len(ids) // EDITS)][:EDITS]
    for edit in chosen:
        rows = sorted(picture_rows.together(samples, "edit_id", edit, COLUMNS), key=lambda r: float(r["alpha"]))
        rows = [r for r in rows if r["image"] is not None]
        if rows:
            yield _strip(rows, verdicts, picture_rows.find(faces, "face_id", [rows[0]["source"]], ["image"]))


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
        shown = picture_rows.image_thumb(row["image"]["bytes"])
        if shown is not None:
            pictures.append((shown, float(row["alpha"]), chosen))
        if judged and chosen:
            change = "" if np.isnan(judged[1]) else f"fidelity {judged[1]:.2f}, "
            verdict = f"alpha {judged[0]:g}: {change}similarity {judged[2]:.2f}"
    source = next(iter(sources.values()), None)
    mask = rows[0]["mask"]
    return EditStrip(
        str(rows[0]["edit_id"]),
        _thumb(source),
        pictures,
        None if mask is None else picture_rows.mask_thumb(mask["bytes"]),
        str(rows[0]["text"] or ""),
        verdict,
    )


def _thumb(row: Mapping[str, Any] | None) -> str | None:
    try:
        return None if row is None or row["image"] is None else picture_rows.image_thumb(row["image"]["bytes"])
    except InputError:
        return None
