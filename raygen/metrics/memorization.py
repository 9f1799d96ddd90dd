"""Copies: samples nearer to a training picture than other real pictures are, and samples that are one another's copies.

Distances mean nothing by themselves, so held-out real pictures set the scale: what is called near is what only a share
q of them reaches. Knows sets of features. Knows neither networks nor pictures; near in features is not yet copied,
which is why the closest pairs are named for people to look at. Where held-out and training pictures share people, or
come from different sources, the scale is wrong and nothing here can notice.

Sources: Carlini et al. 2023, section 5 (distance relative to other neighbours); Wilson 1927 (interval of a share).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from raygen.metrics.neighbors import BLOCK, blocks, nearest

__all__ = ["Duplicates", "Memorization", "NearestMatch", "duplicates", "memorization", "wilson"]


Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Z: Final = 1.959963984540054
#: Pairs that a step of the grouping holds at a time.
EDGES: Final = 1 << 22


@dataclass(frozen=True)
class NearestMatch:
    """A sample and its nearest training row; `ratio`: distance over the mean one to the next neighbours, 0..1."""

    sample: int
    training: int
    distance: float
    ratio: float


@dataclass(frozen=True)
class Memorization:
    """Of every sample: nearest training row `index` [n], `distance` [n] and `ratio` [n]; and a summary.

    `share` of samples lies below `threshold`, the `q`-quantile of held-out distances; q is what is to be expected
    where nothing is memorised. `low`, `high`: 95 % of the share over samples, not over held-out pictures.
    `median_ratio`: median of samples' over median of held-out distances. `closest`: by distance, ascending.
    """

    index: Index
    distance: Array
    ratio: Array
    q: float
    threshold: float
    share: float
    low: float
    high: float
    median_ratio: float
    closest: tuple[NearestMatch, ...]

    def summary(self) -> Mapping[str, float]:
        """The numbers without the rows."""
        names = ("q", "threshold", "share", "low", "high", "median_ratio")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Duplicates:
    """`group` [n]: the number of the group of each row, from 0 in order of first rows; and a summary.

    `share` of rows is in a group of more than one. `pair_share`: near pairs over all pairs; `held_out_pair_share` is
    the same of the held-out rows and does not depend on how many rows there are, as `share` does. `closest`: rows
    with their nearest others as (row, other, distance), each pair once, by distance, below the threshold or not.
    """

    group: Index
    q: float
    threshold: float
    share: float
    low: float
    high: float
    pair_share: float
    held_out_pair_share: float
    closest: tuple[tuple[int, int, float], ...]


def memorization(
    samples: npt.NDArray[Any],
    training: npt.NDArray[Any],
    held_out: npt.NDArray[Any],
    *,
    q: float = 0.01,
    neighbours: int = 2,
    closest: int = 20,
    block: int = BLOCK,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Memorization:
    """Features [n, D], [t, D], [h, D] -> how near samples are to training pictures, against held-out ones.

    A sample's ratio is its distance to the nearest training row over the mean distance to the 2nd .. `neighbours`-th:
    2 is the second one alone, 50 nearly what Carlini et al. use. Where both are 0 the training set has copies, and the
    ratio is 1. `ValueError` where there are fewer than 1/q - 1 held-out rows, or fewer training rows than neighbours.
    """
    if neighbours < 2:
        raise ValueError("a ratio needs a second neighbour")
    how: dict[str, Any] = {"block": block, "device": device, "dtype": dtype}
    held = nearest(held_out, training, 1, **how)[0][:, 0]
    threshold = _quantile(held, q)
    far, index = nearest(samples, training, neighbours, **how)
    distance, next_ones = far[:, 0], far[:, 1:].mean(axis=1)
    ratio = np.divide(distance, next_ones, out=np.ones_like(distance), where=next_ones > 0)
    near = int((distance < threshold).sum())
    order = np.lexsort((np.arange(len(distance)), distance))[:closest]
    pairs = tuple(NearestMatch(int(i), int(index[i, 0]), float(distance[i]), float(ratio[i])) for i in order)
    middle = float(np.median(held))
    median_ratio = float(np.median(distance)) / middle if middle > 0 else float("nan")
    low, high = wilson(near, len(distance))
    share = near / len(distance)
    return Memorization(index[:, 0], distance, ratio, q, threshold, share, low, high, median_ratio, pairs)


def duplicates(
    samples: npt.NDArray[Any],
    held_out: npt.NDArray[Any],
    *,
    q: float = 0.01,
    closest: int = 20,
    block: int = BLOCK,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Duplicates:
    """Features [n, D] and [h, D] -> groups of samples that are chained by pairs nearer than the threshold.

    The threshold is the `q`-quantile of distances from held-out rows to their nearest other held-out row. More rows
    lie denser: with n above h more than q is to be expected, so take as many of both, or read the pair shares.
    `ValueError` where there are fewer than 1/q - 1 held-out rows, or fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError("duplicates need two samples")
    how: dict[str, Any] = {"block": block, "device": device, "dtype": dtype}
    threshold = _quantile(nearest(held_out, held_out, 1, exclude_self=True, **how)[0][:, 0], q)
    group, pairs = _groups(samples, threshold, how)
    held_pairs = _groups(held_out, threshold, how)[1]
    n, h = len(samples), len(held_out)
    alone = np.bincount(group)[group] == 1
    low, high = wilson(int((~alone).sum()), n)
    shares = pairs / (n * (n - 1)), held_pairs / (h * (h - 1))
    near = _closest(samples, closest, how)
    return Duplicates(group, q, threshold, float((~alone).mean()), low, high, *shares, near)


def _closest(x: npt.NDArray[Any], most: int, how: dict[str, Any]) -> tuple[tuple[int, int, float], ...]:
    """Each row with its nearest other, the nearest of these pairs first; a pair that is mutual is there once."""
    far, other = (values[:, 0] for values in nearest(x, x, 1, exclude_self=True, **how))
    pairs: dict[tuple[int, int], float] = {}
    for i in np.lexsort((np.arange(len(far)), far))[: 2 * most]:  # of two rows, each may be the other's nearest
        pairs.setdefault((min(int(i), int(other[i])), max(int(i), int(other[i]))), float(far[i]))
    return tuple((i, j, distance) for (i, j), distance in list(pairs.items())[:most])


def _quantile(values: Array, q: float) -> float:
    """The q-quantile that a new value of the same kind lies below with probability q (Weibull's position)."""
    if not 0 < q < 1:
        raise ValueError(f"{q} is not a share between 0 and 1")
    if q * (len(values) + 1) < 1 - 1e-9:
        raise ValueError(f"{len(values)} held-out rows do not have a {q:.3g}-quantile: it takes {1 / q - 1:.0f}")
    return float(np.quantile(values, q, method="weibull"))


def _groups(x: npt.NDArray[Any], threshold: float, how: dict[str, Any]) -> tuple[Index, int]:
    """Union-find over near pairs, as many at a time as fit: group of each row, and ordered pairs."""
    n, pairs = len(x), 0
    group = np.arange(n)
    radius = np.full((1, 1), threshold)
    for part in blocks(x, x, exclude_self=True, **how):
        near = part.within(radius, strict=True)
        pairs += int(near.sum())
        step = max(1, EDGES // n)
        for i in range(0, len(near), step):
            if bool(near[i : i + step].any()):
                edges = near[i : i + step].nonzero().cpu().numpy()
                group = _join(group, edges[:, 0] + part.start + i, edges[:, 1])
        del part, near
    return np.unique(_first(group)[group], return_inverse=True)[1].astype(np.int64), pairs


def _join(group: Index, a: Index, b: Index) -> Index:
    n = len(group)
    graph = coo_array((np.ones(len(a), np.bool_), (group[a], group[b])), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1][group], np.int64)


def _first(group: Index) -> Index:
    """The first row of each group."""
    first = np.full(group.max() + 1, len(group))
    np.minimum.at(first, group, np.arange(len(group)))
    return first


def wilson(hits: int, n: int, *, z: float = Z) -> tuple[float, float]:
    """A 95 % interval of a share of `hits` in `n` independent trials; `ValueError` for impossible counts."""
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"{hits} of {n}")
    p, w = hits / n, z * z / n
    middle, half = (p + w / 2) / (1 + w), float(np.sqrt(w * p * (1 - p) + w * w / 4)) / (1 + w)
    return max(0.0, middle - half), min(1.0, middle + half)
