"""The end of an export: pieces become files, sums and card are written, and what is left over goes away.

Knows the order that survives a kill: files appear under their names when they are complete, the check sums after them,
the card after those, the record of it all after the card, and only then are the pieces removed. The same command goes
on wherever it stopped.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from raygen.core.errors import IntegrityError
from raygen.core.hashing import canonical, digest
from raygen.exports.base import CHUNK, DATASET, PIECES, STAGING, Assembly, Export
from raygen.exports.data_card import Totals
from raygen.store.filenames import name_key
from raygen.store.filesystem import FileStore
from raygen.store.run_store import RunStore

__all__ = ["CARD", "RECORD", "SUMS", "Checked", "check", "finish"]


RECORD: Final = "attempt-00/ASSEMBLED.json"
CARD: Final = "README.md"
SUMS: Final = "SHA256SUMS"


def finish(
    format: Export, store: RunStore, people: tuple[str, ...], manifest: Mapping[str, Any], card: Callable[[Totals], str]
) -> dict[str, Any]:
    """Put the data set together unless that is done already; rows, files and bytes of it."""
    storage = FileStore(store.url)
    if not storage.exists(RECORD):
        assembly = Assembly(store, storage, people)
        format.assemble(assembly)
        totals = _totals(assembly, manifest)
        text = card(totals).encode()
        assembly.made[CARD] = len(text), digest(text)
        _sums(assembly)
        storage.put(f"{DATASET}/{CARD}", text)
        storage.put(RECORD, canonical({**asdict(totals), "made": assembly.made}))
    storage.remove_folder(PIECES)
    storage.remove_folder(STAGING)
    found: dict[str, Any] = json.loads(storage.get(RECORD))
    return found


def _totals(assembly: Assembly, manifest: Mapping[str, Any]) -> Totals:
    """Rows as they are committed, files and bytes as they lie there; card and sums, which follow, do not count."""
    rows = masks = 0
    for table in assembly.tables():
        rows += table.num_rows
        masks += table.num_rows - table["mask_bytes"].null_count
    for name in (CARD, SUMS):  # of a finish that was killed after it
        assembly.storage.remove(f"{DATASET}/{name}")
    files, size = assembly.storage.total(DATASET)
    reasons = dict(manifest["quarantined"])
    return Totals(rows, sum(reasons.values()), files, size, masks, reasons)


def _sums(assembly: Assembly) -> None:
    """SHA256SUMS: a line a file, in the order of shards, and then what was put together."""
    with assembly.building(SUMS) as file:
        for table in assembly.store.tables("files", ["path", "sha256"]):
            paths, sums = (table[name].to_pylist() for name in ("path", "sha256"))
            file.write("".join(f"{sha}  {path}\n" for path, sha in zip(paths, sums, strict=True)).encode())
        file.write("".join(f"{sha}  {path}\n" for path, (_, sha) in sorted(assembly.made.items())).encode())


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


def check(store: RunStore) -> Checked:
    """Read every file of the data set of the export `store` and compare it with what was committed."""
    storage, found = FileStore(store.url), Checked()
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


def _made(storage: FileStore) -> list[_File]:
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


def _expected(store: RunStore, made: list[_File]) -> Iterator[list[_File]]:
    """Files of one shard at a time, and at last those that were put together."""
    for table in store.tables("files"):
        yield [_File(**row) for row in table.to_pylist()]
    yield made


def _problem(storage: FileStore, file: _File) -> str | None:
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
