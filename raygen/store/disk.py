"""Files on a local disk: written whole or not at all, on the disk when a call returns, unfinished ones recognised."""

import ctypes
import errno
import fcntl
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

__all__ = [
    "PROBE",
    "TEMPORARY",
    "exclusively",
    "is_left_over",
    "links",
    "obstacle",
    "own_name",
    "sync_file_system",
    "sync_folder",
    "temporary",
    "write",
    "write_together",
]

#: Beginnings of the names of unfinished files and of files that try what a disk can do.
TEMPORARY: Final = ".tmp-"
PROBE: Final = ".probe-"
#: Seconds after which an unfinished file or upload of another machine counts as left over.
FOREIGN_AGE_S: Final = 86_400.0
#: What disks without hard links, and disks whose folders cannot be synchronised, answer.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
NO_FOLDER_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


def own_name(beginning: str) -> str:
    """A new file name that says which process of which machine it belongs to."""
    return f"{beginning}{platform.node()}.{os.getpid()}.{time.time_ns():x}-{_began(os.getpid())}"


def _began(process: int) -> str:
    """When a process began, in ticks since the machine did; empty where that cannot be known."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return text.rpartition(")")[2].split()[19]  # field 22; the second, a name in brackets, may have spaces
    except (OSError, IndexError):
        return ""


def obstacle(folder: Path) -> str:
    """Why files cannot be made in a folder that may not be there yet; empty where nothing can be told."""
    folder = Path(os.path.abspath(folder))
    place = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not place.is_dir():
        return f"cannot be a folder: {place} is a file"
    if os.access(place, os.W_OK | os.X_OK) or os.statvfs(place).f_flag & os.ST_RDONLY:  # told when it is written
        return ""
    return f"not allowed to write into {place}"


def temporary(folder: Path) -> tuple[int, str]:
    """A new unfinished file in `folder`: its handle and path."""
    return tempfile.mkstemp(prefix=f"{own_name(TEMPORARY)}-", dir=folder)


def is_left_over(name: str) -> bool | None:
    """Whether `name` is that of an unfinished file whose process is gone; None where it is of another machine."""
    beginning = next((b for b in (TEMPORARY, PROBE) if name.startswith(b)), None)
    if beginning is None:
        return False
    owner, _, made = name.removeprefix(beginning).rpartition(".")
    machine, _, process = owner.rpartition(".")
    if not (machine and process.isdigit()):
        return False
    if machine != platform.node():
        return None
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    # Numbers are used again, on Linux for threads as well: a living process may be another one.
    now, then = _began(int(process)), made.split("-")[1:2]
    return bool(now and then and then[0].isdigit() and now != then[0])


def write(path: Path, data: bytes, *, once: bool) -> bool:
    """Write a file by way of a temporary one beside it; with `once`, False where the name is taken."""
    if once and path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = temporary(path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(unfinished, 0o644)
        if once:
            _link(unfinished, path)
        else:
            os.replace(unfinished, path)
        sync_folder(path.parent)
    except FileExistsError:
        return False
    finally:
        with suppress(FileNotFoundError):
            os.unlink(unfinished)
    return True


def _link(unfinished: str, path: Path) -> None:
    """Give `unfinished` the name `path`; `FileExistsError` where the name is taken."""
    try:
        os.link(unfinished, path)  # the only atomic create with content in POSIX
    except FileExistsError:
        # Over NFS the answer to a request may be lost, and the one that is repeated meets the name that it made.
        if os.path.samefile(unfinished, path):
            return
        raise
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # Not exclusive; callers name what must not be replaced by its content, see `creates_once`.
        os.replace(unfinished, path)


def links(probe: Path) -> bool:
    """Whether the disk has hard links, by which a name can be created only once."""
    write(probe, b"1", once=False)
    second = probe.with_name(f"{probe.name}-2")
    try:
        os.link(probe, second)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return False
    finally:
        second.unlink(missing_ok=True)
    return True


def write_together(files: Mapping[Path, bytes], staging: Path, *, once: bool = False) -> list[Path]:
    """Write files by way of `staging`, then sync the disk once for all of them.

    With `once`, files that are there already stay as they are; they are returned.
    """
    taken: list[Path] = []
    written: dict[Path, str] = {}
    try:
        for folder in {staging, *(path.parent for path in files)}:
            folder.mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            handle, written[path] = temporary(staging)
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, 0o644)
                file.write(data)
        for path, unfinished in written.items():
            if not once:
                os.replace(unfinished, path)
                continue
            try:
                _link(unfinished, path)
            except FileExistsError:
                taken.append(path)
        sync_file_system(staging)
    finally:
        for unfinished in written.values():
            with suppress(FileNotFoundError):
                os.unlink(unfinished)
    return taken


@contextmanager
def exclusively(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Inside, no other process is: `BlockingIOError` where one is, or `wait` for it. The lock ends with the process.

    A disk that cannot lock folders, as over NFS, lets every process in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in (*NO_LINKS, *NO_FOLDER_SYNC, errno.ENOLCK):
                raise
        yield
    finally:
        os.close(handle)


def sync_file_system(folder: Path) -> None:
    """Wait until the file system of `folder` is on the disk: faster than an fsync for each of many small files."""
    sync = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if sync is None:
        os.sync()
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if sync(handle):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk, where the disk can do that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)
