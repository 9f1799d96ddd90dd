"""What a training records: means over the steps since the last record, and the loss that is not finite."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from raygen.core.errors import ConfigError
from raygen.training.data import TrainingData, order

if TYPE_CHECKING:
    from raygen.training.trainer import Trainer

__all__ = ["DivergedError", "TrainStep", "Window"]


#: Faces that an error names.
NAMED: Final = 16


class DivergedError(ConfigError):
    """The loss is no longer finite; training cannot continue with these settings or this data."""


@dataclass(frozen=True)
class TrainStep:
    """Record of the last `log_every` steps; losses are means over them, and over the ranks."""

    step: int
    loss: float
    lr: float
    images_per_s: float
    data_wait: float
    elapsed: float
    losses: Mapping[str, float]


class Window:
    """Sums over the steps since the last record; waits for the device only in `close` and `check`.

    `gather` makes them means over the ranks, so that all ranks see a loss that is not finite in the same step, and
    records do not depend on the number of ranks. All ranks call it.
    """

    def __init__(self, trainer: "Trainer", arrays: TrainingData, good: Callable[[], str | None]) -> None:
        """`good`: the place of the newest state that can be continued from, if there is one."""
        self.trainer, self.arrays, self.good = trainer, arrays, good
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count, self.waited, self.began = 0, 0.0, self.trainer.elapsed
        self.bad = torch.full((), torch.inf, dtype=torch.float64, device=self.trainer.device)

    def add(self, losses: Mapping[str, Tensor], waited: float) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.bad = torch.where(losses["loss"].isfinite(), self.bad, self.bad.clamp(max=self.trainer.step - 1))
        self.count += 1
        self.waited += waited

    def gather(self) -> None:
        """Average the sums over the ranks."""
        if not self.trainer.distributed or not self.sums:
            return
        dist.all_reduce(self.bad, dist.ReduceOp.MIN)
        whole = torch.cat([value.double().flatten() for value in self.sums.values()])
        dist.all_reduce(whole)
        parts = torch.split(whole / self.trainer.world_size, [value.numel() for value in self.sums.values()])
        averaged = zip(self.sums.items(), parts, strict=True)
        self.sums = {name: part.view_as(value).to(value.dtype) for (name, value), part in averaged}

    def document(self) -> dict[str, Any]:
        """What a state holds of the window beside the sums, whose order it has; `elapsed` is when it began."""
        return {"count": self.count, "data_wait": self.waited, "elapsed": self.began, "losses": list(self.sums)}

    def restore(self, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on with the window of a state, so that its record is that of a training which was never interrupted."""
        self.sums = {name: tensors[f"window.{name}"].to(self.trainer.device) for name in document["losses"]}
        self.count, self.waited, self.began = document["count"], document["data_wait"], document["elapsed"]

    def check(self) -> None:
        """Raise `DivergedError` where a loss so far is not finite, with the step, its faces and the way back."""
        if self.bad.isinf():
            return
        step, config = int(self.bad), self.trainer.config
        rows = order(config.seed, len(self.arrays), range(step * config.batch, (step + 1) * config.batch))
        faces = [str(self.arrays.ids[self.arrays.face[row]]) for row in rows[:NAMED]]
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        good = self.good()
        back = f"the last good state is {good}" if good else "there is no earlier state"
        raise DivergedError(
            f"the loss is not finite at step {step}, on faces {', '.join(faces)}{more}; {back}. "
            "A smaller lr, a longer warmup or float32 usually help; a single bad face shows in its row"
        )

    def close(self, lr: float) -> TrainStep:
        """The record of this window; the next one begins."""
        trainer = self.trainer
        self.gather()
        self.check()
        began = perf_counter()
        losses = {
            name: float(value) / self.count if value.ndim == 0 else float(value.count_nonzero())
            for name, value in self.sums.items()
        }
        trainer.elapsed += perf_counter() - began
        seconds = max(trainer.elapsed - self.began, 1e-9)
        rate = self.count * trainer.config.batch / seconds
        step = TrainStep(trainer.step, losses["loss"], lr, rate, self.waited, trainer.elapsed, losses)
        self._reset()
        return step
