"""Files by URL on local disks and on every file system of fsspec.

Only operations that behave the same everywhere: put, put once, get, list. There is no way to open a file for writing,
because on object stores an exception in the middle would publish half a file.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from raygen.core.errors import ConfigError, InfrastructureError, IntegrityError, StorageError
from raygen.core.location import check_credentials, redact
from raygen.store import disk, uploads
from raygen.store.disk import FOREIGN_AGE_S, PROBE
from raygen.store.storage_errors import PASSING, PERMANENT, REFUSED, code_of, refusal, retry, twice
from raygen.store.uploads import Upload

__all__ = ["PASSING", "PERMANENT", "FileStore", "file_system", "retry"]


T = TypeVar("T")
#: What file systems call the number, hash or time of a file that changes with it.
CHANGING = ("size", "ETag", "etag", "generation", "md5Hash", "mtime", "LastModified", "last_modified", "updated")
#: The folder of an export that may have very many files.
EXPORTED = "dataset"
#: Files that are created in parallel on remote storage.
WRITERS = 16


def file_system(url: str, **options: Any) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it; the only place where one is opened.

    `ConfigError` where the URL carries credentials, or no file system can be made of it.
    """
    try:
        check_credentials(url)
    except ValueError as error:
        raise ConfigError(f"a URL of storage {error}") from None
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except Exception as error:  # chains open their archives here: every back end has its own exception classes
        reason = f"{type(error).__name__}: {redact(str(error))[:200]}"
        raise ConfigError(f"{url}: cannot be used as storage ({reason})") from error
    return fs, str(path)


class FileStore:
    """A folder by URL. Paths given to its methods are relative to that folder."""

    def __init__(self, url: str | Path) -> None:
        self.url = str(url).rstrip("/") or "/"
        # As a keyword: fsspec's cache of listings copies the setting when the client is made. A cached listing hides
        # what other processes wrote, and then a finished run looks unfinished.
        self._fs, self._root = file_system(self.url, use_listings_cache=False)
        self.local = isinstance(self._fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """Full path of `name` in the file system."""
        return f"{str(self._root).rstrip('/')}/{name}" if name else str(self._root)

    def address(self, name: str) -> str:
        """URL of `name`, for other processes."""
        return self.path(name) if self.local else str(self._fs.unstrip_protocol(self.path(name)))

    def put(self, name: str, data: bytes) -> None:
        """Write or overwrite `name` atomically: readers see all of it or nothing."""
        self._write(name, data, once=False)

    def update(self, name: str, data: bytes) -> None:
        """`put`, unless `name` holds these bytes already: a repeated command leaves its results as they are."""
        with suppress(FileNotFoundError):
            if self.get(name) == data:
                return
        self.put(name, data)

    def put_once(self, name: str, data: bytes) -> bool:
        """Create `name`; False if it exists. Atomic where `creates_once()`."""
        return self._write(name, data, once=True)

    def _write(self, name: str, data: bytes, *, once: bool) -> bool:
        try:
            with self._explained(name):
                if self.local:
                    return twice(lambda: disk.write(Path(self.path(name)), data, once=once))
                if not once:
                    self._call(lambda: self._fs.pipe_file(self.path(name), data, mode="overwrite"), "written")
                elif self.exists(name):
                    return False
                else:
                    self._call(lambda: self._create(name, data), "written")
                return True
        except FileExistsError as error:
            if not once:
                raise ConfigError(f"{self.url}: {name!r} cannot be written: a part of its path is a file") from error
            # The answer to an attempt may have been lost, and then the client, repeating it, met its own file.
            return not self.local and self.get(name) == data

    def _create(self, name: str, data: bytes) -> None:
        """Create `name` on an object store; `FileExistsError` where it is there."""
        try:
            self._fs.pipe_file(self.path(name), data, mode="create")
        except OSError as error:
            if code_of(error) in ("PreconditionFailed", "412"):  # servers that do not say which condition
                raise FileExistsError(self.path(name)) from error
            raise

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Raise what another attempt to write `name` cannot mend as an error that says what to do."""
        try:
            yield
        except FileNotFoundError as error:
            raise ConfigError(f"{self.url}: no such bucket or folder") from error
        except (NotADirectoryError, IsADirectoryError) as error:
            raise ConfigError(f"{self.url}: {name!r} cannot be written ({error.strerror or error})") from error
        except PermissionError as error:
            reason = redact(error.strerror or str(error))[:200]
            raise ConfigError(f"{self.url}: not allowed to write {name!r} ({reason})") from error
        except TypeError as error:  # a client whose writes have no such mode, as that of webdav
            raise ConfigError(f"{self.url}: this file system has no create-only or overwriting writes") from error
        except OSError as error:
            if error.errno not in PERMANENT:
                raise
            raise StorageError(f"{self.url}: {name!r} cannot be written: {error.strerror}") from error

    def put_all(self, files: Mapping[str, bytes], staging: str) -> None:
        """`put` for many small files: with one sync of the disk, or in parallel on remote storage.

        Each file is visible as a whole or not at all. Local files are written in the folder `staging` first, so that a
        killed process leaves no partial files among the finished ones.
        """
        with self._explained(staging):
            if not self.local:
                self._call(lambda: self._fs.pipe({self.path(name): data for name, data in files.items()}), "written")
                return
            paths = {Path(self.path(name)): data for name, data in files.items()}
            twice(lambda: disk.write_together(paths, Path(self.path(staging))))

    def put_all_once(self, files: Mapping[str, bytes], staging: str) -> None:
        """`put_all` that replaces no file; `IntegrityError` where one is there with other bytes."""
        if self.local:
            names = {Path(self.path(name)): name for name in files}
            paths = {path: files[name] for path, name in names.items()}
            with self._explained(staging):
                there = twice(lambda: disk.write_together(paths, Path(self.path(staging)), once=True))
            taken = [names[path] for path in there]
        else:
            with ThreadPoolExecutor(WRITERS, thread_name_prefix="put") as pool:
                made = pool.map(lambda item: self.put_once(*item), files.items())
                taken = [name for name, is_new in zip(files, made, strict=True) if not is_new]
        for name in taken:
            if self.get(name) != files[name]:
                raise IntegrityError(
                    f"{self.url}: {name!r} is there with other bytes: another worker, or another version of a package, "
                    "wrote it. If no other command writes there, remove the folder and run this one again"
                )

    @contextmanager
    def building(self, name: str, staging: str) -> Iterator[BinaryIO]:
        """A context to write a file that is too large for memory.

        Writes a local temporary file, which becomes `name` atomically when the block ends without an error.
        """
        folder = Path(self.path(staging)) if self.local else Path(tempfile.gettempdir())
        with self._explained(name):
            folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = disk.temporary(folder)
        try:
            with self._explained(name), os.fdopen(handle, "wb", buffering=1 << 20) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            with self._explained(name):
                if self.local:
                    path = Path(self.path(name))
                    path.parent.mkdir(parents=True, exist_ok=True)
                    os.chmod(temporary, 0o644)
                    os.replace(temporary, path)
                    disk.sync_folder(path.parent)
                else:
                    self._call(lambda: self._fs.put_file(temporary, self.path(name)), "written")
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def _call(self, call: Callable[[], T], verb: str = "read") -> T:
        """`call`, repeated after an `OSError`; what else a back end raises is an `InfrastructureError`.

        `ConfigError` where this machine has no credentials, or its rights do not suffice.
        """
        try:
            return retry(call)
        except (OSError, TypeError, ValueError, NotImplementedError) as error:  # the last three: no such operation
            if not isinstance(error, PermissionError) and code_of(error) not in REFUSED:
                raise
            reason = redact(str(error))[:200]
            raise ConfigError(f"{self.url}: not allowed to be {verb} ({reason}); check the credentials") from error
        except Exception as error:  # each back end has its own exception classes
            reason = f"{type(error).__name__}: {redact(str(error))[:200]}"
            kind = ConfigError if "Credential" in reason else InfrastructureError
            raise kind(f"{self.url}: cannot be {verb} ({reason})") from error

    def get_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of `name`; `FileNotFoundError` where there is none."""
        if self.local:
            handle = os.open(self.path(name), os.O_RDONLY)
            try:
                return os.pread(handle, stop - start, start)
            finally:
                os.close(handle)
        return self._call(lambda: bytes(self._fs.cat_file(self.path(name), start=start, end=stop)))

    def remove_folder(self, name: str) -> None:
        """Delete the folder `name` and its content, if it exists."""
        with suppress(FileNotFoundError):
            if self.local:
                twice(lambda: shutil.rmtree(self.path(name)), OSError)  # another driver may write or remove there
            else:
                self._call(lambda: self._fs.rm(self.path(name), recursive=True), "written")

    def get(self, name: str) -> bytes:
        """Whole content of `name`; `FileNotFoundError` where there is none."""
        return self._call(lambda: bytes(self._fs.cat_file(self.path(name))))

    def download(self, name: str, path: Path) -> None:
        """Copy the content of `name` to a new local file; `FileNotFoundError` where there is none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._call(lambda: self._fs.get_file(self.path(name), str(path)))

    def upload(self, name: str, path: Path) -> None:
        """`put` of a local file, which is not read into memory."""
        with self._explained(name):
            self._call(lambda: self._fs.put_file(str(path), self.path(name)), "written")

    def size(self, name: str) -> int:
        """Bytes of `name`; `FileNotFoundError` where there is none."""
        return int(self._call(lambda: self._fs.size(self.path(name))))

    def files(self, folder: str) -> Iterator[tuple[str, int]]:
        """Path relative to `folder`, and bytes, of every file below it."""
        root = self.path(folder)
        if self.local:
            for at, _, names in os.walk(root):
                for path in (f"{at}/{name}" for name in names):
                    yield path[len(root) + 1 :], os.lstat(path).st_size
        else:
            for path, entry in self._call(lambda: self._fs.find(root, detail=True)).items():
                yield path[len(root) + 1 :], int(entry["size"])

    def marks(self, folder: str = "") -> dict[str, str]:
        """Path relative to `folder` -> a text that changes with the file, where the storage keeps such a thing."""
        root = self.path(folder)
        found = self._call(lambda: self._fs.find(root, detail=True))
        return {
            path[len(root) + 1 :]: " ".join(str(entry[key]) for key in CHANGING if entry.get(key) is not None)
            for path, entry in found.items()
        }

    def exists(self, name: str) -> bool:
        """Whether `name` exists."""
        return bool(self._call(lambda: self._fs.exists(self.path(name))))

    def names(self, folder: str) -> list[str]:
        """Sorted file names directly in `folder`; empty where it does not exist. Temporary files are left out."""
        try:
            paths = self._call(lambda: self._fs.ls(self.path(folder), detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(
            name for name in (str(p).rsplit("/", 1)[-1] for p in paths) if not name.startswith(disk.TEMPORARY)
        )

    def remove(self, name: str) -> None:
        """Delete `name` if it exists."""
        with suppress(FileNotFoundError):
            self._call(lambda: self._fs.rm_file(self.path(name)), "written")

    def creates_once(self) -> bool:
        """Whether the storage itself refuses a second `put_once`, so that two writers cannot both succeed.

        It is tried: some stores that speak S3 ignore the condition, and disks such as exFAT, SMB and many FUSE mounts
        have no hard links. An error of the storage is raised after a few attempts; it is no answer.
        """
        name = disk.own_name(PROBE)
        try:
            with self._explained(name):
                if self.local:
                    return disk.links(Path(self.path(name)))
                try:
                    for content in (b"1", b"2"):  # an attempt at the first that seemed to fail may have created it
                        self._call(partial(self._create, name, content), "written")
                except FileExistsError:
                    return True
                return False
        except (NotImplementedError, ValueError):  # a file system without this mode
            return False
        finally:
            self.remove(name)

    def leftovers(self, clock: Callable[[], float] = time.time) -> list[str]:
        """Unfinished files of processes that are gone, relative to the folder; for uploads see `unfinished_uploads`.

        Those of other machines count when they are a day old by `clock`. On an object store only the probes of the runs
        in the folder and in its folders, but for the files of an export: no other unfinished file can be there.
        """
        if self.local:
            paths = (Path(at, name) for at, _, names in os.walk(self.path("")) for name in names)
            found = [str(path.relative_to(self.path(""))) for path in paths]
        else:
            found = self._beside_attempts("")
        gone = {name: disk.is_left_over(name.rsplit("/", 1)[-1]) for name in found}
        foreign = [name for name, is_gone in gone.items() if is_gone is None]
        with suppress(NotImplementedError):  # a file system without times: they stay
            now = clock() if foreign else 0.0
            for name in foreign:
                with suppress(FileNotFoundError):
                    gone[name] = now - self._modified(name) > FOREIGN_AGE_S
        return sorted(name for name, is_gone in gone.items() if is_gone)

    def _beside_attempts(self, folder: str) -> list[str]:
        """Files of an object store in `folder`, and below it in the runs and the attempts of runs."""
        try:
            entries = self._call(lambda: self._fs.ls(self.path(folder), detail=True))
        except FileNotFoundError:
            return []
        found: list[str] = []
        inside = folder.rpartition("/")[2].startswith("attempt-")
        for entry in entries:
            name = str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]
            path = f"{folder}/{name}" if folder else name
            if entry["type"] != "directory":
                found.append(path)
            elif not inside and name != EXPORTED:
                found += self._beside_attempts(path)
        return found

    def _modified(self, name: str) -> float:
        """When `name` was written, by the clock of the storage."""
        return float(self._call(lambda: self._fs.modified(self.path(name))).timestamp())

    def _now(self) -> float:
        """The time by the clock of the storage: that of a file which is written now."""
        probe = disk.own_name(PROBE)
        try:
            self.put(probe, b"raygen")
            return self._modified(probe)
        finally:
            self.remove(probe)

    def unfinished_uploads(self) -> list[Upload]:
        """Uploads to S3 in parts that have begun more than a day ago and not ended, of files below the folder."""
        with suppress(ConfigError):  # some accounts may write and not list them
            found = self._call(lambda: uploads.unfinished(self._fs, self._root))
            return [upload for upload in found if upload.age_s > FOREIGN_AGE_S]
        return []

    def remove_leftovers(self) -> int:
        """Remove `leftovers` and the parts of `unfinished_uploads`; their number.

        What living processes write stays: they may be other drivers of the run. Age is told by the clock of the
        storage, because to a machine whose clock is a day ahead all that others write is old.
        """
        names = self.leftovers(self._now)
        for name in names:
            self.remove(name)
        parts = self.unfinished_uploads()
        for upload in parts:
            with suppress(FileNotFoundError):
                self._call(partial(uploads.abort, self._fs, self._root, upload), "written")
        return len(names) + len(parts)

    def require(self) -> None:
        """Check that the folder can be written, before any work.

        `ConfigError` where the bucket is missing or not writable, `InfrastructureError` where the server is away.
        """
        self.check_place()
        probe = disk.own_name(PROBE)
        try:
            self.put(probe, b"raygen")
        except (ConfigError, StorageError):
            raise
        except Exception as raised:  # credentials, endpoint, DNS: every back end has its own exception classes
            raise refusal(self.url, "written", raised) from raised
        self.remove(probe)

    def check_place(self) -> None:
        """`ConfigError` where a local folder cannot be made or written, as far as can be told without writing."""
        if self.local and (problem := disk.obstacle(Path(self.path("")))):
            raise ConfigError(f"{self.url}: {problem}")
