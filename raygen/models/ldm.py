"""Latent diffusion with any mix of mask and attributes, or none.

Knows how conditions enter a diffusers UNet: the mask as channels beside the latent, attributes as
cross-attention tokens, as a vector added to the time embedding, or both. Knows neither losses nor samplers.
"""

from collections.abc import Mapping
from math import gcd
from typing import Any, Literal

from diffusers import UNet2DConditionModel, UNet2DModel
from pydantic import Field, model_validator
from torch import Tensor, cat, nn

from raygen.models.autoencoder import FirstStage, silence_residuals
from raygen.models.base import Context, Model, Record, Tokens
from raygen.models.conditions import Conditions
from raygen.models.encoders import AttributeEncoder, MaskEncoder
from raygen.models.schedule import NoiseSchedule
from raygen.spec import Spec

__all__ = ["LDM", "LDMSpec"]


class LDMSpec(Spec):
    """Shape of a latent diffusion model; its first stage is handed in beside it."""

    kind: Literal["ldm"] = "ldm"
    modalities: tuple[Literal["mask", "attributes"], ...] = Field((), description="conditions it takes")
    required: tuple[Literal["mask", "attributes"], ...] = Field((), description="conditions a row must have")
    noise: NoiseSchedule = Field(default_factory=NoiseSchedule)
    channels: tuple[int, ...] = Field((64, 96, 128), min_length=1, description="one a level; each further one halves")
    layers_per_block: int = Field(1, ge=1, le=8)
    attention: tuple[bool, ...] = Field((False, True, True), description="one a level")
    head_dim: int = Field(32, ge=4, description="channels of an attention head")
    mask_channels: int = Field(16, ge=1, description="maps the mask becomes")
    attribute_path: Literal["tokens", "vector", "both"] = Field("both", description="how attributes enter")
    attribute_tokens: int = Field(4, ge=1, le=256)
    token_width: int = Field(64, ge=8)

    @model_validator(mode="after")
    def _consistent(self) -> "LDMSpec":
        if len(self.attention) != len(self.channels):
            raise ValueError(f"{len(self.attention)} values of attention for {len(self.channels)} levels")
        if missing := set(self.required) - set(self.modalities):
            raise ValueError(f"required {sorted(missing)} are not among the modalities")
        if bad := [c for c in self.channels if c % self.head_dim]:
            raise ValueError(f"channels {bad} are not multiples of head_dim {self.head_dim}")
        return self

    @property
    def uses_tokens(self) -> bool:
        """Whether the UNet has cross-attention."""
        return "attributes" in self.modalities and self.attribute_path != "vector"

    @property
    def vector_width(self) -> int:
        """Width of what is added to the time embedding, 0 if nothing is."""
        used = "attributes" in self.modalities and self.attribute_path != "tokens"
        return 4 * self.channels[0] if used else 0


class LDM(Model):
    """A UNet over the latents of a frozen first stage.

    Keys and values of the few attribute tokens are computed inside the UNet at each step; for 4 tokens that is
    below 1 % of a step.
    """

    def __init__(self, spec: LDMSpec, first_stage: FirstStage, unet: Any = None) -> None:
        super().__init__()
        self.spec = spec
        self.schedule = spec.noise
        self.modalities = frozenset(spec.modalities)
        self.required_conditions = frozenset(spec.required)
        self.first_stage = first_stage.requires_grad_(False)
        self.unet = _build_unet(spec, first_stage) if unet is None else unet
        self.attribute_encoder: AttributeEncoder | None = None
        self.mask_encoder: MaskEncoder | None = None
        if "attributes" in self.modalities:
            tokens = spec.attribute_tokens if spec.uses_tokens else 0
            self.attribute_encoder = AttributeEncoder(tokens, spec.token_width, spec.vector_width)
        if "mask" in self.modalities:
            self.mask_encoder = MaskEncoder(first_stage.factor, spec.mask_channels)

    def encoders(self) -> Mapping[str, nn.Module]:
        """The condition encoders by the name of their checkpoint folder."""
        pairs = {"attribute_encoder": self.attribute_encoder, "mask_encoder": self.mask_encoder}
        return {name: module for name, module in pairs.items() if module is not None}

    def embed(self, conditions: Conditions) -> Tokens:
        """`tokens` [B, K, D], `vector` [B, E], `mask` [B, channels + 1, h, w]; those that the spec asks for."""
        result: dict[str, Tensor] = {}
        if self.attribute_encoder is not None and conditions.attributes is not None:
            tokens, vector = self.attribute_encoder(conditions.attributes, conditions.present["attributes"])
            result |= {} if tokens is None else {"tokens": tokens}
            result |= {} if vector is None else {"vector": vector}
        if self.mask_encoder is not None and conditions.mask is not None:
            result["mask"] = self.mask_encoder(conditions.mask, conditions.present["mask"])
        return result

    def prepare(self, tokens: Tokens) -> Context:
        """The tokens themselves: nothing else depends on conditions alone."""
        return tokens

    def predict(self, zt: Tensor, t: Tensor, ctx: Context, record: Record | None = None) -> Tensor:
        """See `Model.predict`. Keeps no record."""
        x = cat([zt.to(self.unet.dtype), ctx["mask"]], dim=1) if "mask" in ctx else zt.to(self.unet.dtype)
        extra: dict[str, Any] = {"class_labels": ctx["vector"]} if "vector" in ctx else {}
        if self.spec.uses_tokens:
            extra["encoder_hidden_states"] = ctx["tokens"]
        output: Tensor = self.unet(x, t, return_dict=False, **extra)[0]
        return output.float()


def _build_unet(spec: LDMSpec, first_stage: FirstStage) -> Any:
    latent, side, _ = first_stage.latent_shape
    shared: dict[str, Any] = {
        "sample_size": side,
        "in_channels": latent + (spec.mask_channels + 1 if "mask" in spec.modalities else 0),
        "out_channels": latent,
        "block_out_channels": spec.channels,
        "layers_per_block": spec.layers_per_block,
        "norm_num_groups": gcd(32, *spec.channels),
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "class_embed_type": "identity" if spec.vector_width else None,
    }
    form = "CrossAttn" if spec.uses_tokens else "Attn"
    blocks = {
        "down_block_types": tuple(f"{form if here else ''}DownBlock2D" for here in spec.attention),
        "up_block_types": tuple(f"{form if here else ''}UpBlock2D" for here in reversed(spec.attention)),
    }
    if spec.uses_tokens:
        # diffusers calls the number of heads attention_head_dim here.
        heads = tuple(c // spec.head_dim for c in spec.channels)
        unet = UNet2DConditionModel(**shared, **blocks, cross_attention_dim=spec.token_width, attention_head_dim=heads)
    else:
        unet = UNet2DModel(**shared, **blocks, norm_eps=1e-5, downsample_padding=1, attention_head_dim=spec.head_dim)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return silence_residuals(unet)
