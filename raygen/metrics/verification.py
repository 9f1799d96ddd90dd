"""Face verification: genuine and impostor cosines, ROC, EER, TAR at a FAR, and accuracy over folds, with intervals.

All pairs are used. Cosines are kept as counts in narrow bins, so memory depends on people and bins, not on pairs. Pairs
of one person are not independent, so intervals resample people (subset bootstrap; Bolle, Ratha and Pankanti 2004).

A person drawn w times has weight w in genuine pairs, and a pair of people p and q has weight w_p w_q in impostor pairs.
Counts by person do not determine that product, only its linear part w_p + w_q - 1, which dominates the variance: summed
over pairs it is the sum over people of (2w - 1) times their counts, over 2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from raygen.core.types import AnyArray, BoolArray, Float32Array, Float64Array, Int64Array

__all__ = ["BINS", "BLOCK", "VerificationHistogram", "fold_accuracy", "unit", "verification"]


#: Bins of the cosine over -1..1: thresholds have a resolution of 0.001.
BINS: Final = 2000
#: Rows that are compared with all others at once.
BLOCK: Final = 256
BOOTSTRAPS: Final = 200


def unit(vectors: AnyArray) -> Float32Array:
    """Vectors [n, D] scaled to length 1; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


@dataclass(frozen=True)
class VerificationHistogram:
    """Counts of cosines by person and bin, int64 [people, BINS]: pairs of this person, and pairs with other people.

    An impostor pair is counted for both of its people, so a sum over people counts it twice.
    """

    genuine: Int64Array
    impostor: Int64Array

    @property
    def pairs(self) -> tuple[int, int]:
        """Numbers of genuine and impostor pairs."""
        return int(self.genuine.sum()), int(self.impostor.sum()) // 2

    def rates(self, weight: Int64Array | None = None) -> tuple[Float64Array, Float64Array]:
        """FAR and TAR at thresholds from -1 (accept all) to 1 (accept none): float64 [BINS + 1] each, falling.

        `weight`: how often each person was drawn, int64 [people]; see the module for impostor pairs.
        """
        w = np.ones(len(self.genuine), np.int64) if weight is None else weight
        return _above(self._impostors(w)), _above(w @ self.genuine)

    def _impostors(self, weight: Int64Array) -> Int64Array:
        """Twice the impostor pairs by bin, at least 0: the linear part can be negative where few people were drawn."""
        return np.asarray(np.maximum((2 * weight - 1) @ self.impostor, 0), np.int64)

    def eer(self, weight: Int64Array | None = None) -> float:
        """The equal error rate, where FAR equals 1 - TAR, interpolated linearly between two thresholds."""
        far, tar = self.rates(weight)
        gap = far - (1 - tar)  # falls from 1 to -1
        i = int(np.flatnonzero(gap <= 0)[0])
        if i == 0:
            return float(far[0])
        share = gap[i - 1] / (gap[i - 1] - gap[i])
        return float(far[i - 1] + share * (far[i] - far[i - 1]))

    def tar(self, far: float, weight: Int64Array | None = None) -> tuple[float, float]:
        """TAR at the lowest threshold with at most this false accept rate, and the threshold."""
        rates, tar = self.rates(weight)
        i = int(np.flatnonzero(rates <= far)[0])
        return float(tar[i]), 2 * i / BINS - 1

    def means(self) -> tuple[float, float]:
        """Mean cosine of genuine and of impostor pairs, at the resolution of a bin."""
        centres = (np.arange(BINS) + 0.5) * 2 / BINS - 1
        return tuple(float((c.sum(axis=0) * centres).sum() / c.sum()) for c in (self.genuine, self.impostor))  # type: ignore[return-value]

    def interval(
        self, statistic: Callable[[Int64Array], float], *, rounds: int = BOOTSTRAPS, seed: int = 0
    ) -> tuple[float, float]:
        """95 % bootstrap interval, over people, of `statistic(weights)`; the same for the same people and seed."""
        random = np.random.Generator(np.random.Philox(key=seed))
        n = len(self.genuine)
        values = []
        for _ in range(rounds):
            weight = np.bincount(random.integers(0, n, n), minlength=n).astype(np.int64)
            if (weight @ self.genuine).any() and self._impostors(weight).any():
                values.append(statistic(weight))
        low, high = np.percentile(values, [2.5, 97.5])
        return float(low), float(high)


def _above(counts: Int64Array) -> Float64Array:
    """Share of a histogram [BINS] at or above each edge of its bins [BINS + 1]."""
    total = max(int(counts.sum()), 1)
    return np.asarray(np.append(np.cumsum(counts[::-1])[::-1], 0) / total, np.float64)


def verification(vectors: AnyArray, people: Int64Array, *, genuine: bool = True) -> VerificationHistogram:
    """Histogram of all pairs of embeddings [n, D] (of any length), of the people [n] with numbers from 0.

    `ValueError` where there is only one person, or no pair of one person where `genuine` pairs are required.
    """
    x, n = unit(vectors), int(people.max()) + 1 if len(people) else 0
    if n < 2 or (genuine and len(np.unique(people)) == len(people)):
        raise ValueError("verification needs two people, and two pictures of one of them")
    genuine_counts, impostor_counts = (np.zeros((n, BINS), np.int64) for _ in range(2))
    for start in range(0, len(x), BLOCK):
        rows = people[start : start + BLOCK]
        cosines = x[start : start + BLOCK] @ x.T  # [b, n]: each pair occurs twice, once from either row
        bins = ((cosines + 1) * (BINS / 2)).astype(np.int32).clip(0, BINS - 1)
        present, local = np.unique(rows, return_inverse=True)
        size = len(present) * BINS
        all_pairs = np.bincount((local[:, None] * BINS + bins).ravel(), minlength=size)
        i, j = np.nonzero(rows[:, None] == people[None])
        same_person = np.bincount(local[i] * BINS + bins[i, j], minlength=size)
        two = start + i != j  # a picture and itself are not a pair
        own = np.bincount(local[i[two]] * BINS + bins[i[two], j[two]], minlength=size)
        impostor_counts[present] += (all_pairs - same_person).reshape(-1, BINS)
        genuine_counts[present] += own.reshape(-1, BINS)
    return VerificationHistogram(genuine_counts // 2, impostor_counts)


def fold_accuracy(cosines: Float64Array, same: BoolArray, fold: Int64Array) -> tuple[float, float]:
    """Accuracy in percent and its standard error over folds, in the protocol of LFW (Huang et al. 2007).

    For pairs [n]: cosines, whether both pictures show one person, and their folds 0 .. k - 1 with k > 1. A fold is
    judged at the lowest of the thresholds that are most accurate on all other folds.
    """
    accuracies = []
    for k in range(int(fold.max()) + 1):
        test = fold == k
        order = np.argsort(cosines[~test], kind="stable")
        x, y = cosines[~test][order], same[~test][order]
        right = y.sum() + np.append(0, np.cumsum(1 - 2 * y.astype(np.int64)))  # with the first 0, 1, .. n rejected
        edges = np.concatenate([[-1.0], (x[:-1] + x[1:]) / 2, [np.inf]])
        split = np.concatenate([[True], x[:-1] < x[1:], [True]])  # no threshold lies between equal cosines
        threshold = float(edges[np.where(split, right, -1).argmax()])
        accuracies.append(100 * float(((cosines[test] >= threshold) == same[test]).mean()))
    return float(np.mean(accuracies)), float(np.std(accuracies, ddof=1) / np.sqrt(len(accuracies)))
