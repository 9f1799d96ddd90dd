"""Records of a training: history.jsonl, TensorBoard's event files and sheets; and how another process follows them."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raygen.core.units import duration
from raygen.execution.executor import Progress
from raygen.store import disk
from raygen.tracking.background import Trackers
from raygen.tracking.tensorboard import TensorBoard
from raygen.training.cleanup import explained
from raygen.training.config.loop import TrainConfig
from raygen.training.history import read_history
from raygen.training.outputs import HISTORY
from raygen.training.trainer import TrainStep

__all__ = ["TrainingLogger", "followed"]


class TrainingLogger:
    """The records of rank 0 in `folder`. A resumed run drops records of steps that it does again.

    History and sheets are on the disk when a call returns: a training state that is written later skips their steps.
    TensorBoard's files (with `tensorboard`) and what `trackers` get are only copies. Raises `InfrastructureError` where
    something cannot be written.
    """

    def __init__(self, folder: Path, trackers: Trackers | None = None, *, tensorboard: bool = True) -> None:
        self.folder = folder
        self.trackers = trackers
        self._has_events = tensorboard
        self._begun = False
        self._events: TensorBoard | None = None

    def write(self, step: TrainStep) -> None:
        """One line of history, and one point a curve."""
        with explained(self.folder / HISTORY, "the record of a step"):
            if not self._begun:
                self._begin(step.step)
            with (self.folder / HISTORY).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(step)) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._curves(step)

    def _begin(self, step: int) -> None:
        """Drop the records from `step` on, and a line that a kill cut off."""
        path = self.folder / HISTORY
        earlier = read_history(path.read_text(encoding="utf-8")) if path.exists() else []
        lines = [json.dumps(record) + "\n" for record in earlier if record["step"] < step]
        disk.write(path, "".join(lines).encode(), once=False)
        if self._has_events:
            self._events = TensorBoard(self.folder / "tensorboard", step)
        self._begun = True

    def _curves(self, step: TrainStep) -> None:
        rates = {"lr": step.lr, "images_per_s": step.images_per_s, "data_wait_s": step.data_wait}
        values = {**{f"loss/{n}": v for n, v in step.losses.items()}, **rates}
        if self._events is not None:
            self._events.numbers(values, step.step)
        if self.trackers is not None:
            self.trackers.numbers(values, step.step)

    def last(self) -> dict[str, Any]:
        """The newest record; empty where there is none."""
        path = self.folder / HISTORY
        records = read_history(path.read_text(encoding="utf-8")) if path.exists() else []
        return records[-1] if records else {}

    def picture(self, step: int, data: bytes | None) -> None:
        """A sheet as a file of its own."""
        if data is not None:
            path = self.folder / "sheets" / f"step-{step:09d}.png"
            with explained(path, "a sheet of pictures"):
                disk.write(path, data, once=False)
                if self._events is not None:
                    self._events.picture("sheet", data, step)
            if self.trackers is not None:
                self.trackers.picture("sheet", data, step)

    def close(self) -> None:
        """Close the event file."""
        if self._events is not None:
            with explained(self.folder / "tensorboard", "the record of a step"):
                self._events.close()


@contextmanager
def followed(
    tail: Callable[[], bytes], report: Callable[[Progress], None], config: TrainConfig
) -> Iterator[Callable[[str], None]]:
    """Inside, a thread reads the end of the history that rank 0 writes and reports progress in this process.

    `tail`: that end as it is now. Yields a callable that is told what the training waits for.
    """
    stop = threading.Event()
    progress = Progress(0, config.steps or int(config.max_seconds or 1))
    thread = threading.Thread(target=_follow, args=(tail, report, config, stop, progress), daemon=True)

    def waits(text: str) -> None:
        if text or progress.waiting:
            progress.waiting = text
            report(progress)

    thread.start()
    try:
        yield waits
    finally:
        stop.set()
        thread.join()


def _follow(
    tail: Callable[[], bytes],
    report: Callable[[Progress], None],
    config: TrainConfig,
    stop: threading.Event,
    progress: Progress,
) -> None:
    before, total = _newest(tail()), progress.rows
    while True:
        ended = stop.wait(1.0)
        record = _newest(tail())
        if record is not None and record != before:
            share = max(
                record["step"] / config.steps if config.steps else 0.0,
                record["elapsed"] / config.max_seconds if config.max_seconds else 0.0,
            )
            left = record["elapsed"] * (1 / share - 1) if share else 0.0
            progress.note = (
                f"step {record['step']:,}, loss {record['loss']:.4f}, {record['images_per_s']:.0f} pictures/s, "
                f"{duration(left)} left"
            )
            progress.done_rows = int(total * min(1.0, share))
            report(progress)
        if ended:
            return


def _newest(tail: bytes) -> dict[str, Any] | None:
    """The last whole line."""
    lines = [line for line in tail.splitlines(keepends=True) if line.endswith(b"}\n")]
    if lines:
        with suppress(ValueError):
            record: dict[str, Any] = json.loads(lines[-1])
            return record
    return None
