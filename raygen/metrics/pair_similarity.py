"""One interface to SSIM and to a learned distance of pictures such as LPIPS."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raygen.core.pixels import to_pixels
from raygen.core.precision import full_precision
from raygen.core.types import Float64Array, UInt8Array
from raygen.metrics.image_similarity import SSIM, ssim

__all__ = ["Similarity"]


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

    def __call__(self, generated: UInt8Array, real: UInt8Array) -> Float64Array:
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

    def pairs(self, images: UInt8Array, wanted: Sequence[tuple[int, int]]) -> Float64Array:
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
