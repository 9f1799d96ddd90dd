"""The family `scadm`: its shape, and what follows from it."""

from typing import Final, Literal

from pydantic import Field, PositiveInt, model_validator

from raygen.core.config import Config
from raygen.models.config.noise import NoiseSchedule
from raygen.models.family import Family

__all__ = ["FAMILY", "Gating", "SCADMConfig", "StyleConfig"]


#: `hard`: a pixel attends to the tokens of its own class alone. `paper`: scores are multiplied by 0 or 1 before the
#: softmax (SCA-DM, equation 8), so the others still contribute. `none`: no gates.
Gating = Literal["hard", "paper", "none"]


class StyleConfig(Config):
    """Shape of the style encoder; the defaults are the published ones, for references of 256 pixels."""

    base: int = Field(4, ge=1, description="channels per class at full resolution; doubled at each halving")
    downs: int = Field(6, ge=1, le=8, description="number of halvings of the resolution")
    ups: int = Field(5, ge=1, le=8, description="number of doublings afterwards; each gives the styles of one scale")
    width: int = Field(256, ge=1, description="values of the style of one class at one scale")
    aligned: bool = Field(True, description="the decoder's groups line up with the classes; not so as released")

    @property
    def token_width(self) -> int:
        """Of a class's style over all scales."""
        return self.ups * self.width


class SCADMConfig(Config):
    """Shape of the denoiser; its first stage is handed in beside it.

    Released: hard gates, and a style encoder whose groups are not aligned (`gating: hard`, `style.aligned: false`). The
    paper's equation 8 is `gating: paper`. The default is the corrected form: hard gates, aligned groups.
    """

    kind: Literal["scadm"] = "scadm"
    noise: NoiseSchedule = Field(default_factory=NoiseSchedule, description="noise schedule of the forward process")
    latent: tuple[int, int, int] | None = Field(
        None,
        description="latent shape [channels, height, width] that the first stage must have; default: the "
        "shape that it has",
    )
    channels: tuple[PositiveInt, ...] = Field((224, 448, 672, 896), min_length=2, description="channels of each level")
    layers_per_block: int = Field(2, ge=1, le=8, description="residual blocks per level")
    attention: tuple[bool, ...] = Field(
        (False, True, True, True), description="for each level, whether it has attention; the middle always has"
    )
    head_dim: int = Field(32, ge=4, description="channels per attention head")
    spade_hidden: int = Field(128, ge=4, description="channels between the mask and the scales and shifts of SPADE")
    gating: Gating = Field(
        "hard",
        description="styles that a pixel reads. hard: of its class only; paper: as in equation 8; none: of all classes",
    )
    edges: bool = Field(
        False,
        description="SPADE also reads where the class of a pixel differs from that of a neighbour, as in SDM",
    )
    learn_sigma: bool = Field(
        False,
        description="the network also predicts the variance of a ddpm step, between its bounds, and is trained by the "
        "hybrid loss, as in SDM; samplers other than ddpm leave it unread",
    )
    style: StyleConfig | None = Field(
        default_factory=StyleConfig, description="style encoder of the reference picture; null has none, as in SDM"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "SCADMConfig":
        if len(self.attention) != len(self.channels):
            raise ValueError(f"{len(self.attention)} values of attention for {len(self.channels)} levels")
        if bad := [c for c in self.channels if c % self.head_dim]:
            raise ValueError(f"channels {bad} are not multiples of head_dim {self.head_dim}")
        return self

    @property
    def uses_tokens(self) -> bool:
        """Whether the UNet has cross-attention."""
        return self.style is not None

    @property
    def modalities(self) -> tuple[str, ...]:
        """The conditions it takes."""
        return ("mask",) if self.style is None else ("mask", "style")


FAMILY: Final = Family(
    kind="scadm",
    config=SCADMConfig,
    networks="raygen.models.scadm",
    needs=lambda config, parts: frozenset(config.modalities),
    records_attention=lambda config: config.style is not None,
)
