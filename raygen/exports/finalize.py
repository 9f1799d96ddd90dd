"""The end of an export: join the pieces, write check sums and data card, remove temporary files; and `check` of it all.

A killed export goes on with the same command. Therefore the order is fixed: files appear under their names when they
are complete, then the check sums, then the card, then the record of the export, and only then are pieces removed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Final, NamedTuple

from raygen.core.errors import IntegrityError, RaygenError
from raygen.core.hashing import digest
from raygen.exports.base import CHUNK, DATASET, PIECES, STAGING, Assembly, Export
from raygen.exports.croissant_nodes import DataSetParts
from raygen.exports.data_card import ExportTotals
from raygen.store.filenames import name_key
from raygen.store.filesystem import FileStore
from raygen.store.run_store import RunStore
from raygen.store.sealed import open_record, to_bytes

__all__ = ["CARD", "CROISSANT", "RECORD", "SUMS", "ExportCheck", "check", "finish"]


RECORD: Final = "attempt-00/ASSEMBLED.json"
CARD: Final = "README.md"
CROISSANT: Final = "croissant.json"
SUMS: Final = "SHA256SUMS"


def finish(
    format: Export,
    store: RunStore,
    identities: tuple[str, ...],
    manifest: Mapping[str, Any],
    card: Callable[[ExportTotals], str],
    croissant: Callable[[ExportTotals, DataSetParts], Mapping[str, Any]],
) -> dict[str, Any]:
    """Complete the data set of a committed export, unless that is done already.

    `identities`: names in the order of labels. `card`, `croissant`: make the data card and `croissant.json` from the
    totals. Returns the fields of `ExportTotals`, and the size and SHA-256 of the files written here.
    """
    storage = FileStore(store.url)
    if not storage.exists(RECORD):
        try:
            _put_together(format, store, identities, manifest, card, croissant)
        except (RaygenError, FileNotFoundError):
            # Another driver of the same export has ended meanwhile, and removed the pieces.
            if not storage.exists(RECORD):
                raise
    storage.remove_folder(PIECES)
    storage.remove_folder(STAGING)
    return open_record(storage.get(RECORD), f"{store.url}/{RECORD}")


def _put_together(
    format: Export,
    store: RunStore,
    identities: tuple[str, ...],
    manifest: Mapping[str, Any],
    card: Callable[[ExportTotals], str],
    croissant: Callable[[ExportTotals, DataSetParts], Mapping[str, Any]],
) -> None:
    """Write the files, the check sums, the card and the record."""
    storage = FileStore(store.url)
    assembly = Assembly(store, storage, identities)
    format.assemble(assembly)
    totals = _totals(assembly, manifest)
    document = croissant(totals, format.describe(assembly, masks=totals.masks > 0))
    with assembly.building(CROISSANT) as file:
        file.write(json.dumps(document, indent=1, ensure_ascii=False).encode())
    text = card(totals).encode()
    assembly.written[CARD] = len(text), digest(text)
    with assembly.building(SUMS) as file:
        for table in store.tables("files", ["path", "sha256"]):
            paths, sums = (table[name].to_pylist() for name in ("path", "sha256"))
            file.write("".join(f"{sha}  {path}\n" for path, sha in zip(paths, sums, strict=True)).encode())
        file.write("".join(f"{sha}  {path}\n" for path, (_, sha) in sorted(assembly.written.items())).encode())
    # In `STAGING`, as all files of the data set: what a kill leaves there is no file of the data set.
    storage.put_all({f"{DATASET}/{CARD}": text}, STAGING)
    storage.put(RECORD, to_bytes({**asdict(totals), "made": assembly.written}))


def _totals(assembly: Assembly, manifest: Mapping[str, Any]) -> ExportTotals:
    """Totals of the committed rows, and of the committed and assembled files: without card and check sums.

    The folder is not listed: it may hold what an earlier try left, and a listing of many files takes long.
    """
    rows = masks = 0
    for table in assembly.tables():
        rows += table.num_rows
        masks += table.num_rows - table["mask_bytes"].null_count
    sizes = [size for size, _ in assembly.written.values()]
    files, size = len(sizes), sum(sizes)
    for table in assembly.store.tables("files", ["bytes"]):
        files, size = files + table.num_rows, size + sum(table["bytes"].to_pylist())
    reasons = dict(manifest["quarantined"])
    return ExportTotals(rows, sum(reasons.values()), files, size, masks, reasons)


#: Files that are read in parallel.
READERS: Final = 16


class _File(NamedTuple):
    path: str
    bytes: int
    sha256: str


@dataclass
class ExportCheck:
    """Number and bytes of the files that are as exported, and the problems of the others."""

    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)


def check(store: RunStore) -> ExportCheck:
    """Read every file of the data set of an export and compare it with the commits."""
    storage, result = FileStore(store.url), ExportCheck()
    try:
        written = _recorded_files(storage)
    except IntegrityError as error:
        result.problems.append(str(error))
        return result
    unknown = {name_key(path) for path, _ in storage.files(DATASET)}
    if not unknown:
        result.problems.append(f"{DATASET}: no data set is there")
        return result
    by_shard = ([_File(**row) for row in table.to_pylist()] for table in store.tables("files"))
    with ThreadPoolExecutor(READERS, thread_name_prefix="check") as pool:
        for files in chain(by_shard, [written]):
            unknown -= {name_key(file.path) for file in files}
            for file, problem in zip(files, pool.map(partial(_problem, storage), files), strict=True):
                if problem:
                    result.problems.append(problem)
                else:
                    result.files, result.bytes = result.files + 1, result.bytes + file.bytes
    if unknown:
        names = sorted(path for path, _ in storage.files(DATASET) if name_key(path) in unknown)
        result.problems += [f"{DATASET}/{name}: no export wrote it" for name in names]
    return result


def _recorded_files(storage: FileStore) -> list[_File]:
    """Files that `finish` wrote, by its record; `IntegrityError` where the record is missing or damaged."""
    try:
        data = storage.get(RECORD)
    except FileNotFoundError:
        raise IntegrityError(
            f"{RECORD} is missing: the data set is not put together; the same command goes on"
        ) from None
    record = open_record(data, RECORD)
    written = record.get("made")
    if not isinstance(written, dict) or not written:  # every data set has a card
        raise IntegrityError(f"{RECORD} is damaged")
    files = []
    for path, entry in written.items():
        match entry:
            case [int(size), str(sha)]:
                files.append(_File(path, size, sha))
            case _:
                raise IntegrityError(f"{RECORD} is damaged")
    return files


def _problem(storage: FileStore, file: _File) -> str | None:
    """What is wrong with a file; None if it is as committed."""
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
