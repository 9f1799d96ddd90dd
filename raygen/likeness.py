"""How alike two pictures are: SSIM, or 1 - LPIPS where its weights are named.

Knows which of the two is meant and what it is called. Everything that speaks of similarity measures it here.
"""

import numpy as np
import numpy.typing as npt
import torch

from raygen.extractors.perceptual import LPIPSSpec, load_lpips
from raygen.metrics.perceptual import ssim
from raygen.models.autoencoder import to_pixels

__all__ = ["Likeness"]

UInt8Array = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]
#: Pairs at once: both measures keep several copies of them.
CHUNK = 32


class Likeness:
    """Pictures uint8 [n, H, W, 3] twice -> similarity [n]; 1 where nothing differs."""

    def __init__(self, spec: LPIPSSpec | None, device: torch.device) -> None:
        """SSIM without a spec."""
        self.device, self.name = device, "ssim" if spec is None else "lpips"
        self._lpips = None if spec is None else load_lpips(spec).to(device)

    def __call__(self, made: UInt8Array, real: UInt8Array) -> Array:
        """See the class. `ValueError` where SSIM's window does not fit."""
        if len(made) > CHUNK:
            parts = [slice(start, start + CHUNK) for start in range(0, len(made), CHUNK)]
            return np.concatenate([self(made[part], real[part]) for part in parts])
        if self._lpips is None:
            return ssim(made, real)
        one, other = (to_pixels(torch.from_numpy(np.ascontiguousarray(x)).to(self.device)) for x in (made, real))
        with torch.inference_mode():
            return np.asarray(1 - self._lpips(one, other).double().cpu().numpy())
