"""Fréchet distance between two sets of features, from mergeable float64 statistics.

Source: Dowson and Landau 1982; Heusel et al. 2017, equation 6. Merging: Chan, Golub and LeVeque 1983.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg

from raygen.core.blas import threads_for
from raygen.core.types import AnyArray, Float64Array
from raygen.store.vector_file import as_rows

__all__ = [
    "Distance",
    "FactoredReference",
    "Moments",
    "centred",
    "frechet",
    "frechet_from",
    "frechet_of_features",
    "frechet_to",
]


#: Negative eigenvalues up to this share of the trace are rounding and are clipped; more is an error.
CLIP = 1e-6
#: Rows that are turned to float64 at a time.
ROWS = 4096


@dataclass(frozen=True)
class Moments:
    """Count, mean [D] and sum of squared deviations [D, D] of a set of features."""

    n: int
    mean: Float64Array
    m2: Float64Array

    @staticmethod
    def of(features: Any) -> "Moments":
        """Moments of features [n, D]; `ValueError` for another shape, or where a value is not finite.

        Converts `ROWS` rows at a time to float64, and holds the moments of log2(n / `ROWS`) blocks.
        """
        x = as_rows(features)
        if x.ndim != 2 or not len(x):
            raise ValueError(f"features of shape {x.shape}, not [n, D]")
        with threads_for(x.shape[1]):
            return Moments.merge_all(_moments_of_block(x[start : start + ROWS]) for start in range(0, len(x), ROWS))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of the union of two disjoint sets."""
        n = self.n + other.n
        delta = other.mean - self.mean
        m2 = np.outer(delta, delta)
        m2 *= self.n * other.n / n
        m2 += self.m2 + other.m2
        return Moments(n, self.mean + delta * (other.n / n), m2)

    @staticmethod
    def merge_all(parts: Iterable["Moments"]) -> "Moments":
        """Merges `parts` as a balanced tree in their order; the same order gives the same bits.

        Holds the merged moments of log2(number of parts) groups.
        """
        merged: list[tuple[int, Moments]] = []  # each has twice the parts of the next
        for part in parts:
            whole, count = part, 1
            while merged and merged[-1][0] == count:
                whole, count = merged.pop()[1].merge(whole), 2 * count
            merged.append((count, whole))
        if not merged:
            raise ValueError("nothing to merge")
        whole = merged.pop()[1]
        while merged:
            whole = merged.pop()[1].merge(whole)
        return whole

    @property
    def covariance(self) -> Float64Array:
        """Unbiased covariance [D, D]; needs two rows."""
        if self.n < 2:
            raise ValueError("a covariance needs two rows")
        return self.m2 / (self.n - 1)


def _moments_of_block(rows: AnyArray) -> Moments:
    block = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(block).all():
        raise ValueError("features are not finite")
    mean = block.mean(axis=0)
    block = block - mean
    return Moments(len(block), mean, block.T @ block)


@dataclass(frozen=True)
class Distance:
    """A Fréchet distance, and the sum of the negative eigenvalues that were clipped as rounding."""

    value: float
    clipped: float


@dataclass(frozen=True)
class FactoredReference:
    """A reference set: rows `n` (None if unknown), mean [D], trace of its covariance, and a factor `root` R [D, r].

    The covariance is R R', with r = D, or r = n where n <= D. Computing R takes most of the time of a distance, and
    R depends on the reference alone.
    """

    n: int | None
    mean: Float64Array
    trace: float
    root: Float64Array

    @staticmethod
    def of(moments: Moments) -> "FactoredReference":
        """The reference with these moments, of two rows or more; errors as `of_covariance`."""
        return FactoredReference.of_covariance(moments.mean, moments.covariance, moments.n)

    @staticmethod
    def of_covariance(mean: Float64Array, covariance: Float64Array, n: int | None = None) -> "FactoredReference":
        """The reference with this mean [D] and unbiased covariance [D, D].

        `ArithmeticError` where the covariance has negative eigenvalues beyond rounding.
        """
        with threads_for(len(covariance)):
            values, vectors = linalg.eigh(covariance)
        trace = float(np.trace(covariance))
        _check(values, trace)
        return FactoredReference(n, mean, trace, np.ascontiguousarray(vectors * np.sqrt(values.clip(min=0))))

    @staticmethod
    def of_features(features: AnyArray) -> "FactoredReference":
        """The reference of features [n, D]. With n <= D the centred features are the factor, which is exact.

        `ValueError` for fewer than two rows, another shape or values that are not finite.
        """
        x = as_rows(features)
        if x.ndim == 2 and len(x) > x.shape[1]:
            return FactoredReference.of(Moments.of(x))
        mean, rest = centred(x)
        rest /= np.sqrt(len(rest) - 1)
        return FactoredReference(len(rest), mean, float((rest**2).sum()), rest.T)


def centred(features: AnyArray) -> tuple[Float64Array, Float64Array]:
    """Features [n, D] -> their mean [D], and float64 features [n, D] without it.

    Errors as `FactoredReference.of_features`.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"features of shape {x.shape}, not [n, D]" if x.ndim != 2 else "features are not finite")
    if len(x) < 2:
        raise ValueError("a covariance needs two rows")
    mean = x.mean(axis=0)
    return mean, x - mean


def frechet(a: Moments, b: Moments) -> Distance:
    """|mu_a - mu_b|² + tr(A + B - 2 (A B)^½), by the symmetric form: tr (AB)^½ = sum of √eig(R' B R) with A = R R'.

    `ArithmeticError` where the product has more negative spectrum than rounding explains.
    """
    _comparable(a.mean.size, b.mean.size)
    return frechet_to(FactoredReference.of(a), b)


def frechet_to(reference: FactoredReference, b: Moments) -> Distance:
    """`frechet` to a reference that is factored already; the same bits."""
    _comparable(reference.mean.size, b.mean.size)
    cov_b, root, d = b.covariance, reference.root, b.mean.size
    trace = float(np.trace(cov_b))
    with threads_for(d):
        # A Cholesky factor exists where no eigenvalue is too negative, and costs a tenth of the spectrum.
        try:
            linalg.cholesky(cov_b + np.eye(d) * (CLIP * trace / d), overwrite_a=True)
        except linalg.LinAlgError:
            _check(linalg.eigvalsh(cov_b), trace)
        spectrum = linalg.eigvalsh(root.T @ cov_b @ root)
    clipped = _check(spectrum, reference.trace * trace)
    gap = reference.mean - b.mean
    value = gap @ gap + reference.trace + trace - 2 * np.sqrt(spectrum.clip(min=0)).sum()
    return Distance(float(value), clipped)


def frechet_from(reference: FactoredReference, features: AnyArray) -> Distance:
    """`frechet` of features [n, D] to a reference that is factored already.

    With fewer rows than values, in either set, a covariance is singular and the small eigenvalues of the product are
    noise. Then tr (AB)^½ is computed as the nuclear norm of X_c R / √(n-1), which has no such noise.
    """
    x = as_rows(features)
    _comparable(reference.mean.size, *x.shape[1:2])
    if min(len(x), len(x) if reference.n is None else reference.n) > x.shape[-1]:
        return frechet_to(reference, Moments.of(x))
    mean, rest = centred(x)
    rest /= np.sqrt(len(rest) - 1)
    with threads_for(min(rest.shape)):
        cross = linalg.svdvals(rest @ reference.root).sum()
    gap = mean - reference.mean
    return Distance(float(gap @ gap + (rest**2).sum() + reference.trace - 2 * cross), 0.0)


def frechet_of_features(x: AnyArray, y: AnyArray) -> Distance:
    """Distance of features [n, D] to features [m, D]; `frechet_from` is faster for many distances to the second."""
    return frechet_from(FactoredReference.of_features(y), x)


def _comparable(width: int, other: int = 0) -> None:
    if width != other:
        raise ValueError(f"features of {width} and {other} values are not comparable")


def _check(values: Float64Array, scale: float) -> float:
    """Sum of the negative eigenvalues among `values`; `ArithmeticError` beyond the share `CLIP` of `scale`."""
    negative = float(-values[values < 0].sum())
    if negative > CLIP * max(scale, np.finfo(np.float64).tiny):
        raise ArithmeticError(f"negative spectrum {negative:.3g} of {scale:.3g}: the statistics are damaged")
    return negative
