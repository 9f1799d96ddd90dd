"""JSON records that carry their own check sum, and lists of the check sums of files.

A sealed record holds, under `SEAL`, the sha256 of its other fields. It is stored as the bytes that `to_bytes` or
`to_text` gives, so that a changed byte is noticed also where JSON reads the same from it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from raygen.core.documents import load_json
from raygen.core.errors import IntegrityError
from raygen.core.hashing import canonical, digest
from raygen.store import disk
from raygen.store.filesystem import FileStore

__all__ = [
    "FILES",
    "SEAL",
    "check_files",
    "file_sha256",
    "open_record",
    "read_record",
    "seal_folder",
    "store_sha256",
    "sums_below",
    "to_bytes",
    "to_text",
]


#: Field of a sealed record with the sha256 of all its other fields, as canonical JSON.
SEAL: Final = "record_sha256"
#: Field of a record with the sha256 of each file of its folder, by relative path.
FILES: Final = "files"
#: Bytes of a stored file that are read at once.
PIECE: Final = 1 << 24


def to_bytes(record: Mapping[str, Any]) -> bytes:
    """`record` with its check sum, as canonical JSON."""
    return canonical(_sealed(record))


def to_text(record: Mapping[str, Any]) -> bytes:
    """`record` with its check sum, as sorted JSON with indents, for files that people read."""
    return (json.dumps(_sealed(record), indent=2, sort_keys=True) + "\n").encode()


def _sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(canonical({key: value for key, value in record.items() if key != SEAL}))
    return {**plain, SEAL: digest(canonical(plain))}


def read_record(data: bytes, name: str) -> dict[str, Any]:
    """The fields of a record, of which nothing is compared; `IntegrityError` names `name` where it is no record."""
    try:
        record = load_json(data)
    except ValueError as error:
        raise IntegrityError(f"{name} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise IntegrityError(f"{name} is damaged: not a JSON object")
    return record


def open_record(data: bytes, name: str) -> dict[str, Any]:
    """The fields of a record without its check sum, which is compared.

    `IntegrityError`, whose sentence begins with `name`, where the data is no record, or is not as it was written.
    """
    record = read_record(data, name)
    if SEAL not in record:
        raise IntegrityError(f"{name} has no check sum: it is damaged, or another raygen wrote it")
    if data != to_bytes(record) and data != to_text(record):
        raise IntegrityError(f"{name} is damaged: it does not have the sha256 that it was written with")
    return {key: value for key, value in record.items() if key != SEAL}


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def store_sha256(store: FileStore, name: str) -> str:
    """sha256 of a file of a store, read in pieces; `FileNotFoundError` where there is none."""
    total, size = hashlib.sha256(), store.size(name)
    for start in range(0, size, PIECE):
        total.update(store.get_range(name, start, min(start + PIECE, size)))
    return total.hexdigest()


def sums_below(folder: Path) -> dict[str, str]:
    """Path relative to `folder` -> sha256 of every file below it, but for hidden ones, which are unfinished."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    shown = {name: path for name, path in files.items() if not any(part.startswith(".") for part in name.parts)}
    return {name.as_posix(): file_sha256(path) for name, path in shown.items()}


def seal_folder(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Write `record` as the file `name` of `folder`, with the check sums of all other files below it."""
    sums = {path: sha256 for path, sha256 in sums_below(folder).items() if path != name}
    disk.write(folder / name, to_text({**record, FILES: sums}), once=False)


def check_files(folder: Path, sums: object, wanted: Callable[[str], bool] = lambda _: True) -> list[str]:
    """A sentence for each `wanted` file of the list `sums` below `folder` that is missing or differs from it."""
    if not isinstance(sums, Mapping):
        return [f"{folder}: the list of check sums is damaged"]
    problems = []
    for name, sha256 in sums.items():
        if not wanted(name):
            continue
        try:
            if file_sha256(folder / name) != sha256:
                problems.append(f"{name}: sha256 differs from the one it was written with")
        except OSError as error:
            problems.append(f"{name}: cannot be read ({error.strerror or error})")
    return problems
