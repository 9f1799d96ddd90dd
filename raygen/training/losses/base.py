"""The interface between the training loop and an objective."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

__all__ = ["Batch", "Losses", "Objective"]


Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]


class Objective(nn.Module):
    """The module that the training loop wraps: DDP synchronises gradients only of one wrapped `forward`.

    `phases` lists the parameters of each optimiser; the loop calls `forward` once a phase and step, which is
    where an adversarial objective alternates. `module` is saved and averaged.
    """

    module: nn.Module
    #: Shape of the `noise` and `posterior` a batch needs, a picture.
    latent_shape: tuple[int, int, int]
    #: `t` is drawn below this; 0 where there is no schedule.
    timesteps: int = 0
    #: Digests of frozen networks and settings that change a step; a state of other ones cannot be resumed.
    frozen: str = ""
    #: Steps done so far, set by the loop: a term can start late.
    step: int = 0

    def phases(self) -> Sequence[Sequence[nn.Parameter]]:
        """Parameters by phase; one phase unless an objective says otherwise."""
        return [[p for p in self.module.parameters() if p.requires_grad]]

    def networks(self) -> Sequence[nn.Module]:
        """The large modules, to which `compile` and gradient checkpointing apply."""
        return [self.module]

    def active(self, phase: int) -> bool:
        """Whether this phase is updated at this step."""
        return True

    def forward(self, batch: Batch, phase: int = 0) -> Losses:
        """The mean `loss` to minimise, and any other values worth logging, as scalars."""
        raise NotImplementedError
