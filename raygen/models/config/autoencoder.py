"""The shape of a first stage."""

import re
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from raygen.core.config import Config, parse

__all__ = ["AutoencoderConfig", "pixel_stage"]


#: The identity, named in place of the folder of a first stage.
PIXELS = re.compile(r"pixels-(\d+)(?:-p(\d+))?")


class AutoencoderConfig(Config):
    """Shape of a first stage. `factor` is `patch * 2 ** (len(channels) - 1)`.

    `patch` moves pixels into channels before the first convolution (and back after the last): convolutions at
    full resolution cost most of the time of a small first stage and add little. Patch 1 is the published form.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    stage: Literal["kl", "vq", "dc", "pixel"] = Field(
        "kl",
        description="kind of the first stage: KL or VQ autoencoder, deep-compression autoencoder (dc), or raw pixels",
    )
    image_size: int = Field(64, ge=8, le=4096, description="height and width of the pictures in pixels")
    patch: int = Field(
        2, ge=1, le=16, description="factor of the space-to-depth transform before the first convolution; 1 is none"
    )
    channels: tuple[PositiveInt, ...] = Field(
        (32, 64), min_length=1, description="channels of each level; every level after the first halves the resolution"
    )
    layers_per_block: int = Field(1, ge=1, le=8, description="residual blocks per level")
    latent_channels: int = Field(4, ge=1, le=64, description="channels of the latents")
    mid_attention: bool = Field(True, description="kl and vq only: self-attention in the middle block")
    codes: int = Field(512, ge=2, description="vq only: number of codes in the codebook")
    latents_mean: tuple[float, ...] | None = Field(
        None, description="dc only: mean of each latent channel, set by the training"
    )
    latents_std: tuple[float, ...] | None = Field(
        None, description="dc only: standard deviation of each latent channel, set by the training"
    )

    @model_validator(mode="after")
    def _divides(self) -> "AutoencoderConfig":
        if self.image_size % self.factor:
            raise ValueError(f"image_size {self.image_size} is not a multiple of the factor {self.factor}")
        return self

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent position."""
        return self.patch * (1 if self.stage == "pixel" else 2 ** (len(self.channels) - 1))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a latent."""
        side = self.image_size // self.factor
        return (3 * self.patch**2 if self.stage == "pixel" else self.latent_channels, side, side)


def pixel_stage(name: str) -> AutoencoderConfig | None:
    """The identity that `pixels-64` names, or `pixels-64-p2` with 2 x 2 pixels in a place; None for other names.

    `ConfigError` where there is no such size.
    """
    match = PIXELS.fullmatch(name)
    if match is None:
        return None
    shape = {"stage": "pixel", "image_size": match[1][:9], "patch": (match[2] or "1")[:9]}
    config: AutoencoderConfig = parse(AutoencoderConfig, shape, name[:40])
    return config
