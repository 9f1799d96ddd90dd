"""SPADE: group normalisation whose scale and shift come from a semantic mask, and residual blocks that use it.

`spade_blocks` replaces blocks of a diffusers UNet. Scale and shift depend on the mask alone: `modulations` computes
them once a picture, and `modulated` hands them to the blocks of a forward.

Source: Park et al. 2019 (SPADE), in the form of the semantic diffusion models: no synchronised batch norm, group norm
instead; x_out = norm(x) (1 + gamma) + beta.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "MODULATION",
    "SPADENorm",
    "SPADEResnetBlock",
    "boundaries",
    "modulated",
    "modulations",
    "one_hot",
    "spade_blocks",
]


#: Names of scales and shifts in a context: `spade.<place of the norm in the network>`.
MODULATION: Final = "spade."


class SPADENorm(nn.Module):
    """Group norm without its own affine; scale and shift of every channel and pixel come from the mask."""

    def __init__(self, channels: int, classes: int, hidden: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-5, affine=False)
        self.shared = nn.Conv2d(classes, hidden, 3, padding=1)
        self.gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden, channels, 3, padding=1)
        self.ready: Tensor | None = None

    def modulation(self, one_hot: Tensor) -> Tensor:
        """Maps [B, classes, H, W] at the size of the features -> scale and shift [B, 2 channels, H, W]."""
        hidden = F.relu(self.shared(one_hot))
        return torch.cat([self.gamma(hidden), self.beta(hidden)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, channels, H, W] -> the same shape; `ready` is what `modulation` gave."""
        assert self.ready is not None, "a SPADE block outside `modulated`"
        scale, shift = self.ready.chunk(2, dim=1)
        normed: Tensor = self.norm(x)
        return normed * (1 + scale) + shift


class SPADEResnetBlock(nn.Module):
    """A residual block of a diffusers UNet with SPADE in both of its norms; time is added, as in the original."""

    def __init__(self, inside: int, out: int, time: int, *, classes: int, hidden: int, groups: int) -> None:
        super().__init__()
        self.in_norm = SPADENorm(inside, classes, hidden, groups)
        self.conv1 = nn.Conv2d(inside, out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time, out)
        self.out_norm = SPADENorm(out, classes, hidden, groups)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inside, out, 1) if inside != out else None
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        """hidden_states [B, inside, H, W], temb [B, time] -> [B, out, H, W]; the signature of diffusers' block."""
        x = self.conv1(F.silu(self.in_norm(hidden_states)))
        x = x + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        x = self.conv2(F.silu(self.out_norm(x)))
        skip = hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states)
        result: Tensor = skip + x
        return result


def spade_blocks(unet: Any, *, classes: int, hidden: int) -> Any:
    """Replace the residual blocks of middle and decoder of a diffusers UNet; `unet`, for chaining."""
    for block in (unet.mid_block, *unet.up_blocks):
        block.resnets = nn.ModuleList(
            SPADEResnetBlock(
                old.in_channels,
                old.out_channels,
                old.time_emb_proj.in_features,
                classes=classes,
                hidden=hidden,
                groups=old.norm1.num_groups,
            )
            for old in block.resnets
        )
    return unet


def modulations(unet: Any, labels: Tensor, present: Tensor, classes: int, *, edges: bool = False) -> dict[str, Tensor]:
    """Scale and shift of every SPADE norm, by the names that `modulated` reads.

    `labels` uint8 [B, S, S] at any size, `present` bool [B]: an absent mask is one of zeros. `edges`: the norms also
    read the `boundaries` of the labels, as the last map.
    """
    maps: dict[int, Tensor] = {}
    values = {}
    for place, (norm, side) in enumerate(_norms(unet)):
        if side not in maps:
            maps[side] = one_hot(labels, present, side, classes, unet.dtype)
            if edges:
                maps[side] = torch.cat([maps[side], boundaries(labels, present, side, unet.dtype)], dim=1)
        values[f"{MODULATION}{place}"] = norm.modulation(maps[side])
    return values


def one_hot(labels: Tensor, present: Tensor, side: int, classes: int, dtype: torch.dtype) -> Tensor:
    """Labels uint8 [B, S, S] -> maps [B, classes, side, side], nearest neighbour; zeros where there is no mask."""
    size = labels.shape[-1]
    index = torch.arange(side, device=labels.device) * size // side  # as interpolate's "nearest" has it
    small = labels[:, index][:, :, index].long()
    maps = F.one_hot(small, classes).movedim(-1, 1).to(dtype)
    return maps * present.to(dtype).view(-1, 1, 1, 1)


def boundaries(labels: Tensor, present: Tensor, side: int, dtype: torch.dtype) -> Tensor:
    """Where a pixel's class differs from that of a neighbour, left, right, above or below: [B, 1, side, side].

    Found at the size of the labels uint8 [B, S, S] and then brought to `side` by nearest neighbour, as in SDM (Wang et
    al. 2022, after Park et al. 2019), where labels stand for instances; zeros where there is no mask.
    """
    differs = torch.zeros_like(labels, dtype=torch.bool)
    across, down = labels[:, :, 1:] != labels[:, :, :-1], labels[:, 1:] != labels[:, :-1]
    for part, found in (
        (differs[:, :, 1:], across),
        (differs[:, :, :-1], across),
        (differs[:, 1:], down),
        (differs[:, :-1], down),
    ):
        part.logical_or_(found)
    index = torch.arange(side, device=labels.device) * labels.shape[-1] // side
    return (differs[:, index][:, :, index] & present.view(-1, 1, 1)).unsqueeze(1).to(dtype)


@contextmanager
def modulated(unet: Any, ctx: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the SPADE norms of `unet` have the scales and shifts of `ctx`.

    With gradients they keep them afterwards: a backward pass may compute activations again.
    """
    norms = [norm for norm, _ in _norms(unet)]
    for place, norm in enumerate(norms):
        norm.ready = ctx[f"{MODULATION}{place}"]
    try:
        yield
    finally:
        if not torch.is_grad_enabled():
            for norm in norms:
                norm.ready = None


def _norms(unet: Any) -> Iterator[tuple[SPADENorm, int]]:
    """Every SPADE norm in the order of the network, and the side of the features it works on."""
    side = unet.config.sample_size // 2 ** (len(unet.config.block_out_channels) - 1)
    blocks = [(unet.mid_block, side)]
    for i, block in enumerate(unet.up_blocks):
        blocks.append((block, side * 2**i))
    for block, size in blocks:
        for module in block.resnets:
            if isinstance(module, SPADEResnetBlock):
                yield module.in_norm, size
                yield module.out_norm, size
