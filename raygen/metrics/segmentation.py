"""Agreement of two label maps: mIoU, per-class IoU, pixel accuracy, from exact integer counts.

`miou` is over the counts of the whole data set and all 19 classes with background; classes that occur in neither map
are left out, and the number of the others is reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raygen.core.face_labels import CLASSES
from raygen.core.types import AnyArray, Float64Array, Int64Array

__all__ = ["Counts", "bootstrap_miou", "confusion", "per_picture_miou"]


N = len(CLASSES)
#: Rows that are turned to float64 at a time.
ROWS = 4096


def confusion(target: AnyArray, prediction: AnyArray) -> Int64Array:
    """Confusion matrix int64 [19, 19] of label maps: pixels of wanted class i (row) and predicted class j (column).

    `ValueError` for different shapes, or a label outside of 0..18.
    """
    if target.shape != prediction.shape:
        raise ValueError(f"label maps of shapes {target.shape} and {prediction.shape}")
    if target.size and (min(target.min(), prediction.min()) < 0 or max(target.max(), prediction.max()) >= N):
        raise ValueError("a label is not one of 0..18")
    index = target.astype(np.int64).ravel() * N + prediction.astype(np.int64).ravel()
    return np.bincount(index, minlength=N * N).reshape(N, N)


@dataclass(frozen=True)
class Counts:
    """Pixels of each class: in both maps (`both`), in the wanted map, in the predicted one; int64 [..., 19]."""

    both: Int64Array
    wanted: Int64Array
    predicted: Int64Array

    @staticmethod
    def of(matrix: Int64Array) -> "Counts":
        """Counts of a confusion matrix."""
        return Counts(np.diag(matrix).copy(), matrix.sum(axis=1), matrix.sum(axis=0))

    def vector(self) -> list[float]:
        """57 numbers for SCORES: both, wanted, predicted. Exact in float32 for pictures up to 4096 x 4096."""
        return [float(v) for part in (self.both, self.wanted, self.predicted) for v in part]

    @staticmethod
    def from_vectors(vectors: AnyArray) -> "Counts":
        """Counts of each picture, [n, 19], from rows of 57 numbers [n, 57]."""
        whole = np.empty((len(vectors), 3, N), np.int64)
        for start in range(0, len(whole), ROWS):
            part = np.asarray(vectors[start : start + ROWS], np.float64)
            whole[start : start + ROWS] = np.rint(part).reshape(-1, 3, N)
        return Counts(whole[:, 0], whole[:, 1], whole[:, 2])

    def total(self) -> "Counts":
        """Sum over pictures."""
        return Counts(self.both.sum(axis=0), self.wanted.sum(axis=0), self.predicted.sum(axis=0))

    def iou(self) -> Float64Array:
        """Intersection over union, float64 [..., 19]; NaN for a class that neither map has."""
        union = self.wanted + self.predicted - self.both
        iou: Float64Array = np.divide(self.both, union, out=np.full(union.shape, np.nan), where=union > 0)
        return iou

    def scores(self) -> Mapping[str, float]:
        """Data-set scores of summed counts: `miou`, `pixel_accuracy`, `class_accuracy`, `frequency_iou`, `classes`."""
        iou = self.iou()
        present = self.wanted > 0
        share = self.wanted / max(int(self.wanted.sum()), 1)
        recall = self.both[present] / self.wanted[present]
        return {
            "miou": float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan"),
            "pixel_accuracy": float(self.both.sum() / max(int(self.wanted.sum()), 1)),
            "class_accuracy": float(recall.mean()) if present.any() else float("nan"),
            "frequency_iou": float(np.nansum(share * iou)),
            "classes": float(np.isfinite(iou).sum()),
        }


def per_picture_miou(counts: Counts) -> Float64Array:
    """mIoU of each picture over the classes of the picture and its mask, float64 [n]."""
    iou = counts.iou()
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(iou, axis=-1) / np.isfinite(iou).sum(axis=-1), np.float64)


def bootstrap_miou(counts: Counts, *, rounds: int = 200, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval, over pictures, of the data-set mIoU; the same for the same rows and seed."""
    random = np.random.Generator(np.random.Philox(key=seed))
    n = len(counts.both)
    values = []
    for _ in range(rounds):
        weight = np.bincount(random.integers(0, n, n), minlength=n).astype(np.int64)
        parts = (weight @ part for part in (counts.both, counts.wanted, counts.predicted))
        values.append(Counts(*parts).scores()["miou"])
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
