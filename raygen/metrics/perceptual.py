"""How alike two pictures are: PSNR and SSIM.

Knows pairs of pixel arrays. Knows no network; LPIPS is an extractor's.

Sources: Wang et al. 2004 (SSIM: Gaussian window 11, sigma 1.5, K1 0.01, K2 0.03, population covariance).
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d

__all__ = ["PSNR", "SSIM", "bootstrap_mean", "psnr", "ssim"]

UInt8Array = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]
#: Largest difference of two 8-bit values.
RANGE: Final = 255.0
K1, K2, SIGMA, WINDOW = 0.01, 0.03, 1.5, 11
#: What PSNR is said to be where nothing differs, so that a mean stays finite.
BEST: Final = 100.0
ROUNDS: Final = 200
#: What the numbers depend on. SSIM is not shift-invariant: over -1..1 it is another number.
SSIM: Final[Mapping[str, Any]] = {
    "window": f"gaussian {WINDOW} x {WINDOW}, sigma {SIGMA}", "k": [K1, K2], "range": "0..255",
    "level": "mean over channels, places and pictures", "border": "windows that hang over it are left out",
}  # fmt: skip
PSNR: Final[Mapping[str, Any]] = {"range": "0..255", "level": "mean of the pictures' decibels", "at_most": BEST}


def psnr(made: UInt8Array, real: UInt8Array) -> Array:
    """uint8 [n, H, W, C] twice -> decibels of each picture [n], at most 100."""
    error = np.square(made.astype(np.float64) - real).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(np.minimum(BEST, 10 * np.log10(RANGE**2 / error)))


def ssim(made: UInt8Array, real: UInt8Array) -> Array:
    """uint8 [n, H, W, C] twice -> structural similarity of each picture [n], mean over channels and places.

    Windows that hang over the border are left out, so sides must be at least 11; `ValueError` if not.
    """
    if min(made.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM needs at least {WINDOW} x {WINDOW} pixels, not {made.shape[1]} x {made.shape[2]}")
    x, y = made.astype(np.float64), real.astype(np.float64)
    mx, my = _blur(x), _blur(y)
    vx, vy, cov = _blur(x * x) - mx * mx, _blur(y * y) - my * my, _blur(x * y) - mx * my
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    edge = WINDOW // 2
    return np.asarray(index[:, edge:-edge, edge:-edge].mean(axis=(1, 2, 3)))


def bootstrap_mean(values: Array, seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of a mean over resampled pictures; the same for the same values and seed. None for one picture."""
    n = len(values)
    if n < 2:
        return None, None
    random = np.random.Generator(np.random.Philox(key=seed))
    low, high = np.percentile([values[random.integers(0, n, n)].mean() for _ in range(ROUNDS)], [2.5, 97.5])
    return float(low), float(high)


def _blur(x: Array) -> Array:
    places = np.arange(WINDOW) - WINDOW // 2
    kernel = np.exp(-(places**2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    return np.asarray(correlate1d(correlate1d(x, kernel, axis=1), kernel, axis=2))
