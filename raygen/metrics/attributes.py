"""Agreement of the attributes of pictures with those that were asked for, from one code a picture and attribute."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from raygen.core.types import BoolArray, Float32Array, Float64Array, UInt8Array

__all__ = ["RIGHT", "UNKNOWN", "UNWANTED", "WANTED", "Agreement", "bootstrap_accuracy", "codes", "mean"]


BOOTSTRAPS: Final = 200
#: Code of an attribute that was not asked for; the others are 1 + 2 x wanted + predicted.
UNKNOWN: Final = 0
#: Codes of attributes that were to be present, that were to be absent, and that are as asked for.
WANTED, UNWANTED, RIGHT = (3, 4), (1, 2), (1, 4)


def codes(wanted: npt.NDArray[np.int8], predicted: BoolArray) -> UInt8Array:
    """Encodes wanted attributes [n, 40] (-1, 0 for not asked for, 1) and predicted ones [n, 40] as SCORES keep them.

    0: unknown, 1: true negative, 2: false positive, 3: false negative, 4: true positive.
    """
    result: UInt8Array = np.where(wanted == 0, UNKNOWN, 1 + 2 * (wanted > 0) + predicted).astype(np.uint8)
    return result


@dataclass(frozen=True)
class Agreement:
    """Additive counts by attribute: true negatives, false positives, false negatives, true positives."""

    counts: Float64Array  # [4, 40]

    @classmethod
    def of(cls, vectors: Float32Array) -> "Agreement":
        """Counts the codes of n pictures [n, 40]."""
        return cls(np.stack([(vectors == code).sum(axis=0) for code in range(1, 5)]).astype(np.float64))

    def accuracy(self) -> Float64Array:
        """Share of pictures that are as wanted, by attribute [40]; NaN where none was asked for."""
        total = self.counts.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((self.counts[0] + self.counts[3]) / total)

    def balanced(self) -> Float64Array:
        """Mean of true positive rate and true negative rate, by attribute [40]; NaN unless both classes were wanted.

        Hats are rare: a model that never draws one has an accuracy of 0.93, and a balanced accuracy of 0.5.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            true_positive_rate = self.counts[3] / (self.counts[2] + self.counts[3])
            true_negative_rate = self.counts[0] / (self.counts[0] + self.counts[1])
        return np.asarray((true_positive_rate + true_negative_rate) / 2)


def mean(values: Float64Array) -> float:
    """Mean over the attributes that have a value; NaN if none has."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def bootstrap_accuracy(vectors: Float32Array, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval, over pictures, of the mean balanced accuracy of codes [n, 40]."""
    random = np.random.default_rng(seed)
    means = [
        mean(Agreement.of(vectors[random.integers(0, len(vectors), len(vectors))]).balanced())
        for _ in range(BOOTSTRAPS)
    ]
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(low), float(high)
