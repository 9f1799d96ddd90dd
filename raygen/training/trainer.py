"""The one training loop, a generator of steps.

The global batch of a step is the same for any number of ranks; each takes its slice. Noise, timesteps, dropout and
flips of a picture are keyed by (seed, its position in the stream of all batches), so neither the number of ranks nor a
restart changes anything but rounding. Training state is written as a whole and survives a kill.
"""

import json
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from raygen.core.errors import ConfigError
from raygen.core.hashing import canonical
from raygen.core.precision import arithmetic, check_precision, set_deterministic_precision
from raygen.models.compiled import compile_blocks
from raygen.training.config.loop import TrainConfig
from raygen.training.data import TrainingData, draw, order
from raygen.training.losses import Objective
from raygen.training.losses.base import TOTAL
from raygen.training.sharding import Averages, gather_state, load_state, make_optimizer
from raygen.training.states import RECORD, TENSORS, LocalStates, States, latest_state
from raygen.training.window import DivergedError, TrainStep, Window

__all__ = [
    "DivergedError",
    "TrainConfig",
    "TrainStep",
    "Trainer",
    "TrainingData",
    "draw",
    "latest_state",
    "order",
    "train",
]


Batch = dict[str, Tensor]
#: Fields of a TrainConfig that a resumed run may change.
FREE = frozenset({"steps", "max_seconds", "save_every", "log_every", "sheet_every", "keep", "sharding"})


# --- the trainer --------------------------------------------------------------------------------------------


class Trainer:
    """An objective with its optimisers, averaged weights and place in the run, on one rank."""

    def __init__(
        self, objective: Objective, config: TrainConfig, *, device: Any = "cpu", rank: int = 0, world_size: int = 1
    ) -> None:
        if config.batch % (world_size * config.gradient_accumulation_steps):
            raise ConfigError(
                f"batch {config.batch} does not divide into {world_size} ranks x "
                f"{config.gradient_accumulation_steps} parts"
            )
        set_deterministic_precision()
        self.config, self.rank, self.world_size = config, rank, world_size
        self.device = torch.device(device)
        check_precision(config.precision, self.device)
        self.objective = objective.to(self.device).train()
        if config.gradient_checkpointing:
            _checkpoint_gradients(self.objective)
        #: Why nothing is compiled although it should be.
        self.problem = compile_blocks(self.objective.networks(), config.compile, self.device)
        if self.problem is not None and rank == 0:
            sys.stderr.write(f"{self.problem}\n")
        self.phases = [list(parameters) for parameters in objective.phases()]
        self.distributed = world_size > 1 and dist.is_initialized()
        #: Whether the ranks share optimizer state and averages; all of them then save and take averages together.
        self.sharded = config.sharding == "zero1" and self.distributed
        self.optimizers = [make_optimizer(parameters, config, sharded=self.sharded) for parameters in self.phases]
        self.parameters = {n: p for n, p in objective.named_parameters() if p.requires_grad}
        self.averages = Averages(self.parameters, config.ema, rank, world_size if self.sharded else 1)
        self.step, self.elapsed = 0, 0.0
        self.wrapped: Any = objective
        if self.distributed:
            several = len(self.phases) > 1
            with warnings.catch_warnings():
                # Newer versions call the argument `forward_sync_buffers`; older ones know only this name.
                warnings.simplefilter("ignore", FutureWarning)
                self.wrapped = DistributedDataParallel(
                    objective, broadcast_buffers=False, find_unused_parameters=several
                )

    @property
    def progress(self) -> float:
        """The part of the run that is done, 0..1; the same on every rank."""
        steps = self.step / self.config.steps if self.config.steps else 0.0
        seconds = self.elapsed / self.config.max_seconds if self.config.max_seconds else 0.0
        if self.config.max_seconds and self.distributed:
            shared = torch.tensor([seconds], device=self.device, dtype=torch.float64)
            dist.broadcast(shared, src=0)
            seconds = float(shared)
        return min(max(steps, seconds), 1.0)

    def lr(self, progress: float) -> float:
        """The learning rate of the next step."""
        warm = min(1.0, (self.step + 1) / self.config.warmup) if self.config.warmup else 1.0
        return self.config.lr * warm * (0.5 * (1 + cos(pi * progress)) if self.config.schedule == "cosine" else 1.0)

    def batch(self, arrays: TrainingData, step: int) -> Batch:
        """This rank's slice of the global batch of `step`, as CPU tensors."""
        parts = self.config.gradient_accumulation_steps
        size = self.config.batch // (self.world_size * parts)
        # The parts of all ranks are those of one rank: statistics of a part do not depend on the number of ranks.
        starts = (step * self.config.batch + (part * self.world_size + self.rank) * size for part in range(parts))
        positions = [position for start in starts for position in range(start, start + size)]
        drawn = draw(self.config.seed, positions, self.objective.latent_shape, self.objective.timesteps)
        mirror = drawn.pop("mirror") & self.config.horizontal_flip
        values = {**drawn, **arrays.batch(order(self.config.seed, len(arrays), positions), mirror)}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items()}
        # From pinned memory the copy to the device runs beside its work.
        return {name: t.pin_memory() for name, t in tensors.items()} if self.device.type == "cuda" else tensors

    def update(self, batch: Batch, lr: float) -> Batch:
        """One optimiser step on this rank's slice; the mean losses, still on the device."""
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        parts = [
            dict(zip(moved, values, strict=True))
            for values in zip(
                *(tensor.chunk(self.config.gradient_accumulation_steps) for tensor in moved.values()), strict=True
            )
        ]
        means: Batch = {}
        self.objective.step = self.step
        self.objective.ranks = self.world_size if self.distributed else 1
        self.objective.cuts = self.objective.ranks * len(parts)
        for phase, optimizer in enumerate(self.optimizers):
            if not self.objective.active(phase):
                continue
            optimizer.zero_grad(set_to_none=True)
            totals = self._totals(parts, phase)
            for index, part in enumerate(parts):
                part = {**part, **totals}
                for name, value in self._backward(part, phase, last=index == len(parts) - 1).items():
                    if phase == 0 or name != "loss":  # the loss of a step is that of the first phase
                        means[name] = means.get(name, torch.zeros_like(value)) + value / len(parts)
            if self.config.max_grad_norm:
                norm = torch.nn.utils.clip_grad_norm_(self.phases[phase], self.config.max_grad_norm)
                means["gradient" if phase == 0 else f"gradient_{phase}"] = norm.detach()
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        self.step += 1
        self.averages.update(self.step)
        return means

    def _totals(self, parts: list[Batch], phase: int) -> Batch:
        """`Objective.totals` over all parts of all ranks, by the names that a part has them under."""
        if self.objective.cuts == 1:
            return {}
        half = self.config.precision == "bfloat16"
        with arithmetic(self.config.precision), torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            own = [self.objective.totals(part, phase) for part in parts]
        totals = {f"{TOTAL}{name}": torch.stack([part[name] for part in own]).sum(dim=0) for name in own[0]}
        if self.distributed:
            for total in totals.values():
                dist.all_reduce(total)
        return totals

    def _backward(self, part: Batch, phase: int, *, last: bool) -> Batch:
        half = self.config.precision == "bfloat16"
        together = nullcontext() if last or self.wrapped is self.objective else self.wrapped.no_sync()
        with arithmetic(self.config.precision), together:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                losses: Batch = self.wrapped(part, phase)
            (losses["loss"] / self.config.gradient_accumulation_steps).backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in losses.items()}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the objective's module has the averaged weights, for sampling, evaluation and saving."""
        if not self.config.ema:
            yield
            return
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._set(self.averages.gather())
        try:
            yield
        finally:
            self._set(own.items())

    def _set(self, values: Iterable[tuple[str, Tensor]]) -> None:
        for name, value in values:
            self.parameters[name].data.copy_(value)

    # --- state ---

    def save(self, states: States, data: str, window: Window) -> None:
        """Begin to write the full state on rank 0; see `States.save`. Where sharded, all ranks call it."""
        tensors = {f"model.{name}": p.detach() for name, p in self.parameters.items()}
        # Sharded ones are gathered in the memory of the host, not in that of the device.
        tensors |= {f"ema.{n}": v.cpu() if self.sharded else v for n, v in self.averages.gather() if self.rank == 0}
        tensors |= {f"window.{name}": value for name, value in window.sums.items()}
        for phase, optimizer in enumerate(self.optimizers):
            for index, values in gather_state(optimizer, self.rank).items():
                tensors |= {f"optimizer.{phase}.{index}.{name}": torch.as_tensor(v) for name, v in values.items()}
        if self.rank != 0:
            return
        record = {"step": self.step, "elapsed": self.elapsed, "data": data, "spec": self._fixed()}
        record["window"] = window.document()
        states.save(_name(self.step), {name: t.cpu().contiguous() for name, t in tensors.items()}, record)

    def check_state(self, folder: Path, data: str | None = None) -> dict[str, Any]:
        """The record of a saved state; `ConfigError` where it was made with other settings, or other `data`."""
        document: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if document["spec"] != self._fixed() or data not in (None, document["data"]):
            raise ConfigError(f"{folder}: training began with other settings or data; use another folder")
        return document

    def restore(self, folder: Path, data: str, window: Window) -> None:
        """Resume from a saved state, in the middle of its `window`.

        `ConfigError` where it was made with other settings or data.
        """
        document = self.check_state(folder, data)
        # Copies: the tensors of a mapped file lie at any alignment, which the last bits may depend on.
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / TENSORS).items()}
        try:
            self._set((name, tensors[f"model.{name}"]) for name in self.parameters)
            self.averages.load({name: tensors[f"ema.{name}"] for name in self.averages.values})
        except (KeyError, RuntimeError) as error:
            raise ConfigError(f"{folder}: training state is of another model ({error})") from error
        for phase, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith(f"optimizer.{phase}."):
                    _, _, index, key = name.split(".", 3)
                    state.setdefault(int(index), {})[key] = tensor
            load_state(optimizer, state)
        self.step, self.elapsed = int(document["step"]), float(document["elapsed"])
        window.restore(document["window"], tensors)

    def _fixed(self) -> Any:
        return json.loads(canonical(self.config.model_dump(mode="json", exclude=set(FREE))))


def _checkpoint_gradients(objective: Objective) -> None:
    """Enable gradient checkpointing in every diffusers model that trains; `ConfigError` where it is not supported."""
    able: list[Any] = [m for m in objective.module.modules() if hasattr(m, "enable_gradient_checkpointing")]
    trained = [m for m in able if any(p.requires_grad for p in m.parameters())]
    try:
        for network in trained:
            network.enable_gradient_checkpointing()
    except ValueError as error:
        raise ConfigError(f"gradient_checkpointing: {error}") from error
    if not trained:
        raise ConfigError(f"gradient_checkpointing: {type(objective.module).__name__} has none")


def _name(step: int) -> str:
    return f"step-{step:09d}"


# --- the loop -----------------------------------------------------------------------------------------------


def train(trainer: Trainer, arrays: TrainingData, folder: "str | Path | States | None" = None) -> Iterator[TrainStep]:
    """Train to the end of the config, a `TrainStep` every `log_every` steps and at the end.

    With a `folder`, resumes from its newest undamaged state and writes a state every `save_every` steps and at the
    end (rank 0). A state is written when the record of its step was taken, so that what a caller makes of a record is
    there before the state that skips the step; it is complete a while later, and all are when this ends. Raises
    `DivergedError` where the loss is no longer finite (nothing is saved then), and where a state cannot be written
    what `States.wait` does (the one before is kept).
    """
    states = folder if folder is None or isinstance(folder, States) else LocalStates(Path(folder), trainer.config.keep)
    data = arrays.digest + trainer.objective.frozen
    window = Window(trainer, arrays, lambda: None if states is None else states.last())
    with ExitStack() as stack:
        if states is not None:
            stack.callback(states.close)
            _resume(trainer, states, data, window)
        ahead = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="batches"))
        pending = ahead.submit(trainer.batch, arrays, trainer.step)
        progress = trainer.progress
        while progress < 1:
            began = time.perf_counter()
            batch = pending.result()
            waited = time.perf_counter() - began
            pending = ahead.submit(trainer.batch, arrays, trainer.step + 1)
            lr = trainer.lr(progress)
            window.add(trainer.update(batch, lr), waited)
            trainer.elapsed += time.perf_counter() - began
            progress = trainer.progress
            done = progress >= 1
            if done or trainer.step % trainer.config.log_every == 0:
                yield window.close(lr)
            if states is not None and (done or trainer.step % trainer.config.save_every == 0):
                window.gather()
                window.check()
                if trainer.rank == 0 or trainer.sharded:
                    trainer.save(states, data, window)
        if states is not None:
            states.wait()


def _resume(trainer: Trainer, states: States, data: str, window: Window) -> None:
    """Go on from the newest undamaged state, which rank 0 chooses, and there remove what a killed process left."""
    folder = states.newest() if trainer.rank == 0 or not trainer.distributed else None
    step = -1 if folder is None else int(json.loads((folder / RECORD).read_text(encoding="utf-8"))["step"])
    if trainer.distributed:
        chosen = torch.tensor([step], device=trainer.device)
        dist.broadcast(chosen, src=0)
        step = int(chosen)
    if step >= 0:
        folder = folder or states.open(_name(step), check=False)
        trainer.restore(folder, data, window)
        states.release(folder)
    if trainer.rank == 0:
        states.tidy(_name(step) if step >= 0 else None)
