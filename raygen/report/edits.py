"""Section: edits, as curves over alpha and as one row of images an edit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup

from raygen.report.images import find_rows, group_rows, image_thumb, mask_thumb
from raygen.report.plots import DataPoint, Series, line_plot
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section
from raygen.report.vectors import vectors_by_metric
from raygen.store.lookup import evenly
from raygen.store.parquet import Slice, read_slice

__all__ = ["AlphaMeans", "EditRow", "EditScores", "edit_scores", "section"]


MAX_EDITS: Final = 8
COLUMNS: Final = ("sample_id", "alpha", "image", "mask", "text", "source")


class AlphaMeans(NamedTuple):
    """Means over all edits at one alpha; `chosen` is the share of edits that took it."""

    alpha: float
    fidelity: float | None
    similarity: float
    chosen: float


@dataclass(frozen=True)
class EditScores:
    """Scores of all edits of a run: how many edits, the network of the similarity, and means by alpha."""

    n: int
    similarity: str
    by_alpha: Sequence[AlphaMeans]


class EditRow(NamedTuple):
    """One edit: the input, its images over alpha, which of them was chosen, and what was asked for."""

    name: str
    source: str | None
    images: Sequence[tuple[str, float, bool]]
    mask: str | None
    text: str
    verdict: str


def section(run: RunFolder) -> Section | None:
    """Curves over alpha and a few edits; None where the samples are no edits."""
    edits = edit_scores(run.images.slices("scores")) if run.images else None
    if run.images is None or edits is None:
        return None
    series = [Series("similarity", [DataPoint(at.alpha, max(at.similarity, 0.0)) for at in edits.by_alpha])]
    fidelity = [DataPoint(at.alpha, at.fidelity) for at in edits.by_alpha if at.fidelity is not None]
    if len(fidelity) == len(edits.by_alpha):
        series.insert(0, Series("fidelity", fidelity))
    title = "Fidelity and similarity over alpha; higher is better"
    plot = line_plot(series, name="edits", title=title, xlabel="alpha", y_range=(0.0, 1.0))
    rows = list(_rows(run.images.slices("samples"), run.images.slices("scores"), run.faces))
    return Section("edits", "Edits", "edits.html.j2", {"edits": edits, "plot": Markup(plot), "rows": rows})


def edit_scores(scores: Sequence[Slice]) -> EditScores | None:
    """Means by alpha of SCORES slices; None where they have no edits."""
    named = list(vectors_by_metric(scores, "edit:"))
    if not named:
        return None
    vectors = np.concatenate([values for _, values in named])
    by_alpha = []
    for alpha in np.unique(vectors[:, 0]):
        rows = vectors[vectors[:, 0] == alpha]
        judged = rows[~np.isnan(rows[:, 1])]
        fidelity = float(judged[:, 1].mean()) if len(judged) else None
        by_alpha.append(AlphaMeans(float(alpha), fidelity, float(rows[:, 2].mean()), float(rows[:, 3].mean())))
    return EditScores(int(vectors[:, 3].sum()), named[0][0].partition(":")[2], by_alpha)


def _rows(samples: Sequence[Slice], scores: Sequence[Slice], faces: Sequence[Slice]) -> Iterator[EditRow]:
    """A few evenly spaced edits, each with its images in the order of alpha."""
    judged: dict[str, Sequence[float]] = {}
    for piece in scores:
        table = read_slice(piece, ["sample_id", "metric", "vector"])
        table = table.filter(pc.starts_with(table["metric"], "edit:"))
        judged |= dict(zip(table["sample_id"].to_pylist(), table["vector"].to_pylist(), strict=True))
    ids = list(dict.fromkeys(row["edit_id"] for row in evenly(samples, 8 * MAX_EDITS, ["edit_id"])))
    for edit in ids[:: max(1, len(ids) // MAX_EDITS)][:MAX_EDITS]:
        rows = sorted(group_rows(samples, "edit_id", edit, COLUMNS), key=lambda row: float(row["alpha"]))
        rows = [row for row in rows if row["image"] is not None]
        if rows:
            source = find_rows(faces, "face_id", [rows[0]["source"]], ["image"]).get(rows[0]["source"], {})
            yield _row(rows, judged, image_thumb(source.get("image")))


def _row(rows: Sequence[Mapping[str, Any]], judged: Mapping[str, Sequence[float]], source: str | None) -> EditRow:
    images, verdict = [], ""
    for row in rows:
        scores = judged.get(row["sample_id"])
        chosen = bool(scores and scores[3])
        thumb = image_thumb(row["image"])
        if thumb is not None:
            images.append((thumb, float(row["alpha"]), chosen))
        if scores and chosen:
            change = "" if np.isnan(scores[1]) else f"fidelity {scores[1]:.2f}, "
            verdict = f"alpha {scores[0]:g}: {change}similarity {scores[2]:.2f}"
    mask = mask_thumb(rows[0]["mask"])
    return EditRow(str(rows[0]["edit_id"]), source, images, mask, str(rows[0]["text"] or ""), verdict)
