"""Integrity check of a stored run: every planned row exactly once, every byte as committed.

All files are read again, hashed, decoded and counted; nothing is taken from the run's own summary. Memory grows by
eight bytes a row.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raygen.core.config import parse
from raygen.core.errors import ConfigError, InputError, IntegrityError, RaygenError
from raygen.core.hashing import digest
from raygen.core.location import Location
from raygen.core.units import size
from raygen.exports.finalize import check
from raygen.store.filesystem import FileStore
from raygen.store.images import decode_image
from raygen.store.parquet import CONTENT_NAME, RANGE, from_parquet
from raygen.store.run_records import COMMIT_NAME
from raygen.store.run_store import Commit, Plan, RunStore, Shard, commits_sha256
from raygen.store.sealed import FILES, open_record, store_sha256
from raygen.store.set_digest import KEYS, SetDigest, table_digest

__all__ = ["IntegrityReport", "verify", "verify_folder"]


@dataclass
class IntegrityReport:
    """What was checked, and a sentence for each problem; `problems` is empty for an intact run.

    `files` counts the good files of an export's data set or of a `checkpoint`, and is None for other runs.
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
    checkpoint: bool = False

    def facts(self, *, decoded: bool) -> dict[str, object]:
        """What was checked, by name, to be printed. `decoded`: whether pictures were decoded."""
        if self.checkpoint:
            return {
                "files": f"{self.files:,} as they were written",
                "bytes": size(self.bytes),
                "orphans": len(self.orphans),
            }
        return {
            "run_id": self.run_id,
            "shards": f"{self.committed} of {self.shards} committed",
            "rows": dict(self.rows),
            "pictures": f"{self.pictures:,} {'decoded' if decoded else 'not decoded'}",
            **({} if self.files is None else {"data set": f"{self.files:,} files as they were exported"}),
            "bytes": size(self.bytes),
            "quarantined": self.quarantined,
            "set_digest": self.set_digest,
            "orphans": len(self.orphans),
        }

    @property
    def ok(self) -> bool:
        """Whether there are no problems. Orphans (files of tries that were not committed) are harmless."""
        return not self.problems


def verify_folder(url: str, attempt: int = 0, *, decode: bool = True) -> IntegrityReport:
    """`verify` of a run, or the check of a checkpoint folder and of the training that made it."""
    store = FileStore(url)
    marks = ("raygen.json", "training/history.jsonl", "model.safetensors")
    if any(store.exists(name) for name in marks) and not store.exists(f"attempt-{attempt:02d}"):
        return _verify_checkpoint(store)
    return verify(RunStore(url, attempt), decode=decode)


def _verify_checkpoint(store: FileStore) -> IntegrityReport:
    """Compare the files of a checkpoint, and those of its training, with the lists that were written after them."""
    report = IntegrityReport(store.url, checkpoint=True, files=0)
    found = dict(store.files(""))
    own = "config.json" if "raygen.json" not in found and "config.json" in found else "raygen.json"
    known = {own, *(["training/MANIFEST.json"] if any(name.startswith("training/") for name in found) else [])}
    for name in sorted(known, key=lambda name: name != own):
        try:
            sums = open_record(store.get(name), name).get(FILES)
        except FileNotFoundError:
            report.problems.append(f"{name}: missing: the training did not end")
            continue
        except IntegrityError as error:
            report.problems.append(str(error))
            continue
        if not isinstance(sums, dict):
            report.problems.append(f"{name} has no check sums of files")
            continue
        prefix = name.rpartition("/")[0] and f"{name.rpartition('/')[0]}/"
        problems = [
            f"{prefix}{path}{problem}"
            for path, sha256 in sums.items()
            if (problem := _differs(store, f"{prefix}{path}", sha256))
        ]
        report.problems += problems
        report.files = (report.files or 0) + len(sums) - len(problems)
        known |= {f"{prefix}{path}" for path in sums}
    report.bytes = sum(size for name, size in found.items() if name in known)
    report.orphans = sorted(found.keys() - known)
    return report


def _differs(store: FileStore, name: str, sha256: str) -> str:
    """What is wrong with a file; empty where nothing is."""
    try:
        return "" if store_sha256(store, name) == sha256 else ": sha256 differs from the one it was written with"
    except OSError as error:
        return f": cannot be read ({error.strerror or error})"


def verify(store: RunStore | str | Path, *, decode: bool = True) -> IntegrityReport:
    """Check every record, commit, file, row and picture of a run; `decode=False` does not decode the pictures.

    `store`: an attempt of a run; or a folder or URL, of a run or of a checkpoint, as for `raygen verify`. Problems are
    in the report, each with the name of its file. Raises `ConfigError` where there is no plan, or one of another
    raygen.
    """
    if not isinstance(store, RunStore):
        return verify_folder(parse(Location, str(store), "verify"), decode=decode)
    report = IntegrityReport(store.storage.url)
    try:
        plan = store.plan()
    except IntegrityError as error:  # nothing can be compared without the plan
        report.problems.append(str(error))
        return report
    report.run_id, report.shards = plan.run_id, len(plan.shards)
    commits = _read_commits(store, report)
    planned = {shard.index for shard in plan.shards}
    if missing := sorted(planned - set(store.committed())):
        report.problems.append(f"{len(missing)} shards are not committed: {missing[:10]}")
    if unknown := sorted(set(commits) - planned):
        report.problems.append(f"there are commits of shards that are not in the plan: {unknown[:10]}")
    row_keys: dict[str, list[npt.NDArray[np.uint64]]] = {}
    set_digest = SetDigest()
    committed_files: set[str] = set()
    for index in sorted(planned & set(commits)):
        commit = commits[index]
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
    _check_end(store, report, plan)
    folders = ["quarantine", *(f"data/{table}" for table in store.storage.names("data"))]
    stored = {f"{folder}/{name}" for folder in folders for name in store.storage.names(folder)}
    stored |= {f"commits/{name}" for name in store.storage.names("commits") if not COMMIT_NAME.fullmatch(name)}
    root, own = FileStore(store.url), f"attempt-{store.attempt:02d}/"
    left = root.leftovers()
    inside = {name.removeprefix(own) for name in left if name.startswith(own)}
    report.orphans = sorted((stored - committed_files) | inside)
    # Beside the attempt: those of its command, and of the runs below `out` that the command put together.
    report.orphans += [f"../{name}" for name in left if not name.startswith(own)]
    report.orphans += [f"../{upload.name} (an unfinished upload)" for upload in root.unfinished_uploads()]
    return report


def _read_commits(store: RunStore, report: IntegrityReport) -> dict[int, Commit]:
    """Shard -> its commit. A damaged one, also one that does not count, is a problem in the report."""
    commits: dict[int, Commit] = {}
    counting = set(store.committed().values())
    for name in store.storage.names("commits"):
        path = f"commits/{name}"
        if (parts := COMMIT_NAME.fullmatch(name)) is None:
            continue  # an orphan
        try:
            commit = Commit.from_json(store.storage.get(path), path)
        except (IntegrityError, OSError) as error:
            report.problems.append(str(error) if isinstance(error, IntegrityError) else f"{path}: {error}")
            continue
        if int(parts[1]) != commit.shard:
            report.problems.append(f"{path}: is the commit of shard {commit.shard}")
        elif name in counting:
            commits[commit.shard] = commit
    return commits


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
            except (
                ConfigError,
                InputError,
                IntegrityError,
            ):  # moved, removed or damaged: only the count can be checked
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


def _check_end(store: RunStore, report: IntegrityReport, plan: Plan) -> None:
    """Check the records of a finished run, stored listings, and the files of an exported data set."""
    if store.storage.exists("_SUCCESS"):
        report.problems += _records(store, report.set_digest)
    else:
        report.problems.append("_SUCCESS is missing: the run did not finish")
    for name in store.storage.names(""):  # run.json, and what a command adds
        if name.endswith(".json") and name not in ("plan.json", "MANIFEST.json", "ASSEMBLED.json"):
            report.problems += _damage(store, name)[1]
    root = FileStore(store.url)
    listed = {piece.path for shard in plan.shards for piece in shard.inputs}
    for name in root.names(""):
        if (named := CONTENT_NAME.search(name)) and not digest(root.get(name)).startswith(named[1]):
            report.problems.append(f"{name}: sha256 differs from the one in its name")
        listed.discard(root.address(name))
    inside = f"{root.address('')}/listing-"
    report.problems += [f"{path.rpartition('/')[2]}: missing" for path in sorted(listed) if path.startswith(inside)]
    if plan.kind == "export":
        try:
            data_set = check(store)
        except RaygenError as error:
            report.problems.append(f"the files of the data set cannot be checked: {error}")
            return
        report.files = data_set.files
        report.bytes += data_set.bytes
        report.problems += data_set.problems


def _damage(store: RunStore, name: str) -> tuple[dict[str, Any], list[str]]:
    """The fields of a sealed record of a run, and what is wrong with it."""
    try:
        return open_record(store.storage.get(name), name), []
    except FileNotFoundError:
        return {}, [f"{name}: missing"]
    except IntegrityError as error:
        return {}, [str(error)]


def _records(store: RunStore, set_digest: str) -> list[str]:
    """What is wrong with plan, manifest and `_SUCCESS`, which names the bytes of both and of the commits."""
    success, problems = _damage(store, "_SUCCESS")
    manifest, more = _damage(store, "MANIFEST.json")
    problems += more + _damage(store, "plan.json")[1]
    if manifest and manifest.get("set_digest") != set_digest:
        problems.append("MANIFEST.json has another set digest than the rows")
    if not success:
        return problems
    for name, key in (("plan.json", "plan_sha256"), ("MANIFEST.json", "manifest_sha256")):
        if store.storage.exists(name) and digest(store.storage.get(name)) != success.get(key):
            problems.append(f"{name}: sha256 differs from the one in _SUCCESS")
    sums = {name: digest(store.storage.get(f"commits/{name}")) for name in store.committed().values()}
    if commits_sha256(sums) != success.get("commits_sha256"):
        problems.append("commits: they are not those that _SUCCESS names")
    return problems
