"""Whether pictures have the attributes that were asked for.

Knows what is counted: for each picture and attribute, what was wanted and what was found. Knows no classifier.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["RIGHT", "UNKNOWN", "UNWANTED", "WANTED", "Agreement", "bootstrap_accuracy", "codes", "mean"]


Array = npt.NDArray[np.float64]
BOOTSTRAPS: Final = 200
#: What a vector of SCORES holds at the place of an attribute: nothing was wanted, else 1 + 2 x wanted + found.
UNKNOWN: Final = 0
#: Codes of what was wanted, of what was not, and of what came out as it was asked for.
WANTED, UNWANTED, RIGHT = (3, 4), (1, 2), (1, 4)


def codes(wanted: npt.NDArray[np.int8], found: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """[n, 40] of -1, 0 (not asked for), 1 and what was found -> 0 unknown, 1 no, 2 false yes, 3 false no, 4 yes."""
    result: npt.NDArray[np.uint8] = np.where(wanted == 0, UNKNOWN, 1 + 2 * (wanted > 0) + found).astype(np.uint8)
    return result


@dataclass(frozen=True)
class Agreement:
    """Counts by attribute [40] of each code but unknown: true no, false yes, false no, true yes. They add up."""

    counts: Array  # [4, 40]

    @classmethod
    def of(cls, vectors: npt.NDArray[np.float32]) -> "Agreement":
        """From the codes of n pictures [n, 40]."""
        return cls(np.stack([(vectors == code).sum(axis=0) for code in range(1, 5)]).astype(np.float64))

    def accuracy(self) -> Array:
        """Share that is as wanted, by attribute; NaN where none was asked for."""
        total = self.counts.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((self.counts[0] + self.counts[3]) / total)

    def balanced(self) -> Array:
        """Mean of the shares found among the wanted and left out among the unwanted; NaN unless there are both.

        Hats are rare: a model that never draws one is right 93 times in 100, and 0.5 here.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            yes = self.counts[3] / (self.counts[2] + self.counts[3])
            no = self.counts[0] / (self.counts[0] + self.counts[1])
        return np.asarray((yes + no) / 2)


def mean(values: Array) -> float:
    """Over the attributes that have a value; NaN if none has."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def bootstrap_accuracy(vectors: npt.NDArray[np.float32], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean balanced accuracy, by drawing pictures again."""
    random = np.random.default_rng(seed)
    found = [
        mean(Agreement.of(vectors[random.integers(0, len(vectors), len(vectors))]).balanced())
        for _ in range(BOOTSTRAPS)
    ]
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)
