"""Change of pictures inside and outside of the edited parts (leakage), and distances between pictures of a group.

Leakage is the mean absolute difference outside, over that inside: 0 where nothing else changed, 1 where everything
changed by the same amount. Figure 7 of Ergasti et al. 2024 (SCA-DM) shows it as pictures.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation

from raygen.core.types import BoolArray, Float64Array, UInt8Array

__all__ = [
    "GroupDistances",
    "RegionChange",
    "bootstrap_leakage",
    "change",
    "group_distances",
    "mean_change",
    "region",
]


#: Largest difference of two 8-bit values.
RANGE: Final = 255.0
ROUNDS: Final = 200


class RegionChange(NamedTuple):
    """Mean absolute differences, 0..1, over all pixels of all pictures; NaN where a region has no pixels."""

    inside: float
    outside: float

    @property
    def leakage(self) -> float:
        """Change outside over change inside; NaN where nothing changed inside."""
        return self.outside / self.inside if self.inside > 0 else float("nan")


def region(mask: UInt8Array, parts: tuple[int, ...], margin: int) -> tuple[BoolArray, BoolArray]:
    """Class indices [H, W] -> bool [H, W] inside and outside of `parts`; within `margin` of the border is neither."""
    inside = np.isin(mask, parts)
    if not margin:
        return inside, ~inside
    return ~binary_dilation(~inside, iterations=margin), ~binary_dilation(inside, iterations=margin)


def change(generated: UInt8Array, base: UInt8Array, inside: BoolArray, outside: BoolArray) -> list[float]:
    """Differences of pictures uint8 [H, W, 3] in two regions [H, W]: sum and count inside, sum and count outside."""
    difference = np.abs(generated.astype(np.float64) - base) / RANGE
    return [x for part in (inside, outside) for x in (float(difference[part].sum()), float(part.sum() * 3))]


def mean_change(vectors: npt.NDArray[np.floating]) -> RegionChange:
    """Rows of `change` [n, 4] -> means over all pixels."""
    total = vectors.astype(np.float64).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return RegionChange(*(float(x) for x in total[[0, 2]] / total[[1, 3]]))


def bootstrap_leakage(vectors: npt.NDArray[np.floating], seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """95 % bootstrap interval of the leakage over pictures [n, 4]; the same for the same rows and seed."""
    random = np.random.Generator(np.random.Philox(key=seed))
    n = len(vectors)
    values = [mean_change(vectors[random.integers(0, n, n)]).leakage for _ in range(ROUNDS)]
    if not np.isfinite(values).all():
        return None, None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


class GroupDistances(NamedTuple):
    """The mean distance of each group [g], the number of all pairs, and the pictures a group: `10`, or `2 to 10`."""

    means: Float64Array
    pairs: int
    pictures: str


def group_distances(vectors: npt.NDArray[np.floating], groups: Sequence[str]) -> GroupDistances:
    """Averages distances by group. A row [2] holds the sum of distances to earlier rows of its group, and their number.

    The first picture of a group has no row; the last one has all others before it.
    """
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    sums, pairs = (np.bincount(place, column, len(names)) for column in vectors.astype(np.float64).T)
    pictures = np.zeros(len(names))
    np.maximum.at(pictures, place, vectors[:, 1].astype(np.float64) + 1)
    least, most = int(pictures.min()), int(pictures.max())
    return GroupDistances(sums / pairs, int(pairs.sum()), str(most) if least == most else f"{least} to {most}")
