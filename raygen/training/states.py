"""Training states: written beside the loop, and the newest complete one found without reading their tensors.

    FOLDER/step-000001000/state.safetensors          the tensors; on object storage under a name with their sha256
    FOLDER/step-000001000/state.json                 their sha256 and size, sealed: written last, it makes the state

The loop waits while the tensors are written to a local file, without a second copy in memory. A thread then hashes and
publishes it. A state is removed only after a newer one is complete.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from raygen.core.errors import InfrastructureError, IntegrityError, RaygenError, from_record, to_record
from raygen.store import disk
from raygen.store.filesystem import FileStore
from raygen.store.sealed import file_sha256, open_record, to_bytes
from raygen.store.tensor_file import save_tensors
from raygen.training.cleanup import remove_older, remove_unfinished, unwritten

__all__ = ["RECORD", "TENSORS", "LocalStates", "RemoteStates", "States", "latest_state"]


TENSORS: Final = "state.safetensors"
RECORD: Final = "state.json"


class States:
    """The states of one training. Rank 0 saves and tidies; every rank opens the one that it goes on from."""

    def __init__(self, scratch: Path, keep: int) -> None:
        """`scratch`: local folder for unfinished files; `keep`: number of complete states that stay."""
        self.scratch, self.keep = scratch, keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="states")
        self._pending: Future[None] | None = None

    def names(self) -> Iterator[str]:
        """Names of complete states by their records, the newest first."""
        raise NotImplementedError

    def place(self, name: str) -> str:
        """Where a state is, for messages."""
        raise NotImplementedError

    def open(self, name: str, *, check: bool = True) -> Path:
        """A local folder with the tensors and the record; `IntegrityError` where they are not as they were written.

        `check=False`: the tensors of a local folder are not compared, because another rank did.
        """
        raise NotImplementedError

    def release(self, folder: Path) -> None:
        """Say that a folder of `open` is no longer read."""

    def tidy(self, newest: str | None) -> None:
        """Remove what killed processes left, and the states that `newest` makes superfluous."""
        raise NotImplementedError

    def publish(self, temporary: Path, name: str, record: Mapping[str, Any]) -> None:
        """Make a state of the tensors in the folder `temporary`; runs in the thread."""
        raise NotImplementedError

    def newest(self) -> Path | None:
        """`open` of the newest state that is complete and undamaged."""
        for name in self.names():
            with suppress(IntegrityError):
                return self.open(name)
        return None

    def last(self) -> str | None:
        """Where the newest complete state is, after that which is being written."""
        self.wait()
        return next((self.place(name) for name in self.names()), None)

    def save(self, name: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write a state; returns when `tensors` are in a local file, and may change.

        Waits for the state before, and raises what `wait` does.
        """
        self.wait()
        temporary = self.scratch / disk.own_name(disk.TEMPORARY)
        try:
            temporary.mkdir(parents=True)
            save_tensors(tensors, temporary / TENSORS, {})
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise self._unwritten(error, name) from error
        self._pending = self._pool.submit(self._finish, temporary, name, dict(record))

    def beside(self, work: Callable[[], None]) -> None:
        """Do `work` in the thread unless it is busy; an error of it is raised by `wait`."""
        if self._pending is None or self._pending.done():
            self.wait()
            self._pending = self._pool.submit(work)

    def wait(self) -> None:
        """Wait until the state is published.

        `StorageError` where the disk or the account is full, another `RaygenError` where it failed otherwise.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the thread, whatever comes of it, and end it."""
        self._pool.shutdown()

    def _finish(self, temporary: Path, name: str, record: dict[str, Any]) -> None:
        try:
            path = temporary / TENSORS
            record |= {"sha256": file_sha256(path), "bytes": path.stat().st_size}
            self.publish(temporary, name, record)
        except OSError as error:
            raise self._unwritten(error, name) from error
        except RaygenError as error:
            told = to_record(error)
            text = f"{self.place(name)}: the training state cannot be written: {told['message']}; {self._way_back()}"
            raise from_record({**told, "message": text}) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _unwritten(self, error: OSError, name: str) -> InfrastructureError:
        return unwritten(error, self.place(name), "the training state", self._way_back())

    def _way_back(self) -> str:
        with suppress(Exception):  # the storage that has just failed
            if (earlier := next(self.names(), None)) is not None:
                return f"{earlier} is whole, and the same command goes on from it"
        return "there is no earlier one"


class LocalStates(States):
    """States in a folder of a disk. A state gets its name when it is complete and on the disk."""

    def __init__(self, root: Path, keep: int) -> None:
        super().__init__(root, keep)
        self.root = root

    def names(self) -> Iterator[str]:
        """See `States.names`."""
        for folder in sorted(self.root.glob("step-*"), reverse=True):
            with suppress(OSError, IntegrityError):
                record = open_record((folder / RECORD).read_bytes(), RECORD)
                size = (folder / TENSORS).stat().st_size
                if record.get("bytes", size) == size:
                    yield folder.name

    def place(self, name: str) -> str:
        """See `States.place`."""
        return str(self.root / name)

    def open(self, name: str, *, check: bool = True) -> Path:
        """See `States.open`."""
        folder = self.root / name
        try:
            if not check or file_sha256(folder / TENSORS) == _record(folder).get("sha256"):
                return folder
        except OSError as error:
            raise IntegrityError(f"{folder}: cannot be read ({error.strerror or error})") from error
        raise IntegrityError(f"{folder / TENSORS}: is not as it was written")

    def tidy(self, newest: str | None) -> None:
        """See `States.tidy`."""
        remove_unfinished(self.root)
        if newest is not None:
            remove_older(self.root / newest, self.keep)

    def publish(self, temporary: Path, name: str, record: Mapping[str, Any]) -> None:
        """See `States.publish`."""
        with (temporary / TENSORS).open("rb") as file:
            os.fsync(file.fileno())
        disk.write(temporary / RECORD, to_bytes(record), once=False)
        target = self.root / name
        shutil.rmtree(target, ignore_errors=True)
        os.rename(temporary, target)
        disk.sync_folder(self.root)
        remove_older(target, self.keep)


class RemoteStates(States):
    """States on object storage. Their record names the file of tensors, which may be there before it is complete."""

    def __init__(self, store: FileStore, scratch: Path, keep: int, before: Callable[[], None]) -> None:
        """`before`: called between the tensors and the record of a state, to publish the records of its steps."""
        super().__init__(scratch, keep)
        self.store, self.before = store, before

    def names(self) -> Iterator[str]:
        """See `States.names`."""
        sizes = dict(self.store.files(""))
        for name in sorted({path.partition("/")[0] for path in sizes if path.startswith("step-")}, reverse=True):
            with suppress(FileNotFoundError, IntegrityError, KeyError):
                record = self._record(name)
                if sizes.get(f"{name}/{record['file']}") == record["bytes"]:
                    yield name

    def _record(self, name: str) -> dict[str, Any]:
        return open_record(self.store.get(f"{name}/{RECORD}"), f"{self.place(name)}/{RECORD}")

    def place(self, name: str) -> str:
        """See `States.place`."""
        return f"{self.store.url}/{name}"

    def open(self, name: str, *, check: bool = True) -> Path:
        """See `States.open`; the files are copied to a folder of this process, and always compared."""
        for path in self.scratch.glob(f"{disk.TEMPORARY}*"):
            if disk.is_left_over(path.name):
                shutil.rmtree(path, ignore_errors=True)
        folder = self.scratch / disk.own_name(disk.TEMPORARY)
        try:
            record = self._record(name)
            self.store.download(f"{name}/{record['file']}", folder / TENSORS)
            disk.write(folder / RECORD, to_bytes(record), once=False)
            if file_sha256(folder / TENSORS) == record["sha256"]:
                return folder
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, FileNotFoundError):
                raise IntegrityError(f"{self.place(name)}: is not complete") from error
            raise InfrastructureError(f"{self.place(name)}: cannot be read ({error})") from error
        shutil.rmtree(folder, ignore_errors=True)
        raise IntegrityError(f"{self.place(name)}: is not as it was written")

    def release(self, folder: Path) -> None:
        """See `States.release`."""
        shutil.rmtree(folder, ignore_errors=True)

    def tidy(self, newest: str | None) -> None:
        """See `States.tidy`."""
        found = {path.partition("/")[0] for path, _ in self.store.files("") if path.startswith("step-")}
        kept = [name for name in sorted(found) if newest is not None and name <= newest][-self.keep :]
        for name in sorted(found.difference(kept)):
            self.store.remove_folder(name)
        for name in kept:
            self._remove_others(name)

    def _remove_others(self, name: str) -> None:
        """Remove tensors beside those of the record: the same step may have been trained more than once."""
        with suppress(FileNotFoundError, IntegrityError, KeyError):
            file = self._record(name)["file"]
            for path, _ in list(self.store.files(name)):
                if path not in (file, RECORD):
                    self.store.remove(f"{name}/{path}")

    def publish(self, temporary: Path, name: str, record: Mapping[str, Any]) -> None:
        """See `States.publish`."""
        file = f"state-{record['sha256'][:12]}.safetensors"
        self.store.upload(f"{name}/{file}", temporary / TENSORS)
        self.before()
        self.store.put(f"{name}/{RECORD}", to_bytes({**record, "file": file}))
        self.tidy(name)


def _record(folder: Path) -> dict[str, Any]:
    return open_record((folder / RECORD).read_bytes(), str(folder / RECORD))


def latest_state(root: Path) -> Path | None:
    """The newest undamaged training state in a local folder."""
    states = LocalStates(root, 1)
    try:
        return states.newest()
    finally:
        states.close()
