"""How much pictures changed inside and outside of the parts that were to change, and how much those of a group differ.

Knows pixels, regions and sums over them. Knows neither styles nor where pictures come from.

Leakage is the mean absolute difference outside, over that inside: 0 where nothing else moved, 1 where everything moved
alike. It is the number behind figure 7 of Ergasti et al. 2024 (SCA-DM), which shows it as pictures.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation

__all__ = ["Groups", "RegionChange", "bootstrap", "change", "changed", "of_groups", "region"]


UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
Array = npt.NDArray[np.float64]
#: Largest difference of two 8-bit values.
RANGE: Final = 255.0
ROUNDS: Final = 200


class RegionChange(NamedTuple):
    """Means of absolute differences, 0..1, over all pixels of all pictures; nan where a region has none."""

    inside: float
    outside: float

    @property
    def leakage(self) -> float:
        """Outside over inside."""
        return self.outside / self.inside if self.inside > 0 else float("nan")


def region(mask: UInt8Array, parts: tuple[int, ...], margin: int) -> tuple[BoolArray, BoolArray]:
    """Class indices [H, W] -> inside and outside of `parts`; pixels within `margin` of the border are in neither."""
    inside = np.isin(mask, parts)
    if not margin:
        return inside, ~inside
    return ~binary_dilation(~inside, iterations=margin), ~binary_dilation(inside, iterations=margin)


def change(made: UInt8Array, base: UInt8Array, inside: BoolArray, outside: BoolArray) -> list[float]:
    """uint8 [H, W, 3] twice and two regions [H, W] -> [sum inside, values inside, sum outside, values outside]."""
    difference = np.abs(made.astype(np.float64) - base) / RANGE
    return [x for where in (inside, outside) for x in (float(difference[where].sum()), float(where.sum() * 3))]


def changed(vectors: npt.NDArray[np.floating]) -> RegionChange:
    """What `change` gave, [n, 4], as means over all pixels."""
    total = vectors.astype(np.float64).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return RegionChange(*(float(x) for x in total[[0, 2]] / total[[1, 3]]))


def bootstrap(vectors: npt.NDArray[np.floating], seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of the leakage over resampled pictures; the same for the same rows and seed."""
    random = np.random.Generator(np.random.Philox(key=seed))
    n = len(vectors)
    values = [changed(vectors[random.integers(0, n, n)]).leakage for _ in range(ROUNDS)]
    if not np.isfinite(values).all():
        return None, None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


class Groups(NamedTuple):
    """The mean distance of each group [g], the pairs of all of them, and how many pictures: `10`, or `2 to 10`."""

    means: Array
    pairs: int
    pictures: str


def of_groups(vectors: npt.NDArray[np.floating], groups: Sequence[str]) -> Groups:
    """Rows [n, 2] of the sum of distances to earlier rows of their group and their number, and each row's group.

    The last of a group has all others before it, and the first has no row here.
    """
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    sums, pairs = (np.bincount(place, column, len(names)) for column in vectors.astype(np.float64).T)
    pictures = np.zeros(len(names))
    np.maximum.at(pictures, place, vectors[:, 1].astype(np.float64) + 1)
    least, most = int(pictures.min()), int(pictures.max())
    return Groups(sums / pairs, int(pairs.sum()), str(most) if least == most else f"{least} to {most}")
