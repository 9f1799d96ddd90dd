"""Latent diffusion with any mix of mask, attributes and text, or none.

The mask enters a diffusers UNet as channels beside the latent or as tokens; attributes as cross-attention tokens, as a
vector added to the time embedding, or both; text as tokens.
"""

from collections.abc import Mapping, Sequence
from math import gcd
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, cat, nn

from raygen.core.errors import ConfigError, InputError
from raygen.models.attention import keys_values, own_cross_attention, use_context
from raygen.models.autoencoder import FirstStage, silence_residuals
from raygen.models.base import Context, Model, Record, Tokens
from raygen.models.checkpoint_documents import OpenedCheckpoint, read_json
from raygen.models.checkpoint_files import (
    OWN_WEIGHTS,
    Writing,
    fill,
    read_diffusers,
    write_diffusers,
    write_json,
    write_weights,
)
from raygen.models.condition_encoders import AttributeEncoder, MaskEncoder, MaskTokenEncoder
from raygen.models.conditions import Conditions
from raygen.models.config.ldm import LDMConfig, check_levels
from raygen.models.config.text import PretrainedTextConfig, TransformerTextConfig
from raygen.models.networks import BuildInputs, CountInputs, Networks
from raygen.models.text import FrozenText, TextEncoder, Tokenizer, empty_encoder, pretrained_encoder

__all__ = ["LDM", "NETWORKS", "build_unet", "condition_encoders", "prepared_context", "run_unet"]


#: Cross-attention reads the tokens of several conditions in this order.
TOKENS: Final = ("constant_token", "text_tokens", "mask_tokens", "attribute_tokens")


class LDM(Model):
    """A UNet over the latents of a frozen first stage."""

    config: LDMConfig
    empty_text: Tensor

    def __init__(
        self,
        config: LDMConfig,
        first_stage: FirstStage,
        unet: Any = None,
        *,
        tokenizer: Tokenizer | None = None,
        frozen_text: FrozenText | None = None,
    ) -> None:
        """`tokenizer` where text is a modality, and `frozen_text` where its encoder is a pretrained one.

        `ConfigError` where the first stage makes other latents than the config says.
        """
        super().__init__()
        if config.latent is not None and config.latent != first_stage.latent_shape:
            actual = first_stage.latent_shape
            raise ConfigError(f"the model is for latents {config.latent}, the first stage makes {actual}")
        self.config = config
        self.schedule = config.noise
        self.modalities = frozenset(config.modalities)
        self.required_conditions = frozenset(config.required)
        self.first_stage = first_stage.requires_grad_(False)
        self.unet = own_cross_attention(build_unet(config, first_stage.latent_shape) if unet is None else unet)
        self.tokenizer = tokenizer
        self.attribute_encoder: AttributeEncoder | None = None
        self.mask_encoder: MaskEncoder | MaskTokenEncoder | None = None
        self.text_encoder: TextEncoder | FrozenText | None = None
        self.text_projection: nn.Linear | None = None
        for name, module in condition_encoders(config, first_stage.factor, tokenizer, frozen_text).items():
            setattr(self, name, module)
        if tokenizer is not None:
            self.register_buffer("empty_text", tokenizer([""]), persistent=False)  # [1, L]

    def encoders(self) -> Mapping[str, nn.Module]:
        """The condition encoders by the name of their checkpoint folder."""
        names = ("attribute_encoder", "mask_encoder", "text_encoder", "text_projection")
        return {name: module for name in names if (module := getattr(self, name)) is not None}

    @property
    def networks(self) -> Sequence[nn.Module]:
        """The UNet."""
        return [self.unet]

    def embed(self, conditions: Conditions) -> Tokens:
        """Those that the config has of `constant_token`, `text_tokens`, `mask_tokens`, `attribute_tokens` [B, K, D],
        `vector` [B, E], `mask` [B, channels + 1, h, w].
        """
        result: dict[str, Tensor] = {}
        if self.config.constant_token:
            result["constant_token"] = torch.ones(conditions.n, 1, self.config.token_width, device=self.device)
        if self.text_encoder is not None and conditions.text is not None:
            # An absent text is the empty one, as in latent diffusion.
            ids = torch.where(conditions.present["text"][:, None], conditions.text, self.empty_text)
            encoded: Tensor = self.text_encoder(ids)
            result["text_tokens"] = encoded if self.text_projection is None else self.text_projection(encoded)
        if self.attribute_encoder is not None and conditions.attributes is not None:
            tokens, vector = self.attribute_encoder(conditions.attributes, conditions.present["attributes"])
            result |= {} if tokens is None else {"attribute_tokens": tokens}
            result |= {} if vector is None else {"vector": vector}
        if self.mask_encoder is not None and conditions.mask is not None:
            name = "mask_tokens" if self.config.mask_path == "tokens" else "mask"
            result[name] = self.mask_encoder(conditions.mask, conditions.present["mask"])
        return result

    def prepare(self, tokens: Tokens) -> Context:
        """See `prepared_context`."""
        return prepared_context(self.unet, tokens)

    def predict(self, zt: Tensor, t: Tensor, ctx: Context, record: Record | None = None) -> Tensor:
        """See `Model.predict`. Keeps no record."""
        return run_unet(self.unet, zt, t, ctx)


def prepared_context(unet: Any, tokens: Tokens) -> Context:
    """Tokens -> the context of `run_unet`: all tokens in one row, and without gradients also their keys and values.

    With gradients, keys and values are computed in the step: their weights train, and checkpointing may recompute them.
    """
    rows = [tokens[name] for name in TOKENS if name in tokens]
    others = {name: value for name, value in tokens.items() if name not in TOKENS}
    if not rows:
        return others
    row = cat(rows, dim=1)  # [B, K, D]
    return {**others, "tokens": row, **({} if torch.is_grad_enabled() else keys_values(unet, row))}


def run_unet(unet: Any, zt: Tensor, t: Tensor, ctx: Context, **residuals: Any) -> Tensor:
    """Output of a UNet of `build_unet` for zt [B, C, h, w] at t [B], float32. `residuals`: of a ControlNet."""
    x = cat([zt.to(unet.dtype), ctx["mask"]], dim=1) if "mask" in ctx else zt.to(unet.dtype)
    extra: dict[str, Any] = {"class_labels": ctx["vector"], **residuals} if "vector" in ctx else residuals
    if "tokens" in ctx:
        extra["encoder_hidden_states"] = ctx["tokens"]
    with use_context(unet, ctx):
        output: Tensor = unet(x, t, return_dict=False, **extra)[0]
    return output.float()


def condition_encoders(
    config: LDMConfig, factor: int, tokenizer: Tokenizer | None = None, frozen_text: FrozenText | None = None
) -> dict[str, nn.Module]:
    """New condition encoders by the name of their checkpoint folder. `factor`: pixels along a latent position.

    `ConfigError` where the config has text and there is no tokenizer, nor a `vocabulary_size` to count with.
    """
    encoders: dict[str, nn.Module] = {}
    if "attributes" in config.modalities:
        tokens = config.attribute_tokens if config.attribute_path != "vector" else 0
        encoders["attribute_encoder"] = AttributeEncoder(tokens, config.token_width, config.vector_width)
    if "mask" in config.modalities and config.mask_path == "tokens":
        encoders["mask_encoder"] = MaskTokenEncoder(config.mask_side, config.token_width, config.mask_class_embedding)
    elif "mask" in config.modalities:
        encoders["mask_encoder"] = MaskEncoder(factor, config.mask_channels)
    if "text" not in config.modalities:
        return encoders
    text = config.text or TransformerTextConfig()
    if isinstance(text, PretrainedTextConfig):
        if frozen_text is None:
            raise ConfigError(f"{text.name}: a pretrained text encoder has to be loaded first")
        encoders["text_encoder"] = frozen_text
        if frozen_text.width != config.token_width:
            encoders["text_projection"] = Projection(frozen_text.width, config.token_width)
        return encoders
    words = text.vocabulary_size if tokenizer is None else len(tokenizer)
    if words is None:
        raise ConfigError("text needs a tokenizer, or a vocabulary_size to count with")
    encoders["text_encoder"] = TextEncoder(text, config.token_width, words)
    return encoders


class Projection(nn.Linear):
    """A linear layer from the width of a pretrained encoder to that of the tokens."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__(inside, out)
        self.config = {"inside": inside, "out": out}


def build_unet(config: LDMConfig, latent_shape: tuple[int, int, int], out_channels: int | None = None) -> Any:
    """The UNet of a config for such latents, with random weights and silent residual branches.

    `out_channels`: those of the latent by default; a dynamic diffuser has one. `ConfigError` for too many levels.
    """
    latent, side, _ = latent_shape
    check_levels(len(config.channels), side)
    shared: dict[str, Any] = {
        "sample_size": side,
        "in_channels": latent + config.extra_channels,
        "out_channels": latent if out_channels is None else out_channels,
        "block_out_channels": config.channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": gcd(32, *config.channels),
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "class_embed_type": "identity" if config.vector_width else None,
        "resnet_time_scale_shift": "scale_shift" if config.time == "scale_shift" else "default",
    }
    form = "CrossAttn" if config.uses_tokens else "Attn"
    blocks = {
        "down_block_types": tuple(f"{form if attends else ''}DownBlock2D" for attends in config.attention),
        "up_block_types": tuple(f"{form if attends else ''}UpBlock2D" for attends in reversed(config.attention)),
    }
    if config.uses_tokens:
        # diffusers calls the number of heads attention_head_dim here.
        heads = tuple(config.heads or c // config.head_dim for c in config.channels)
        unet = UNet2DConditionModel(
            **shared, **blocks, cross_attention_dim=config.token_width, attention_head_dim=heads
        )
    else:
        if config.heads is not None:
            raise ConfigError("heads: a model without tokens takes head_dim instead")
        unet = UNet2DModel(**shared, **blocks, norm_eps=1e-5, downsample_padding=1, attention_head_dim=config.head_dim)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return silence_residuals(unet)


# --- networks -------------------------------------------------------------------------------------------------


def _build(config: LDMConfig, inputs: BuildInputs) -> LDM:
    frozen = None
    if "text" in config.modalities and isinstance(config.text, PretrainedTextConfig):
        with torch.random.fork_rng(devices=[]):  # loading it may draw; the model's own weights must not depend on that
            frozen = pretrained_encoder(config.text.name)
    return LDM(config, inputs.first_stage, tokenizer=inputs.tokenizer, frozen_text=frozen)


def _save(model: LDM, folder: Path, writing: Writing, index: dict[str, Any]) -> dict[str, Any]:
    write_diffusers(model.unet, folder / "unet", writing, index)
    for name, module in model.encoders().items():
        write_json(folder / name / "config.json", module.config)
        write_weights(module, folder / name / OWN_WEIGHTS, writing)
    if model.tokenizer is not None:
        model.tokenizer.save(folder / "tokenizer")
    return {"model": model.config.model_dump(mode="json")}


def _load(opened: OpenedCheckpoint, config: LDMConfig, first_stage: FirstStage, parts: Mapping[str, Any]) -> LDM:
    root = opened.root
    tokenizer, frozen = None, None
    if "text" in config.modalities:
        if isinstance(config.text, PretrainedTextConfig):
            frozen = empty_encoder(read_json(root / "text_encoder" / "config.json"))  # its weights are filled in below
        tokenizer = Tokenizer.load(root / "tokenizer")
    model = LDM(config, first_stage, read_diffusers(root / "unet"), tokenizer=tokenizer, frozen_text=frozen)
    for name, module in model.encoders().items():
        # What is stored of a frozen encoder is what it was made from above.
        if module is not frozen and read_json(root / name / "config.json") != module.config:
            raise InputError(f"{root / name}: config.json does not fit raygen.json", reason="checkpoint")
        fill(module, root / name / OWN_WEIGHTS)
    return model


def _count(config: LDMConfig, inputs: CountInputs) -> dict[str, nn.Module]:
    """Without a pretrained text encoder, which does not train."""
    unet = build_unet(config, inputs.latent_shape)
    if isinstance(config.text, PretrainedTextConfig):
        config = config.model_copy(update={"modalities": tuple(m for m in config.modalities if m != "text")})
    return {"unet": unet, **condition_encoders(config, inputs.factor)}


def _is_plain(model: LDM) -> bool:
    stage = model.first_stage
    known = stage.config.stage in ("kl", "vq") and stage.config.patch == 1 and not stage.net.config.get("latents_mean")
    return known and not model.config.uses_tokens and not model.modalities


NETWORKS: Final = Networks(
    build=_build,
    save=_save,
    load=_load,
    count=_count,
    is_plain=_is_plain,
)
