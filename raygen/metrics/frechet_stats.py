"""Fréchet statistics in .npz files of other tools, and the Fréchet distance extrapolated to infinitely many rows.

Such a file does not name the network of its features; the caller has to know it. Pickles are never unpickled.

Source of the extrapolation: Chong and Forsyth 2020, section 3.
"""

import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from raygen.core.types import AnyArray, Float64Array, Int64Array
from raygen.metrics.frechet import FactoredReference, Moments, frechet_to
from raygen.store.vector_file import VectorFile, as_rows

__all__ = ["POINTS", "WIDEST", "Extrapolation", "Statistics", "checked", "frechet_infinity", "read_statistics"]


#: Number of subset sizes that the line is fitted to, as in the paper.
POINTS: Final = 15
#: Smallest size in rows per value: below it the bias is not proportional to 1/n.
ROWS_A_VALUE: Final = 2.5
#: Rows that are converted to float64 at a time.
ROWS: Final = 4096
#: Largest feature width that a file may have, and bytes of an array besides its numbers.
WIDEST, HEADER = 16_384, 4096
#: Errors that `zipfile` raises for damaged files.
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
    mean: Float64Array
    covariance: Float64Array

    def reference(self) -> FactoredReference:
        """The factored reference of these statistics."""
        return FactoredReference.of_covariance(self.mean, self.covariance, self.n)


def read_statistics(path: str | Path) -> Statistics:
    """Reads an .npz of pytorch-fid, clean-fid and similar tools: `mu` [D] and `sigma` [D, D]; other keys are ignored.

    Nothing is unpickled, and no array larger than `WIDEST` allows is read. `ValueError` names what is wrong with the
    file; a file that torch saved is refused. `OSError` where there is no file.
    """
    with Path(path).open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.namelist()
                missing = [name for name in ("mu", "sigma") if f"{name}.npy" not in members]
                if any(name.endswith("data.pkl") for name in members):
                    raise ValueError(f"{path}: is a pickle of torch, which is not opened; save mu and sigma as .npz")
                if missing:
                    present = ", ".join(sorted(name.removesuffix(".npy") for name in members)[:8])
                    raise ValueError(f"{path}: has no {' and no '.join(missing)} (it has {present})")
                mean, covariance = (_array(archive, name, str(path)) for name in ("mu", "sigma"))
        except _NOT_ZIP as error:
            raise ValueError(f"{path}: is not an .npz file, or a damaged one") from error
    return checked(mean, covariance, str(path))


def checked(mean: Float64Array, covariance: Float64Array, source: str) -> Statistics:
    """Statistics of a mean [D] and a covariance [D, D] that were read from `source`, which errors name.

    `ValueError` unless the shapes fit, all values are finite, and the matrix can be a covariance.
    """
    if mean.ndim != 1 or not mean.size:
        raise ValueError(f"{source}: mu of shape {mean.shape}, not [D]")
    if covariance.shape != (mean.size, mean.size):
        raise ValueError(f"{source}: sigma of shape {covariance.shape} beside mu of {mean.size} values")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{source}: not all of it is finite")
    tolerance = 1e-6 * float(np.abs(covariance).max())
    if np.abs(covariance - covariance.T).max() > tolerance:
        raise ValueError(f"{source}: sigma is not symmetric")
    if (np.diag(covariance) < -tolerance).any():
        raise ValueError(f"{source}: sigma has negative variances")
    return Statistics(None, mean, covariance)


def _array(archive: zipfile.ZipFile, name: str, where: str) -> Float64Array:
    """float64 array `name` of an .npz."""
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


@dataclass(frozen=True)
class Extrapolation:
    """`value` at infinitely many rows, its standard error, and the fitted `distances` [p] at `sizes` [p]."""

    value: float
    standard_error: float
    sizes: Int64Array
    distances: Float64Array


def frechet_infinity(
    features: AnyArray,
    reference: FactoredReference,
    *,
    smallest: int | None = None,
    points: int = POINTS,
    seed: int = 0,
) -> Extrapolation:
    """Features [n, D] -> the distance for n towards infinity: the constant of a line over 1/n through `points` sizes.

    Sizes go evenly from `smallest` (2.5 D if not given) to n, each a random subset without replacement; the same for
    the same rows and seed. The bias of `features` is removed; the bias of the reference's own rows remains. The
    standard error is that of the fit. Subsets share rows, so it is too small for an interval: about half of the
    deviation over new features. `ValueError` below 2.5 D, where a line does not fit, or for fewer rows than the sizes
    need.
    """
    x = as_rows(features)
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
    distances = np.empty(points)
    for i, size in enumerate(sizes):
        rows = np.sort(random.choice(len(x), int(size), replace=False))
        distances[i] = frechet_to(reference, _moments(x, rows)).value
    # Least squares of distance = value + slope / n.
    inverse = 1 / sizes
    gap = inverse - inverse.mean()
    spread = float(gap @ gap)
    slope = float(gap @ distances) / spread
    value = float(distances.mean() - slope * inverse.mean())
    residual = distances - value - slope * inverse
    variance = float(residual @ residual) / (points - 2)
    error = math.sqrt(variance * (1 / points + float(inverse.mean()) ** 2 / spread))
    return Extrapolation(value, error, sizes, distances)


def _moments(x: AnyArray | VectorFile, rows: Int64Array) -> Moments:
    """Moments of rows of features, which are copied in blocks only."""
    return Moments.merge_all(Moments.of(x[rows[start : start + ROWS]]) for start in range(0, len(rows), ROWS))
