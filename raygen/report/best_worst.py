"""Section: the images that follow their mask best and worst, by their own mean IoU."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup

from raygen.core.face_labels import CLASSES
from raygen.core.types import Float64Array, Int64Array
from raygen.report.images import find_rows, image_thumb, image_with_mask
from raygen.report.plots import histogram_plot
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section
from raygen.store.parquet import Slice, read_slice

__all__ = ["RankedSample", "Ranking", "rank", "section"]


SEGMENTATION: Final = "segmentation:"
BINS: Final = 40


class RankedSample(NamedTuple):
    """One sample with its own mIoU and the class that fits its mask worst."""

    id: str
    value: float
    weakest: str
    weakest_value: float


@dataclass
class Ranking:
    """The best and worst samples by mIoU, and the histogram of all of them; holds `keep` rows of each end."""

    keep_best: int = 6
    keep_worst: int = 12
    best: list[RankedSample] = field(default_factory=list)
    worst: list[RankedSample] = field(default_factory=list)
    counts: Int64Array = field(default_factory=lambda: np.zeros(BINS, np.int64))
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

    def add(self, ids: Sequence[str], vectors: Float64Array) -> None:
        """Take in the counts [n, 3, classes] (intersection, prediction, target) of `ids`.

        A sample's mIoU is the mean over the classes that its mask or the parser's label map has. Its weakest class is
        one of the mask, or of the label map where the mask is empty.
        """
        union = vectors[:, 1] + vectors[:, 2] - vectors[:, 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = np.where(union > 0, vectors[:, 0] / union, np.nan)
            values = np.nansum(iou, axis=1) / np.maximum((union > 0).sum(axis=1), 1)
        self.counts += np.histogram(values, BINS, (0.0, 1.0))[0]
        self.total += float(values.sum())
        order = np.argsort(values, kind="stable")
        ends = {*order[: self.keep_worst].tolist(), *order[-self.keep_best :].tolist()}
        rows = [_ranked(ids[i], values[i], iou[i], vectors[i]) for i in ends]
        self.worst = sorted([*self.worst, *rows], key=lambda row: (row.value, row.id))[: self.keep_worst]
        self.best = sorted([*self.best, *rows], key=lambda row: (-row.value, row.id))[: self.keep_best]


def _ranked(name: str, value: float, iou: Float64Array, counts: Float64Array) -> RankedSample:
    in_mask = np.where(counts[2] > 0, iou, np.inf)
    if np.isinf(in_mask).all():
        in_mask = np.nan_to_num(iou, nan=np.inf)
    lowest = int(in_mask.argmin())
    weakest = float(in_mask[lowest])
    return RankedSample(name, float(value), CLASSES[lowest], weakest if np.isfinite(weakest) else 0.0)


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


def section(run: RunFolder) -> Section | None:
    """Histogram of mIoU, and the best and worst samples with mask and reference image; None without such scores."""
    if run.images is None:
        return None
    stored = [run.stages[name].slices("scores") for name in ("scores/samples", run.images.folder) if name in run.stages]
    ranking = rank(next((pieces for pieces in stored if pieces), []))
    if ranking is None:
        return None
    ids = [row.id for row in (*ranking.best, *ranking.worst)]
    rows = find_rows(run.images.slices("samples"), "sample_id", ids, ("image", "mask", "source"))
    faces = find_rows(run.faces, "face_id", {row["source"] for row in rows.values() if row["source"]}, ["image"])

    def shown(samples: Sequence[RankedSample]) -> list[Mapping[str, Any]]:
        images = [(row, image_with_mask(rows[row.id], "sample_id")) for row in samples if row.id in rows]
        return [
            {"row": row, "image": image, "source": image_thumb(faces.get(image.source or "", {}).get("image"))}
            for row, image in images
            if image
        ]

    histogram = histogram_plot(
        {"images": ranking.counts.tolist()},
        (0.0, 1.0),
        name="miou-histogram",
        title="Images by their mean IoU",
        xlabel="mean IoU of one image",
        ylabel="images",
        mean=ranking.mean,
    )
    variables = {
        "ranking": ranking,
        "histogram": Markup(histogram),
        "best": shown(ranking.best),
        "worst": shown(ranking.worst),
    }
    return Section("best-worst", "Best and worst", "best_worst.html.j2", variables)
