"""Where a training writes: into a local folder, or into a local one whose files are published on object storage.

    OUT/training/     records and states; see `raygen.training.states`
    OUT/raygen.json   the checkpoint, its mark last

For a URL the local folder is CACHE/trainings/KEY, with CACHE as in `raygen.store.fetched`; it holds nothing that a
restart on another machine lacks, and is removed when the training has ended.
"""

import json
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from raygen.core.errors import InfrastructureError, RaygenError
from raygen.core.hashing import digest
from raygen.store import disk
from raygen.store.fetched import cache_folder
from raygen.store.filesystem import FileStore
from raygen.store.sealed import FILES, open_record, seal_folder, store_sha256, to_text
from raygen.training.cleanup import explained
from raygen.training.states import RECORD, LocalStates, RemoteStates, States

__all__ = ["HISTORY", "MANIFEST", "MARK", "RESULT", "Outputs"]


HISTORY: Final = "history.jsonl"
RESULT: Final = "result.json"
#: The list of check sums of a finished training, in its folder.
MANIFEST: Final = "MANIFEST.json"
#: The file that makes a folder the checkpoint of a model.
MARK: Final = "raygen.json"
#: Says which process writes a training on object storage, which has no locks.
OWNER: Final = ".owner.json"
#: Seconds between two copies of the history to object storage, and between two looks at it.
FOLLOW_S: Final = 30.0
#: Bytes at the end of a history that hold its last line.
TAIL: Final = 1 << 16


class Outputs:
    """The files of one training, as seen by the driver and by every rank."""

    def __init__(self, out: str) -> None:
        self.out = out
        self.store, self.records = FileStore(out), FileStore(f"{out.rstrip('/')}/training")
        self.local = self.store.local
        key = digest(self.store.url.encode())[:16]
        #: The folder that this process writes files to.
        self.work = Path(out) if self.local else cache_folder() / "trainings" / key
        self.folder = self.work / "training"
        self._owner, self._published = "", dict[str, tuple[int, int]]()
        self._looked, self._tail = 0.0, b""

    # --- rank 0 ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take the training over, and fetch the history of the process before."""
        self.records.remove(MANIFEST)
        if self.local:
            return
        _empty(self.folder)
        self._owner = disk.own_name("")
        self.records.put(OWNER, json.dumps({"owner": self._owner}).encode())
        with suppress(FileNotFoundError):
            self.records.download(HISTORY, self.folder / HISTORY)

    def states(self, keep: int) -> States:
        """The states of the training."""
        if self.local:
            return LocalStates(self.folder, keep)
        return RemoteStates(self.records, self.folder, keep, self.publish_records)

    def publish_records(self) -> None:
        """Copy the records that have changed; `InfrastructureError` where another process has taken over."""
        if self.local:
            return
        self._check_owner()
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            name = path.relative_to(self.folder).as_posix()
            state = (path.stat().st_mtime_ns, path.stat().st_size)
            if not any(part.startswith(".") for part in name.split("/")) and self._published.get(name) != state:
                self.records.put(name, path.read_bytes())
                self._published[name] = state
        self._looked = time.monotonic()

    def publish_soon(self, states: States) -> None:
        """Copy the records beside the loop, where that was not done for a while."""
        if not self.local and time.monotonic() - self._looked > FOLLOW_S:
            states.beside(self.publish_records)

    def _check_owner(self) -> None:
        owner = ""
        with suppress(FileNotFoundError, ValueError, KeyError):
            owner = json.loads(self.records.get(OWNER))["owner"]
        if self._owner and owner != self._owner:
            raise InfrastructureError(
                f"{self.out}: another process trains into this folder, and goes on with it; this one ends"
            )

    def publish_checkpoint(self, built: Path, then: str) -> None:
        """Move the files of the folder `built` to `out`. Errors say what to do `then`.

        Without its mark a folder is no checkpoint, so one whose parts are of two trainings is never read.
        """
        files = sorted((path for path in built.rglob("*") if path.is_file()), key=lambda path: path == built / MARK)
        if not self.local:
            self._check_owner()
            self.store.remove(MARK)
            for path in files:
                self.store.upload(path.relative_to(built).as_posix(), path)
            return
        out = self.work
        with explained(out, "the checkpoint", then):
            disk.sync_file_system(built)
            (out / MARK).unlink(missing_ok=True)
            for path in sorted(built.iterdir(), key=lambda path: (path.name == MARK, path.name)):
                target = out / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                path.replace(target)
            disk.sync_folder(out)

    def write_result(self, facts: Mapping[str, Any]) -> None:
        """Write the last file of rank 0: it says that the training has ended."""
        self.publish_records()
        with explained(self.folder / RESULT, "the result"):
            self.records.put(RESULT, json.dumps(facts).encode())

    # --- the driver -----------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Remove what a killed driver left on this machine."""
        shutil.rmtree(self.work / ".ray-train", ignore_errors=True)
        if not self.local:
            self.store.remove_folder(".ray-train")
            self.store.remove_leftovers()
            _empty(self.folder)

    def result(self) -> dict[str, Any] | None:
        """What the training wrote at its end; None before."""
        try:
            facts: dict[str, Any] = json.loads(self.records.get(RESULT))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return facts

    def is_checkpoint(self) -> bool:
        """Whether a whole checkpoint is in `out`."""
        return any(self.store.exists(name) for name in (MARK, "model.safetensors"))

    def seal(self, run_id: str) -> None:
        """Write the list of check sums, if it is not there. Those of states on object storage are in their records."""
        if self.records.exists(MANIFEST):
            return
        if self.local:
            with explained(self.folder / MANIFEST, "the list of check sums"):
                seal_folder(self.folder, MANIFEST, {"run_id": run_id})
            return
        self.records.remove(OWNER)
        names = [name for name, _ in self.records.files("")]
        sums = dict(self._sums(name for name in sorted(names) if name != MANIFEST))
        self.records.put(MANIFEST, to_text({"run_id": run_id, FILES: sums}))

    def _sums(self, names: Iterable[str]) -> Iterable[tuple[str, str]]:
        for name in names:
            folder, _, file = name.rpartition("/")
            if file.startswith("state-"):
                record = open_record(self.records.get(f"{folder}/{RECORD}"), f"{folder}/{RECORD}")
                if record.get("file") == file:
                    yield name, record["sha256"]
                    continue
            yield name, store_sha256(self.records, name)

    def tail(self) -> bytes:
        """The end of the history: of the local file, or now and then of that on object storage."""
        with suppress(FileNotFoundError):
            path = self.folder / HISTORY
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - TAIL))
                return file.read()
        if not self.local and time.monotonic() - self._looked > FOLLOW_S:
            self._looked = time.monotonic()
            with suppress(OSError, RaygenError):
                self._tail = self.records.get(HISTORY)
        return self._tail

    def forget(self) -> None:
        """Remove the local folder of a training on object storage, which has ended."""
        if not self.local:
            shutil.rmtree(self.work, ignore_errors=True)


def _empty(folder: Path) -> None:
    """Remove what is in a folder; itself it stays, because it may be locked."""
    for path in folder.glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
