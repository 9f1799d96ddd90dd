"""What the training loop asks of an objective.

Knows the contract and what a batch may hold. Knows no loss.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

__all__ = ["Batch", "Losses", "Objective"]


Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]


class Objective(nn.Module):
    """What the training loop wraps: DDP synchronises only what runs inside one `forward`.

    `phases` lists the parameters of each optimiser; the loop calls `forward` once a phase and step, which is
    where an adversarial objective takes its turns. `module` is what is saved and averaged.
    """

    module: nn.Module
    #: Shape of the `noise` and `posterior` a batch needs, a picture.
    latent_shape: tuple[int, int, int]
    #: `t` is drawn below this; 0 where there is no schedule.
    timesteps: int = 0
    #: Names the frozen networks it trains beside: a state made beside others is no state of this training.
    frozen: str = ""
    #: Steps done so far; the loop keeps it, so that a term can enter late.
    step: int = 0

    def phases(self) -> Sequence[Sequence[nn.Parameter]]:
        """Parameters by phase; one phase unless an objective says otherwise."""
        return [[p for p in self.module.parameters() if p.requires_grad]]

    def networks(self) -> Sequence[nn.Module]:
        """Where the time and the memory go: what `compile` and gradient checkpointing are for."""
        return [self.module]

    def active(self, phase: int) -> bool:
        """Whether this phase takes its turn at this step."""
        return True

    def forward(self, batch: Batch, phase: int = 0) -> Losses:
        """The mean `loss` to minimise, and any other values worth logging, as scalars."""
        raise NotImplementedError
