"""Functions from our parameter names to those of published files, with the change of layout where one is needed.

They cover latent diffusion's UNets, first stages, text transformer and mask layer, and SCA-DM's parts.

Sources: the key lists of the published networks; the correspondence with diffusers is tested against references that
are written from the papers.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

from torch import Tensor

from raygen.models.config.ldm import LDMConfig
from raygen.models.config.scadm import SCADMConfig

__all__ = [
    "Pick",
    "Rename",
    "averaged",
    "branch_names",
    "clip_names",
    "first_stage_names",
    "mask_names",
    "same_names",
    "style_names",
    "text_names",
    "unet_names",
]


class Pick(NamedTuple):
    """The name of a tensor in the file, how it is changed, and how many of our parameters are made of it."""

    key: str
    change: Callable[[Tensor], Tensor] | None = None
    shared: int = 1

    def of(self, tensor: Tensor) -> Tensor:
        """The tensor in our layout."""
        return tensor if self.change is None else self.change(tensor)


#: Our name -> its source; None where there is none.
Rename = Callable[[str], Pick | None]
Rule = tuple[str, Callable[..., str]]


def same_names(name: str) -> Pick:
    """For published networks that keep their names."""
    return Pick(name)


def _apply_rules(name: str, rules: tuple[Rule, ...]) -> str | None:
    for pattern, rename in rules:
        if match := re.fullmatch(pattern, name):
            return rename(*match.groups())
    return None


# --- UNets --------------------------------------------------------------------------------------------------

#: Layers of a residual block; with SPADE the norms have other names and the other layers move up by one.
PLAIN: Final = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
SPADE: Final = {
    "conv1": "in_layers.1",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.2",
    "conv_shortcut": "skip_connection",
    **{
        f"{norm}.{ours}": f"{norm}.mlp_{published}"
        for norm in ("in_norm", "out_norm")
        for ours, published in (("shared", "shared.0"), ("gamma", "gamma"), ("beta", "beta"))
    },
}


def unet_names(config: LDMConfig | SCADMConfig) -> Rename:
    """For a UNet of latent diffusion's openaimodel, whose blocks have consecutive numbers."""
    period = config.layers_per_block + 1
    attends = config.attention[::-1]

    def residual(place: str, rest: str, own: Mapping[str, str]) -> str:
        part, _, leaf = rest.rpartition(".")
        return f"{place}.{own[part]}.{leaf}"

    late = SPADE if config.kind == "scadm" else PLAIN  # layers of middle and decoder
    rules: tuple[Rule, ...] = (
        (r"time_embedding\.linear_([12])\.(.+)", lambda n, leaf: f"time_embed.{2 * (int(n) - 1)}.{leaf}"),
        (r"conv_in\.(.+)", lambda leaf: f"input_blocks.0.0.{leaf}"),
        (r"conv_norm_out\.(.+)", lambda leaf: f"out.0.{leaf}"),
        (r"conv_out\.(.+)", lambda leaf: f"out.2.{leaf}"),
        (
            r"down_blocks\.(\d+)\.resnets\.(\d+)\.(.+)",
            lambda b, n, rest: residual(f"input_blocks.{1 + int(b) * period + int(n)}.0", rest, PLAIN),
        ),
        (
            r"down_blocks\.(\d+)\.attentions\.(\d+)\.(.+)",
            lambda b, n, rest: f"input_blocks.{1 + int(b) * period + int(n)}.1.{rest}",
        ),
        (
            r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.+)",
            lambda b, leaf: f"input_blocks.{(int(b) + 1) * period}.0.op.{leaf}",
        ),
        (r"mid_block\.resnets\.([01])\.(.+)", lambda n, rest: residual(f"middle_block.{2 * int(n)}", rest, late)),
        (r"mid_block\.attentions\.0\.(.+)", lambda rest: f"middle_block.1.{rest}"),
        (
            r"up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)",
            lambda b, n, rest: residual(f"output_blocks.{int(b) * period + int(n)}.0", rest, late),
        ),
        (
            r"up_blocks\.(\d+)\.attentions\.(\d+)\.(.+)",
            lambda b, n, rest: f"output_blocks.{int(b) * period + int(n)}.1.{rest}",
        ),
        (
            r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.+)",
            lambda b, leaf: f"output_blocks.{(int(b) + 1) * period - 1}.{2 if attends[int(b)] else 1}.conv.{leaf}",
        ),
    )

    def rename(name: str) -> Pick | None:
        key = _apply_rules(name, rules)
        if key is None:
            return None
        return Pick(key) if config.uses_tokens else _self_attention(key, config.head_dim)

    return rename


def _self_attention(name: str, head_dim: int) -> Pick:
    """The unconditional attention block: queries, keys and values are one layer, interleaved head by head."""
    match = re.fullmatch(r"(.+)\.(group_norm|to_q|to_k|to_v|to_out\.0)\.(weight|bias)", name)
    if match is None:
        return Pick(name)
    place, part, leaf = match.groups()
    if part == "group_norm":
        return Pick(f"{place}.norm.{leaf}")
    if part == "to_out.0":
        return Pick(f"{place}.proj_out.{leaf}", _flat if leaf == "weight" else None)
    which = ("to_q", "to_k", "to_v").index(part)
    return Pick(f"{place}.qkv.{leaf}", partial(_third, which=which, head_dim=head_dim), 3)


def _third(tensor: Tensor, which: int, head_dim: int) -> Tensor:
    """[3 C, C, 1] or [3 C], in heads first and query, key, value second -> one of the three, [C, C] or [C]."""
    if tensor.shape[0] % (3 * head_dim):
        raise ValueError(f"{tensor.shape[0]} rows are not heads of {head_dim}")
    parts = tensor.reshape(-1, 3, head_dim, *tensor.shape[1:])[:, which].flatten(0, 1)
    return _flat(parts) if parts.ndim > 1 else parts


def _flat(tensor: Tensor) -> Tensor:
    """A convolution of one place [O, I, 1(, 1)] as a linear layer [O, I]."""
    if any(side != 1 for side in tensor.shape[2:]):
        raise ValueError("a convolution of more than one place")
    return tensor.flatten(1)


def averaged(rename: Rename, prefix: str) -> Rename:
    """The exponential moving average beside the weights that `rename` finds: the same names without their dots."""

    def averaged_name(name: str) -> Pick | None:
        pick = rename(name)
        return None if pick is None else pick._replace(key=f"model_ema.{(prefix + pick.key).replace('.', '')}")

    return averaged_name


def branch_names(config: LDMConfig) -> Rename:
    """For a ControlNet: the encoder half of its UNet, the hint's encoder, and the convolutions that begin at zero."""
    encoder = unet_names(config)
    rules: tuple[Rule, ...] = (
        (r"controlnet_cond_embedding\.conv_in\.(.+)", lambda leaf: f"input_hint_block.0.{leaf}"),
        (
            r"controlnet_cond_embedding\.blocks\.(\d+)\.(.+)",
            lambda i, leaf: f"input_hint_block.{2 * int(i) + 2}.{leaf}",
        ),
        (r"controlnet_cond_embedding\.conv_out\.(.+)", lambda leaf: f"input_hint_block.14.{leaf}"),
        (r"controlnet_down_blocks\.(\d+)\.(.+)", lambda i, leaf: f"zero_convs.{i}.0.{leaf}"),
        (r"controlnet_mid_block\.(.+)", lambda leaf: f"middle_block_out.0.{leaf}"),
    )

    def rename(name: str) -> Pick | None:
        key = _apply_rules(name, rules)
        return encoder(name) if key is None else Pick(key)

    return rename


# --- first stages -------------------------------------------------------------------------------------------

#: Of the one attention layer, in the middle.
ATTENTION: Final = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def first_stage_names(levels: int) -> Rename:
    """For latent diffusion's first stages; the decoder's levels are counted from the finest, ours from the coarsest."""

    def residual(place: str, rest: str) -> str:
        return f"{place}.{rest.replace('conv_shortcut', 'nin_shortcut')}"

    rules: tuple[Rule, ...] = (
        (
            r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.(.+)",
            lambda b, n, rest: residual(f"encoder.down.{b}.block.{n}", rest),
        ),
        (
            r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.+)",
            lambda b, leaf: f"encoder.down.{b}.downsample.conv.{leaf}",
        ),
        (
            r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)",
            lambda b, n, rest: residual(f"decoder.up.{levels - 1 - int(b)}.block.{n}", rest),
        ),
        (
            r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.+)",
            lambda b, leaf: f"decoder.up.{levels - 1 - int(b)}.upsample.conv.{leaf}",
        ),
        (
            r"(encoder|decoder)\.mid_block\.resnets\.([01])\.(.+)",
            lambda half, n, rest: f"{half}.mid.block_{int(n) + 1}.{rest}",
        ),
        (
            r"(encoder|decoder)\.mid_block\.attentions\.0\.(group_norm|to_q|to_k|to_v|to_out\.0)\.(.+)",
            lambda half, part, leaf: f"{half}.mid.attn_1.{ATTENTION[part]}.{leaf}",
        ),
        (r"(encoder|decoder)\.conv_norm_out\.(.+)", lambda half, leaf: f"{half}.norm_out.{leaf}"),
        (r"((?:encoder|decoder)\.conv_(?:in|out)\.(?:weight|bias))", str),
        (r"((?:post_)?quant_conv\.(?:weight|bias))", str),
        (r"quantize\.embedding\.weight", lambda: "quantize.embedding.weight"),
    )

    def rename(name: str) -> Pick | None:
        key = _apply_rules(name, rules)
        if key is None:
            return None
        linear = re.search(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$", key)
        return Pick(key, _flat if linear else None)

    return rename


# --- what reads conditions ----------------------------------------------------------------------------------


def text_names(name: str) -> Pick | None:
    """For the text transformer, whose attention and feed-forward layers are numbered as one list."""
    inside = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out"}
    rules: tuple[Rule, ...] = (
        (r"token_embedding\.weight", lambda: "token_emb.weight"),
        (r"position_embedding\.weight", lambda: "pos_emb.emb.weight"),
        (r"norm\.(.+)", lambda leaf: f"norm.{leaf}"),
        (r"layers\.(\d+)\.norm1\.(.+)", lambda i, leaf: f"attn_layers.layers.{2 * int(i)}.0.{leaf}"),
        (r"layers\.(\d+)\.norm2\.(.+)", lambda i, leaf: f"attn_layers.layers.{2 * int(i) + 1}.0.{leaf}"),
        (
            r"layers\.(\d+)\.(to_q|to_k|to_v|to_out)\.(.+)",
            lambda i, part, leaf: f"attn_layers.layers.{2 * int(i)}.1.{inside[part]}.{leaf}",
        ),
        (r"layers\.(\d+)\.up\.(.+)", lambda i, leaf: f"attn_layers.layers.{2 * int(i) + 1}.1.net.0.0.{leaf}"),
        (r"layers\.(\d+)\.down\.(.+)", lambda i, leaf: f"attn_layers.layers.{2 * int(i) + 1}.1.net.2.{leaf}"),
    )
    key = _apply_rules(name, rules)
    return None if key is None else Pick(key)


def clip_names(name: str) -> Pick:
    """For CLIP's text model, which `transformers` once kept one level deeper."""
    return Pick(f"text_model.{name.removeprefix('network.').removeprefix('text_model.')}")


def mask_names(name: str) -> Pick | None:
    """For the linear layer that reads masks."""
    key = _apply_rules(name, ((r"shape\.(.+)", lambda leaf: f"linear.{leaf}"),))
    return None if key is None else Pick(key)


def style_names(name: str) -> Pick | None:
    """For SCA-DM's style encoder."""
    rules: tuple[Rule, ...] = (
        (r"first\.([01])\.(.+)", lambda n, leaf: f"Encoder.first_layer.{n}.{leaf}"),
        (r"down\.(\d+)\.([01])\.(.+)", lambda i, n, leaf: f"Encoder.enc_layer_{i}.{n}.{leaf}"),
        (r"up\.(\d+)\.([01])\.(.+)", lambda i, n, leaf: f"Decoder.dec_layer_{i}.{int(n) + 1}.{leaf}"),
        (r"out\.(\d+)\.(.+)", lambda i, leaf: f"out.out_{i}.0.{leaf}"),
    )
    key = _apply_rules(name, rules)
    return None if key is None else Pick(key)
