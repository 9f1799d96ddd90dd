"""How alike two pictures are: SSIM, or 1 - LPIPS where its weights are named.

Knows which of the two is meant and what it is called. Everything that speaks of similarity measures it here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raygen.extractors.perceptual import LPIPSSpec, load_lpips
from raygen.metrics.perceptual import SSIM, ssim
from raygen.models.autoencoder import to_pixels
from raygen.precision import full_precision

__all__ = ["Likeness"]

UInt8Array = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]
#: Pairs at once, or pictures that all pairs are measured of: both measures keep several copies of them.
CHUNK = 32


class Likeness:
    """Pictures uint8 [n, H, W, 3] twice -> similarity [n]; 1 where nothing differs."""

    def __init__(self, spec: LPIPSSpec | None, device: torch.device) -> None:
        """SSIM without a spec. LPIPS over VGG-16 is `lpips`; over another network it is named after it too."""
        self.device, self.name = device, "ssim"
        self.network = None if spec is None else spec.network
        self._lpips = None
        if spec is not None:
            self.name = "lpips" if spec.network == "vgg" else f"lpips-{spec.network}"
            self._lpips = load_lpips(spec).to(device)

    def __call__(self, made: UInt8Array, real: UInt8Array) -> Array:
        """See the class. `ValueError` where SSIM's window does not fit."""
        if len(made) > CHUNK:
            parts = [slice(start, start + CHUNK) for start in range(0, len(made), CHUNK)]
            return np.concatenate([self(made[part], real[part]) for part in parts])
        if self._lpips is None:
            return ssim(made, real)
        with torch.inference_mode(), full_precision():
            distance = self._lpips(self._pixels(made), self._pixels(real))
        return np.asarray(1 - distance.double().cpu().numpy())

    def protocol(self) -> dict[str, Any]:
        """What a number made with it depends on."""
        if self._lpips is None:
            return {**SSIM}
        return {"network": self.network, "sha256": self._lpips.sha256, "version": "0.1", "input": "picture size, -1..1"}

    def pairs(self, images: UInt8Array, wanted: Sequence[tuple[int, int]]) -> Array:
        """Pictures uint8 [n, H, W, 3] and pairs of their places [k] -> similarity [k]; each is as a call has it.

        What LPIPS sees in a picture is computed once, however many pairs it is in; those that stand first in a pair are
        to be the fewer ones, since they are looked at again for every `CHUNK` of the rest.
        """
        if self._lpips is None or not wanted:
            parts = [np.asarray(wanted[at : at + CHUNK]) for at in range(0, len(wanted), CHUNK)]
            return np.concatenate([np.zeros(0), *(self(images[part[:, 0]], images[part[:, 1]]) for part in parts)])
        first = sorted({one for one, _ in wanted})
        rest = sorted({other for _, other in wanted} - set(first))
        matrix = np.full((len(first), len(images)), np.nan)
        for start in range(0, max(1, len(rest)), CHUNK):
            places = [*first, *rest[start : start + CHUNK]]
            found = self._lpips.pairs(self._pixels(images[places]))
            matrix[:, places] = found[: len(first)].cpu().numpy()
        one, other = np.asarray(wanted).T
        return np.asarray(1 - matrix[np.searchsorted(first, one), other])

    def _pixels(self, images: UInt8Array) -> Tensor:
        return to_pixels(torch.from_numpy(np.ascontiguousarray(images)).to(self.device))
