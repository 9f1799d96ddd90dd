"""A data set against what was committed of it: every file is there, byte for byte, and no other.

Knows FILES rows and the record of the finish. Knows no format, and holds a few megabytes and 64 bytes a file.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from raygen.exports.base import CHUNK, DATASET
from raygen.exports.finish import RECORD
from raygen.names import name_key
from raygen.spec import IntegrityError
from raygen.storage import Storage
from raygen.store import Store

__all__ = ["Checked", "check"]

#: Files that are read at once: a bucket answers many as fast as one.
READERS: Final = 16


class _File(NamedTuple):
    path: str
    bytes: int
    sha256: str


@dataclass
class Checked:
    """Files that are as they were exported, their bytes, and what is wrong with the others."""

    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)


def check(store: Store) -> Checked:
    """Read every file of the data set of the export `store` and compare it with what was committed."""
    storage, found = Storage(store.url), Checked()
    try:
        made = _made(storage)
    except IntegrityError as error:
        found.problems.append(f"{RECORD} {error}")
        return found
    there = {name_key(path) for path, _ in storage.files(DATASET)}
    if not there:
        found.problems.append(f"{DATASET}: no data set is there")
        return found
    with ThreadPoolExecutor(READERS, thread_name_prefix="check") as pool:
        for files in _expected(store, made):
            there -= {name_key(file.path) for file in files}
            for file, problem in zip(files, pool.map(partial(_problem, storage), files), strict=True):
                if problem:
                    found.problems.append(problem)
                else:
                    found.files, found.bytes = found.files + 1, found.bytes + file.bytes
    if there:
        names = sorted(path for path, _ in storage.files(DATASET) if name_key(path) in there)
        found.problems += [f"{DATASET}/{name}: no export wrote it" for name in names]
    return found


def _made(storage: Storage) -> list[_File]:
    """The files that the record of the finish names; `IntegrityError` where it is missing or says something else."""
    try:
        record = json.loads(storage.get(RECORD))
    except FileNotFoundError:
        raise IntegrityError("is missing: the data set is not put together; the same command goes on") from None
    except ValueError:
        raise IntegrityError("is damaged") from None
    if isinstance(record, dict) and "rows" in record and "made" not in record:
        raise IntegrityError("was written by a raygen without check sums; export again")
    made = record.get("made") if isinstance(record, dict) else None
    # Every data set has at least its card, so that a record without files is none.
    if not isinstance(made, dict) or not made or not all(map(_is_sum, made.values())):
        raise IntegrityError("is damaged")
    return [_File(path, size, sha) for path, (size, sha) in made.items()]


def _is_sum(value: object) -> bool:
    """Whether it is a size and a digest."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], int) and isinstance(value[1], str)


def _expected(store: Store, made: list[_File]) -> Iterator[list[_File]]:
    """Files of one shard at a time, and at last those that were put together."""
    for table in store.tables("files"):
        yield [_File(**row) for row in table.to_pylist()]
    yield made


def _problem(storage: Storage, file: _File) -> str | None:
    """What is wrong with one file, or None."""
    name = f"{DATASET}/{file.path}"
    try:
        size = storage.size(name)
        if size != file.bytes:
            return f"{name}: {size:,} bytes, {file.bytes:,} committed"
        state = hashlib.sha256()
        for start in range(0, size, CHUNK):
            state.update(storage.get_range(name, start, min(start + CHUNK, size)))
    except FileNotFoundError:
        return f"{name}: missing"
    return None if state.hexdigest() == file.sha256 else f"{name}: sha256 differs from the commit"
