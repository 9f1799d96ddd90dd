"""Seconds a picture: each run of a sweep alone, on a warm model, without scoring and encoding."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import pyarrow as pa
import torch

from raygen.metrics.registry import SECONDS
from raygen.metrics.score_rows import score_table
from raygen.sampling.config import TimingConfig
from raygen.sampling.worker import SampleWorker
from raygen.store.run_store import RunStore

__all__ = ["SharedTiming", "TimingWorker", "seconds_of"]


class TimingWorker:
    """CONDITIONS rows -> one SCORES row: the seconds a picture of each round."""

    def __init__(self, worker: SampleWorker, config: TimingConfig, name: str) -> None:
        """`name`: of the run that is timed."""
        self.worker, self.config, self.name = worker, config, name

    def environment(self) -> dict[str, str]:
        """See `SampleWorker.environment`."""
        return self.worker.environment()

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Time conditions to tensors, sampling and decoding now."""
        rounds = [self.round(rows) for _ in range(1 + self.config.rounds)][1:]
        run_id = self.worker.config.run_id
        scores = score_table([(self.name, SECONDS, rounds)], run_id)
        return lambda: {"scores": scores}

    def round(self, rows: pa.Table) -> float:
        """Seconds a picture, once."""
        # The device always works on a whole batch, so the batch is set to the number of rows.
        worker = self.worker.another(self.worker.config.model_copy(update={"batch": rows.num_rows}))
        began = time.perf_counter()
        worker.start(rows)
        if worker.device.type == "cuda":
            torch.cuda.synchronize(worker.device)
        return (time.perf_counter() - began) / int(rows.num_rows)


class _SampleWorkers(Protocol):
    """The sample workers of several runs, as `raygen.execution.worker.SharedWorker`."""

    def for_run(self, run: int) -> SampleWorker: ...


class SharedTiming:
    """The timing workers of several runs in one actor; `names` are the names of the runs."""

    def __init__(self, build: Callable[[], _SampleWorkers], config: TimingConfig, names: Sequence[str]) -> None:
        self.workers, self.config, self.names = build(), config, tuple(names)

    def for_run(self, run: int) -> TimingWorker:
        """The timing worker of run number `run`."""
        return TimingWorker(self.workers.for_run(run), self.config, self.names[run])


def seconds_of(store: RunStore) -> Sequence[float]:
    """Seconds a picture in each round."""
    seconds: Sequence[float] = next(store.tables("scores", ["vector"]))["vector"][0].as_py()
    return seconds
