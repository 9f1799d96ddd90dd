"""Confidence interval of a Fréchet distance by the delete-a-block jackknife over the generated rows.

Leaving blocks out keeps the number of rows, and with it the bias, nearly the same; a bootstrap repeats rows, lowers the
rank and is biased here. The reference is held fixed: the interval contains neither the variance of the reference nor
the bias of few rows.

Source: Efron and Stein 1981; Shao and Wu 1989 (blocks).
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import linalg, stats

from raygen.core.blas import NARROW, threads_for
from raygen.core.types import AnyArray, Float64Array, Int64Array
from raygen.metrics.frechet import FactoredReference, Moments, centred
from raygen.store.vector_file import as_rows, select_rows

__all__ = ["LEAST", "blocks_of", "margin", "margin_of_difference", "most_blocks"]


#: Number of blocks for features of up to `NARROW` values, and for wider ones: each block costs a spectrum.
MANY, SOME = 50, 20
#: Fewer blocks than this give no interval: it would depend on the blocks more than on the rows.
LEAST: Final = 10


def most_blocks(rows: int, width: int) -> int:
    """Number of blocks for `rows` rows (or groups of rows) of `width` values: two or more rows in each."""
    return min(MANY if width <= NARROW else SOME, rows // 2)


def blocks_of(keys: npt.NDArray[np.uint64], most: int) -> list[Int64Array]:
    """Keys [n] -> row indices of each block, of about equal size; rows with the same key are in the same block.

    Rows are sorted by key, so a hash as key shuffles them. Fewer than `most` blocks where many rows share a key, none
    where `most` is 0.
    """
    if not most:
        return []
    order = np.argsort(keys, kind="stable")
    counts = np.unique(keys, return_counts=True)[1]
    middle = np.cumsum(counts) - counts / 2
    block = np.repeat((middle * most / len(keys)).astype(np.int64), counts)
    return [np.sort(order[block == number]) for number in np.unique(block)]


def margin(
    features: AnyArray, reference: FactoredReference, blocks: Sequence[Int64Array], level: float = 0.95
) -> float:
    """Half the width of the `level` interval of the distance of features [n, D]; each row is in one of the blocks.

    Student's t with one degree of freedom less than blocks. Needs two blocks, and two rows outside of the largest.
    Memory: a few [r, r] where there are more rows than r, else [n, n].
    """
    return _half(_left_out(features, reference, blocks), level)


def margin_of_difference(
    first: AnyArray,
    second: AnyArray,
    reference: FactoredReference,
    blocks: Sequence[Int64Array],
    level: float = 0.95,
) -> float:
    """`margin` of the difference of two distances, for sets whose rows are paired: the same condition and noise.

    Variation that both sets share cancels, so it is narrower than the margin of either.
    """
    return _half(_left_out(first, reference, blocks) - _left_out(second, reference, blocks), level)


def _left_out(features: AnyArray, reference: FactoredReference, blocks: Sequence[Int64Array]) -> Float64Array:
    """The distance without each block, [blocks]."""
    x = as_rows(features)
    few = len(x) - max(len(rows) for rows in blocks) <= reference.root.shape[1]
    with threads_for(x.shape[1]):
        return np.array(list(_few_rows(x, reference, blocks) if few else _many_rows(x, reference, blocks)))


def _half(values: Float64Array, level: float) -> float:
    """Half the width of the jackknife interval, from the value without each block."""
    k = len(values)
    spread = np.sqrt((k - 1) / k * ((values - values.mean()) ** 2).sum())
    return float(stats.t.ppf((1 + level) / 2, k - 1) * spread)


def _few_rows(x: AnyArray, reference: FactoredReference, blocks: Sequence[Int64Array]) -> Iterator[float]:
    """The distance without each block, from submatrices of G = X_c R R' X_c' [n, n].

    Square roots of its smallest eigenvalues are noise, about 1e-8 of the largest root, and the same in all blocks.
    """
    mean, rest = centred(x)
    turned = rest @ reference.root
    gram, squares = turned @ turned.T, (rest**2).sum(axis=1)
    for rows in blocks:
        keep = np.delete(np.arange(len(x)), rows)
        shift = rest[keep].mean(axis=0)
        part = gram[np.ix_(keep, keep)]
        side = part.mean(axis=0)
        part -= side + (side - side.mean())[:, None]
        yield _distance(reference, mean + shift, squares[keep].sum() - len(keep) * (shift @ shift), part, len(keep))


def _many_rows(x: AnyArray, reference: FactoredReference, blocks: Sequence[Int64Array]) -> Iterator[float]:
    """The distance without each block, from R' X_c' X_c R [r, r] less the part of the block.

    Features are read for the moments of all rows, and block by block; blocks of fewer rows than values once more.
    """
    whole, root = Moments.of(x), reference.root
    turned = root.T @ whole.m2 @ root
    for rows in blocks:
        block = Moments.of(select_rows(x, rows))
        left, gap = whole.n - block.n, block.mean - whole.mean
        weight = block.n * whole.n / left
        if block.n < len(gap):  # a block of few rows is cheaper to turn than its matrix
            part = (np.asarray(x[rows], np.float64) - block.mean) @ root
            product = turned - part.T @ part
        else:
            product = turned - root.T @ block.m2 @ root
        moved = gap @ root
        product -= weight * np.outer(moved, moved)
        total = float(np.trace(whole.m2) - np.trace(block.m2)) - weight * float(gap @ gap)
        yield _distance(reference, whole.mean - gap * (block.n / left), total, product, left)


def _distance(reference: FactoredReference, mean: Float64Array, squares: float, product: Float64Array, n: int) -> float:
    """Distance of n rows: their mean, sum of squared deviations, and a matrix with (n - 1) times the spectrum of AB."""
    spectrum = linalg.eigvalsh(product, overwrite_a=True, check_finite=False) / (n - 1)
    gap = mean - reference.mean
    return float(gap @ gap + squares / (n - 1) + reference.trace - 2 * np.sqrt(spectrum.clip(min=0)).sum())
