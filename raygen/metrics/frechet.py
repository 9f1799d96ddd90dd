"""Fréchet distance between two sets of features, from mergeable float64 statistics.

Knows moments, how they merge, and the distance of two Gaussians. Knows neither networks nor pictures: whoever
made the features names them.

Source: Dowson and Landau 1982; Heusel et al. 2017, equation 6. Merging: Chan, Golub and LeVeque 1983.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

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


Array = npt.NDArray[np.float64]
#: Negative eigenvalues up to this share of the trace are rounding and are clipped; more is an error.
CLIP = 1e-6
#: Rows that are turned to float64 at a time.
ROWS = 4096


@dataclass(frozen=True)
class Moments:
    """Count, mean [D] and sum of squared deviations [D, D] of a set of features."""

    n: int
    mean: Array
    m2: Array

    @staticmethod
    def of(features: npt.NDArray[Any]) -> "Moments":
        """Of features [n, D]; `ValueError` for anything else, or where a value is not finite.

        Turned to float64 by `ROWS` at a time, so that what it takes beside the features does not grow with n.
        """
        x = np.asarray(features)
        if x.ndim != 2 or not len(x):
            raise ValueError(f"features of shape {x.shape}, not [n, D]")
        return Moments.merge_all([Moments._of_block(x[i : i + ROWS]) for i in range(0, len(x), ROWS)])

    @staticmethod
    def _of_block(features: npt.NDArray[Any]) -> "Moments":
        x = np.asarray(features, dtype=np.float64)
        if not np.isfinite(x).all():
            raise ValueError("features are not finite")
        mean = x.mean(axis=0)
        x = x - mean
        return Moments(len(x), mean, x.T @ x)

    def merge(self, other: "Moments") -> "Moments":
        """Of the union of two disjoint sets."""
        n = self.n + other.n
        delta = other.mean - self.mean
        m2 = self.m2 + other.m2 + np.outer(delta, delta) * (self.n * other.n / n)
        return Moments(n, self.mean + delta * (other.n / n), m2)

    @staticmethod
    def merge_all(parts: Sequence["Moments"]) -> "Moments":
        """A balanced tree over `parts` in their order: give them in a fixed one and the bits are fixed too."""
        if not parts:
            raise ValueError("nothing to merge")
        level = list(parts)
        while len(level) > 1:
            pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
            level = [pair[0].merge(pair[1]) if len(pair) == 2 else pair[0] for pair in pairs]
        return level[0]

    @property
    def covariance(self) -> Array:
        """Unbiased covariance [D, D]; needs two rows."""
        if self.n < 2:
            raise ValueError("a covariance needs two rows")
        return self.m2 / (self.n - 1)


@dataclass(frozen=True)
class Distance:
    """A Fréchet distance and how much negative spectrum was clipped to get it."""

    value: float
    clipped: float


@dataclass(frozen=True)
class FactoredReference:
    """A set that many are compared with: rows `n` (None where unknown), mean [D], trace of its covariance, R [D, r].

    The covariance is R R', with r = D, or r = n where there are no more rows than values. R is what takes longest of a
    distance and depends on this set alone.
    """

    n: int | None
    mean: Array
    trace: float
    root: Array

    @staticmethod
    def of(moments: Moments) -> "FactoredReference":
        """Of moments of two rows or more; errors as `of_covariance`."""
        return FactoredReference.of_covariance(moments.mean, moments.covariance, moments.n)

    @staticmethod
    def of_covariance(mean: Array, covariance: Array, n: int | None = None) -> "FactoredReference":
        """Of a mean [D] and an unbiased covariance [D, D]; `ArithmeticError` where that has negative spectrum."""
        values, vectors = linalg.eigh(covariance)
        trace = float(np.trace(covariance))
        _check(values, trace)
        return FactoredReference(n, mean, trace, np.ascontiguousarray(vectors * np.sqrt(values.clip(min=0))))

    @staticmethod
    def of_features(features: npt.NDArray[Any]) -> "FactoredReference":
        """Of features [n, D]. No more rows than values are a factor themselves, and an exact one.

        `ValueError` for fewer than two rows, or what is no features.
        """
        x = np.asarray(features)
        if x.ndim == 2 and len(x) > x.shape[1]:
            return FactoredReference.of(Moments.of(x))
        mean, rest = centred(x)
        rest /= np.sqrt(len(rest) - 1)
        return FactoredReference(len(rest), mean, float((rest**2).sum()), rest.T)


def centred(features: npt.NDArray[Any]) -> tuple[Array, Array]:
    """Features [n, D] -> their mean [D], and float64 features [n, D] without it; errors as `Reference.of_features`."""
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
    """`frechet` to a set whose R is there already; the same bits."""
    _comparable(reference.mean.size, b.mean.size)
    cov_b, root = b.covariance, reference.root
    _check_covariance(cov_b)
    trace = float(np.trace(cov_b))
    spectrum = linalg.eigvalsh(root.T @ cov_b @ root)
    clipped = _check(spectrum, reference.trace * trace)
    gap = reference.mean - b.mean
    value = gap @ gap + reference.trace + trace - 2 * np.sqrt(spectrum.clip(min=0)).sum()
    return Distance(float(value), clipped)


def frechet_from(reference: FactoredReference, features: npt.NDArray[Any]) -> Distance:
    """Features [n, D] to a set whose R is there already.

    With fewer rows than values, in either set, a covariance is singular and the product's small eigenvalues are noise;
    then tr (AB)^½ is the nuclear norm of X_c R / √(n-1), which has none.
    """
    x = np.asarray(features)
    _comparable(reference.mean.size, *x.shape[1:2])
    if min(len(x), len(x) if reference.n is None else reference.n) > x.shape[-1]:
        return frechet_to(reference, Moments.of(x))
    mean, rest = centred(x)
    rest /= np.sqrt(len(rest) - 1)
    cross = linalg.svdvals(rest @ reference.root).sum()
    gap = mean - reference.mean
    return Distance(float(gap @ gap + (rest**2).sum() + reference.trace - 2 * cross), 0.0)


def frechet_of_features(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Distance:
    """From features [n, D] to features [m, D]; `frechet_from` where many are compared with the second."""
    return frechet_from(FactoredReference.of_features(y), x)


def _comparable(one: int, other: int = 0) -> None:
    if one != other:
        raise ValueError(f"features of {one} and {other} values are not comparable")


def _check(values: Array, scale: float) -> float:
    negative = float(-values[values < 0].sum())
    if negative > CLIP * max(scale, np.finfo(np.float64).tiny):
        raise ArithmeticError(f"negative spectrum {negative:.3g} of {scale:.3g}: the statistics are damaged")
    return negative


def _check_covariance(covariance: Array) -> None:
    """`_check` of its spectrum, without the spectrum where none of it can be too negative: Cholesky costs a tenth."""
    trace, d = float(np.trace(covariance)), len(covariance)
    try:
        linalg.cholesky(covariance + np.eye(d) * (CLIP * trace / d), overwrite_a=True)
    except linalg.LinAlgError:
        _check(linalg.eigvalsh(covariance), trace)
