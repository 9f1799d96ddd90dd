"""Cross-attention whose keys and values are computed once a picture instead of once a step.

Knows diffusers' attention layers and where their keys and values come from. Knows no model and no condition.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["KEYS_VALUES", "given", "keys_values", "own_cross_attention"]

#: Names of keys and values in a context: `kv.<place of the layer in the network>`.
KEYS_VALUES: Final = "kv."


class CrossAttention:
    """What diffusers' `AttnProcessor2_0` computes for a cross-attention layer of a transformer block.

    Keys and values are those of `ready`, [B, K, 2 x inner], where there are any; else they are made of the tokens.
    """

    def __init__(self) -> None:
        self.ready: Tensor | None = None

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
        q, k, v = (_heads(x, attn.heads) for x in (attn.to_q(hidden_states), keys, values))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)  # [B, heads, N, d]
        merged = mixed.transpose(1, 2).flatten(2)
        result: Tensor = attn.to_out[1](attn.to_out[0](merged))
        return result


def _projected(attn: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return attn.to_k(tokens), attn.to_v(tokens)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)  # [B, heads, n, d]


def own_cross_attention(unet: Any) -> Any:
    """Give every cross-attention layer of a diffusers UNet a `CrossAttention`; `unet`, for chaining."""
    for layer in _layers(unet):
        layer.set_processor(CrossAttention())
    return unet


def keys_values(unet: Any, tokens: Tensor) -> dict[str, Tensor]:
    """Keys and values of every cross-attention layer for tokens [B, K, E], by the names that `given` reads."""
    made = (torch.cat(_projected(layer, tokens.to(unet.dtype)), dim=-1) for layer in _layers(unet))
    return {f"{KEYS_VALUES}{place}": value for place, value in enumerate(made)}


@contextmanager
def given(unet: Any, ctx: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the layers of `unet` read the keys and values of `ctx` where it has them."""
    processors = [layer.processor for layer in _layers(unet)] if f"{KEYS_VALUES}0" in ctx else []
    try:
        for place, processor in enumerate(processors):
            processor.ready = ctx[f"{KEYS_VALUES}{place}"]
        yield
    finally:
        for processor in processors:
            processor.ready = None


def _layers(unet: nn.Module) -> list[Any]:
    """Cross-attention layers in the order of the network's modules."""
    return [module for module in unet.modules() if getattr(module, "is_cross_attention", False)]
