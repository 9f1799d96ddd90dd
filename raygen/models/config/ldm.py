"""The family `ldm`: its shape, and what follows from it."""

from typing import Final, Literal

from pydantic import Field, PositiveInt, model_validator

from raygen.core.config import Config
from raygen.core.errors import ConfigError
from raygen.models.config.noise import NoiseSchedule
from raygen.models.config.text import TextConfig, TransformerTextConfig
from raygen.models.family import Family

__all__ = ["FAMILY", "LDMConfig", "check_levels"]


Modality = Literal["mask", "attributes", "text"]


class LDMConfig(Config):
    """Shape of a latent diffusion model; its first stage is handed in beside it."""

    kind: Literal["ldm"] = "ldm"
    modalities: tuple[Modality, ...] = Field(
        (), description="conditions that the model takes, such as [mask, attributes]; empty is unconditional"
    )
    required: tuple[Modality, ...] = Field((), description="conditions that every row must have")
    noise: NoiseSchedule = Field(default_factory=NoiseSchedule, description="noise schedule of the forward process")
    latent: tuple[int, int, int] | None = Field(
        None,
        description="latent shape [channels, height, width] that the first stage must have; default: the "
        "shape that it has",
    )
    channels: tuple[PositiveInt, ...] = Field(
        (64, 96, 128),
        min_length=1,
        description="channels of each level; every level after the first halves the resolution",
    )
    layers_per_block: int = Field(1, ge=1, le=8, description="residual blocks per level")
    attention: tuple[bool, ...] = Field((False, True, True), description="for each level, whether it has attention")
    head_dim: int = Field(32, ge=4, description="channels per attention head")
    heads: int | None = Field(None, ge=1, description="number of attention heads on every level, in place of head_dim")
    time: Literal["additive", "scale_shift"] = Field(
        "additive",
        description="how the timestep enters the residual blocks: added, or as scale and shift after the norm (AdaLN)",
    )
    mask_path: Literal["channels", "tokens"] = Field(
        "channels", description="how masks enter: as input channels or as tokens"
    )
    mask_channels: int = Field(
        16, ge=1, description="input channels only: number of feature maps that the mask is encoded to"
    )
    mask_side: int = Field(
        32, ge=4, le=128, description="tokens only: side of the class masks that are turned into tokens"
    )
    mask_class_embedding: bool = Field(
        True,
        description="tokens only: add a class embedding, so that equal shapes of two classes give different tokens",
    )
    attribute_path: Literal["tokens", "vector", "both"] = Field(
        "both", description="how attributes enter: as tokens, or as a vector that is added to the timestep embedding"
    )
    attribute_tokens: int = Field(4, ge=1, le=256, description="number of tokens that the attributes are encoded to")
    text: TextConfig | None = Field(
        None, description="text encoder of a model with the modality text; default: the papers' transformer"
    )
    constant_token: bool = Field(
        False,
        description="give the model one constant token, so that a model without token conditions can have "
        "a control branch",
    )
    token_width: int = Field(64, ge=8, description="channels of a token")

    @model_validator(mode="after")
    def _consistent(self) -> "LDMConfig":
        if len(self.attention) != len(self.channels):
            raise ValueError(f"{len(self.attention)} values of attention for {len(self.channels)} levels")
        if self.text is not None and "text" not in self.modalities:
            raise ValueError("there is a text encoder, and text is not among the modalities")
        if missing := set(self.required) - set(self.modalities):
            raise ValueError(f"required {sorted(missing)} are not among the modalities")
        divisor, name = (self.head_dim, "head_dim") if self.heads is None else (self.heads, "heads")
        if bad := [c for c in self.channels if c % divisor]:
            raise ValueError(f"channels {bad} are not multiples of {name} {divisor}")
        return self

    @property
    def uses_tokens(self) -> bool:
        """Whether the UNet has cross-attention."""
        return (
            self.constant_token
            or "text" in self.modalities
            or ("mask" in self.modalities and self.mask_path == "tokens")
            or ("attributes" in self.modalities and self.attribute_path != "vector")
        )

    @property
    def extra_channels(self) -> int:
        """Channels beside the latent: the mask's maps and one that says it is there."""
        return self.mask_channels + 1 if "mask" in self.modalities and self.mask_path == "channels" else 0

    @property
    def vector_width(self) -> int:
        """Width of what is added to the time embedding, 0 if nothing is."""
        used = "attributes" in self.modalities and self.attribute_path != "tokens"
        return 4 * self.channels[0] if used else 0


def check_levels(levels: int, side: int) -> None:
    """`ConfigError` where latents of `side` positions cannot be halved `levels - 1` times."""
    if side < 2 ** (levels - 1):
        raise ConfigError(f"model.channels: {levels} levels halve latents of {side} x {side} too often; name fewer")


def _text(config: LDMConfig) -> TextConfig | None:
    return (config.text or TransformerTextConfig()) if "text" in config.modalities else None


FAMILY: Final = Family(
    kind="ldm",
    config=LDMConfig,
    networks="raygen.models.ldm",
    needs=lambda config, parts: frozenset(config.modalities),
    text=_text,
)
