"""Trackers in threads: a server that is slow or away does not hold or end what it watches, nor another tracker."""

import io
import math
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Final

from PIL import Image

from raygen.core.location import redact
from raygen.core.types import UInt8Array
from raygen.tracking.base import TrackedRun, Tracker

__all__ = ["Trackers", "contact_sheet"]


#: Records that wait for a tracker at most; further ones are dropped, and counted as a problem.
WAITING: Final = 10_000
#: Seconds that `close` waits for records that are not sent.
LAST_S: Final = 120.0
ACROSS: Final = 8


class Trackers:
    """The trackers `names` of a run, each in a thread of its own.

    No method raises or waits, except that `close` waits `LAST_S` in all. A tracker that raises gets no more records.
    `problems` has a sentence for each.
    """

    def __init__(self, names: Sequence[str], run: TrackedRun) -> None:
        self.problems: list[str] = []
        self._threads = [_Thread(name, run, self._problem) for name in names]

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Record the finite ones of `values` by name."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        for thread in self._threads:
            thread.put(lambda tracker: tracker.numbers(finite, step))

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Record a picture, an encoded PNG."""
        for thread in self._threads:
            thread.put(lambda tracker: tracker.picture(name, png, step))

    def close(self) -> Sequence[str]:
        """Tell the trackers that the run has ended well, and wait; the problems there were."""
        last = time.monotonic() + LAST_S
        for thread in self._threads:
            thread.end()
        for thread in self._threads:
            thread.wait(last - time.monotonic())
        self._threads = []
        return self.problems

    def _problem(self, text: str) -> None:
        text = redact(" ".join(text.split()))[:300]
        if text not in self.problems:
            self.problems.append(text)
            with suppress(RuntimeWarning):  # where warnings are errors
                warnings.warn(f"log: {text}; what the run itself writes is complete", RuntimeWarning, stacklevel=2)


class _Thread:
    """One tracker, whose package and server may hold this thread and nothing else."""

    def __init__(self, name: str, run: TrackedRun, problem: Callable[[str], None]) -> None:
        self._name, self._problem = name, problem
        self._queue: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._serve, args=(run,), daemon=True)
        self._thread.start()

    def put(self, record: Callable[[Tracker], None]) -> None:
        if self._queue.qsize() >= WAITING:
            self._problem(f"{self._name}: records were dropped: they are not taken as fast as they come")
        elif not self._failed:
            self._queue.put(record)

    def end(self) -> None:
        self._queue.put(lambda tracker: tracker.close())
        self._queue.put(None)

    def wait(self, seconds: float) -> None:
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._problem(f"{self._name}: not all was recorded within {LAST_S:.0f} s")

    def _serve(self, run: TrackedRun) -> None:
        try:
            tracker = start_tracker(self._name, run)
            while (record := self._queue.get()) is not None:
                record(tracker)
        except BaseException as error:  # packages of others raise what they like, SystemExit among it
            self._failed = True
            self._problem(f"{self._name}: {type(error).__name__}: {error}")


def start_tracker(name: str, run: TrackedRun) -> Tracker:
    """The tracker of that name. Raises what its package raises."""
    tracker: Tracker = import_module(f"raygen.tracking.{name}").start(run)
    return tracker


def contact_sheet(images: Iterable[UInt8Array], *, side: int = 128, across: int = ACROSS) -> bytes | None:
    """Pictures uint8 [H, W, 3] as one PNG, `across` in a line, each `side` pixels wide; None without pictures."""
    thumbs = [Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS) for pixels in images]
    if not thumbs:
        return None
    sheet = Image.new("RGB", (min(across, len(thumbs)) * side, -(-len(thumbs) // across) * side), "white")
    for i, thumb in enumerate(thumbs):
        sheet.paste(thumb, (i % across * side, i // across * side))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
