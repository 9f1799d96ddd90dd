"""Integrity check of a stored run: every planned row exactly once, every byte as committed.

All files are read again, hashed, decoded and counted; nothing is taken from the run's own summary. Memory grows by
eight bytes a row.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raygen.core.errors import ConfigError, InputError
from raygen.core.hashing import digest
from raygen.exports.finalize import check
from raygen.store.images import decode_image
from raygen.store.parquet import RANGE, from_parquet
from raygen.store.run_store import Commit, RunStore, Shard
from raygen.store.set_digest import KEYS, SetDigest, table_digest

__all__ = ["IntegrityReport", "verify"]


@dataclass
class IntegrityReport:
    """What was checked, and a sentence for each problem; `problems` is empty for an intact run.

    `files` counts the good files of an export's data set, and is None for other runs.
    """

    url: str
    run_id: str = ""
    shards: int = 0
    committed: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    pictures: int = 0
    files: int | None = None
    quarantined: int = 0
    set_digest: str = ""
    orphans: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there are no problems. Orphans (files of tries that were not committed) are harmless."""
        return not self.problems


def verify(store: RunStore, *, decode: bool = True) -> IntegrityReport:
    """Check every commit, file, row and picture of `store`; `decode=False` does not decode the pictures.

    Problems of the run are in the report. Raises `ConfigError` where `store` has no plan.
    """
    plan = store.plan()
    report = IntegrityReport(store.storage.url, plan.run_id, len(plan.shards))
    committed, planned = set(store.committed()), {shard.index for shard in plan.shards}
    if missing := sorted(planned - committed):
        report.problems.append(f"{len(missing)} shards are not committed: {missing[:10]}")
    if unknown := sorted(committed - planned):
        report.problems.append(f"there are commits of shards that are not in the plan: {unknown[:10]}")
    row_keys: dict[str, list[npt.NDArray[np.uint64]]] = {}
    set_digest = SetDigest()
    committed_files: set[str] = set()
    for index in sorted(committed & planned):
        try:
            commit = store.commit_of(index)
        except Exception as error:  # a damaged record is one problem of the run, not the end of the check
            report.problems.append(f"shard {index}: {error}")
            continue
        report.committed += 1
        report.quarantined += sum(commit.quarantined.values())
        committed_files |= {str(entry["path"]) for entry in commit.files}
        set_digest = set_digest.merge(_check_shard(store, plan.shards[index], commit, report, row_keys, decode))
    report.set_digest = set_digest.hex()
    for table, parts in row_keys.items():
        keys = np.concatenate(parts)
        duplicates = len(keys) - len(np.unique(keys))
        if duplicates and table != "quarantine":
            report.problems.append(f"{table}: {duplicates} rows have an id that another row has")
    _check_end(store, report, is_export=plan.kind == "export")
    folders = ["quarantine", *(f"data/{table}" for table in store.storage.names("data"))]
    stored = {f"{folder}/{name}" for folder in folders for name in store.storage.names(folder)}
    report.orphans = sorted((stored - committed_files) | set(store.storage.leftovers()))
    return report


def _check_shard(
    store: RunStore,
    shard: Shard,
    commit: Commit,
    report: IntegrityReport,
    row_keys: dict[str, list[npt.NDArray[np.uint64]]],
    decode: bool,
) -> SetDigest:
    """Check the files of one commit; the set digest of the rows that were read. Adds the hashed ids to `row_keys`."""
    set_digest = SetDigest()
    for entry in commit.files:
        table = _read_table(store, entry, report)
        if table is None:
            continue
        name = str(entry["table"])
        report.rows[name] += table.num_rows
        set_digest = set_digest.merge(table_digest(name, table))
        columns = [table[key].to_pylist() for key in KEYS.get(name, tuple(table.column_names[:1]))]
        ids = (":".join(map(str, values)) for values in zip(*columns, strict=True))
        hashes = (int(digest(row_id.encode())[:16], 16) for row_id in ids)
        row_keys.setdefault(name, []).append(np.fromiter(hashes, dtype=np.uint64, count=table.num_rows))
        if decode and "image" in table.column_names:
            _check_images(name, table, report)
        if name == "samples" and not any(piece.path == RANGE for piece in shard.inputs):
            try:
                planned = shard.read(["sample_id"])["sample_id"].to_pylist()
            except (ConfigError, InputError):  # the conditions were moved or removed: only the count can be checked
                if table.num_rows != shard.rows:
                    report.problems.append(f"shard {shard.index}: {table.num_rows} rows, {shard.rows} planned")
            else:
                if sorted(planned) != sorted(table["sample_id"].to_pylist()):
                    report.problems.append(f"shard {shard.index}: its rows are not the planned ones")
    if set_digest.state != commit.digest.state:
        report.problems.append(f"shard {commit.shard}: its rows do not have the committed digest")
    return set_digest


def _read_table(store: RunStore, entry: dict[str, Any], report: IntegrityReport) -> pa.Table | None:
    """The table of a committed file; None, and a problem in the report, where it is missing or damaged."""
    path = str(entry["path"])
    try:
        data = store.storage.get(path)
    except OSError:
        report.problems.append(f"{path}: missing")
        return None
    report.bytes += len(data)
    if digest(data) != entry["sha256"]:
        report.problems.append(f"{path}: sha256 differs from the commit")
        return None
    try:
        table = from_parquet(data)
    except InputError as error:
        report.problems.append(f"{path}: {error}")
        return None
    if table.num_rows != entry["rows"]:
        report.problems.append(f"{path}: {table.num_rows} rows, {entry['rows']} committed")
    return table


def _check_images(name: str, table: pa.Table, report: IntegrityReport) -> None:
    """Decode every picture and compare it with its stored hash."""
    ids = table[table.column_names[0]].to_pylist()
    hashes = table["image_sha256"].to_pylist() if "image_sha256" in table.column_names else [None] * len(ids)
    for row_id, image, sha256 in zip(ids, table["image"].to_pylist(), hashes, strict=True):
        if image is None:
            continue
        report.pictures += 1
        try:
            decode_image(image["bytes"])
        except InputError as error:
            report.problems.append(f"{name} {row_id}: {error}")
        if sha256 is not None and digest(image["bytes"]) != sha256:
            report.problems.append(f"{name} {row_id}: image_sha256 differs")


def _check_end(store: RunStore, report: IntegrityReport, *, is_export: bool) -> None:
    """Check the records of a finished run, and the files of an exported data set."""
    if not store.storage.exists("_SUCCESS"):
        report.problems.append("_SUCCESS is missing: the run did not finish")
    elif store.manifest().get("set_digest") != report.set_digest:
        report.problems.append("MANIFEST.json has another set digest than the rows")
    if is_export:
        data_set = check(store)
        report.files = data_set.files
        report.bytes += data_set.bytes
        report.problems += data_set.problems
