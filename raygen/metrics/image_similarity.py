"""Similarity of two pictures: PSNR and SSIM.

Source: Wang et al. 2004 (SSIM: Gaussian window 11, sigma 1.5, K1 0.01, K2 0.03, population covariance).
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from scipy.ndimage import correlate1d

from raygen.core.types import Float64Array, UInt8Array

__all__ = ["PSNR", "SSIM", "bootstrap_mean", "psnr", "ssim"]


#: Largest difference of two 8-bit values.
RANGE: Final = 255.0
K1, K2, SIGMA, WINDOW = 0.01, 0.03, 1.5, 11
#: PSNR of equal pictures, so that a mean stays finite.
BEST: Final = 100.0
ROUNDS: Final = 200
#: Protocols in METRICS. SSIM is not shift-invariant: over -1..1 it is another number.
SSIM: Final[Mapping[str, Any]] = {
    "window": f"gaussian {WINDOW} x {WINDOW}, sigma {SIGMA}",
    "k": [K1, K2],
    "range": "0..255",
    "level": "mean over channels, places and pictures",
    "border": "windows that hang over it are left out",
}
PSNR: Final[Mapping[str, Any]] = {"range": "0..255", "level": "mean of the pictures' decibels", "at_most": BEST}


def psnr(generated: UInt8Array, real: UInt8Array) -> Float64Array:
    """PSNR in dB of pictures uint8 [n, H, W, C] against real ones of the same shape: float64 [n], at most 100."""
    error = np.square(generated.astype(np.float64) - real).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(np.minimum(BEST, 10 * np.log10(RANGE**2 / error)))


def ssim(generated: UInt8Array, real: UInt8Array) -> Float64Array:
    """SSIM of pictures uint8 [n, H, W, C] against real ones of the same shape: float64 [n], over channels and pixels.

    Windows that cross the border are left out, so sides must be at least 11 pixels; `ValueError` if not.
    """
    if min(generated.shape[1:3]) < WINDOW:
        raise ValueError(
            f"SSIM needs at least {WINDOW} x {WINDOW} pixels, not {generated.shape[1]} x {generated.shape[2]}"
        )
    x, y = generated.astype(np.float64), real.astype(np.float64)
    mx, my = _blur(x), _blur(y)
    vx, vy, cov = _blur(x * x) - mx * mx, _blur(y * y) - my * my, _blur(x * y) - mx * my
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    edge = WINDOW // 2
    return np.asarray(index[:, edge:-edge, edge:-edge].mean(axis=(1, 2, 3)))


def bootstrap_mean(values: Float64Array, seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """95 % bootstrap interval of the mean of values [n]; the same for the same values and seed. None for one value."""
    n = len(values)
    if n < 2:
        return None, None
    random = np.random.Generator(np.random.Philox(key=seed))
    low, high = np.percentile([values[random.integers(0, n, n)].mean() for _ in range(ROUNDS)], [2.5, 97.5])
    return float(low), float(high)


def _blur(x: Float64Array) -> Float64Array:
    places = np.arange(WINDOW) - WINDOW // 2
    kernel = np.exp(-(places**2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    return np.asarray(correlate1d(correlate1d(x, kernel, axis=1), kernel, axis=2))
