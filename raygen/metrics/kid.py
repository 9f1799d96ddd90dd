"""Kernel distance (KID): the squared maximum mean discrepancy of two feature sets under the kernel (x.y / D + 1)³.

The kernel depends on the origin and the scale of the features, so numbers over other features are not comparable.

Sources: Bińkowski et al. 2018, section 4 (KID); Gretton et al. 2012, lemma 6 (unbiased estimate); Hoeffding 1948
(variance of a U-statistic).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from raygen.core.precision import full_precision
from raygen.core.types import AnyArray, Float64Array, Int64Array
from raygen.metrics.neighbors import BLOCK, TILE, checked
from raygen.store.vector_file import VectorFile

__all__ = ["KernelDistance", "kid", "kid_of_subsets", "kid_subsets"]


DEGREE: Final = 3
#: Two-sided 95 % of a normal distribution.
Z: Final = 1.959963984540054


@dataclass(frozen=True)
class KernelDistance:
    """An unbiased squared distance (it may be negative), its standard error and a 95 % interval."""

    value: float
    standard_error: float
    low: float
    high: float


def kid_subsets(
    x: AnyArray, y: AnyArray, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation (divisor `subsets`) of the distance over random subsets of [n, D] and [m, D].

    The protocol of torch-fidelity and most tables. The deviation is that between subsets of `size`, not an interval of
    the mean: subsets overlap, and more of them do not add pictures. The same for the same rows and seed. `ValueError`
    where a set has fewer than `size` rows.
    """
    x, y = checked(x), checked(y)
    if min(len(x), len(y)) < size:
        raise ValueError(f"subsets of {size} of {len(x)} and {len(y)} rows")
    if subsets < 1:
        raise ValueError("no subsets")
    random = np.random.Generator(np.random.Philox(key=seed))
    index = [[random.choice(len(z), size, replace=False) for z in (x, y)] for _ in range(subsets)]
    values = kid_of_subsets(x, y, np.stack([i for i, _ in index]), np.stack([j for _, j in index]))
    return float(values.mean()), float(values.std())


def kid_of_subsets(x: AnyArray, y: AnyArray, index_x: Int64Array, index_y: Int64Array) -> Float64Array:
    """The distance of x[index_x[i]] and y[index_y[i]] for each i: index [s, a] and [s, b] -> float64 [s]."""
    x, y = _pair(x, y)
    if index_x.ndim != 2 or index_y.ndim != 2 or len(index_x) != len(index_y):
        raise ValueError(f"index of shapes {index_x.shape} and {index_y.shape}, not [s, a] and [s, b]")
    if min(index_x.shape[1], index_y.shape[1]) < 2:
        raise ValueError("the distance needs two rows of each")
    cpu = torch.device("cpu")
    pairs = zip(index_x, index_y, strict=True)
    return np.array([_KernelSums.of(x[i], y[j], BLOCK, cpu, torch.float64).value() for i, j in pairs])


def kid(
    x: AnyArray,
    y: AnyArray,
    *,
    block: int = BLOCK,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> KernelDistance:
    """The unbiased distance of all rows [n, D] and [m, D], in blocks of rows, with sums in float64; deterministic.

    `dtype` is that of the products. The interval is value ± 1.96 standard errors. The variance is that of the
    U-statistic: a 1/n term from the variance of the rows' means, and a 1/n² term, which remains where both sets have
    the same distribution. There the estimate is skewed and the interval is conservative: it contains 0 more often than
    95 times in 100. `ValueError` where a set has fewer than two rows, or the widths differ.
    """
    x, y = _pair(x, y)
    sums = _KernelSums.of(x, y, block, torch.device(device or "cpu"), dtype)
    value, error = sums.value(), float(np.sqrt(sums.variance()))
    return KernelDistance(value, error, value - Z * error, value + Z * error)


def _pair(x: AnyArray, y: AnyArray) -> tuple[AnyArray, AnyArray]:
    x, y = checked(x), checked(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of {x.shape[1]} and {y.shape[1]} values are not comparable")
    if min(len(x), len(y)) < 2:
        raise ValueError("the distance needs two rows of each")
    return x, y


@dataclass(frozen=True)
class _KernelSums:
    """Sums over the rows of the kernel matrices without their diagonals, and sums of all squares."""

    xx: Float64Array
    yy: Float64Array
    xy: Float64Array
    yx: Float64Array
    squares: tuple[float, float, float]

    @staticmethod
    def of(x: Any, y: Any, block: int, device: torch.device, dtype: torch.dtype) -> "_KernelSums":
        def tensor(z: AnyArray) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(z), dtype=dtype, device=device)

        left, right = (z if isinstance(z, VectorFile) else tensor(z) for z in (x, y))
        xx, _, square_xx = _row_sums(left, left, block, tensor, own=True)
        yy, _, square_yy = _row_sums(right, right, block, tensor, own=True)
        xy, yx, square_xy = _row_sums(left, right, block, tensor, own=False)
        return _KernelSums(xx, yy, xy, yx, (square_xx, square_yy, square_xy))

    def value(self) -> float:
        n, m = len(self.xx), len(self.yy)
        own = self.xx.sum() / (n * (n - 1)) + self.yy.sum() / (m * (m - 1))
        return float(own - 2 * self.xy.sum() / (n * m))

    def variance(self) -> float:
        """Var = 4 var(g_x)/n + 4 var(g_y)/m + rest, g the mean kernel to the own set less that to the other.

        Estimating g by the rows' means counts `rest`, the noise of those means, once too often, so it is subtracted.
        Where g does not vary, `rest` is the whole variance, so the variance is never below it.
        """
        n, m = len(self.xx), len(self.yy)
        g_x, g_y = self.xx / (n - 1) - self.xy / m, self.yy / (m - 1) - self.yx / n
        first = 4 * g_x.var(ddof=1) / n + 4 * g_y.var(ddof=1) / m
        rest = 2 * _centred_square(self.xx, self.xx, self.squares[0], n * (n - 1)) / (n * (n - 1))
        rest += 2 * _centred_square(self.yy, self.yy, self.squares[1], m * (m - 1)) / (m * (m - 1))
        rest += 4 * _centred_square(self.xy, self.yx, self.squares[2], n * m) / (n * m)
        return float(max(first - rest, rest))


def _centred_square(rows: Float64Array, columns: Float64Array, square: float, count: int) -> float:
    """Mean square of a matrix less the means of its rows and columns, from its sums; at least 0."""
    mean = rows.sum() / count
    a, b = rows * (len(rows) / count), columns * (len(columns) / count)
    return max(0.0, float(square / count - np.square(a - mean).mean() - np.square(b - mean).mean() - mean**2))


def _row_sums(
    x: Any, y: Any, block: int, tensor: Callable[[AnyArray], Tensor], *, own: bool
) -> tuple[Float64Array, Float64Array, float]:
    """Sums over rows [n], over columns [m], and of squares; `own`: x is y, and the diagonal is left out.

    `x` and `y` are tensors, or files of which `tensor` makes the rows of a block and of a tile.
    """
    n, m = len(x), len(y)
    rows, columns, square = np.zeros(n), np.zeros(m), 0.0
    tile = TILE if isinstance(y, VectorFile) else m
    for start in range(0, n, block):
        left = x[start : start + block] if isinstance(x, Tensor) else tensor(x[start : start + block])
        for first in range(0, m, tile):
            right = y[first : first + tile] if isinstance(y, Tensor) else tensor(y[first : first + tile])
            with full_precision():
                part = left @ right.T
            part.div_(x.shape[1]).add_(1).pow_(DEGREE)
            if own and -len(left) < start - first < part.shape[1]:
                part.diagonal(start - first).zero_()
            rows[start : start + len(left)] += part.sum(dim=1, dtype=torch.float64).cpu().numpy()
            columns[first : first + len(right)] += part.sum(dim=0, dtype=torch.float64).cpu().numpy()
            square += float(part.square_().sum(dtype=torch.float64))
    return rows, columns, square
