"""Sheets of pictures during training: always of the same faces, conditions and noise, to compare them."""

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from PIL import Image

from raygen.core.face_labels import PALETTE
from raygen.core.pixels import to_pixels, to_uint8
from raygen.core.types import UInt8Array
from raygen.models.config.sampler import SamplerConfig
from raygen.models.schedulers import build_sampler
from raygen.sampling.guidance import build_guidance
from raygen.sampling.noise import keyed_normal, noise_key
from raygen.sampling.worker import denoise
from raygen.training.data import TrainingData
from raygen.training.losses import AutoencoderObjective, DiffusionObjective, Objective

__all__ = ["grid", "sheet"]


ACROSS: Final = 8
PICTURES: Final = 16
#: Quick, and good enough to see what a model has learned.
SAMPLER: Final = SamplerConfig(name="unipc", steps=16)
GAP: Final = 2


@torch.no_grad()
def sheet(objective: Objective, arrays: TrainingData, device: torch.device, seed: int = 0) -> bytes | None:
    """A PNG of 16 pictures, or None for a network that makes no pictures (a parser).

    A denoiser: conditions of the first rows, their masks above the pictures where it has masks. A first stage: the
    first pictures above their reconstructions. Uses no random numbers but its own keyed noise.
    """
    n = min(PICTURES, len(arrays))
    training = objective.training
    objective.eval()
    try:
        if isinstance(objective, AutoencoderObjective) and arrays.images is not None:
            images = arrays.images[arrays.face[:n]]
            pixels = to_pixels(torch.from_numpy(images).to(device))
            stage = objective.stage
            reconstructed = to_uint8(stage.decode(stage.mode(stage.encode(pixels)))).cpu().numpy()
            return grid([images, reconstructed])
        if isinstance(objective, DiffusionObjective):
            return grid(_samples(objective, arrays, n, device, seed))
    finally:
        objective.train(training)
    return None


def _samples(
    objective: DiffusionObjective, arrays: TrainingData, n: int, device: torch.device, seed: int
) -> list[UInt8Array]:
    model = objective.model
    rows = np.arange(n)
    batch = {k: torch.from_numpy(v) for k, v in arrays.batch(rows, np.zeros(n, dtype=bool)).items()}
    conditions = objective.conditions(batch, n).to(device)
    noise = [keyed_normal(noise_key(seed, f"sheet-{i}", 0), 0, model.latent_shape) for i in range(n)]
    z = torch.from_numpy(np.stack(noise)).to(device)
    sampler = SAMPLER.model_copy(update={"steps": min(SAMPLER.steps, model.schedule.timesteps)})
    *_, z = denoise(model, build_guidance(model, conditions, 1.0), z, build_sampler(model.schedule, sampler))
    pictures = to_uint8(model.first_stage.decode(z)).cpu().numpy()
    masks = [] if conditions.mask is None else [PALETTE[conditions.mask.cpu().numpy()]]
    return [*masks, pictures]


def grid(rows: Sequence[UInt8Array]) -> bytes:
    """Pictures uint8 [n, H, W, 3] a list, shown one list above the other, eight across -> PNG."""
    n, side = len(rows[0]), rows[0].shape[1]
    bands = -(-n // ACROSS)
    step = side + GAP
    canvas = np.full((bands * (len(rows) * side + 3 * GAP), ACROSS * step, 3), 255, dtype=np.uint8)
    for i in range(n):
        band, column = divmod(i, ACROSS)
        for j, pictures in enumerate(rows):
            top = band * (len(rows) * side + 3 * GAP) + j * side
            canvas[top : top + side, column * step : column * step + side] = pictures[i]
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "PNG")
    return buffer.getvalue()
