"""The interface between the training loop and an objective."""

from collections.abc import Mapping, Sequence
from typing import Final

from torch import Tensor, nn

__all__ = ["TOTAL", "Batch", "Losses", "Objective"]


#: Beginning of the names under which a part of a batch has the sums over the whole batch.
TOTAL: Final = "total_"
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
    #: Ranks, and parts that the batch of a step is cut into over all of them; set by the loop.
    ranks: int = 1
    cuts: int = 1

    def phases(self) -> Sequence[Sequence[nn.Parameter]]:
        """Parameters by phase; one phase unless an objective says otherwise."""
        return [[p for p in self.module.parameters() if p.requires_grad]]

    def networks(self) -> Sequence[nn.Module]:
        """The large modules, to which `compile` and gradient checkpointing apply."""
        return [self.module]

    def active(self, phase: int) -> bool:
        """Whether this phase is updated at this step."""
        return True

    def totals(self, batch: Batch, phase: int = 0) -> Losses:
        """Sums over a part of a batch that the loss needs of the whole batch: what it divides by, or a ratio of.

        The loop adds them over all parts and ranks, and `forward` finds them in its batch, under `TOTAL` and their
        name. It asks only where a batch is cut, and no rank may leave a name out.
        """
        return {}

    def whole(self, batch: Batch, name: str, own: Tensor) -> Tensor:
        """The sum over the whole batch of which `own` is this part's.

        Its gradient is that of `own`, times the number of parts: the mean over parts is the gradient of the whole,
        where the loss depends on this sum alone.
        """
        total = batch.get(f"{TOTAL}{name}")
        if total is None:
            return own
        return total + self.cuts * (own - own.detach()) if own.requires_grad else total

    def forward(self, batch: Batch, phase: int = 0) -> Losses:
        """The mean `loss` to minimise, and any other values worth logging, as scalars.

        Of a vector, such as the codes that were used, the record has the number of values that were not 0 in all steps.
        The mean of the losses of all parts of a batch is the loss of the batch, and so are their gradients.
        """
        raise NotImplementedError
