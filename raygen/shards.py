"""One shard of work from rows to commit, and the loop over all shards of a plan.

Knows how a worker is driven: planned batches, finishing in threads while the device goes on, bad rows, tries,
time limits, commit. Does not know what the worker does, and not that Ray exists: `execute` takes the runner
that hands shards to `ShardWorker`s, of which `local_runner` is the plain loop.
"""

import faulthandler
import os
import platform
import sys
import threading
import time
import traceback
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import pyarrow as pa

from raygen.spec import InfrastructureError, IntegrityError, TooManyBadRows, Where, canonical
from raygen.store import Plan, Shard, Store
from raygen.tables import QUARANTINE, SCHEMAS, cast

__all__ = [
    "Outcome",
    "Progress",
    "Runner",
    "ShardTask",
    "ShardWorker",
    "Summary",
    "Tables",
    "Worker",
    "execute",
    "local_runner",
]

Tables = dict[str, pa.Table]
#: Batches that may be finishing while the device works on the next one.
AHEAD = 2


class Worker(Protocol):
    """Turns one batch of rows into tables. Built once in each actor."""

    def start(self, rows: pa.Table) -> Callable[[], Tables]:
        """Do the device's part now; the returned call does the rest and may run in another thread."""
        ...


@dataclass(frozen=True)
class ShardTask:
    """What an actor needs to know to work on any shard of a run. Small, and can be pickled."""

    url: str
    attempt: int
    batch: int
    shards: int
    launch: str
    tries: int
    timeout_s: float
    build: Callable[[], Worker]
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Summary:
    """What comes back from a shard: never rows, only counts."""

    shard: int
    status: str  # committed | present | failed | exhausted
    rows: int = 0
    bad: int = 0
    bytes: int = 0
    seconds: float = 0.0
    divergent: bool = False
    error: str = ""
    worker: str = ""


class ShardWorker:
    """Reads a shard's rows, runs the worker over its batches, commits. The body of an actor."""

    def __init__(self, task: ShardTask) -> None:
        self.task = task
        self.store = Store(task.url, task.attempt)
        self.worker = task.build()
        self.threads = ThreadPoolExecutor(AHEAD, thread_name_prefix="finish")

    def __call__(self, shard: Shard) -> Summary:
        """Work on one shard. Failures come back as a summary; only a dead process gives none."""
        began = time.time()
        if self.store.is_committed(shard.index):
            return Summary(shard.index, "present")
        attempt = self.store.begin(shard.index, self.task.launch, self.task.tries)
        if attempt == 0:
            return Summary(shard.index, "exhausted", error=f"{self.task.tries} starts without a commit")
        try:
            with _time_limit(self.task.timeout_s, f"shard {shard.index}"):
                return self._work(shard, attempt, began)
        except Exception as error:
            # An out-of-memory, a lost bucket, a defect: the try failed, no row did.
            trace = traceback.format_exc(limit=-6)
            sys.stderr.write(f"shard {shard.index}, try {attempt}:\n{trace}")
            return Summary(shard.index, "failed", error=f"{type(error).__name__}: {error}"[:500])

    def _work(self, shard: Shard, attempt: int, began: float) -> Summary:
        rows = shard.read(self.task.columns)
        read = time.time()
        tables, busy = self._run(rows)
        done = time.time()
        tables, reasons = _settle(tables)
        timings = {"started": began, "read_s": read - began, "work_s": done - read, "device_s": busy}
        commit, divergent = self.store.commit(
            shard.index, self.task.shards, tables, timings=timings, environment=self._environment(), reasons=reasons
        )
        size = sum(int(entry["bytes"]) for entry in commit.files)
        return Summary(
            shard.index, "committed", rows.num_rows, sum(reasons.values()), size, time.time() - began, divergent,
            f"try {attempt}" if attempt > 1 else "", f"{platform.node()}:{os.getpid()}",
        )  # fmt: skip

    def _run(self, rows: pa.Table) -> tuple[Tables, float]:
        """All batches of the shard; the seconds spent in the device's part."""
        pending: deque[Future[Tables]] = deque()
        parts: list[Tables] = []
        busy = 0.0
        for start in range(0, rows.num_rows, self.task.batch):
            before = time.perf_counter()
            finish = self.worker.start(rows.slice(start, self.task.batch))
            busy += time.perf_counter() - before
            pending.append(self.threads.submit(finish))
            if len(pending) > AHEAD:
                parts.append(pending.popleft().result())
        parts += [future.result() for future in pending]
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: pa.concat_tables([part[name] for part in parts if name in part]) for name in names}, busy

    def _environment(self) -> dict[str, Any]:
        own = getattr(self.worker, "environment", dict)
        return {**_versions(), **own(), "worker": f"{platform.node()}:{os.getpid()}"}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("raygen", "torch", "diffusers", "numpy", "pillow", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _settle(tables: Tables) -> tuple[Tables, dict[str, int]]:
    """Cast every table to its schema; rows with an error go to quarantine (SAMPLES keeps them as well)."""
    settled: Tables = {}
    refused: list[dict[str, str]] = []
    for name, table in tables.items():
        schema = SCHEMAS[name]
        if "error" in table.column_names:
            bad = table.filter(table["error"].is_valid())
            refused += [
                {"id": str(i), "table": name, "error": e}
                for i, e in zip(bad[schema.names[0]].to_pylist(), bad["error"].to_pylist(), strict=True)
            ]
            if "error" not in schema.names:
                table = table.filter(table["error"].is_null()).drop_columns(["error"])
        settled[name] = cast(table, schema)
    if refused:
        settled["quarantine"] = pa.Table.from_pylist(refused, QUARANTINE)
    return settled, dict(Counter(row["error"].split(":", 1)[0] for row in refused))


@contextmanager
def _time_limit(seconds: float, what: str) -> Iterator[None]:
    """End the process with every thread's stack on stderr if the block takes longer than `seconds`.

    A call stuck in a driver or in a dead socket cannot be interrupted from Python; a dead process can be
    replaced, and its shard is tried again.
    """

    def expire() -> None:
        sys.stderr.write(f"{what}: no end after {seconds:.0f} s; stacks follow\n")
        faulthandler.dump_traceback(all_threads=True)
        os._exit(4)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# --- the loop over shards -----------------------------------------------------------------------------------

Runner = Callable[[Sequence[Shard], ShardTask, Where], Iterator[Summary]]


def local_runner(shards: Sequence[Shard], task: ShardTask, where: Where) -> Iterator[Summary]:
    """Every shard in this process, one after the other."""
    worker = ShardWorker(task)
    for shard in shards:
        yield worker(shard)


@dataclass
class Progress:
    """Running totals of a run, for whoever prints them."""

    shards: int
    rows: int
    done_shards: int = 0
    done_rows: int = 0
    resumed_shards: int = 0
    bad: int = 0
    bytes: int = 0
    failed_tries: int = 0
    began: float = field(default_factory=time.time)
    new_rows: int = 0
    first_commit_s: float | None = None
    note: str = ""

    @property
    def rate(self) -> float:
        """New rows a second since the start."""
        return self.new_rows / max(time.time() - self.began, 1e-9)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at this rate; None before the first shard."""
        return (self.rows - self.done_rows) / self.rate if self.new_rows else None


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    manifest: Mapping[str, Any]
    progress: Progress
    divergent: tuple[int, ...]


def execute(
    store: Store,
    plan: Plan,
    build: Callable[[], Worker],
    where: Where,
    runner: Runner,
    *,
    bad_rows: float,
    columns: tuple[str, ...] | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Make every shard of `plan` count, or say why not.

    Raises `InfrastructureError` where shards are left over, `TooManyBadRows` above the fraction `bad_rows`,
    `IntegrityError` where two tries of one shard gave different rows. `run.json` is written in every case.
    """
    store.storage.require()
    store.create(plan)
    task = ShardTask(
        store.url, store.attempt, plan.batch, len(plan.shards), uuid.uuid4().hex[:8],
        where.tries, where.shard_timeout_s, build, columns,
    )  # fmt: skip
    progress = Progress(len(plan.shards), plan.rows)
    divergent: list[int] = []
    errors: list[str] = []
    try:
        _rounds(store, plan, task, where, runner, progress, divergent, errors, report)
        outcome = _conclude(store, plan, progress, divergent, errors, bad_rows)
    except BaseException as error:
        _record(store, plan, progress, getattr(error, "exit_code", 130), f"{type(error).__name__}: {error}", where)
        raise
    _record(store, plan, progress, 0, "", where, outcome.manifest)
    return outcome


def _rounds(
    store: Store,
    plan: Plan,
    task: ShardTask,
    where: Where,
    runner: Runner,
    progress: Progress,
    divergent: list[int],
    errors: list[str],
    report: Callable[[Progress], None],
) -> None:
    """Hand out what is missing until nothing is, at most `tries` times."""
    todo = store.missing(plan)
    progress.resumed_shards = progress.done_shards = len(plan.shards) - len(todo)
    progress.done_rows = plan.rows - sum(shard.rows for shard in todo)
    report(progress)
    for _ in range(where.tries):
        if not todo:
            return
        for summary in runner(todo, task, where):
            _count(summary, plan, progress, divergent, errors)
            report(progress)
        todo = store.missing(plan)


def _count(summary: Summary, plan: Plan, progress: Progress, divergent: list[int], errors: list[str]) -> None:
    if summary.status in ("committed", "present"):
        progress.done_shards += 1
        progress.done_rows += plan.shards[summary.shard].rows
        progress.new_rows += summary.rows
        progress.bad += summary.bad
        progress.bytes += summary.bytes
        if progress.first_commit_s is None:
            progress.first_commit_s = time.time() - progress.began
    else:
        progress.failed_tries += 1
        errors.append(f"shard {summary.shard}: {summary.error}")
    if summary.divergent:
        divergent.append(summary.shard)


def _conclude(
    store: Store, plan: Plan, progress: Progress, divergent: list[int], errors: list[str], bad_rows: float
) -> Outcome:
    missing = store.missing(plan)
    if missing:
        detail = "; ".join(dict.fromkeys(errors)) or "no worker finished them"
        raise InfrastructureError(f"{len(missing)} of {len(plan.shards)} shards are not committed: {detail[:1500]}")
    reasons: Counter[str] = Counter()
    for commit in store.commits():
        reasons.update(commit.quarantined)
    bad = sum(reasons.values())
    progress.bad = bad
    if bad > bad_rows * plan.rows:
        listed = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common(5))
        raise TooManyBadRows(f"{bad} of {plan.rows} rows failed ({listed}); at most {bad_rows:.2%} are allowed")
    manifest = store.finish(plan)
    if divergent:
        raise IntegrityError(f"shards {divergent[:20]} gave other rows on a second try; the first ones count")
    return Outcome(manifest, progress, tuple(divergent))


def _record(
    store: Store,
    plan: Plan,
    progress: Progress,
    exit_code: int,
    error: str,
    where: Where,
    manifest: Mapping[str, Any] | None = None,
) -> None:
    """run.json: how this command ended, beside what it made."""
    seconds = time.time() - progress.began
    record = {
        "run_id": plan.run_id, "kind": plan.kind, "exit_code": exit_code, "error": error[:2000],
        "shards": progress.shards, "committed_shards": progress.done_shards, "resumed_shards": progress.resumed_shards,
        "rows": progress.rows, "new_rows": progress.new_rows, "bad_rows": progress.bad,
        "failed_tries": progress.failed_tries, "seconds": round(seconds, 3),
        "rows_per_s": round(progress.new_rows / max(seconds, 1e-9), 3), "first_commit_s": progress.first_commit_s,
        "set_digest": (manifest or {}).get("set_digest"), "where": where.model_dump(mode="json"),
        "versions": _versions(), "finished": time.time(),
    }  # fmt: skip
    store.storage.put("run.json", canonical(record))
