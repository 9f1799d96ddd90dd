"""Around the Fréchet distance: statistics in files of other tools, and the distance at infinitely many rows.

Knows the .npz layouts and the fit over 1/n. Knows no network: a file does not say whose features it holds, and a
distance between features of two networks is a number without a meaning.

Files that hold pickles are never opened as such. Source of the fit: Chong and Forsyth 2020, section 3.
"""

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from raygen.metrics.frechet import Array, FactoredReference, Moments, frechet_to

__all__ = ["POINTS", "WIDEST", "Extrapolation", "Statistics", "checked", "frechet_infinity", "read_statistics"]


#: Sizes that the line is fitted to, as in the paper.
POINTS: Final = 15
#: The smallest of them in rows a value: below, 1/n is no longer all of the bias.
ROWS_A_VALUE: Final = 2.5
#: Rows that are turned to float64 at a time.
ROWS: Final = 4096
#: Values of a feature that a file may claim, and bytes that an array may take beside its numbers.
WIDEST, HEADER = 16_384, 4096
#: What the reader of zip files says of damaged ones.
_NOT_ZIP: Final = (
    zipfile.BadZipFile,
    NotImplementedError,
    UnicodeDecodeError,
    EOFError,
    struct.error,
    OverflowError,
    OSError,
)


@dataclass(frozen=True)
class Statistics:
    """Mean [D] and unbiased covariance [D, D] from a file; `n` is None where the file does not say."""

    n: int | None
    mean: Array
    covariance: Array

    def reference(self) -> FactoredReference:
        """With its factor, ready to be compared with."""
        return FactoredReference.of_covariance(self.mean, self.covariance, self.n)


def read_statistics(path: str | Path) -> Statistics:
    """From an .npz of pytorch-fid, clean-fid and their kin: keys `mu` [D] and `sigma` [D, D], others are ignored.

    A file that torch saved is refused here. `ValueError` for what is not such a file, names its fault; `OSError` where
    there is no file.
    """
    with Path(path).open("rb") as file:
        arrays = _arrays(file, ("mu", "sigma"), str(path))
    mean, covariance = arrays["mu"], arrays["sigma"]
    return checked(mean, covariance, str(path))


def checked(mean: Array, covariance: Array, where: str) -> Statistics:
    """Statistics of a mean and a covariance that somebody read; `ValueError` names `where` and what is wrong."""
    _fit(mean, covariance, where)
    return Statistics(None, mean, covariance)


def _arrays(file: IO[bytes], names: Sequence[str], where: str) -> Mapping[str, Array]:
    """float64 arrays of an .npz; nothing is unpickled and nothing larger than `WIDEST` allows is read."""
    try:
        with zipfile.ZipFile(file) as archive:
            there = archive.namelist()
            missing = [name for name in names if f"{name}.npy" not in there]
            if any(name.endswith("data.pkl") for name in there):
                raise ValueError(f"{where}: is a pickle of torch, which is not opened; save mu and sigma as .npz")
            if missing:
                found = ", ".join(sorted(name.removesuffix(".npy") for name in there)[:8])
                raise ValueError(f"{where}: has no {' and no '.join(missing)} (it has {found})")
            return {name: _array(archive, name, where) for name in names}
    except _NOT_ZIP as error:
        raise ValueError(f"{where}: is not an .npz file, or a damaged one") from error


def _array(archive: zipfile.ZipFile, name: str, where: str) -> Array:
    limit = 8 * WIDEST * (WIDEST if name == "sigma" else 1) + HEADER
    if archive.getinfo(f"{name}.npy").file_size > limit:
        raise ValueError(f"{where}: {name} is larger than features of {WIDEST} values have it")
    try:
        with archive.open(f"{name}.npy") as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
    except (ValueError, EOFError, MemoryError, OverflowError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ValueError(f"{where}: {name} is not an array of numbers ({error})") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{where}: {name} is not an array of numbers ({array.dtype})")
    return np.ascontiguousarray(array, np.float64).reshape(array.shape)


def _fit(mean: Array, sigma: Array, where: str) -> None:
    """`ValueError` unless [D] and [D, D] go together, are finite, and sigma could be a covariance."""
    if mean.ndim != 1 or not mean.size:
        raise ValueError(f"{where}: mu of shape {mean.shape}, not [D]")
    if sigma.shape != (mean.size, mean.size):
        raise ValueError(f"{where}: sigma of shape {sigma.shape} beside mu of {mean.size} values")
    if not (np.isfinite(mean).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{where}: not all of it is finite")
    scale = float(np.abs(sigma).max())
    if np.abs(sigma - sigma.T).max() > 1e-6 * scale:
        raise ValueError(f"{where}: sigma is not symmetric")
    if (np.diag(sigma) < -1e-6 * scale).any():
        raise ValueError(f"{where}: sigma has negative variances")


@dataclass(frozen=True)
class Extrapolation:
    """`value` at infinitely many rows, its standard error, and the `distances` [p] at `sizes` [p] behind it."""

    value: float
    standard_error: float
    sizes: npt.NDArray[np.int64]
    distances: Array


def frechet_infinity(
    features: npt.NDArray[Any],
    reference: FactoredReference,
    *,
    smallest: int | None = None,
    points: int = POINTS,
    seed: int = 0,
) -> Extrapolation:
    """Features [n, D] -> the distance for n towards infinity: the constant of a line over 1/n through `points` sizes.

    Sizes go evenly from `smallest` (2.5 D if not given) to n, each a random subset without repeats; the same for the
    same rows and seed. Only the bias of these features goes: the reference's own rows are as many as they are, and
    its bias stays. The standard error is that of the fit. Subsets share rows, so it is too small for an interval:
    about half of how much values over new features differ. `ValueError` below 2.5 D, where a line does not fit, or
    for fewer rows than the sizes need.
    """
    x = np.asarray(features)
    if x.ndim != 2 or x.shape[1:] != reference.mean.shape:
        raise ValueError(f"features of shape {x.shape} are not comparable with {reference.mean.size} values")
    least = math.ceil(ROWS_A_VALUE * x.shape[1])
    start = least if smallest is None else smallest
    if start < least:
        raise ValueError(f"a fit from {start} rows: features of {x.shape[1]} values need {least}")
    if points < 3 or len(x) < start + points - 1:
        raise ValueError(f"{points} sizes from {start} to {len(x)} rows: a fit takes 3 different ones or more")
    random = np.random.Generator(np.random.Philox(key=seed))
    sizes = np.rint(np.linspace(start, len(x), points)).astype(np.int64)
    chosen = (np.sort(random.choice(len(x), int(size), replace=False)) for size in sizes)
    distances = np.array([frechet_to(reference, _moments(x, rows)).value for rows in chosen])
    value, error = _constant(1 / sizes, distances)
    return Extrapolation(value, error, sizes, distances)


def _moments(x: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> Moments:
    return Moments.merge_all([Moments.of(x[rows[i : i + ROWS]]) for i in range(0, len(rows), ROWS)])


def _constant(x: Array, y: Array) -> tuple[float, float]:
    """Least squares y = a + b x: a and its standard error."""
    gap = x - x.mean()
    spread = float(gap @ gap)
    slope = float(gap @ y) / spread
    constant = float(y.mean() - slope * x.mean())
    rest = y - constant - slope * x
    variance = float(rest @ rest) / (len(x) - 2)
    return constant, math.sqrt(variance * (1 / len(x) + float(x.mean()) ** 2 / spread))
