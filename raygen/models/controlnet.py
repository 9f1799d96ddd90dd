"""A ControlNet branch beside a frozen denoiser, with a mask or a picture as its hint, or without one.

The branch is a copy of the encoder half. It adds to the decoder half through convolutions that begin at zero.

    down, mid = branch(zt, t, tokens, hint)          a copy of the base's encoder; zero convolutions behind each block
    output    = base(zt, t, tokens, + down, + mid)   nothing of the base changes

Sources: Zhang et al. 2023 (ControlNet); diffusers' `ControlNetModel`. The branch without a hint is that of "Improving
Latent Diffusion with Perceptual Mask-Aware Loss".
"""

from collections.abc import Iterator, Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from torch import Tensor, cat, nn

from raygen.core.errors import ConfigError
from raygen.core.face_labels import CLASSES
from raygen.models.attention import own_cross_attention, use_context
from raygen.models.autoencoder import FirstStage, require_same_stage
from raygen.models.base import Context, Model, Record, Tokens
from raygen.models.checkpoint_documents import OpenedCheckpoint
from raygen.models.checkpoint_files import DIFFUSERS_WEIGHTS, Writing, fill, write_diffusers
from raygen.models.conditions import Conditions
from raygen.models.config.controlnet import ControlNetConfig, control_modalities
from raygen.models.ldm import LDM, build_unet, prepared_context, run_unet
from raygen.models.ldm import NETWORKS as LDM_NETWORKS
from raygen.models.networks import BuildInputs, CountInputs, Networks
from raygen.models.spade import one_hot

__all__ = ["NETWORKS", "ControlNetLDM", "new_branch"]


#: Channels of the published hint encoder, for hints of eight times the side of a latent.
HINT_CHANNELS: Final = (16, 32, 96, 256)
HINT: Final = "hint"
BASE, BRANCH = "base/", "branch/"


class HintEncoder(ControlNetConditioningEmbedding):  # type: ignore[misc]
    """The hint's encoder of diffusers. It depends on the hint alone, so it runs once a picture, outside of a step."""

    def encode(self, hint: Tensor) -> Tensor:
        """Hint [B, channels, S, S] -> [B, C, h, w]."""
        features: Tensor = super().forward(hint)
        return features

    def forward(self, conditioning: Tensor) -> Tensor:
        """The result of `encode`, unchanged: diffusers calls this in every step."""
        return conditioning


class EmptyHint(nn.Module):
    """Takes the place of the encoder where there is no hint."""

    def forward(self, conditioning: Tensor) -> Tensor:
        """Unchanged."""
        return conditioning


class ControlNetLDM(Model):
    """A frozen ldm and a branch that trains; before training its predictions are those of the ldm, bit for bit."""

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig, base: LDM, branch: Any = None) -> None:
        """`ConfigError` where the base reads no tokens, or the hint's encoder does not come out at its latents."""
        super().__init__()
        self.config, self.base = config, base.requires_grad_(False)
        self.schedule, self.first_stage = base.schedule, base.first_stage
        self.modalities = control_modalities(config, base.modalities)
        self.required_conditions, self.tokenizer = base.required_conditions, base.tokenizer
        if branch is None:
            branch = new_branch(config, base.unet, base.first_stage.factor)
        self.branch = own_cross_attention(branch)

    @property
    def networks(self) -> Sequence[nn.Module]:
        """Branch and base."""
        return [self.branch, self.base.unet]

    def trainable(self) -> Iterator[nn.Parameter]:
        """The branch's."""
        branch: nn.Module = self.branch
        return branch.parameters()

    def train(self, mode: bool = True) -> "ControlNetLDM":
        """The base stays in evaluation mode."""
        super().train(mode)
        self.base.eval()
        return self

    def embed(self, conditions: Conditions) -> Tokens:
        """The base's tokens, and `hint` where there is one, zeros where a row has none: the mask's classes
        [B, 19, S, S], or a picture [B, 3, S, S] in 0..1, as pipelines with a ControlNet give it.
        """
        with torch.no_grad():
            tokens = dict(self.base.embed(conditions.keep(self.base.modalities)))
        if self.config.hint == "mask":
            assert conditions.mask is not None
            size, present = conditions.mask.shape[-1], conditions.present["mask"]
            tokens[HINT] = one_hot(conditions.mask, present, size, len(CLASSES), self.branch.dtype)
        if self.config.hint == "picture":
            assert conditions.hint is not None
            flag = conditions.present["hint"].view(-1, 1, 1, 1)
            tokens[HINT] = (conditions.hint.movedim(-1, 1) / 255.0 * flag).to(self.branch.dtype)
        return tokens

    def prepare(self, tokens: Tokens) -> Context:
        """The contexts of base and branch as `base/…` and `branch/…`, and the encoded `hint`."""
        shared = {name: value for name, value in tokens.items() if name != HINT}
        ctx = {f"{BASE}{name}": value for name, value in self.base.prepare(shared).items()}
        ctx |= {f"{BRANCH}{name}": value for name, value in prepared_context(self.branch, shared).items()}
        if HINT in tokens:
            ctx[HINT] = self.branch.controlnet_cond_embedding.encode(tokens[HINT])
        return ctx

    def predict(self, zt: Tensor, t: Tensor, ctx: Context, record: Record | None = None) -> Tensor:
        """See `Model.predict`. Keeps no record."""
        own, base = _part(ctx, BRANCH), _part(ctx, BASE)
        x = cat([zt.to(self.branch.dtype), own["mask"]], dim=1) if "mask" in own else zt.to(self.branch.dtype)
        extra: dict[str, Any] = {"class_labels": own["vector"]} if "vector" in own else {}
        hint = ctx.get(HINT, torch.zeros((), device=zt.device))
        with use_context(self.branch, own):
            down, mid = self.branch(x, t, own["tokens"], hint, return_dict=False, **extra)
        return run_unet(
            self.base.unet, zt, t, base, down_block_additional_residuals=down, mid_block_additional_residual=mid
        )


def new_branch(config: ControlNetConfig, unet: Any, factor: int) -> Any:
    """A branch with the weights of the base's encoder. `factor`: pixels along a latent position."""
    if not isinstance(unet, UNet2DConditionModel):
        raise ConfigError(
            f"{config.base}: a branch needs a base with cross-attention, and this one reads no tokens; train it with "
            "model.constant_token=true, or with texts, attributes or masks as tokens"
        )
    halvings = int(log2(factor))
    channels = config.hint_channels or (*HINT_CHANNELS[:halvings], HINT_CHANNELS[min(halvings, 3)])[: halvings + 1]
    if config.hint != "none" and len(channels) != halvings + 1:
        raise ConfigError(
            f"hint_channels {list(channels)}: a first stage of {factor} pixels a position needs {halvings + 1}"
        )
    read = 3 if config.hint == "picture" else len(CLASSES)  # channels of the hint
    branch = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels, conditioning_channels=read)
    first = unet.config["block_out_channels"][0]
    branch.controlnet_cond_embedding = EmptyHint() if config.hint == "none" else HintEncoder(first, read, channels)
    return branch


def _part(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}


# --- networks -------------------------------------------------------------------------------------------------


def _build(config: ControlNetConfig, inputs: BuildInputs) -> ControlNetLDM:
    base: LDM = inputs.parts["base"]
    require_same_stage(inputs.first_stage, base.first_stage, f"base {config.base}")
    return ControlNetLDM(config, base)


def _save(model: ControlNetLDM, folder: Path, writing: Writing, index: dict[str, Any]) -> dict[str, Any]:
    """The base as an ldm is stored, and the branch beside it, as diffusers' pipelines with a ControlNet expect them."""
    base = LDM_NETWORKS.save(model.base, folder, writing, index)["model"]
    write_diffusers(model.branch, folder / "controlnet", writing, index)
    config = model.config.model_copy(update={"base": "."})
    return {"model": config.model_dump(mode="json"), "base": base}


def _load(
    opened: OpenedCheckpoint, config: ControlNetConfig, first_stage: FirstStage, parts: Mapping[str, Any]
) -> ControlNetLDM:
    base: LDM = parts["base"]
    branch = new_branch(config, base.unet, first_stage.factor)
    fill(branch, opened.root / "controlnet" / DIFFUSERS_WEIGHTS)
    return ControlNetLDM(config, base, branch)


def _count(config: ControlNetConfig, inputs: CountInputs) -> dict[str, nn.Module]:
    unet = build_unet(inputs.parts["base"], inputs.latent_shape)
    return {"branch": new_branch(config, unet, inputs.factor)}


NETWORKS: Final = Networks(
    build=_build,
    save=_save,
    load=_load,
    count=_count,
)
