"""Optimizer state and averaged weights: whole on every rank, or sharded over the ranks (ZeRO stage 1).

Sharded, a rank keeps the moments of AdamW and the averages of some parameters, updates these, and sends them to the
others (torch's `ZeroRedundancyOptimizer`; Rajbhandari et al. 2020, stage 1). Both forms compute the same and have the
same state dict, so a training may change from one to the other, and its number of ranks.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer

from raygen.training.config.loop import TrainConfig

__all__ = ["Averages", "gather_state", "load_state", "make_optimizer"]


def make_optimizer(parameters: Sequence[Tensor], config: TrainConfig, *, sharded: bool) -> torch.optim.Optimizer:
    """AdamW as the config has it."""
    settings: dict[str, Any] = {
        "lr": config.lr,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
        "fused": True,
    }
    if not sharded:
        return torch.optim.AdamW(parameters, **settings)
    return ZeroRedundancyOptimizer(parameters, optimizer_class=torch.optim.AdamW, **settings)


def gather_state(optimizer: torch.optim.Optimizer, rank: int) -> Mapping[int, Mapping[str, Any]]:
    """The state of every parameter by its number, on rank 0; empty on the others. All ranks call it where sharded."""
    if not isinstance(optimizer, ZeroRedundancyOptimizer):
        return dict(optimizer.state_dict()["state"])
    optimizer.consolidate_state_dict(to=0)
    state = optimizer.state_dict()["state"] if rank == 0 else {}
    vars(optimizer)["_all_state_dicts"] = []  # else it keeps the state of all ranks until the next call
    return dict(state)


def load_state(optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
    """Go on from the state of every parameter; a sharded optimizer keeps its own part."""
    groups = [{**group, "params": list(range(len(group["params"])))} for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": dict(state), "param_groups": groups})
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        # torch 2.15 moves the number of steps to the CPU, where the fused AdamW of a GPU does not read it.
        for parameter, values in optimizer.optim.state.items():
            values["step"] = values["step"].to(parameter.device)


class Averages:
    """The exponential moving averages of parameters, of which this rank keeps all or its share."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float, rank: int, ranks: int) -> None:
        """`decay`: 0 keeps none. `ranks`: number of ranks that share them; 1 where each has all."""
        self.parameters, self.decay, self.rank = parameters, decay, rank
        ends = list(accumulate(p.numel() for p in parameters.values()))
        self.owner = {
            name: (end - p.numel()) * ranks // ends[-1] if ranks > 1 else rank
            for (name, p), end in zip(parameters.items(), ends, strict=True)
        }
        self.sharded = ranks > 1
        self.values = {n: p.detach().clone() for n, p in parameters.items() if self.owner[n] == rank} if decay else {}

    def update(self, step: int) -> None:
        """After optimizer step `step`, with warm-up: decay = min(decay, (1 + n) / (10 + n)) after n earlier updates."""
        if self.values:
            decay = min(self.decay, step / (9 + step))
            mine = [self.parameters[name].detach() for name in self.values]
            torch._foreach_lerp_(list(self.values.values()), mine, 1 - decay)

    def gather(self) -> Iterator[tuple[str, Tensor]]:
        """Every average in turn, on every rank; all ranks call it where sharded."""
        for name, parameter in self.parameters.items() if self.decay else ():
            value = self.values.get(name)
            if self.sharded:
                value = torch.empty_like(parameter) if value is None else value
                dist.broadcast(value, src=self.owner[name])
            assert value is not None
            yield name, value

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from averages of all parameters."""
        for name, value in self.values.items():
            value.copy_(values[name])
