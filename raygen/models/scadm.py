"""SCA-DM: a mask decides where, a style a class decides how. Without styles and in pixel space it is SDM.

Masks enter through SPADE in middle and decoder, and as gates on cross-attention. Styles of one or two references become
one style a class.

    style_k = a_k A_k + b_k B_k + (1 - a_k - b_k) N_k        a class k at a time

A and B are the styles of two references, N the null style: what the encoder says of a black picture under the target's
own mask. Reconstruction, swaps, interpolation, noise and mixtures are values of a and b, and nothing else.

Source: Ergasti et al. 2024 (SCA-DM); Wang et al. 2022 (SDM). Presets are in `SCADMConfig`.
"""

from collections.abc import Mapping, Sequence
from math import gcd
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from raygen.core.errors import ConfigError
from raygen.core.face_labels import CLASSES
from raygen.core.pixels import to_pixels
from raygen.models.attention import gates, own_cross_attention, watch_scores
from raygen.models.autoencoder import FirstStage, silence_residuals
from raygen.models.base import Context, Model, Record, Tokens
from raygen.models.checkpoint_documents import OpenedCheckpoint
from raygen.models.checkpoint_files import OWN_WEIGHTS, Writing, fill, write_weights
from raygen.models.conditions import Conditions
from raygen.models.config.ldm import check_levels
from raygen.models.config.scadm import SCADMConfig
from raygen.models.ldm import prepared_context, run_unet
from raygen.models.networks import CountInputs, Networks
from raygen.models.spade import modulated, modulations, one_hot, spade_blocks
from raygen.models.style_encoder import StyleEncoder

__all__ = ["ATTENTION", "NETWORKS", "SCADM", "build_scadm_unet", "new_style_encoder"]


K = len(CLASSES)
#: Names of attention scores in a record.
ATTENTION: Final = "attention/"


class SCADM(Model):
    """A UNet that reads a mask in every normalisation of its decoder, and styles through gated attention."""

    config: SCADMConfig

    def __init__(
        self, config: SCADMConfig, first_stage: FirstStage, unet: Any = None, style_encoder: StyleEncoder | None = None
    ) -> None:
        """`ConfigError` where the first stage makes other latents than the config says, or too small pictures."""
        super().__init__()
        actual = first_stage.latent_shape
        if config.latent is not None and config.latent != actual:
            raise ConfigError(f"the model is for latents {config.latent}, the first stage makes {actual}")
        self.config, self.schedule = config, config.noise
        self.modalities, self.required_conditions = frozenset(config.modalities), frozenset()
        self.first_stage = first_stage.requires_grad_(False)
        self.unet = own_cross_attention(build_scadm_unet(config, actual) if unet is None else unet, config.gating)
        self.learns_variance = config.learn_sigma
        self.style_encoder = style_encoder if style_encoder is not None else new_style_encoder(config)
        size = first_stage.config.image_size
        if config.style is not None and size % 2**config.style.downs:
            raise ConfigError(f"style.downs {config.style.downs}: pictures of {size} pixels cannot be halved so often")

    @property
    def networks(self) -> Sequence[nn.Module]:
        """The UNet."""
        return [self.unet]

    def encoders(self) -> Mapping[str, nn.Module]:
        """The condition encoders by the name of their checkpoint folder."""
        return {} if self.style_encoder is None else {"style_encoder": self.style_encoder}

    def embed(self, conditions: Conditions) -> Tokens:
        """`labels` uint8 [B, S, S], `present` bool [B], and `style_tokens` [B, 19, D] where there are styles."""
        assert conditions.mask is not None
        tokens: dict[str, Tensor] = {"labels": conditions.mask, "present": conditions.present["mask"]}
        if self.style_encoder is not None:
            flag = conditions.present["mask"].view(-1, 1, 1)
            tokens["style_tokens"] = self.styles(conditions) * flag  # zeros without a mask, as released
        return tokens

    def styles(self, conditions: Conditions) -> Tensor:
        """One style a class [B, 19, D]: the formula of the module, with null styles where no reference is used."""
        assert conditions.mask is not None
        assert conditions.style is not None
        assert conditions.style_weights is not None
        own = self._maps(conditions.mask, conditions.present["mask"])
        weights = conditions.style_weights * conditions.present["style"].view(-1, 1, 1)  # [B, 2, 19]
        mixed = (1 - weights.sum(dim=1)).unsqueeze(-1) * self._style(torch.zeros_like(own[:1, :3]), own)
        for i in range(2):
            rows = _with_reference(weights[:, i], i)
            if len(rows):
                reference = conditions.style[rows, i]  # [b, 4, S, S]: red, green, blue, label
                maps = self._maps(reference[:, 3], torch.ones(len(reference), dtype=torch.bool, device=own.device))
                style = self._style(to_pixels(reference[:, :3].movedim(1, -1)).to(own.dtype), maps)
                share = weights[rows, i].unsqueeze(-1)
                mixed = mixed.index_add(0, rows, share * style)
        return mixed.to(own.dtype)  # weights are float32, styles may be bfloat16

    def _style(self, pixels: Tensor, maps: Tensor) -> Tensor:
        assert self.style_encoder is not None
        result: Tensor = self.style_encoder(pixels, maps)
        return result

    def _maps(self, labels: Tensor, present: Tensor) -> Tensor:
        return one_hot(labels, present, labels.shape[-1], K, next(self.parameters()).dtype)

    def prepare(self, tokens: Tokens) -> Context:
        """Scales and shifts of every SPADE norm, keys and values of styles, and gates."""
        labels, present = tokens["labels"], tokens["present"]
        ctx = modulations(self.unet, labels, present, K, edges=self.config.edges)
        if self.style_encoder is not None:
            ctx |= prepared_context(self.unet, {"text_tokens": tokens["style_tokens"]})
            if self.config.gating != "none":
                sides = {self.latent_shape[1] // 2**i for i, attends in enumerate(self.config.attention) if attends}
                sides.add(self.latent_shape[1] // 2 ** (len(self.config.channels) - 1))
                ctx |= gates({s: one_hot(labels, present, s, K, self.unet.dtype) for s in sides}, self.config.gating)
        return ctx

    def predict(self, zt: Tensor, t: Tensor, ctx: Context, record: Record | None = None) -> Tensor:
        """See `Model.predict`."""
        return self.outputs(zt, t, ctx, record)[:, : zt.shape[1]]

    def outputs(self, zt: Tensor, t: Tensor, ctx: Context, record: Record | None = None) -> Tensor:
        """See `Model.outputs`. Records each cross-attention layer's scores [B, N, 19] as `attention/<place>`."""
        with modulated(self.unet, ctx):
            if record is None:
                return run_unet(self.unet, zt, t, ctx)
            with watch_scores(self.unet) as scores:
                output = run_unet(self.unet, zt, t, ctx)
        record.update({f"{ATTENTION}{place}": score for place, score in enumerate(scores)})
        return output


def _with_reference(weights: Tensor, number: int) -> Tensor:
    """The rows int64 that take some class [B, 19] from their reference `number`.

    Without values, where operations are counted, each row has one reference.
    """
    if weights.is_meta:
        return torch.arange(0 if number else len(weights), device=weights.device)
    return weights.any(dim=1).nonzero()[:, 0]


def new_style_encoder(config: SCADMConfig) -> StyleEncoder | None:
    """The style encoder of a config, None where it has none."""
    style = config.style
    if style is None:
        return None
    return StyleEncoder(style.base, style.downs, style.ups, style.width, aligned=style.aligned)


def build_scadm_unet(config: SCADMConfig, latent_shape: tuple[int, int, int]) -> Any:
    """The UNet of a config with SPADE in middle and decoder, and random weights.

    At paper size it has 486,895,363 parameters; the published network holds 17,024 more in a label embedding that
    nothing reads.
    """
    latent, side, _ = latent_shape
    check_levels(len(config.channels), side)
    shared: dict[str, Any] = {
        "sample_size": side,
        "in_channels": latent,
        "out_channels": 2 * latent if config.learn_sigma else latent,
        "block_out_channels": config.channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": gcd(32, *config.channels),
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }
    form = "Attn" if config.style is None else "CrossAttn"
    shared["down_block_types"] = tuple(f"{form if attends else ''}DownBlock2D" for attends in config.attention)
    shared["up_block_types"] = tuple(f"{form if attends else ''}UpBlock2D" for attends in reversed(config.attention))
    if config.style is None:
        unet = UNet2DModel(**shared, norm_eps=1e-5, downsample_padding=1, attention_head_dim=config.head_dim)
    else:
        heads = tuple(c // config.head_dim for c in config.channels)
        width = config.style.token_width
        unet = UNet2DConditionModel(**shared, cross_attention_dim=width, attention_head_dim=heads)
    silence_residuals(unet)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return spade_blocks(unet, classes=K + config.edges, hidden=config.spade_hidden)


# --- networks -------------------------------------------------------------------------------------------------


def _save(model: SCADM, folder: Path, writing: Writing, index: dict[str, Any]) -> dict[str, Any]:
    """As own weights: no class of diffusers has SPADE blocks."""
    write_weights(model.unet, folder / "unet" / OWN_WEIGHTS, writing)
    for name, module in model.encoders().items():
        write_weights(module, folder / name / OWN_WEIGHTS, writing)
    return {"model": model.config.model_dump(mode="json")}


def _load(opened: OpenedCheckpoint, config: SCADMConfig, first_stage: FirstStage, parts: Mapping[str, Any]) -> SCADM:
    model = SCADM(config, first_stage)
    fill(model.unet, opened.root / "unet" / OWN_WEIGHTS)
    for name, module in model.encoders().items():
        fill(module, opened.root / name / OWN_WEIGHTS)
    return model


def _count(config: SCADMConfig, inputs: CountInputs) -> dict[str, nn.Module]:
    style_encoder = new_style_encoder(config)
    unet = build_scadm_unet(config, inputs.latent_shape)
    return {"unet": unet} if style_encoder is None else {"unet": unet, "style_encoder": style_encoder}


NETWORKS: Final = Networks(
    build=lambda config, inputs: SCADM(config, inputs.first_stage),
    save=_save,
    load=_load,
    count=_count,
)
