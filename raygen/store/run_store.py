"""The commit protocol: plan, starts, content-addressed data, create-only commits, manifest.

A row is visible once its shard is committed. A file that no commit names is ignored.

    out/attempt-00/plan.json  starts/  data/<table>/  commits/  quarantine/  MANIFEST.json  _SUCCESS  run.json
"""

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from raygen.core.errors import ConfigError, IntegrityError
from raygen.core.hashing import canonical, digest
from raygen.store.filesystem import FileStore
from raygen.store.parquet import Slice, from_parquet, read_slice, to_parquet
from raygen.store.run_records import COMMIT_NAME, FORMAT, Commit, Plan, Shard, check_format, make_shards
from raygen.store.sealed import open_record, read_record, to_bytes
from raygen.store.set_digest import SetDigest, table_digest

__all__ = ["Commit", "Plan", "RunStore", "Shard", "commits_sha256", "make_shards", "open_input"]


class RunStore:
    """One attempt folder of one run."""

    def __init__(self, url: str, attempt: int = 0, *, create_only: bool | None = None) -> None:
        """`create_only`: as in the plan, for callers that know it; else the plan is read where it is needed."""
        self.url = url
        self.attempt = attempt
        self._create_only = create_only
        self.storage = FileStore(f"{str(url).rstrip('/')}/attempt-{attempt:02d}")

    # --- plan -----------------------------------------------------------------------------------------------

    def check(self, plan: Plan) -> None:
        """`ConfigError` where this folder cannot hold `plan`: it cannot be written, or has a run that has begun.

        Nothing is written.
        """
        self.storage.check_place()
        if not self.storage.exists("plan.json"):
            return
        stored = self.plan()
        if stored.run_id != plan.run_id and self._has_begun():
            changed = _changes(dict(stored.settings), json.loads(canonical(plan.settings))) or ["its inputs"]
            raise ConfigError(
                f"{self.storage.url} holds another run ({stored.run_id}, this one is {plan.run_id}); "
                f"different: {', '.join(changed)}. Choose another `out`, or the settings of that run"
            )

    def _has_begun(self) -> bool:
        return bool(self.storage.names("starts") or self.storage.names("commits"))

    def create(self, plan: Plan) -> bool:
        """Store the plan: whether it was not there. `ConfigError` as for `check`.

        The plan of a run whose settings were refused before its first shard was started is replaced.
        """
        if not self.storage.exists("plan.json"):
            plan = plan._replace(create_only=self.storage.creates_once())
            if self.storage.put_once("plan.json", plan.to_json()):
                self._create_only = plan.create_only
                return True
        stored = self.plan()
        self._create_only = stored.create_only
        if stored.run_id == plan.run_id:
            return False
        self.check(plan)
        self.storage.put("plan.json", plan._replace(create_only=stored.create_only).to_json())
        return True

    def withdraw(self) -> bool:
        """Remove the plan that `create` stored, where its settings were refused before a shard was started."""
        if self._has_begun():
            return False
        self.storage.remove("plan.json")
        if self.storage.local:
            for folder in (self.storage.path(""), FileStore(self.url).path("")):
                with suppress(OSError):  # there are other files
                    os.rmdir(folder)
        return True

    def plan(self) -> Plan:
        """The stored plan; `ConfigError` where there is none."""
        try:
            return Plan.from_json(self.storage.get("plan.json"), self.storage.url)
        except (FileNotFoundError, NotADirectoryError) as error:
            below = _runs_below(FileStore(self.url))
            hint = f"; there are runs in {', '.join(below)}" if below else ""
            raise ConfigError(f"{self.storage.url} holds no run (plan.json is missing){hint}") from error

    # --- shards ---------------------------------------------------------------------------------------------

    def begin(self, shard: int, launch: str, max_attempts: int) -> int:
        """Record the start of an attempt of `shard`: its number from 1 on, or 0 after `max_attempts` of this launch.

        Attempts are counted by launch: stopping and repeating a run uses up none, and a shard that kills its process is
        set aside after a few starts. `ConfigError` on a machine that does not see the folder of the run.
        """
        if self.storage.local and not self.storage.exists("plan.json"):
            raise ConfigError(
                f"{self.storage.url}: the machine {platform.node()} does not see this run; set `out` to a URL such as "
                "s3://bucket/run, or to a folder that all machines share"
            )
        for attempt in range(1, max_attempts + 1):
            record = canonical({"shard": shard, "time": time.time()})
            if self.storage.put_once(f"starts/shard-{shard:05d}.{launch}.a{attempt}.json", record):
                return attempt
        return 0

    def commit(
        self,
        shard: int,
        of: int,
        tables: Mapping[str, pa.Table],
        *,
        timings: Mapping[str, float],
        environment: Mapping[str, Any],
        reasons: Mapping[str, int],
    ) -> tuple[Commit, bool]:
        """Store `tables` and commit them: the commit that won, and whether its rows differ from these.

        `of`: number of shards. `reasons`: quarantined rows by reason.
        """
        state, files = SetDigest(), []
        for name in sorted(tables):
            table, data = tables[name], to_parquet(tables[name])
            if from_parquet(data, columns=[]).num_rows != table.num_rows:
                raise IntegrityError(f"shard {shard}: the Parquet file just built does not read back")
            sha = digest(data)
            folder = "quarantine" if name == "quarantine" else f"data/{name}"
            path = f"{folder}/shard-{shard:05d}-of-{of:05d}-{sha[:12]}.parquet"
            self.storage.put(path, data)
            files.append({"table": name, "path": path, "sha256": sha, "rows": table.num_rows, "bytes": len(data)})
            state = state.merge(table_digest(name, table))
        commit = Commit(
            shard, files, f"{state.state:x}", dict(reasons), dict(timings), dict(environment), round(time.time(), 3)
        )
        data = to_bytes(commit._asdict())
        if self.create_only:
            if self.storage.put_once(f"commits/shard-{shard:05d}.json", data):
                return commit, False
        elif shard not in self.committed():
            # Concurrent commits get different names, and readers take the smallest. One that is there already counts.
            self.storage.put(f"commits/shard-{shard:05d}-{digest(data)[:12]}.json", data)
        winner = self.commit_of(shard)
        return winner, winner.state != commit.state

    @property
    def create_only(self) -> bool:
        """Whether commits have fixed names, because the storage refuses a second one; `ConfigError` without a plan."""
        if self._create_only is None:
            self._create_only = self.plan().create_only
        return self._create_only

    # --- reading --------------------------------------------------------------------------------------------

    def committed(self) -> dict[int, str]:
        """Shard number -> name of its commit; of several, the smallest name."""
        commits: dict[int, str] = {}
        for name in self.storage.names("commits"):  # sorted
            if (parts := COMMIT_NAME.fullmatch(name)) is not None:
                commits.setdefault(int(parts[1]), name)
        return commits

    def is_committed(self, shard: int) -> bool:
        """Whether `shard` is committed: one request where commits have fixed names, else a listing."""
        if self.create_only:
            return self.storage.exists(f"commits/shard-{shard:05d}.json")
        return shard in self.committed()

    def commit_of(self, shard: int) -> Commit:
        """The commit of `shard`; `IntegrityError` where its record is missing or damaged."""
        name = self.committed().get(shard)
        if name is None:
            raise IntegrityError(f"{self.storage.url}: shard {shard} is not committed")
        return self._read_commit(name)

    def _read_commit(self, name: str, data: bytes | None = None) -> Commit:
        """The commit in the file `name`; its content `data` is read where it is not given."""
        address = f"{self.storage.url}/commits/{name}"
        commit = Commit.from_json(self.storage.get(f"commits/{name}") if data is None else data, address)
        if (parts := COMMIT_NAME.fullmatch(name)) is None or int(parts[1]) != commit.shard:
            raise IntegrityError(f"{address} is damaged: it says that it is of shard {commit.shard}")
        return commit

    def commits(self) -> Iterator[Commit]:
        """Every commit in the order of shards."""
        for _, name in sorted(self.committed().items()):
            yield self._read_commit(name)

    def missing(self, plan: Plan) -> list[Shard]:
        """Shards of the plan that are not committed."""
        done = self.committed()
        return [shard for shard in plan.shards if shard.index not in done]

    def slices(self, table: str) -> list[Slice]:
        """Every committed file of `table` as a whole slice, in the order of shards."""
        entries = [entry for commit in self.commits() for entry in commit.files if entry["table"] == table]
        return [Slice(self.storage.address(e["path"]), 0, int(e["rows"])) for e in entries if e["rows"]]

    def tables(self, table: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Committed rows of `table`, one shard at a time."""
        for piece in self.slices(table):
            yield read_slice(piece, columns)

    def has(self, table: str) -> bool:
        """Whether any shard committed rows of `table`."""
        first = next(self.commits(), None)
        return first is not None and any(entry["table"] == table for entry in first.files)

    # --- the end --------------------------------------------------------------------------------------------

    def finish(self, plan: Plan) -> dict[str, Any]:
        """Write MANIFEST.json and _SUCCESS from the commits of all shards; returns the manifest."""
        state, rows, reasons, size = SetDigest(), Counter[str](), Counter[str](), 0
        entries = []
        sums: dict[str, str] = {}
        for _, name in sorted(self.committed().items()):
            data = self.storage.get(f"commits/{name}")
            sums[name], commit = digest(data), self._read_commit(name, data)
            state = state.merge(commit.digest)
            reasons.update(commit.quarantined)
            for entry in commit.files:
                rows[entry["table"]] += int(entry["rows"])
                size += int(entry["bytes"])
                entries.append({key: entry[key] for key in ("table", "path", "sha256", "rows")})
        manifest = {
            "format": FORMAT,
            "kind": plan.kind,
            "run_id": plan.run_id,
            "shards": len(plan.shards),
            "planned_rows": plan.rows,
            "rows": dict(rows),
            "quarantined": dict(reasons),
            "bytes": size,
            "set_digest": state.hex(),
            "files": entries,
        }
        data = to_bytes(manifest)
        self.storage.put("MANIFEST.json", data)
        proof = {
            "plan_sha256": digest(self.storage.get("plan.json")),
            "manifest_sha256": digest(data),
            "commits_sha256": commits_sha256(sums),
        }
        self.storage.put("_SUCCESS", to_bytes({**{k: v for k, v in manifest.items() if k != "files"}, **proof}))
        return manifest

    def is_complete(self) -> bool:
        """Whether the run has ended with success."""
        return self.storage.exists("_SUCCESS")

    def manifest(self) -> dict[str, Any]:
        """MANIFEST.json; `ConfigError` where the run is not complete, or of another raygen."""
        try:
            data = self.storage.get("MANIFEST.json")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(f"{self.storage.url} is not complete (MANIFEST.json is missing)") from error
        name = f"{self.storage.url}/MANIFEST.json"
        check_format(read_record(data, name), self.storage.url)
        manifest = open_record(data, name)
        if not isinstance(manifest.get("format"), int) or not isinstance(manifest.get("set_digest"), str):
            raise IntegrityError(f"{name} is damaged")
        return manifest


def open_input(url: str, attempt: int | None = None) -> tuple[RunStore, str]:
    """The last complete attempt of an earlier run, and the digest of its rows; `ConfigError` where there is none.

    `attempt`: only this one.
    """
    root = FileStore(url)
    numbers = (name.removeprefix("attempt-") for name in root.names("") if name.startswith("attempt-"))
    attempts = [int(n) for n in numbers if n.isdigit() and attempt in (None, int(n))]
    for number in sorted(attempts, reverse=True):
        store = RunStore(url, number)
        if store.is_complete():
            return store, str(store.manifest()["set_digest"])
    raise ConfigError(f"{url}: no complete run is here" + (" (it has unfinished shards)" if attempts else ""))


def commits_sha256(sums: Mapping[str, str]) -> str:
    """The field of `_SUCCESS` that stands for all commits that count. `sums`: the sha256 of each by its name."""
    return digest("".join(f"{name} {sha256}\n" for name, sha256 in sorted(sums.items())).encode())


def _runs_below(root: FileStore) -> list[str]:
    """Folders below `root` that hold runs, at most two levels deep."""
    runs = []
    for name in sorted(root.names("")):
        inner = root.names(name) if "." not in name else []
        runs += [name] if "attempt-00" in inner else []
        runs += [f"{name}/{n}" for n in inner if "." not in n and "attempt-00" in root.names(f"{name}/{n}")]
    return runs


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the keys whose values differ."""
    changed = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changed += _changes(a, b, f"{prefix}{key}.")
        elif a != b:
            changed.append(f"{prefix}{key}")
    return changed
