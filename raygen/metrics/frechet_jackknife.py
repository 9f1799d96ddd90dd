"""How far a Fréchet distance would move with other generated rows: the jackknife that leaves a block of them out.

Knows rows, blocks of rows and the spectrum without them. Knows neither names nor networks.

Leaving blocks out keeps the number of rows, and with it the bias, nearly the same; a bootstrap repeats rows, lowers the
rank and is biased here. The reference stays as it is, so what another reference would change is not in the interval,
and neither is the bias of few rows.

Source: Efron and Stein 1981; Shao and Wu 1989 (blocks).
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import linalg, stats

from raygen.metrics.frechet import Array, FactoredReference, Moments, centred

__all__ = ["LEAST", "blocks_of", "margin", "margin_of_difference", "most_blocks"]


Rows = npt.NDArray[np.int64]
#: Blocks, for features of up to `NARROW` values and for wider ones: each costs a spectrum of that width.
MANY, SOME, NARROW = 50, 20, 512
#: With fewer blocks there is no interval: it would say more of the blocks than of the rows.
LEAST: Final = 10


def most_blocks(rows: int, width: int) -> int:
    """How many blocks to take of rows (or groups of rows) with `width` values: two or more of them in each."""
    return min(MANY if width <= NARROW else SOME, rows // 2)


def blocks_of(keys: npt.NDArray[np.uint64], most: int) -> list[Rows]:
    """Keys [n] -> places of the rows of each block, of about the same size; rows with one key are in one block.

    Rows go by their keys, so a hash as key mixes them. Fewer than `most` where many rows share a key, none where `most`
    is 0.
    """
    if not most:
        return []
    order = np.argsort(keys, kind="stable")
    counts = np.unique(keys, return_counts=True)[1]
    middle = np.cumsum(counts) - counts / 2
    block = np.repeat((middle * most / len(keys)).astype(np.int64), counts)
    return [np.sort(order[block == one]) for one in np.unique(block)]


def margin(
    features: npt.NDArray[Any], reference: FactoredReference, blocks: Sequence[Rows], level: float = 0.95
) -> float:
    """Half of the `level` interval of the distance of features [n, D], whose rows are in one of the blocks each.

    Student's t with a degree less than blocks. Needs two blocks, and two rows without the largest. Holds [r, r] a block
    where there are more rows than r, else [n, n].
    """
    return _half(_left_out(features, reference, blocks), level)


def margin_of_difference(
    first: npt.NDArray[Any],
    second: npt.NDArray[Any],
    reference: FactoredReference,
    blocks: Sequence[Rows],
    level: float = 0.95,
) -> float:
    """The same of one distance less the other, for two sets whose rows belong together: one condition, one noise.

    What both have in common moves both alike and is not in it, so it is narrower than either's own.
    """
    return _half(_left_out(first, reference, blocks) - _left_out(second, reference, blocks), level)


def _left_out(features: npt.NDArray[Any], reference: FactoredReference, blocks: Sequence[Rows]) -> Array:
    """The distance without each of the blocks."""
    x = np.asarray(features)
    few = len(x) - max(len(rows) for rows in blocks) <= reference.root.shape[1]
    return np.array(list(_few_rows(x, reference, blocks) if few else _many_rows(x, reference, blocks)))


def _half(values: Array, level: float) -> float:
    """Half of an interval from values with one block left out each."""
    k = len(values)
    spread = np.sqrt((k - 1) / k * ((values - values.mean()) ** 2).sum())
    return float(stats.t.ppf((1 + level) / 2, k - 1) * spread)


def _few_rows(x: npt.NDArray[Any], reference: FactoredReference, blocks: Sequence[Rows]) -> Iterator[float]:
    """The distance without each block, from G = X_c R R' X_c' [n, n]: leaving rows out of it is leaving them out.

    Roots of its smallest eigenvalues are noise of a hundred-millionth of the largest one's, and the same in all blocks.
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


def _many_rows(x: npt.NDArray[Any], reference: FactoredReference, blocks: Sequence[Rows]) -> Iterator[float]:
    """The same from R' X_c' X_c R [r, r]: what a block adds to it is taken off again."""
    means, squares, turned = [], [], []
    for rows in blocks:
        part = np.asarray(x[rows], np.float64) - reference.mean  # near its mean already, so that little cancels
        turned.append(Moments.of(part @ reference.root))
        means.append(part.mean(axis=0))
        part -= means[-1]
        squares.append(float(np.einsum("ij,ij", part, part)))
    whole, sizes = Moments.merge_all(turned), [one.n for one in turned]
    mean = np.average(means, axis=0, weights=sizes)
    total = sum(squares) + sum(n * float((own - mean) @ (own - mean)) for n, own in zip(sizes, means, strict=True))
    for one, own, square in zip(turned, means, squares, strict=True):
        left = whole.n - one.n
        gap, moved, weight = own - mean, one.mean - whole.mean, one.n * whole.n / left
        product = whole.m2 - one.m2 - weight * np.outer(moved, moved)
        rest = reference.mean + mean - gap * (one.n / left)
        yield _distance(reference, rest, total - square - weight * float(gap @ gap), product, left)


def _distance(reference: FactoredReference, mean: Array, squares: float, product: Array, n: int) -> float:
    """Of n rows: their mean, sum of squared deviations, and a matrix whose spectrum is (n - 1) that of A B."""
    spectrum = linalg.eigvalsh(product, overwrite_a=True, check_finite=False) / (n - 1)
    gap = mean - reference.mean
    return float(gap @ gap + squares / (n - 1) + reference.trace - 2 * np.sqrt(spectrum.clip(min=0)).sum())
