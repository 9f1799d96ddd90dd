"""How well a first stage gives pictures back: PSNR, SSIM, LPIPS where its weights are at hand, Fréchet distance.

Knows which scores and under which names. Knows neither the loop nor where pictures come from.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raygen.core.pixels import to_pixels, to_uint8
from raygen.extractors.base import FeatureExtractor
from raygen.metrics.frechet import frechet_of_features
from raygen.metrics.image_similarity import psnr, ssim
from raygen.models.autoencoder import FirstStage

__all__ = ["reconstruction_scores"]


UInt8Array = npt.NDArray[np.uint8]
BATCH: Final = 32
#: Fewer pictures than this have no spread worth a distance.
LEAST: Final = 16


@torch.inference_mode()
def reconstruction_scores(
    stage: FirstStage,
    images: UInt8Array,
    features: FeatureExtractor,
    device: torch.device,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Means over pictures uint8 [n, H, W, 3]: `psnr` in dB, `ssim`, `lpips`, and `r` + the name of the distance."""
    parts: dict[str, list[npt.NDArray[np.floating]]] = {}
    for start in range(0, len(images), BATCH):
        real = images[start : start + BATCH]
        pixels = to_pixels(torch.from_numpy(np.ascontiguousarray(real)).to(device))
        decoded = stage.decode(stage.mode(stage.encode(pixels)))
        made = to_uint8(decoded).cpu()
        found = {
            "psnr": psnr(made.numpy(), real),
            "ssim": ssim(made.numpy(), real),
            "made": features.features(made).numpy(),
            "real": features.features(torch.from_numpy(real)).numpy(),
        }
        if perceptual is not None:
            found["lpips"] = perceptual(decoded.clamp(-1, 1), pixels).float().cpu().numpy()
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    made_features, real_features = joined.pop("made"), joined.pop("real")
    scores = {name: round(float(values.mean()), 4) for name, values in joined.items()}
    if len(images) >= LEAST:
        scores[f"r{features.metric}"] = round(frechet_of_features(made_features, real_features).value, 5)
    return scores
