"""Centres of people: who a picture is like, beside who it is meant to be, and how like each other strangers are.

Knows embeddings, who each is of, and who was there before. Does not know what is done with the answers.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from raygen.metrics.verification import BLOCK, unit

__all__ = ["IdentityCentroids", "chance_limit"]


Floats = npt.NDArray[np.float32]
#: Id of a picture -> somebody else, and the cosine with their centre.
Near = dict[str, tuple[str, float]]
#: Cosines that are held at a time: 16 MB.
CELLS: Final = 1 << 22
#: Bins of the cosine over -1..1 for a limit.
BINS: Final = 20_000


class IdentityCentroids:
    """Embeddings of everybody, person by person: first those who have accepted pictures, then by name.

    Whose pictures were accepted stays, and else the earlier name. Rows of a person: accepted ones as they came, then
    the others by id, so that the order in which those are given changes nothing.
    """

    def __init__(self, ids: Sequence[str], vectors: npt.NDArray[Any], who: Sequence[str], accepted: int) -> None:
        """Of `ids`, whose embeddings are `vectors` [n, D], the first `accepted` count already."""
        before = set(who[:accepted])
        self.names = sorted(set(who), key=lambda name: (name not in before, name))
        #: People with accepted pictures: they come first.
        self.settled = len(before)
        number = {name: i for i, name in enumerate(self.names)}
        numbers = [number[name] for name in who]
        order = sorted(range(len(ids)), key=lambda i: (numbers[i], i >= accepted, ids[i] if i >= accepted else i))
        self.ids = [ids[i] for i in order]
        self.who = np.array([numbers[i] for i in order], np.int64)
        self.fresh = np.array([i >= accepted for i in order], bool)
        self.x: Floats = np.asarray(vectors[order], np.float32)
        for rows in _blocks(0, len(order), self.x.shape[1]):
            self.x[rows] = unit(self.x[rows])
        self.starts = np.searchsorted(self.who, np.arange(len(self.names) + 1))

    def own(self) -> npt.NDArray[np.float64]:
        """Cosine of each picture with the mean of the person's others: float64 [n], NaN where there is no other."""
        found = np.full(len(self.ids), np.nan)
        for first, last in zip(self.starts[:-1], self.starts[1:], strict=True):
            total = self.x[first:last].sum(axis=0, dtype=np.float64)
            for rows in _blocks(first, last, self.x.shape[1]) if last - first > 1 else ():
                rest = total - self.x[rows]
                lengths = np.maximum(np.linalg.norm(rest, axis=1), 1e-12)
                found[rows] = np.einsum("nd,nd->n", self.x[rows], rest) / lengths
        return found

    def strangers(self, limit: float) -> Near:
        """Pictures that are more than `limit` like the centre of somebody else.

        First each is compared with whoever comes before, whose centres are made of what was left of them. Then with
        whoever comes after, too, except people who as a whole are one with this one: of these the first stays.
        Comparisons are pictures x people; memory is a few MB beside the centres.
        """
        centres = np.zeros((len(self.names), self.x.shape[1]), np.float32)
        there = np.zeros(len(self.names), bool)
        stay = np.ones(len(self.ids), bool)
        found: Near = {}
        for who in range(self.settled):
            self._centre(who, stay & ~self.fresh, centres, there)
        for who in range(len(self.names)):
            known = there[: max(who, self.settled)].copy()
            known[who : who + 1] = False
            self._refuse(who, centres[: len(known)], known, 0, limit, stay, found)
            self._centre(who, stay, centres, there)
        for who in range(len(self.names)):
            known = there[who + 1 :].copy()
            one = centres[who + 1 :] @ centres[who] > limit
            self._refuse(who, centres[who + 1 :], known & ~one, who + 1, limit, stay, found)
        return found

    def twins(self, limit: float) -> Near:
        """Pictures that are more than `limit` like an earlier one of the person that has no twin, and that one."""
        found: Near = {}
        for first, last in zip(self.starts[:-1], self.starts[1:], strict=True):
            stay: list[int] = []
            for i in range(first, last):
                if self.fresh[i] and stay:
                    cosines = self.x[stay] @ self.x[i]
                    at = int(cosines.argmax())
                    if cosines[at] > limit:
                        found[self.ids[i]] = self.ids[stay[at]], float(cosines[at])
                        continue
                stay.append(i)
        return found

    def _centre(self, who: int, stay: npt.NDArray[np.bool_], centres: Floats, there: npt.NDArray[np.bool_]) -> None:
        rows = slice(self.starts[who], self.starts[who + 1])
        mine = self.x[rows][stay[rows]]
        centres[who] = unit(mine.sum(axis=0, dtype=np.float64)[None])[0]
        there[who] = len(mine) > 0

    def _refuse(
        self,
        who: int,
        centres: Floats,
        known: npt.NDArray[np.bool_],
        first: int,
        limit: float,
        stay: npt.NDArray[np.bool_],
        found: Near,
    ) -> None:
        """Those of a person's pictures that are like one of `centres`, which begin at person `first`."""
        rows = np.arange(self.starts[who], self.starts[who + 1])
        rows = rows[self.fresh[rows] & stay[rows]]
        if not len(rows) or not known.any():
            return
        unknown = None if known.all() else ~known
        for block in _blocks(0, len(rows), len(centres)):
            cosines = self.x[rows[block]] @ centres.T
            if unknown is not None:
                cosines[:, unknown] = -2
            at = cosines.argmax(axis=1)
            most = cosines[np.arange(len(at)), at]
            for i in np.flatnonzero(most > limit):
                row = rows[block][i]
                stay[row] = False
                found[self.ids[row]] = self.names[first + int(at[i])], float(most[i])


def chance_limit(vectors: npt.NDArray[Any], who: Sequence[str], share: float, people: int) -> float:
    """The cosine above which at most `share` of pictures would be like one of `people` - 1 strangers.

    Of pictures [n, D] of different people: each with the centres of the others; a limit that so small a share of these
    pairs is above that it may happen with so many strangers at once (Bonferroni). `ValueError` for fewer than two.
    """
    names = sorted(set(who))
    if len(names) < 2:
        raise ValueError("strangers are at least two people")
    number = {name: i for i, name in enumerate(names)}
    mine = np.array([number[name] for name in who], np.int64)
    x = unit(vectors)
    sums = np.zeros((len(names), x.shape[1]), np.float64)
    np.add.at(sums, mine, x)
    centres = unit(sums)
    counts = np.zeros(BINS, np.int64)
    for rows in _blocks(0, len(x), len(names)):
        place = ((x[rows] @ centres.T + 1) * (BINS / 2)).astype(np.int32).clip(0, BINS - 1)
        counts += np.bincount(place.ravel(), minlength=BINS)
        counts -= np.bincount(place[np.arange(len(place)), mine[rows]], minlength=BINS)
    above = np.append(np.cumsum(counts[::-1])[::-1], 0)
    return 2 * int(np.flatnonzero(above <= share / max(people - 1, 1) * counts.sum())[0]) / BINS - 1


def _blocks(first: int, last: int, width: int) -> Iterator[slice]:
    """So many rows at a time that `width` numbers for each take little memory."""
    step = max(1, min(BLOCK, CELLS // max(width, 1)))
    for start in range(first, last, step):
        yield slice(start, min(start + step, last))
