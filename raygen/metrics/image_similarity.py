"""Similarity of two pictures: PSNR, SSIM, and one interface to SSIM and to a learned distance such as LPIPS.

Source: Wang et al. 2004 (SSIM: Gaussian window 11, sigma 1.5, K1 0.01, K2 0.03, population covariance).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import correlate1d
from torch import Tensor

from raygen.core.pixels import to_pixels
from raygen.core.precision import full_precision

__all__ = ["PSNR", "SSIM", "Similarity", "bootstrap_mean", "psnr", "ssim"]


UInt8Array = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]
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


def psnr(generated: UInt8Array, real: UInt8Array) -> Array:
    """PSNR in dB of pictures uint8 [n, H, W, C] against real ones of the same shape: float64 [n], at most 100."""
    error = np.square(generated.astype(np.float64) - real).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(np.minimum(BEST, 10 * np.log10(RANGE**2 / error)))


def ssim(generated: UInt8Array, real: UInt8Array) -> Array:
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


def bootstrap_mean(values: Array, seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """95 % bootstrap interval of the mean of values [n]; the same for the same values and seed. None for one value."""
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


#: Pairs at once, or pictures that all pairs are measured of: both measures keep several copies of them.
CHUNK = 32


class PairDistance(Protocol):
    """A learned distance between pictures, such as LPIPS."""

    sha256: str

    @property
    def trunk(self) -> str:
        """Name of the network: `vgg`, `alex`."""
        ...

    def to(self, device: torch.device) -> Any:
        """The same on `device`."""
        ...

    def __call__(self, generated: Tensor, real: Tensor) -> Tensor:
        """Distances [B] of pixels [B, 3, H, W] to others of the same shape."""
        ...

    def pairs(self, images: Tensor) -> Tensor:
        """Distances of all pairs [n, n] of pixels [n, 3, H, W]."""
        ...


class Similarity:
    """Similarity of pictures uint8 [n, H, W, 3] to others of the same shape: SSIM or 1 - LPIPS, float64 [n]."""

    def __init__(self, lpips: PairDistance | None, device: torch.device) -> None:
        """SSIM without `lpips`. LPIPS over VGG-16 is named `lpips`; over another network the name has a suffix."""
        self.device, self.name = device, "ssim"
        self._lpips: PairDistance | None = None
        if lpips is not None:
            self.name = "lpips" if lpips.trunk == "vgg" else f"lpips-{lpips.trunk}"
            self._lpips = lpips.to(device)

    @property
    def network(self) -> str | None:
        """Name of the network below LPIPS; None for SSIM."""
        return None if self._lpips is None else self._lpips.trunk

    def __call__(self, generated: UInt8Array, real: UInt8Array) -> Array:
        """Similarities [n]; `ValueError` where pictures are smaller than the window of SSIM."""
        if len(generated) > CHUNK:
            parts = [slice(start, start + CHUNK) for start in range(0, len(generated), CHUNK)]
            return np.concatenate([self(generated[part], real[part]) for part in parts])
        if self._lpips is None:
            return ssim(generated, real)
        with torch.inference_mode(), full_precision():
            distance = self._lpips(self._pixels(generated), self._pixels(real))
        return np.asarray(1 - distance.double().cpu().numpy())

    def protocol(self) -> dict[str, Any]:
        """The settings that its numbers depend on, for METRICS."""
        if self._lpips is None:
            return {**SSIM}
        return {
            "network": self._lpips.trunk,
            "sha256": self._lpips.sha256,
            "version": "0.1",
            "input": "picture size, -1..1",
        }

    def pairs(self, images: UInt8Array, wanted: Sequence[tuple[int, int]]) -> Array:
        """Pictures uint8 [n, H, W, 3] and pairs of their indices [k] -> similarity float64 [k], as a call gives it.

        LPIPS computes the feature maps of a picture once for all its pairs. The first pictures of the pairs should be
        the fewer ones, since their maps are computed again for every `CHUNK` of the others.
        """
        if self._lpips is None or not wanted:
            parts = [np.asarray(wanted[at : at + CHUNK]) for at in range(0, len(wanted), CHUNK)]
            return np.concatenate([np.zeros(0), *(self(images[part[:, 0]], images[part[:, 1]]) for part in parts)])
        first = sorted({a for a, _ in wanted})
        rest = sorted({b for _, b in wanted} - set(first))
        matrix = np.full((len(first), len(images)), np.nan)
        for start in range(0, max(1, len(rest)), CHUNK):
            columns = [*first, *rest[start : start + CHUNK]]
            distances = self._lpips.pairs(self._pixels(images[columns]))
            matrix[:, columns] = distances[: len(first)].cpu().numpy()
        a, b = np.asarray(wanted).T
        return np.asarray(1 - matrix[np.searchsorted(first, a), b])

    def _pixels(self, images: UInt8Array) -> Tensor:
        return to_pixels(torch.from_numpy(np.ascontiguousarray(images)).to(self.device))
