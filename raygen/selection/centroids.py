"""Centroids of identities: similarity of images to their own identity, to other identities and among strangers."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from raygen.core.types import AnyArray, BoolArray, Float32Array, Float64Array
from raygen.metrics.verification import BLOCK, unit

__all__ = ["IdentityCentroids", "chance_limit"]


#: Id of an image -> a similar identity or image, and the cosine with it.
Near = dict[str, tuple[str, float]]
#: Number of cosines in memory at a time: 16 MB.
CELLS: Final = 1 << 22
#: Bins over cosines from -1 to 1.
BINS: Final = 20_000


class IdentityCentroids:
    """Embeddings grouped by identity: identities with accepted images first, then by name.

    Where two identities conflict, one with accepted images stays, otherwise the earlier name. The rows of an identity
    are the accepted ones in their order, then the others by id, so that the order of the input changes nothing.
    """

    def __init__(self, ids: Sequence[str], vectors: AnyArray, who: Sequence[str], accepted: int) -> None:
        """`ids` have the embeddings `vectors` [n, D] and identities `who`; the first `accepted` are accepted images."""
        before = set(who[:accepted])
        self.names = sorted(set(who), key=lambda name: (name not in before, name))
        #: Number of identities with accepted images; they come first.
        self.settled = len(before)
        number = {name: i for i, name in enumerate(self.names)}
        numbers = [number[name] for name in who]
        order = sorted(range(len(ids)), key=lambda i: (numbers[i], i >= accepted, ids[i] if i >= accepted else i))
        self.ids = [ids[i] for i in order]
        self.who = np.array([numbers[i] for i in order], np.int64)
        self.fresh = np.array([i >= accepted for i in order], bool)
        self.x: Float32Array = np.asarray(vectors[order], np.float32)
        for rows in _blocks(0, len(order), self.x.shape[1]):
            self.x[rows] = unit(self.x[rows])
        self.starts = np.searchsorted(self.who, np.arange(len(self.names) + 1))

    def own(self) -> Float64Array:
        """Cosine of each image with the mean of its identity's others: float64 [n], NaN where there is no other."""
        cosines = np.full(len(self.ids), np.nan)
        for first, last in zip(self.starts[:-1], self.starts[1:], strict=True):
            total = self.x[first:last].sum(axis=0, dtype=np.float64)
            for rows in _blocks(first, last, self.x.shape[1]) if last - first > 1 else ():
                rest = total - self.x[rows]
                lengths = np.maximum(np.linalg.norm(rest, axis=1), 1e-12)
                cosines[rows] = np.einsum("nd,nd->n", self.x[rows], rest) / lengths
        return cosines

    def strangers(self, limit: float) -> Near:
        """Images whose cosine with the centroid of another identity is above `limit`.

        Each image is first compared with all earlier identities, whose centroids have only their remaining images. Then
        it is compared with the later ones too, except those whose centroid is itself within the limit: of two such
        identities the first stays. The cost is images x identities, the memory a few MB beside the centroids.
        """
        centres = np.zeros((len(self.names), self.x.shape[1]), np.float32)
        filled = np.zeros(len(self.names), bool)
        stay = np.ones(len(self.ids), bool)
        refused: Near = {}
        for who in range(self.settled):
            self._centre(who, stay & ~self.fresh, centres, filled)
        for who in range(len(self.names)):
            known = filled[: max(who, self.settled)].copy()
            known[who : who + 1] = False
            self._refuse(who, centres[: len(known)], known, 0, limit, stay, refused)
            self._centre(who, stay, centres, filled)
        for who in range(len(self.names)):
            known = filled[who + 1 :].copy()
            same = centres[who + 1 :] @ centres[who] > limit
            self._refuse(who, centres[who + 1 :], known & ~same, who + 1, limit, stay, refused)
        return refused

    def twins(self, limit: float) -> Near:
        """Images with a cosine above `limit` to an earlier image of their identity, and that image.

        Only images that are no duplicates themselves are compared with.
        """
        duplicates: Near = {}
        for first, last in zip(self.starts[:-1], self.starts[1:], strict=True):
            stay: list[int] = []
            for i in range(first, last):
                if self.fresh[i] and stay:
                    cosines = self.x[stay] @ self.x[i]
                    at = int(cosines.argmax())
                    if cosines[at] > limit:
                        duplicates[self.ids[i]] = self.ids[stay[at]], float(cosines[at])
                        continue
                stay.append(i)
        return duplicates

    def _centre(self, who: int, stay: BoolArray, centres: Float32Array, filled: BoolArray) -> None:
        """Write the centroid of an identity's remaining images, and whether it has any."""
        rows = slice(self.starts[who], self.starts[who + 1])
        remaining = self.x[rows][stay[rows]]
        centres[who] = unit(remaining.sum(axis=0, dtype=np.float64)[None])[0]
        filled[who] = len(remaining) > 0

    def _refuse(
        self,
        who: int,
        centres: Float32Array,
        known: BoolArray,
        first: int,
        limit: float,
        stay: BoolArray,
        refused: Near,
    ) -> None:
        """Refuse images of an identity that are similar to one of `centres`, which start at identity `first`."""
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
                refused[self.ids[row]] = self.names[first + int(at[i])], float(most[i])


def chance_limit(vectors: AnyArray, who: Sequence[str], share: float, people: int) -> float:
    """The cosine that at most `share` of images exceeds with any of `people` - 1 strangers by chance.

    It is taken from images `vectors` [n, D] of different people `who`, each compared with the centroids of the others:
    the share of single pairs above the limit is `share` / (`people` - 1) (Bonferroni). Raises `ValueError` for fewer
    than two people.
    """
    names = sorted(set(who))
    if len(names) < 2:
        raise ValueError("strangers are at least two people")
    number = {name: i for i, name in enumerate(names)}
    own = np.array([number[name] for name in who], np.int64)
    x = unit(vectors)
    sums = np.zeros((len(names), x.shape[1]), np.float64)
    np.add.at(sums, own, x)
    centres = unit(sums)
    counts = np.zeros(BINS, np.int64)
    for rows in _blocks(0, len(x), len(names)):
        place = ((x[rows] @ centres.T + 1) * (BINS / 2)).astype(np.int32).clip(0, BINS - 1)
        counts += np.bincount(place.ravel(), minlength=BINS)
        counts -= np.bincount(place[np.arange(len(place)), own[rows]], minlength=BINS)
    above = np.append(np.cumsum(counts[::-1])[::-1], 0)
    return 2 * int(np.flatnonzero(above <= share / max(people - 1, 1) * counts.sum())[0]) / BINS - 1


def _blocks(first: int, last: int, width: int) -> Iterator[slice]:
    """Slices from `first` to `last` of at most `CELLS` / `width` rows."""
    step = max(1, min(BLOCK, CELLS // max(width, 1)))
    for start in range(first, last, step):
        yield slice(start, min(start + step, last))
