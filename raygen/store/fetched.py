"""Checkpoint folders at URLs, copied once to a disk of each machine.

    CACHE/checkpoints/CONTENT/checkpoint/   the files, under their names
    CACHE/checkpoints/CONTENT/files.json    their check sums, which a process compares when it first opens the copy

CONTENT is a sha256 of what the folder records of its files: another content is another copy. CACHE is the folder
`RAYGEN_CACHE`, else `raygen` in `XDG_CACHE_HOME`, else `~/.cache/raygen`. A copy is kept until somebody removes it.
"""

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from raygen.core.assets import resolve
from raygen.core.errors import ConfigError, InfrastructureError, InputError, IntegrityError, RaygenError, StorageError
from raygen.core.hashing import canonical, digest
from raygen.core.location import is_remote
from raygen.store import disk
from raygen.store.filesystem import FileStore
from raygen.store.sealed import FILES, open_record, read_record, sums_below, to_text
from raygen.store.storage_errors import PERMANENT, refusal

__all__ = ["CACHE", "cache_folder", "local_folder"]


#: Environment variable with the folder for copies and for the local files of trainings.
CACHE: Final = "RAYGEN_CACHE"
#: Files that make a folder a checkpoint: of a model, of an image network, of a pipeline that diffusers wrote.
MARKS: Final = ("raygen.json", "config.json", "model_index.json")
RECORD: Final = "files.json"
#: Where a job keeps what it resumes from; no part of the model.
TRAINING: Final = "training"
#: Files that are copied at once.
TOGETHER: Final = 8
#: Copies that this process has compared with their check sums.
_compared: set[Path] = set()


def cache_folder() -> Path:
    """The folder for files that can be had again: fetched checkpoints, and the local part of remote trainings."""
    named = os.environ.get(CACHE)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raygen"


def local_folder(location: str | Path, kind: str = "model") -> str:
    """The local folder of a checkpoint: itself, that of `bundled`, or for a URL the copy on this machine.

    `kind`: the network that `bundled` stands for. For a URL: `ConfigError` where it cannot be read or has no
    checkpoint, `InputError` (`checkpoint`) where a file is not as it was written, `InfrastructureError` where the
    server is away or the copy cannot be written. Several processes may ask for the same copy; one makes it.
    """
    text = resolve(str(location), kind)
    if not is_remote(text):
        return text.removeprefix("file://")
    store = FileStore(text)
    try:
        sums, content = _content(store)
        return str(_copy(store, sums, cache_folder() / "checkpoints" / content))
    except RaygenError as error:
        if type(error) is not InfrastructureError or error.__cause__ is None:
            raise
        raise refusal(text, "read", error) from error
    except PermissionError as error:
        raise ConfigError(f"{text}: not allowed to read the checkpoint ({error}); check the credentials") from error
    except OSError as error:
        raise refusal(text, "read", error) from error


def _content(store: FileStore) -> tuple[Mapping[str, str], str]:
    """Name -> sha256 of the files of a checkpoint, empty where it is not recorded; and a sha256 of all of it."""
    found = next(((name, data) for name in MARKS if (data := _get(store, name)) is not None), None)
    if found is None:
        raise ConfigError(f"{store.url}: no checkpoint here (raygen.json is missing)")
    mark, data = found
    try:
        recorded = read_record(data, f"{store.url}/{mark}").get(FILES)
    except IntegrityError as error:
        raise InputError(str(error), reason="checkpoint") from error
    known: Mapping[str, Any] = {**(recorded if isinstance(recorded, dict) else {}), mark: digest(data)}
    names = {name: state for name, state in store.marks().items() if _belongs(name)}
    if missing := sorted(known.keys() - names.keys()):
        raise InputError(f"{store.url}: {missing[0]} is missing", reason="checkpoint")
    sums = {name: str(known.get(name, "")) for name in sorted(names)}
    return sums, digest(canonical([[name, sha256 or names[name]] for name, sha256 in sums.items()]))


def _get(store: FileStore, name: str) -> bytes | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        return store.get(name)
    return None


def _belongs(name: str) -> bool:
    """Whether a file is part of the checkpoint; names of objects may be anything, also ways out of a folder."""
    parts = name.split("/")
    return parts[0] != TRAINING and not any(part.startswith(".") or not part for part in parts)


def _copy(store: FileStore, sums: Mapping[str, str], target: Path) -> Path:
    """The copy of a checkpoint as `target`, made where it is not there or is damaged."""
    while not _intact(target):
        seen = _number(target)
        try:
            with disk.exclusively(target.parent / f".lock-{target.name}", wait=True):
                if _number(target) == seen:  # no other process has made it anew meanwhile
                    _fetch(store, sums, target)
        except OSError as error:
            kind = StorageError if error.errno in PERMANENT else InfrastructureError
            raise kind(
                f"{store.url}: the copy cannot be written to {target.parent} ({error.strerror or error}); "
                f"set {CACHE} to a folder of a disk with room"
            ) from None
    return target / "checkpoint"


def _number(target: Path) -> int | None:
    """What tells a copy from one that is made later under the same name; None where there is none."""
    with suppress(OSError):
        return (target / RECORD).stat().st_mtime_ns
    return None


def _intact(target: Path) -> bool:
    """Whether there is a copy with the files that were fetched, byte by byte."""
    if target in _compared and (target / RECORD).is_file():
        return True
    try:
        recorded = open_record((target / RECORD).read_bytes(), RECORD)[FILES]
        same = bool(sums_below(target / "checkpoint") == recorded)
    except (OSError, IntegrityError, KeyError):
        return False
    if same:
        _compared.add(target)
    return same


def _fetch(store: FileStore, sums: Mapping[str, str], target: Path) -> None:
    """Make the copy; what killed processes have left in the folder around it is removed."""
    folder = target.parent
    for path in folder.glob(f"{disk.TEMPORARY}*"):
        if disk.is_left_over(path.name):
            shutil.rmtree(path, ignore_errors=True)
    temporary = folder / disk.own_name(disk.TEMPORARY)
    try:
        inside = temporary / "checkpoint"
        with ThreadPoolExecutor(TOGETHER) as pool:
            list(pool.map(lambda name: _download(store, name, inside / name), sums))
        found = sums_below(inside)
        if changed := [name for name, sha256 in sums.items() if sha256 and found.get(name) != sha256]:
            raise InputError(
                f"{store.url}: {changed[0]}: sha256 differs from the one it was written with", reason="checkpoint"
            )
        disk.write(temporary / RECORD, to_text({"url": store.url, FILES: found}), once=False)
        if target.exists():
            os.rename(target, folder / f"{disk.own_name(disk.TEMPORARY)}-old")
        os.rename(temporary, target)
        _compared.add(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for path in folder.glob(f"{disk.TEMPORARY}*-old"):
            shutil.rmtree(path, ignore_errors=True)


def _download(store: FileStore, name: str, path: Path) -> None:
    try:
        store.download(name, path)
    except FileNotFoundError as error:
        raise InputError(f"{store.url}: {name} has gone while it was read", reason="checkpoint") from error
    except OSError as error:
        if error.filename is not None or error.errno in PERMANENT:  # of the local disk
            raise
        raise refusal(store.url, "read", error) from error
