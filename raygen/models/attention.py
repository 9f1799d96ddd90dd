"""Cross-attention whose keys and values are computed once a picture, and which a mask may gate.

The layers are those of diffusers, with a processor of their own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.models.config.scadm import Gating

__all__ = [
    "GATE",
    "KEYS_VALUES",
    "PADDING",
    "gates",
    "keys_values",
    "own_cross_attention",
    "use_context",
    "watch_scores",
]


#: Names of keys and values in a context: `kv.<place of the layer in the network>`.
KEYS_VALUES: Final = "kv."
#: Names of gates in a context: `gate.<number of pixels>`.
GATE: Final = "gate."
#: Name of what is added to the scores of tokens that only fill up a context, [B, K].
PADDING: Final = "padding"


class CrossAttention:
    """What diffusers' `AttnProcessor2_0` computes for a cross-attention layer of a transformer block.

    Keys and values are those of `ready`, [B, K, 2 x inner], where there are any; else they are made of the tokens.
    `gates`: by number of pixels N what is added to the scores, or what they are multiplied by, [B, N, K].
    """

    def __init__(self) -> None:
        self.ready: Tensor | None = None
        self.padding: Tensor | None = None
        self.gates: dict[int, Tensor] = {}
        self.multiplied = False
        self.watched: list[Tensor] | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states [B, N, D], encoder_hidden_states [B, K, E] -> [B, N, D]."""
        keys, values = _projected(attn, encoder_hidden_states) if self.ready is None else self.ready.chunk(2, dim=-1)
        parts = (x.view(*x.shape[:2], attn.heads, -1) for x in (attn.to_q(hidden_states), keys, values))
        q, k, v = (x.transpose(1, 2) for x in parts)  # [B, heads, n, d]
        if self.watched is not None:
            self.watched.append((q @ k.transpose(-1, -2)).mean(dim=1) * q.shape[-1] ** -0.5)  # [B, N, K]
        gate = self.gates[q.shape[2]].unsqueeze(1).to(q.dtype) if self.gates else None  # [B, 1, N, K]
        if self.padding is not None:
            attention_mask = self.padding[:, None, None, :].to(q.dtype)
        if gate is not None and self.multiplied:
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            attended = (scores * gate).softmax(dim=-1) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask if gate is None else gate)
        merged = attended.transpose(1, 2).flatten(2)  # [B, N, heads * d]
        result: Tensor = attn.to_out[1](attn.to_out[0](merged))
        return result


def gates(maps: Mapping[int, Tensor], gating: Gating) -> dict[str, Tensor]:
    """Class maps [B, K, side, side] by side -> what `use_context` reads: token k is that of class k.

    A pixel of no class (an absent mask) attends to all tokens equally, whatever their scores, as released.
    """
    values = {}
    for side, one_hot in maps.items():
        gate = one_hot.flatten(2).transpose(1, 2)  # [B, N, K]
        # The smallest number swallows any score, so that scores of a pixel without class are all the same.
        values[f"{GATE}{side * side}"] = gate if gating == "paper" else (1 - gate) * torch.finfo(gate.dtype).min
    return values


def _projected(attn: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return attn.to_k(tokens), attn.to_v(tokens)


def own_cross_attention(unet: Any, gating: Gating = "none") -> Any:
    """Give every cross-attention layer of a diffusers UNet a `CrossAttention`; `unet`, for chaining."""
    for layer in _layers(unet):
        processor = CrossAttention()
        processor.multiplied = gating == "paper"
        layer.set_processor(processor)
    return unet


def keys_values(unet: Any, tokens: Tensor) -> dict[str, Tensor]:
    """Keys and values of every cross-attention layer for tokens [B, K, E], by the names that `use_context` reads."""
    pairs = (torch.cat(_projected(layer, tokens.to(unet.dtype)), dim=-1) for layer in _layers(unet))
    return {f"{KEYS_VALUES}{index}": pair for index, pair in enumerate(pairs)}


@contextmanager
def use_context(unet: Any, ctx: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the layers of `unet` read the keys, values and gates of `ctx` where it has them.

    With gradients gates stay afterwards: a backward pass may compute activations again.
    """
    gates_by_size = {int(name[len(GATE) :]): gate for name, gate in ctx.items() if name.startswith(GATE)}
    ready, padding = f"{KEYS_VALUES}0" in ctx, ctx.get(PADDING)
    used = ready or gates_by_size or padding is not None
    processors = [layer.processor for layer in _layers(unet)] if used else []
    try:
        for place, processor in enumerate(processors):
            processor.ready = ctx[f"{KEYS_VALUES}{place}"] if ready else None
            processor.gates, processor.padding = gates_by_size, padding
        yield
    finally:
        for processor in processors:
            processor.ready = processor.padding = None
            processor.gates = processor.gates if torch.is_grad_enabled() else {}


@contextmanager
def watch_scores(unet: Any) -> Iterator[list[Tensor]]:
    """Inside, the list collects the scores of every cross-attention layer before gates and softmax, mean over heads.

    Each [B, N, K], in the order of the forward.
    """
    scores: list[Tensor] = []
    processors = [layer.processor for layer in _layers(unet)]
    for processor in processors:
        processor.watched = scores
    try:
        yield scores
    finally:
        for processor in processors:
            processor.watched = None


def _layers(unet: nn.Module) -> list[Any]:
    """Cross-attention layers in the order of the network's modules."""
    return [module for module in unet.modules() if getattr(module, "is_cross_attention", False)]
