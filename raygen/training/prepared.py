"""Training data in files on a local disk: made once, and opened by every rank and every restart.

FOLDER/KEY/          what `load_training_data` wrote; KEY stands for the inputs and all settings that it depends on
FOLDER/lock          held while one process makes it; the others of the machine wait
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from raygen.core.errors import InputError, IntegrityError
from raygen.core.hashing import canonical, digest
from raygen.store import disk
from raygen.training.cleanup import explained
from raygen.training.data import RECORD, TrainingData, open_training_data
from raygen.training.loading import UNWRITTEN

__all__ = ["prepare"]


def prepare(folder: Path, key: Mapping[str, Any], load: Callable[[Path], TrainingData]) -> TrainingData:
    """The training data of `key` in `folder`; `load` makes it in an empty folder where it is not there yet.

    `StorageError` where the disk is full. Data that does not open is made again.
    """
    target = folder / digest(canonical(key))[:16]
    if (found := _opened(target)) is not None:
        return found
    with ExitStack() as stack:
        with explained(folder, *UNWRITTEN):
            stack.enter_context(disk.exclusively(folder, wait=True))
            for path in folder.iterdir():
                if _is_left_over(path):
                    shutil.rmtree(path, ignore_errors=True)
        if (found := _opened(target)) is not None:  # another process made it meanwhile
            return found
        unfinished = folder / disk.own_name(disk.TEMPORARY)
        try:
            with explained(folder, *UNWRITTEN):
                unfinished.mkdir()
            load(unfinished)
            with explained(folder, *UNWRITTEN):
                _publish(unfinished, target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return open_training_data(target)


def _is_left_over(path: Path) -> bool:
    gone = disk.is_left_over(path.name)
    if gone is None:  # of another machine
        gone = time.time() - path.stat().st_mtime > disk.FOREIGN_AGE_S
    return gone


def _publish(unfinished: Path, target: Path) -> None:
    """Give the data its name. Where folders cannot be locked, another process may have been first."""
    try:
        os.rename(unfinished, target)
    except OSError:
        if _opened(target) is not None:
            return
        if not target.exists():
            raise
        shutil.rmtree(target)  # what is there does not open
        os.rename(unfinished, target)


def _opened(target: Path) -> TrainingData | None:
    if not (target / RECORD).is_file():
        return None
    try:
        return open_training_data(target)
    except (IntegrityError, InputError, OSError, KeyError):
        return None
