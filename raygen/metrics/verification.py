"""Verification: are two pictures the same person? Genuine and impostor cosines, ROC, EER, TAR at a FAR, with intervals.

Knows vectors and who each is of. Knows no network. Every pair counts; cosines are kept as counts in narrow bins, so
that memory depends on people and bins, never on pairs. Pairs of one person depend on each other, so intervals draw
people again, not pairs (Bolle, Ratha & Pankanti 2004, subset bootstrap).

A person who is drawn w times counts w times in genuine pairs, and a pair of people p and q counts w_p w_q times in
impostor pairs. Counts by person cannot tell that product, but its linear part w_p + w_q - 1, which is what the spread
comes from: summed over pairs that is the sum over people of (2w - 1) times their counts, over 2.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["BINS", "BLOCK", "VerificationHistogram", "fold_accuracy", "unit", "verification"]


Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
#: Bins of the cosine over -1..1: a threshold is good to 0.001.
BINS: Final = 2000
#: Rows that are compared with all others at a time.
BLOCK: Final = 256
BOOTSTRAPS: Final = 200


def unit(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Vectors [n, D] at length 1; one of length 0 stays as it is."""
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


@dataclass(frozen=True)
class VerificationHistogram:
    """Counts of cosines by person and bin, int64 [people, BINS]: of pairs of this person, and of this one with others.

    An impostor pair is counted once with each of its two people, so sums over people count it twice.
    """

    genuine: Counts
    impostor: Counts

    @property
    def pairs(self) -> tuple[int, int]:
        """Genuine and impostor pairs."""
        return int(self.genuine.sum()), int(self.impostor.sum()) // 2

    def rates(self, weight: npt.NDArray[np.int64] | None = None) -> tuple[Array, Array]:
        """FAR and TAR at thresholds from -1 (accept all) to 1 (accept none): float64 [BINS + 1] each, falling.

        `weight`: how often each person was drawn, int64 [people]; see above for impostor pairs.
        """
        w = np.ones(len(self.genuine), np.int64) if weight is None else weight
        return _above(self._impostors(w)), _above(w @ self.genuine)

    def _impostors(self, weight: npt.NDArray[np.int64]) -> Counts:
        """Impostor pairs by bin, twice. A bin whose people were hardly drawn would fall below 0, which is no count."""
        return np.asarray(np.maximum((2 * weight - 1) @ self.impostor, 0), np.int64)

    def eer(self, weight: npt.NDArray[np.int64] | None = None) -> float:
        """Where as many impostors are accepted as genuine pairs are refused, on the line between two thresholds."""
        far, tar = self.rates(weight)
        gap = far - (1 - tar)  # falls from 1 to -1
        i = int(np.flatnonzero(gap <= 0)[0])
        if i == 0:
            return float(far[0])
        share = gap[i - 1] / (gap[i - 1] - gap[i])
        return float(far[i - 1] + share * (far[i] - far[i - 1]))

    def tar(self, far: float, weight: npt.NDArray[np.int64] | None = None) -> tuple[float, float]:
        """TAR at the lowest threshold that accepts at most a share `far` of impostors, and that threshold."""
        found, tar = self.rates(weight)
        i = int(np.flatnonzero(found <= far)[0])
        return float(tar[i]), 2 * i / BINS - 1

    def means(self) -> tuple[float, float]:
        """Mean cosine of genuine and of impostor pairs, to the width of a bin."""
        centres = (np.arange(BINS) + 0.5) * 2 / BINS - 1
        return tuple(float((c.sum(axis=0) * centres).sum() / c.sum()) for c in (self.genuine, self.impostor))  # type: ignore[return-value]

    def interval(self, what: Any, *, rounds: int = BOOTSTRAPS, seed: int = 0) -> tuple[float, float]:
        """95 % of `what(weights)` over people drawn again; the same for the same people and seed."""
        random = np.random.Generator(np.random.Philox(key=seed))
        n = len(self.genuine)
        found = []
        for _ in range(rounds):
            weight = np.bincount(random.integers(0, n, n), minlength=n).astype(np.int64)
            if (weight @ self.genuine).any() and self._impostors(weight).any():
                found.append(what(weight))
        low, high = np.percentile(found, [2.5, 97.5])
        return float(low), float(high)


def _above(counts: Counts) -> Array:
    """Share of a histogram at or above each edge of its bins."""
    total = max(int(counts.sum()), 1)
    return np.asarray(np.append(np.cumsum(counts[::-1])[::-1], 0) / total, np.float64)


def verification(
    vectors: npt.NDArray[Any], people: npt.NDArray[np.int64], *, genuine: bool = True
) -> VerificationHistogram:
    """Every pair of embeddings [n, D] (of any length) of people numbered 0.. [n].

    `ValueError` where there is only one person, or no pair of one person where `genuine` pairs are wanted.
    """
    x, n = unit(vectors), int(people.max()) + 1 if len(people) else 0
    if n < 2 or (genuine and len(np.unique(people)) == len(people)):
        raise ValueError("verification needs two people, and two pictures of one of them")
    mine, others = (np.zeros((n, BINS), np.int64) for _ in range(2))
    for start in range(0, len(x), BLOCK):
        rows = people[start : start + BLOCK]
        cosines = x[start : start + BLOCK] @ x.T  # [b, n]: each pair is met twice, once from either side
        place = ((cosines + 1) * (BINS / 2)).astype(np.int32).clip(0, BINS - 1)
        here, local = np.unique(rows, return_inverse=True)
        whole = np.bincount((local[:, None] * BINS + place).ravel(), minlength=len(here) * BINS)
        i, j = np.nonzero(rows[:, None] == people[None])
        same = np.bincount(local[i] * BINS + place[i, j], minlength=len(here) * BINS)
        two = start + i != j  # a picture and itself are no pair
        own = np.bincount(local[i[two]] * BINS + place[i[two], j[two]], minlength=len(here) * BINS)
        others[here] += (whole - same).reshape(-1, BINS)
        mine[here] += own.reshape(-1, BINS)
    return VerificationHistogram(mine // 2, others)


def fold_accuracy(cosines: Array, same: npt.NDArray[np.bool_], fold: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Accuracy of pairs in percent and its standard error over folds, as LFW's protocol has it (Huang et al. 2007).

    Of pairs [n]: cosines, whether both show one person, and their folds 0 .. k - 1, k > 1. A fold is judged by the
    threshold that is best on all others.
    """
    found = []
    for one in range(int(fold.max()) + 1):
        mine = fold == one
        threshold = _best(cosines[~mine], same[~mine])
        found.append(100 * float(((cosines[mine] >= threshold) == same[mine]).mean()))
    return float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(len(found)))


def _best(cosines: Array, same: npt.NDArray[np.bool_]) -> float:
    """The lowest threshold of the most accurate ones, in the middle between two neighbours."""
    order = np.argsort(cosines, kind="stable")
    x, y = cosines[order], same[order]
    right = y.sum() + np.append(0, np.cumsum(1 - 2 * y.astype(np.int64)))  # with the first 0, 1, .. n refused
    edges = np.concatenate([[-1.0], (x[:-1] + x[1:]) / 2, [np.inf]])
    split = np.concatenate([[True], x[:-1] < x[1:], [True]])  # equal cosines cannot be told apart
    return float(edges[np.where(split, right, -1).argmax()])
