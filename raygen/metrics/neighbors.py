"""Euclidean distances of all pairs of two feature sets in bounded memory: nearest neighbours, rows within a radius.

The one module that other metrics share. It computes |x - y|² = |x|² + |y|² - 2 x.y by blocks of rows, after subtracting
the mean, which reduces cancellation. Comparisons that rounding could decide are computed again from the features, as a
sum of squared differences in float64; so equal distances are equal, and neither block size nor device changes a result.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from raygen.core.precision import full_precision
from raygen.core.types import AnyArray, Float64Array, Int64Array
from raygen.store.vector_file import VectorFile, as_rows

__all__ = ["BLOCK", "Block", "blocks", "checked", "distances", "nearest"]


#: Rows of a block. Against 50,000 rows it has 102 MB in float32, and work on it takes less than four times as much.
BLOCK: Final = 512
#: Rows of the other set that are in memory at once where it is in a file.
TILE: Final = 8192
#: Bytes of the distances of a block against a set that is in a file.
SQUARED_BYTES: Final = 64 << 20
#: Neighbours beyond the k-th whose distance is computed exactly before the k nearest are chosen.
SPARE: Final = 16
#: Numbers that an exact computation gathers at a time (64 MB of float64).
CHUNK: Final = 1 << 23


def checked(features: Any, name: str = "features") -> Any:
    """`features` [n, D] as float32 or float64; `ValueError` for another shape, no rows, or what is not finite."""
    x = as_rows(features)
    if x.ndim != 2 or not len(x) or not x.shape[1]:
        raise ValueError(f"{name} of shape {x.shape}, not [n, D]")
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float32 if x.dtype == np.float16 else np.float64)
    if not all(np.isfinite(x[i : i + BLOCK]).all() for i in range(0, len(x), BLOCK)):
        raise ValueError(f"{name} are not finite")
    return x


def distances(x: AnyArray, y: AnyArray, rows: Int64Array, columns: Int64Array) -> Float64Array:
    """|x[rows] - y[columns]| of pairs, float64 [p], from the differences in float64."""
    result = np.empty(len(rows), np.float64)
    step = max(1, CHUNK // x.shape[1])
    for i in range(0, len(rows), step):
        part = slice(i, i + step)
        difference = x[rows[part]].astype(np.float64) - y[columns[part]]
        result[part] = np.sqrt((difference * difference).sum(axis=1))
    return result


@dataclass(frozen=True)
class Block:
    """Rows `start` .. `start` + b of x against all m rows of y.

    `squared` [b, m]: squared distances from the product, with rounding, in units of `scale`²; infinite for an excluded
    pair. Delete a block before taking the next, or two are in memory.
    """

    x: AnyArray
    y: AnyArray
    start: int
    squared: Tensor
    scale: float
    slack_x: Tensor
    slack_y: Tensor

    @property
    def rows(self) -> slice:
        """Which rows of x."""
        return slice(self.start, self.start + len(self.squared))

    def nearest(self, k: int) -> tuple[Float64Array, Int64Array]:
        """Distances [b, k], ascending, and rows of y [b, k]; of equal distances the lower row comes first."""
        count = min(k + SPARE, self.squared.shape[1])
        candidates = self.squared.topk(count, largest=False)
        index = candidates.indices.cpu().numpy().astype(np.int64)
        rows = np.repeat(np.arange(len(index)) + self.start, count)
        exact = distances(self.x, self.y, rows, index.ravel()).reshape(index.shape)
        exact[np.isinf(candidates.values.cpu().numpy())] = np.inf
        order = np.lexsort((index, exact), axis=1)[:, :k]
        return np.take_along_axis(exact, order, axis=1), np.take_along_axis(index, order, axis=1)

    def within(self, radius: AnyArray, *, strict: bool) -> Tensor:
        """Whether pairs are closer than `radius` ([b, 1], [1, m] or [1, 1]): bool [b, m]. `strict`: < instead of <=."""
        limit = torch.from_numpy(np.asarray((radius / self.scale) ** 2, np.float64))
        limit = limit.to(self.squared.device, self.squared.dtype)
        gap = self.squared - limit
        inside = gap < 0
        unsure = gap.abs_().sub_(self.slack_y) <= self.slack_x + 4 * torch.finfo(limit.dtype).eps * limit
        pairs = unsure.nonzero().cpu().numpy()
        if len(pairs):
            exact = distances(self.x, self.y, pairs[:, 0] + self.start, pairs[:, 1])
            limits = np.broadcast_to(radius, inside.shape)[pairs[:, 0], pairs[:, 1]]
            answers = exact < limits if strict else exact <= limits
            inside[unsure] = torch.from_numpy(answers).to(inside.device)
        return inside


def blocks(
    x: Any,
    y: Any,
    *,
    exclude_self: bool = False,
    block: int = BLOCK,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Block]:
    """Features [n, D] and [m, D] -> blocks of rows of x in order; `dtype` is that of the product.

    `exclude_self`: x and y are the same rows and no row is its own neighbour. `ValueError`, raised by the call and not
    by the first block, for different widths, another shape, values that are not finite, or `exclude_self` over sets of
    different sizes.
    """
    x, y = checked(x), checked(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of {x.shape[1]} and {y.shape[1]} values are not comparable")
    if exclude_self and len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} rows are not the same set")
    if block < 1:
        raise ValueError("a block has at least one row")
    if isinstance(y, VectorFile):
        block = max(1, min(block, SQUARED_BYTES // (4 * len(y))))
    return _blocks(x, y, exclude_self, block, torch.device(device or "cpu"), dtype)


def _blocks(
    x: Any, y: Any, exclude_self: bool, block: int, device: torch.device, dtype: torch.dtype
) -> Iterator[Block]:
    centre = sum_rows(y) / len(y) if isinstance(y, VectorFile) else y.mean(axis=0, dtype=np.float64)
    # A power of two near the largest value as unit: squares then neither overflow nor vanish.
    parts = (z[i : i + BLOCK] for z in (x, y) for i in range(0, len(z), BLOCK))
    largest = max(float(np.abs(part - centre).max()) for part in parts)
    scale = float(2.0 ** np.floor(np.log2(largest))) if largest > 0 else 1.0
    tiles = _Tiles(y, centre, scale, device, dtype)
    # The bound of an inner product's error (Higham 2002, 3.5) with (|x| + |y|)² <= 2|x|² + 2|y|².
    bound = 2 * (x.shape[1] + 16) * torch.finfo(dtype).eps
    norm_y = torch.cat([(right * right).sum(dim=1) for _, right in tiles])[None]
    for start in range(0, len(x), block):
        left = _tensor(x[start : start + block], centre, scale, device, dtype)
        norm_x = (left * left).sum(dim=1)[:, None]
        squared = torch.empty((len(left), len(y)), dtype=dtype, device=device)
        for columns, right in tiles:
            with full_precision():
                torch.addmm(norm_y[:, columns], left, right.T, alpha=-2, out=squared[:, columns])
        squared.add_(norm_x).clamp_(min=0)
        if exclude_self:
            squared.diagonal(start).fill_(torch.inf)
        yield Block(x, y, start, squared, scale, bound * norm_x, bound * norm_y)
        del squared


class _Tiles:
    """The rows of y in units of `scale` around `centre`: all at once, or `TILE` at a time where they are in a file."""

    def __init__(self, y: Any, centre: Float64Array, scale: float, device: torch.device, dtype: torch.dtype) -> None:
        self._of = (centre, scale, device, dtype)
        self._y = y
        self._whole = None if isinstance(y, VectorFile) else _tensor(y, *self._of)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        if self._whole is not None:
            yield slice(0, len(self._whole)), self._whole
            return
        for start in range(0, len(self._y), TILE):
            columns = slice(start, start + TILE)
            yield columns, _tensor(self._y[columns], *self._of)


def sum_rows(x: Any) -> Float64Array:
    """The sum of features [n, D] over their rows, in blocks: float64 [D]."""
    total = np.zeros(x.shape[1])
    for start in range(0, len(x), TILE):
        total += x[start : start + TILE].sum(axis=0, dtype=np.float64)
    return total


def _tensor(x: AnyArray, centre: Float64Array, scale: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(x - centre) / scale on `device`, without a float64 copy of all rows."""
    kind = np.float64 if dtype == torch.float64 else np.float32
    out = np.empty(x.shape, kind)
    for i in range(0, len(x), BLOCK):
        out[i : i + BLOCK] = (x[i : i + BLOCK] - centre) / scale
    return torch.from_numpy(out).to(device)


def nearest(
    x: AnyArray,
    y: AnyArray,
    k: int,
    *,
    exclude_self: bool = False,
    block: int = BLOCK,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Float64Array, Int64Array]:
    """The k rows of y [m, D] nearest to each row of x [n, D]: distances float64 [n, k], ascending, and rows [n, k].

    Distances are exact in float64. The choice of neighbours is exact too, unless more than `SPARE` others are within
    the rounding of the product (about 1e-6 of the squared norms in float32) of the k-th. `exclude_self`: by row number,
    so a copy of a row is its neighbour at 0. `ValueError` as `blocks`, and where y has fewer than k other rows.
    """
    parts = blocks(x, y, exclude_self=exclude_self, block=block, device=device, dtype=dtype)
    others = len(y) - exclude_self
    if not 1 <= k <= others:
        raise ValueError(f"{k} neighbours of {others} rows")
    distance = np.empty((len(x), k), np.float64)
    index = np.empty((len(x), k), np.int64)
    for part in parts:
        distance[part.rows], index[part.rows] = part.nearest(k)
        del part
    return distance, index
