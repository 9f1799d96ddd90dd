"""TensorBoard's event files, by tensorboardX."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raygen.tracking.base import TrackedRun, local_folder

__all__ = ["TensorBoard", "start"]


def start(run: TrackedRun) -> "TensorBoard":
    """Events in `tensorboard/` of the run's folder."""
    return TensorBoard(local_folder(run) / "tensorboard", 0)


class TensorBoard:
    """One event file in `folder`. Points from `step` on that earlier files have are dropped by TensorBoard.

    Raises `OSError` where it cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        # Not `SummaryWriter`: its thread dies where the disk is full, and then its queue fills and blocks for ever. Its
        # files are named by the second; two starts within one would write the same.
        self._events = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        session = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(step=step, wall_time=time.time(), session_log=session))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """A point of each curve."""
        from tensorboardX.proto.summary_pb2 import Summary

        # Not `summary.scalar`, which replaces the colons of metrics: `miou:raygen-parser`.
        for name, value in values.items():
            self._write(Summary(value=[Summary.Value(tag=name, simple_value=value)]), step)
        self._events.flush()

    def picture(self, name: str, png: bytes, step: int) -> None:
        """A picture with a slider over steps."""
        from tensorboardX.proto.summary_pb2 import Summary

        width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._write(Summary(value=[Summary.Value(tag=name, image=image)]), step)
        self._events.flush()

    def _write(self, summary: Any, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(step=step, wall_time=time.time(), summary=summary))

    def close(self) -> None:
        """Close the file."""
        self._events.close()
