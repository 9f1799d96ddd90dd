"""Configs of published networks, inferred from the names and shapes of their parameters.

Sizes that do not show in shapes (the heads of an attention, the side of a picture) are arguments.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from raygen.core.errors import InputError
from raygen.core.face_labels import CLASSES
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.noise import NoiseSchedule
from raygen.models.config.scadm import StyleConfig
from raygen.models.config.text import TransformerTextConfig

__all__ = ["Shapes", "below", "noise_schedule", "stage_config", "style_config", "text_config", "unet_fields"]


#: Name -> shape.
Shapes = Mapping[str, tuple[int, ...]]
#: Largest difference between stored betas and those of a schedule: float32 has 7 digits.
CLOSE = 1e-6


def below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The entries under a prefix, by name without it."""
    return {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}


def _need(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise InputError(f"{name} is missing, whose shape gives the size of the network", reason="weights")
    return shapes[name]


def _count(shapes: Iterable[str], pattern: str) -> int:
    """How many different values the group of `pattern` has at the beginning of names."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def unet_fields(shapes: Shapes) -> dict[str, Any]:
    """`channels`, `layers_per_block`, `attention`, `token_width` (0 without tokens) of one of openaimodel's UNets."""
    channels: list[int] = []
    attention: list[bool] = []
    layers = [0]
    for i in range(1, _count(shapes, r"input_blocks\.(\d+)\.")):
        place = f"input_blocks.{i}"
        if f"{place}.0.op.weight" in shapes:
            layers.append(0)
            continue
        if layers[-1] == 0:
            channels.append(_need(shapes, f"{place}.0.out_layers.3.weight")[0])
            attention.append(f"{place}.1.norm.weight" in shapes)
        layers[-1] += 1
    if len(set(layers)) != 1 or len(channels) != len(layers):
        raise InputError(f"blocks of {layers} layers: not one of openaimodel's UNets", reason="weights")
    width = next((shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), 0)
    return {
        "channels": tuple(channels),
        "layers_per_block": layers[0],
        "attention": tuple(attention),
        "token_width": width,
    }


def stage_config(shapes: Shapes, image_size: int) -> AutoencoderConfig:
    """The config of latent diffusion's `AutoencoderKL` or `VQModel`."""
    levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    quantised = "quantize.embedding.weight" in shapes
    return AutoencoderConfig(
        stage="vq" if quantised else "kl",
        image_size=image_size,
        patch=1,
        channels=tuple(_need(shapes, f"encoder.down.{i}.block.0.conv2.weight")[0] for i in range(levels)),
        layers_per_block=_count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=_need(shapes, "post_quant_conv.weight")[0],
        mid_attention="encoder.mid.attn_1.q.weight" in shapes,
        **({"codes": shapes["quantize.embedding.weight"][0]} if quantised else {}),
    )


def text_config(shapes: Shapes, heads: int, vocabulary: str) -> TransformerTextConfig:
    """The config of the text transformer."""
    words, _ = _need(shapes, "token_emb.weight")
    inner, _ = _need(shapes, "attn_layers.layers.0.1.to_q.weight")
    return TransformerTextConfig(
        vocabulary=vocabulary,
        vocabulary_size=words,
        length=_need(shapes, "pos_emb.emb.weight")[0],
        layers=_count(shapes, r"attn_layers\.layers\.(\d+)\.") // 2,
        heads=heads,
        head_dim=inner // heads,
        inner=_need(shapes, "attn_layers.layers.1.1.net.0.0.weight")[0],
    )


def style_config(shapes: Shapes) -> StyleConfig:
    """The config of SCA-DM's style encoder, as released: groups that are not aligned."""
    return StyleConfig(
        base=_need(shapes, "Encoder.first_layer.0.weight")[0] // len(CLASSES),
        downs=_count(shapes, r"Encoder\.enc_layer_(\d+)\."),
        ups=_count(shapes, r"out\.out_(\d+)\."),
        width=_need(shapes, "out.out_0.0.weight")[0] // len(CLASSES),
        aligned=False,
    )


def noise_schedule(betas: torch.Tensor | None) -> NoiseSchedule:
    """The schedule with these betas float32 [T]; latent diffusion's where a file has none.

    `InputError` (`weights`) where they are of no known schedule.
    """
    if betas is None:
        return NoiseSchedule()
    stored = betas.double().numpy()
    start, end = (float(f"{value:.6g}") for value in (stored[0], stored[-1]))
    for kind in ("scaled_linear", "linear"):
        schedule = NoiseSchedule.model_validate(
            {"timesteps": len(stored), "beta_start": start, "beta_end": end, "beta_schedule": kind}
        )
        abar = schedule.alphas_cumprod()
        expected = 1 - abar / np.concatenate([[1.0], abar[:-1]])
        if np.abs(expected - stored).max() < CLOSE:
            return schedule
    raise InputError(f"betas from {start} to {end} follow no schedule that we know", reason="weights")
