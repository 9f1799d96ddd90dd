"""Low-rank weights beside the frozen ones of a network, others for each of several edits (LoRA: Hu et al. 2022).

A layer with weight W gives W x + B_e A_e x for the rows of edit e: two batched products, whatever the number of edits.
A starts random and B at zero, so that nothing changes before the first step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LowRankWeights"]


#: Stream of noise that A is drawn from.
LOW_RANK: Final = 1 << 43


class LowRankWeights:
    """The pairs A and B of all linear and convolutional layers of `networks`, for one edit a key.

    They act inside `active`, where a batch holds the rows of the edits one edit after the other, equally many of each;
    a batch may hold all of them several times over. What an edit gets depends on its key alone.
    """

    def __init__(self, networks: Sequence[nn.Module], keys: Sequence[int], rank: int) -> None:
        self.edits = len(keys)
        randoms = [np.random.Generator(np.random.Philox(key=key, counter=LOW_RANK << 192)) for key in keys]
        modules = (module for network in networks for module in network.modules())
        self.layers = [m for m in modules if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)]
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        for layer in self.layers:
            device, (out, *inside) = layer.weight.device, layer.weight.shape
            drawn = np.stack([r.standard_normal((rank, *inside), dtype=np.float32) for r in randoms])
            first = torch.from_numpy(drawn).to(device) * prod(inside) ** -0.5
            self.pairs.append((nn.Parameter(first), nn.Parameter(torch.zeros(self.edits, out, rank, device=device))))

    def parameters(self) -> list[nn.Parameter]:
        """A [E, rank, in, ...] and B [E, out, rank] of every layer."""
        return [parameter for pair in self.pairs for parameter in pair]

    @contextmanager
    def active(self, rows: int) -> Iterator[None]:
        """Inside, the layers have these weights. `rows`: of each edit in a batch."""

        def added(pair: tuple[nn.Parameter, nn.Parameter]) -> Any:
            return lambda layer, args, output: output + self._change(layer, args[0], pair, rows).to(output.dtype)

        handles = [
            layer.register_forward_hook(added(pair)) for layer, pair in zip(self.layers, self.pairs, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _change(self, layer: nn.Module, x: Tensor, pair: tuple[Tensor, Tensor], rows: int) -> Tensor:
        """B A x of a batch [N, ...]."""
        times, shape = len(x) // (self.edits * rows), x.shape[1:]
        own = x.view(times, self.edits, rows, *shape).transpose(0, 1)  # [E, times, rows, ...]
        first, second = pair
        if isinstance(layer, nn.Conv2d):
            maps = own.flatten(1, 2).transpose(0, 1).flatten(1, 2)  # [times * rows, E * C, H, W]
            weight = first.flatten(0, 1)  # [E * rank, C, kh, kw]
            small = F.conv2d(maps, weight, None, layer.stride, layer.padding, layer.dilation, self.edits)
            changed = F.conv2d(small, second.flatten(0, 1)[..., None, None], groups=self.edits)
            result = torch.unflatten(changed, 1, (self.edits, -1)).transpose(0, 1)  # [E, times * rows, out, H, W]
        else:
            flat = own.flatten(1, -2)  # [E, times * rows * ..., in]
            result = flat @ first.transpose(1, 2) @ second.transpose(1, 2)
            result = torch.unflatten(result, 1, (times * rows, *shape[:-1]))
        return torch.unflatten(result, 1, (times, rows)).transpose(0, 1).flatten(0, 2)
