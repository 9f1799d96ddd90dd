"""Memorization: samples closer to a training picture than held-out pictures are; duplicates among samples.

Distances of features have no scale of their own, so held-out real pictures set it: the threshold is the q-quantile of
their distances. Close in features is not yet a copy, so the closest pairs are returned for people to look at. The
threshold is wrong where held-out and training pictures share people or come from different sources; this cannot be
detected here.

Sources: Carlini et al. 2023, section 5 (distance relative to other neighbours); Wilson 1927 (interval of a share).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import binomtest

from raygen.core.types import AnyArray, Float64Array, Int64Array
from raygen.metrics.neighbors import BLOCK, blocks, nearest

__all__ = ["Duplicates", "Memorization", "NearestMatch", "duplicates", "memorization"]


#: Pairs that a step of the grouping holds in memory.
EDGES: Final = 1 << 22


@dataclass(frozen=True)
class NearestMatch:
    """A sample and its nearest training row. `ratio`: this distance over the mean to the next neighbours, 0..1."""

    sample: int
    training: int
    distance: float
    ratio: float


@dataclass(frozen=True)
class Memorization:
    """Nearest training row `index` [n], `distance` [n] and `ratio` [n] of every sample, and a summary.

    `share` of samples lies below `threshold`, the `q`-quantile of held-out distances; the share is about q where
    nothing is memorized. `low`, `high`: 95 % interval of the share over samples, not over held-out pictures.
    `median_ratio`: median distance of samples over that of held-out pictures. `closest`: by ascending distance.
    """

    index: Int64Array
    distance: Float64Array
    ratio: Float64Array
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
    """`group` [n]: the group number of each row, from 0 in order of the first rows; and a summary.

    `share` of rows is in a group of more than one, and grows with n. `pair_share`: close pairs over all pairs;
    `held_out_pair_share`: the same of held-out rows; both are independent of n. `closest`: (row, nearest other row,
    distance), each pair once, by distance, whether below the threshold or not.
    """

    group: Int64Array
    q: float
    threshold: float
    share: float
    low: float
    high: float
    pair_share: float
    held_out_pair_share: float
    closest: tuple[tuple[int, int, float], ...]


def memorization(
    samples: AnyArray,
    training: AnyArray,
    held_out: AnyArray,
    *,
    q: float = 0.01,
    neighbours: int = 2,
    closest: int = 20,
    block: int = BLOCK,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Memorization:
    """Compares samples [n, D] with training features [t, D], on the scale of held-out features [h, D].

    A sample's ratio is its distance to the nearest training row over the mean distance to the 2nd .. `neighbours`-th:
    2 is the second one alone, 50 is close to Carlini et al. Where both are 0 the training set has copies, and the ratio
    is 1. `ValueError` where there are fewer than 1/q - 1 held-out rows, or fewer training rows than neighbours.
    """
    if neighbours < 2:
        raise ValueError("a ratio needs a second neighbour")
    how: dict[str, Any] = {"block": block, "device": device, "dtype": dtype}
    held_out_distances = nearest(held_out, training, 1, **how)[0][:, 0]
    threshold = _quantile(held_out_distances, q)
    distances, index = nearest(samples, training, neighbours, **how)
    distance, to_others = distances[:, 0], distances[:, 1:].mean(axis=1)
    ratio = np.divide(distance, to_others, out=np.ones_like(distance), where=to_others > 0)
    close = int((distance < threshold).sum())
    order = np.lexsort((np.arange(len(distance)), distance))[:closest]
    pairs = tuple(NearestMatch(int(i), int(index[i, 0]), float(distance[i]), float(ratio[i])) for i in order)
    median = float(np.median(held_out_distances))
    median_ratio = float(np.median(distance)) / median if median > 0 else float("nan")
    low, high = binomtest(close, len(distance)).proportion_ci(0.95, method="wilson")
    share = close / len(distance)
    return Memorization(index[:, 0], distance, ratio, q, threshold, share, float(low), float(high), median_ratio, pairs)


def duplicates(
    samples: AnyArray,
    held_out: AnyArray,
    *,
    q: float = 0.01,
    closest: int = 20,
    block: int = BLOCK,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Duplicates:
    """Groups samples [n, D] that are connected by pairs closer than a threshold from held-out features [h, D].

    The threshold is the `q`-quantile of distances from held-out rows to their nearest other held-out row. More rows
    are denser: with n above h a share above q is expected, so use equal numbers, or compare the pair shares.
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
    low, high = binomtest(int((~alone).sum()), n).proportion_ci(0.95, method="wilson")
    shares = pairs / (n * (n - 1)), held_pairs / (h * (h - 1))
    distance, other = (values[:, 0] for values in nearest(samples, samples, 1, exclude_self=True, **how))
    closest_pairs: dict[tuple[int, int], float] = {}
    for i in np.lexsort((np.arange(n), distance))[: 2 * closest]:  # a pair may be there twice, once from each row
        closest_pairs.setdefault((min(int(i), int(other[i])), max(int(i), int(other[i]))), float(distance[i]))
    first = tuple((i, j, distance) for (i, j), distance in list(closest_pairs.items())[:closest])
    return Duplicates(group, q, threshold, float((~alone).mean()), float(low), float(high), *shares, first)


def _quantile(values: Float64Array, q: float) -> float:
    """The q-quantile by Weibull's plotting position: a new value of the same distribution is below it q of the time."""
    if not 0 < q < 1:
        raise ValueError(f"{q} is not a share between 0 and 1")
    if q * (len(values) + 1) < 1 - 1e-9:
        raise ValueError(f"{len(values)} held-out rows do not have a {q:.3g}-quantile: it takes {1 / q - 1:.0f}")
    return float(np.quantile(values, q, method="weibull"))


def _groups(x: AnyArray, threshold: float, how: dict[str, Any]) -> tuple[Int64Array, int]:
    """Group number of each row [n] by connected components of close pairs, and the number of ordered close pairs."""
    n, pairs = len(x), 0
    group = np.arange(n)
    radius = np.full((1, 1), threshold)
    for part in blocks(x, x, exclude_self=True, **how):
        near = part.within(radius, strict=True)
        pairs += int(near.sum())
        step = max(1, EDGES // n)
        for i in range(0, len(near), step):  # so that the edges of one step fit into memory
            if bool(near[i : i + step].any()):
                edges = near[i : i + step].nonzero().cpu().numpy()
                a, b = group[edges[:, 0] + part.start + i], group[edges[:, 1]]
                graph = coo_array((np.ones(len(edges), np.bool_), (a, b)), shape=(n, n))
                group = np.asarray(connected_components(graph, directed=False)[1][group], np.int64)
        del part, near
    first_rows = np.full(group.max() + 1, n)
    np.minimum.at(first_rows, group, np.arange(n))
    return np.unique(first_rows[group], return_inverse=True)[1].astype(np.int64), pairs
