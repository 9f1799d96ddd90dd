"""The folder of a training: its lock, its error messages, and what a killed process left unfinished."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from raygen.core.errors import InfrastructureError, StorageError
from raygen.store import disk
from raygen.store.filesystem import PERMANENT

__all__ = ["alone", "explained", "remove_older", "remove_unfinished", "unwritten"]


AGAIN: Final = "run the same command again to go on"


@contextmanager
def alone(folder: Path, out: str) -> Iterator[None]:
    """Hold `folder`: two trainings into one `out` would write over each other's records and states.

    `InfrastructureError` where another process holds it.
    """
    with ExitStack() as stack:
        try:
            with explained(folder, "a training"):
                stack.enter_context(disk.exclusively(folder))
        except InfrastructureError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            raise InfrastructureError(
                f"{out}: another process trains into this folder; wait for its end, or choose another `out`"
            ) from error
        yield


@contextmanager
def explained(place: Path, what: str, then: str = AGAIN) -> Iterator[None]:
    """Raise an `OSError` inside as `unwritten`."""
    try:
        yield
    except OSError as error:
        raise unwritten(error, place, what, then) from error


def unwritten(error: OSError, place: Path | str, what: str, then: str) -> InfrastructureError:
    """Says that `what` cannot be written at `place`, and what to do.

    A `StorageError` where another attempt would fail the same way, such as on a full disk.
    """
    kind = StorageError if error.errno in PERMANENT else InfrastructureError
    return kind(f"{place}: {what} cannot be written ({error.strerror or error}); {then}")


def remove_unfinished(folder: Path) -> None:
    """Remove what has a name with a dot in `folder` and in the folders of it: nothing else has one.

    Only the one process that writes there may call this.
    """
    for path in (*folder.glob(".*"), *folder.glob("*/.*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def remove_older(newest: Path, keep: int) -> None:
    """Remove training states but the `keep` newest up to `newest`; those after it are damaged."""
    states = sorted(newest.parent.glob("step-*"))
    kept = [state for state in states if state <= newest][-keep:]
    for state in states:
        if state not in kept:
            shutil.rmtree(state, ignore_errors=True)
