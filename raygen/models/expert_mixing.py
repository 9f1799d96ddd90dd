"""The learned weight of each expert of a collaboration, re-weighted by time where the mixing says so.

Source: Huang et al. 2023 (Collaborative Diffusion), equations 3 and 4.
"""

from collections.abc import Mapping
from math import pi

import torch
from torch import Tensor

from raygen.models.config.mixing import PaperMixing, ReleasedMixing

__all__ = ["Shares", "mixed_shares"]


Shares = Mapping[str, Tensor]


def mixed_shares(mixing: PaperMixing | ReleasedMixing, raw: Shares, t: Tensor, timesteps: int) -> Shares:
    """`raw` [B, 1, h, w] an expert, whose sum is 1, at `t` [B] -> the shares of a mixing, whose sum is 1."""
    if isinstance(mixing, PaperMixing):
        return raw
    left = t.double() / timesteps
    if mixing.schedule == "cosine_decay":
        left = (torch.cos(pi * (1 - left)) + 1) / 2
    elif mixing.schedule == "none":
        left = torch.ones_like(left)
    rate = left.float().view(-1, 1, 1, 1)
    faded = {name: raw[name] * rate for name in raw if name in mixing.fading}
    gone = sum((value for value in faded.values()), torch.zeros_like(next(iter(raw.values()))))
    others = {name: value for name, value in raw.items() if name not in mixing.fading}
    total = torch.stack(list(others.values())).sum(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
    mixed = {**faded, **{name: (1 - gone) * value / total for name, value in others.items()}}
    boosted = {name: mixing.boost * mixed[name] if name in mixing.boosted else mixed[name] for name in raw}
    whole = torch.stack(list(boosted.values())).sum(dim=0)
    return {name: value / whole for name, value in boosted.items()}
