"""Proof that a stored run is what it says: every planned row exactly once, every byte as committed.

Knows the store's layout and the plan, and that an export has files beside its rows. Trusts nothing else: files are
read again, hashed, decoded, counted. Holds eight bytes a row, never pictures.
"""

from collections import Counter
from collections.abc import Iterator
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
from raygen.store.run_store import Commit, Plan, RunStore, Shard
from raygen.store.set_digest import KEYS, SetDigest, table_digest

__all__ = ["IntegrityReport", "verify"]


@dataclass
class IntegrityReport:
    """What was checked and what is wrong with it; `problems` is empty where all is well.

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
        """Whether nothing is wrong. Orphans (files of tries that did not win) are harmless."""
        return not self.problems


def verify(store: RunStore, *, decode: bool = True) -> IntegrityReport:
    """Check every commit, file, row and picture of `store`; `decode=False` leaves the pictures out."""
    plan = store.plan()
    result = IntegrityReport(store.storage.url, plan.run_id, len(plan.shards))
    seen: dict[str, list[npt.NDArray[np.uint64]]] = {}
    state = SetDigest()
    named: set[str] = set()
    for commit in _commits(store, plan, result):
        result.committed += 1
        result.quarantined += sum(commit.quarantined.values())
        state = state.merge(_check_shard(store, plan, commit, result, seen, named, decode))
    result.set_digest = state.hex()
    _check_ids(seen, result)
    _check_end(store, result)
    if plan.kind == "export":
        found = check(store)
        result.files, result.bytes = found.files, result.bytes + found.bytes
        result.problems += found.problems
    result.orphans = sorted(set(_files(store)) - named)
    return result


def _commits(store: RunStore, plan: Plan, result: IntegrityReport) -> Iterator[Commit]:
    done = store.committed()
    missing = [shard.index for shard in plan.shards if shard.index not in done]
    if missing:
        result.problems.append(f"{len(missing)} shards are not committed: {missing[:10]}")
    unknown = sorted(set(done) - {shard.index for shard in plan.shards})
    if unknown:
        result.problems.append(f"commits of shards that the plan does not have: {unknown[:10]}")
    for index in sorted(set(done) - set(unknown)):
        try:
            yield store.commit_of(index)
        except Exception as error:  # a damaged record is a finding, not the end of the check
            result.problems.append(f"shard {index}: {error}")


def _check_shard(
    store: RunStore,
    plan: Plan,
    commit: Commit,
    result: IntegrityReport,
    seen: dict[str, list[npt.NDArray[np.uint64]]],
    named: set[str],
    decode: bool,
) -> SetDigest:
    state = SetDigest()
    for entry in commit.files:
        named.add(str(entry["path"]))
        table = _read(store, entry, result)
        if table is None:
            continue
        name = str(entry["table"])
        result.rows[name] += table.num_rows
        state = state.merge(table_digest(name, table))
        seen.setdefault(name, []).append(_keys(name, table))
        if decode and "image" in table.column_names:
            _check_pictures(name, table, result)
        if name == "samples":
            _check_planned(plan.shards[commit.shard], table, result)
    if state.state != commit.digest.state:
        result.problems.append(f"shard {commit.shard}: its rows do not give the committed digest")
    return state


def _read(store: RunStore, entry: dict[str, Any], result: IntegrityReport) -> pa.Table | None:
    path = str(entry["path"])
    try:
        data = store.storage.get(path)
    except OSError:
        result.problems.append(f"{path}: missing")
        return None
    result.bytes += len(data)
    if digest(data) != entry["sha256"]:
        result.problems.append(f"{path}: sha256 differs from the commit")
        return None
    try:
        table = from_parquet(data)
    except InputError as error:
        result.problems.append(f"{path}: {error}")
        return None
    if table.num_rows != entry["rows"]:
        result.problems.append(f"{path}: {table.num_rows} rows, {entry['rows']} committed")
    return table


def _keys(name: str, table: pa.Table) -> npt.NDArray[np.uint64]:
    columns = [table[part].to_pylist() for part in KEYS.get(name, tuple(table.column_names[:1]))]
    lines = (":".join(map(str, parts)) for parts in zip(*columns, strict=True))
    return np.fromiter((int(digest(line.encode())[:16], 16) for line in lines), dtype=np.uint64, count=table.num_rows)


def _check_ids(seen: dict[str, list[npt.NDArray[np.uint64]]], result: IntegrityReport) -> None:
    for name, parts in seen.items():
        keys = np.concatenate(parts) if parts else np.empty(0, np.uint64)
        double = len(keys) - len(np.unique(keys))
        if double and name != "quarantine":
            result.problems.append(f"{name}: {double} rows have an id that another row has")


def _check_planned(shard: Shard, table: pa.Table, result: IntegrityReport) -> None:
    """The samples of a shard must be exactly the condition rows it was given."""
    if any(piece.path == RANGE for piece in shard.inputs):
        return
    try:
        planned = shard.read(["sample_id"])["sample_id"].to_pylist()
    except (ConfigError, InputError):
        # The conditions may have been moved away since; then only the number can be held against the plan.
        if table.num_rows != shard.rows:
            result.problems.append(f"shard {shard.index}: {table.num_rows} rows, {shard.rows} planned")
        return
    if sorted(planned) != sorted(table["sample_id"].to_pylist()):
        result.problems.append(f"shard {shard.index}: its rows are not the planned ones")


def _check_pictures(name: str, table: pa.Table, result: IntegrityReport) -> None:
    ids = table[table.column_names[0]].to_pylist()
    hashes = table["image_sha256"].to_pylist() if "image_sha256" in table.column_names else [None] * len(ids)
    for row, value, sha in zip(ids, table["image"].to_pylist(), hashes, strict=True):
        if value is None:
            continue
        result.pictures += 1
        try:
            decode_image(value["bytes"])
        except InputError as error:
            result.problems.append(f"{name} {row}: {error}")
        if sha is not None and digest(value["bytes"]) != sha:
            result.problems.append(f"{name} {row}: image_sha256 differs")


def _check_end(store: RunStore, result: IntegrityReport) -> None:
    if not store.storage.exists("_SUCCESS"):
        result.problems.append("_SUCCESS is missing: the run has not ended well")
    elif store.manifest().get("set_digest") != result.set_digest:
        result.problems.append("MANIFEST.json has another set digest than the rows")


def _files(store: RunStore) -> Iterator[str]:
    for table in store.storage.names("data"):
        for name in store.storage.names(f"data/{table}"):
            yield f"data/{table}/{name}"
    for name in store.storage.names("quarantine"):
        yield f"quarantine/{name}"
