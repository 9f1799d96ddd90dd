"""What a network is, from the names and shapes of its parameters.

Knows how the sizes of UNets, first stages, text transformers and style encoders show in their parameters. What does not
show (the heads of an attention, the side of a picture) is handed in.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from raygen.core.errors import InputError
from raygen.core.face_labels import CLASSES
from raygen.models.autoencoder import AutoencoderConfig
from raygen.models.scadm import StyleConfig
from raygen.models.schedule import NoiseSchedule
from raygen.models.text import TransformerTextConfig

__all__ = ["Shapes", "below", "noise_schedule", "stage_config", "style_config", "text_config", "unet_fields"]


#: Name -> shape.
Shapes = Mapping[str, tuple[int, ...]]
#: How far a stored schedule may be from the one it is taken for: float32 has 7 digits.
CLOSE = 1e-6


def below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The part under a prefix, without it."""
    return {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}


def _need(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise InputError(f"{name} is missing, which says how large the network is", reason="weights")
    return shapes[name]


def _count(shapes: Iterable[str], pattern: str) -> int:
    """How many numbers stand at the place of the group in names that begin so."""
    return len({found[1] for name in shapes if (found := re.match(pattern, name))})


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
    """Of latent diffusion's `AutoencoderKL` or `VQModel`."""
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
    """Of the text transformer."""
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
    """Of SCA-DM's style encoder, as released: groups that are not aligned."""
    return StyleConfig(
        base=_need(shapes, "Encoder.first_layer.0.weight")[0] // len(CLASSES),
        downs=_count(shapes, r"Encoder\.enc_layer_(\d+)\."),
        ups=_count(shapes, r"out\.out_(\d+)\."),
        width=_need(shapes, "out.out_0.0.weight")[0] // len(CLASSES),
        aligned=False,
    )


def noise_schedule(betas: torch.Tensor | None) -> NoiseSchedule:
    """The schedule whose betas a file has kept; latent diffusion's own where it has none.

    `InputError` (`weights`) where they follow neither of the schedules we know.
    """
    if betas is None:
        return NoiseSchedule()
    stored = betas.double().numpy()
    start, end = (float(f"{value:.6g}") for value in (stored[0], stored[-1]))
    for kind in ("scaled_linear", "linear"):
        made = NoiseSchedule.model_validate(
            {"timesteps": len(stored), "beta_start": start, "beta_end": end, "beta_schedule": kind}
        )
        abar = made.alphas_cumprod()
        own = 1 - abar / np.concatenate([[1.0], abar[:-1]])
        if np.abs(own - stored).max() < CLOSE:
            return made
    raise InputError(f"betas from {start} to {end} follow no schedule that we know", reason="weights")
