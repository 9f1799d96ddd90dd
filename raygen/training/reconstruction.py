"""The end of an autoencoder's training: the scale of its latents, and how well it reconstructs pictures.

Scores are PSNR, SSIM, LPIPS where its weights are installed, and a Fréchet distance.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raygen.core.pixels import to_pixels, to_uint8
from raygen.core.types import UInt8Array
from raygen.extractors.base import FeatureExtractor, load_features
from raygen.extractors.config import BundledNetworkConfig
from raygen.metrics.frechet import frechet_of_features
from raygen.metrics.image_similarity import psnr, ssim
from raygen.models.autoencoder import FirstStage
from raygen.store.run_store import open_input
from raygen.training.data import TrainingData
from raygen.training.loading import load_training_data
from raygen.training.losses import AutoencoderObjective

__all__ = ["finish_autoencoder", "reconstruction_scores"]


BATCH: Final = 32
#: Fewer pictures than this have no covariance worth a distance.
LEAST: Final = 16
#: Pictures that set the scale of the latents.
CALIBRATION: Final = 4096


def finish_autoencoder(
    objective: AutoencoderObjective,
    data: TrainingData,
    device: torch.device,
    faces: str,
    *,
    split: str | None,
    pictures: int,
) -> dict[str, Any]:
    """Set the scale of the latents from the training pictures; then score at most `pictures` reconstructions.

    Scored are the faces of `split` in the ingest run `faces`, or the training pictures where `split` is None. Returns
    `reconstruction`, the scores, and `scored`, the pictures they are of.
    """
    stage = objective.stage
    assert data.images is not None
    images = torch.from_numpy(data.images[:CALIBRATION])
    with torch.no_grad():
        moments = [stage.encode(to_pixels(part.to(device))).cpu() for part in torch.split(images, 64)]
    stage.calibrate(torch.cat(moments))
    if split is not None:
        tables = open_input(faces)[0].tables("faces", ["face_id", "split", "image"])
        data = load_training_data(tables, size=stage.config.image_size, split=split)
    assert data.images is not None
    scored = np.ascontiguousarray(data.images[:pictures])
    features = load_features(BundledNetworkConfig(), device)
    scores = reconstruction_scores(stage, scored, features, device, objective.perceptual)
    return {"reconstruction": scores, "scored": {"pictures": len(scored), "split": split or "training"}}


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
        reconstructed = to_uint8(decoded).cpu()
        values_by_name = {
            "psnr": psnr(reconstructed.numpy(), real),
            "ssim": ssim(reconstructed.numpy(), real),
            "reconstructed": features.features(reconstructed).numpy(),
            "real": features.features(torch.from_numpy(real)).numpy(),
        }
        if perceptual is not None:
            values_by_name["lpips"] = perceptual(decoded.clamp(-1, 1), pixels).float().cpu().numpy()
        for name, values in values_by_name.items():
            parts.setdefault(name, []).append(values)
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    reconstructed_features, real_features = joined.pop("reconstructed"), joined.pop("real")
    scores = {name: round(float(values.mean()), 4) for name, values in joined.items()}
    if len(images) >= LEAST:
        scores[f"r{features.metric}"] = round(frechet_of_features(reconstructed_features, real_features).value, 5)
    return scores
