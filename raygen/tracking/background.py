"""Several trackers in a thread: a server that is slow or away does not hold or end what it watches."""

import io
import math
import queue
import threading
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


#: Records that wait at most; further ones are dropped, and counted as a problem.
WAITING: Final = 10_000
#: Seconds that `close` waits for records that are not sent.
LAST_S: Final = 120.0
ACROSS: Final = 8


class Trackers:
    """The trackers `names` of a run. No method raises or waits, except that `close` waits `LAST_S`.

    A tracker that raises gets no more records. `problems` has a sentence for each.
    """

    def __init__(self, names: Sequence[str], run: TrackedRun) -> None:
        self.problems: list[str] = []
        self._queue: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        if names:
            self._thread = threading.Thread(target=self._serve, args=(names, run), daemon=True)
            self._thread.start()

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Record the finite ones of `values` by name."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self._put(lambda tracker: tracker.numbers(finite, step))

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Record a picture, an encoded PNG."""
        self._put(lambda tracker: tracker.picture(name, png, step))

    def close(self) -> Sequence[str]:
        """Tell the trackers that the run has ended well, and wait; the problems there were."""
        if self._thread is not None:
            self._put(lambda tracker: tracker.close())
            with suppress(queue.Full):
                self._queue.put(None, timeout=LAST_S)
            self._thread.join(LAST_S)
            if self._thread.is_alive():
                self._problem(f"not all was recorded within {LAST_S:.0f} s")
            self._thread = None
        return self.problems

    def _put(self, record: Callable[[Tracker], None]) -> None:
        if self._thread is None:
            return
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._problem("records were dropped: they are not taken as fast as they come")

    def _problem(self, text: str) -> None:
        text = redact(" ".join(text.split()))[:300]
        if text not in self.problems:
            self.problems.append(text)
            warnings.warn(f"log: {text}; what the run itself writes is complete", RuntimeWarning, stacklevel=2)

    def _serve(self, names: Sequence[str], run: TrackedRun) -> None:
        """The thread: start the trackers, then pass records on."""
        trackers: dict[str, Tracker] = {}
        for name in names:
            self._try(name, lambda name=name: trackers.update({name: start_tracker(name, run)}))  # type: ignore[misc]
        while (record := self._queue.get()) is not None:
            for name, tracker in list(trackers.items()):
                if not self._try(name, lambda tracker=tracker: record(tracker)):  # type: ignore[misc]
                    del trackers[name]

    def _try(self, name: str, act: Callable[[], object]) -> bool:
        try:
            act()
        except BaseException as error:  # packages of others raise what they like, SystemExit among it
            self._problem(f"{name}: {type(error).__name__}: {error}")
            return False
        return True


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
