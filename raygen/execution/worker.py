"""One shard of work from rows to commit: the body of an actor.

Knows how a worker is driven: planned batches, finishing in threads while the device goes on, bad rows, tries,
time limits, commit. Does not know what the worker does, who hands out shards, or that Ray exists.
"""

import faulthandler
import os
import platform
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from raygen.store.run_store import RunStore, Shard
from raygen.store.schemas import QUARANTINE, SCHEMAS, cast

__all__ = [
    "RunTarget",
    "ShardItem",
    "ShardSummary",
    "ShardTask",
    "ShardWorker",
    "SingleWorker",
    "Tables",
    "Worker",
    "WorkerFactory",
    "versions",
]


Tables = dict[str, pa.Table]
#: Batches that may be finishing while the device works on the next one.
MAX_PENDING = 2


class Worker(Protocol):
    """Turns one batch of rows into tables. Built once in each actor."""

    def start(self, rows: pa.Table) -> Callable[[], Tables]:
        """Do the device's part now; the returned call does the rest and may run in another thread."""
        ...


#: The worker of each place that an actor works for; what places have in common is loaded once.
WorkerFactory = Callable[[int], Worker]


@dataclass(frozen=True)
class SingleWorker:
    """How the bench of a single place is built: one worker, whichever is asked for."""

    build: Callable[[], Worker]

    def __call__(self) -> WorkerFactory:
        """Build it."""
        worker = self.build()
        return lambda place: worker


@dataclass(frozen=True)
class RunTarget:
    """Where one run's shards go, and how they are cut."""

    url: str
    attempt: int
    batch: int
    shards: int
    columns: tuple[str, ...] | None = None


class ShardItem(NamedTuple):
    """What an actor is handed: a shard, and the number of the place that it belongs to."""

    place: int
    shard: Shard


@dataclass(frozen=True)
class ShardTask:
    """What an actor needs to know to work on any item of a pass. Small, and can be pickled."""

    places: tuple[RunTarget, ...]
    launch: str
    max_attempts: int
    timeout_s: float
    build: Callable[[], WorkerFactory]


@dataclass(frozen=True)
class ShardSummary:
    """What comes back from an item: never rows, only counts."""

    place: int
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
        self.bench = task.build()
        self.threads = ThreadPoolExecutor(MAX_PENDING, thread_name_prefix="finish")

    def __call__(self, item: ShardItem) -> ShardSummary:
        """Work on one item. Failures come back as a summary; only a dead process gives none."""
        began = time.time()
        place = self.task.places[item.place]
        store, index = RunStore(place.url, place.attempt), item.shard.index
        if store.is_committed(index):
            return ShardSummary(item.place, index, "present")
        attempt = store.begin(index, self.task.launch, self.task.max_attempts)
        if attempt == 0:
            return ShardSummary(
                item.place, index, "exhausted", error=f"{self.task.max_attempts} starts without a commit"
            )
        try:
            with _time_limit(self.task.timeout_s, f"shard {index}"):
                return self._work(item, store, attempt, began)
        except Exception as error:
            # An out-of-memory, a lost bucket, a defect: the try failed, no row did.
            trace = traceback.format_exc(limit=-6)
            sys.stderr.write(f"shard {index}, try {attempt}:\n{trace}")
            return ShardSummary(item.place, index, "failed", error=f"{type(error).__name__}: {error}"[:500])

    def _work(self, item: ShardItem, store: RunStore, attempt: int, began: float) -> ShardSummary:
        place, index = self.task.places[item.place], item.shard.index
        worker = self.bench(item.place)
        rows = item.shard.read(place.columns)
        read = time.time()
        tables, busy = self._run(worker, rows, place.batch)
        done = time.time()
        tables, reasons = _cast_tables(tables)
        timings = {"started": began, "read_s": read - began, "work_s": done - read, "device_s": busy}
        commit, divergent = store.commit(
            index, place.shards, tables, timings=timings, environment=_environment(worker), reasons=reasons
        )
        size = sum(int(entry["bytes"]) for entry in commit.files)
        return ShardSummary(
            item.place,
            index,
            "committed",
            rows.num_rows,
            sum(reasons.values()),
            size,
            time.time() - began,
            divergent,
            f"try {attempt}" if attempt > 1 else "",
            f"{platform.node()}:{os.getpid()}",
        )

    def _run(self, worker: Worker, rows: pa.Table, batch: int) -> tuple[Tables, float]:
        """All batches of the shard; the seconds spent in the device's part."""
        pending: deque[Future[Tables]] = deque()
        parts: list[Tables] = []
        busy = 0.0
        for start in range(0, rows.num_rows, batch):
            before = time.perf_counter()
            finish = worker.start(rows.slice(start, batch))
            busy += time.perf_counter() - before
            pending.append(self.threads.submit(finish))
            if len(pending) > MAX_PENDING:
                parts.append(pending.popleft().result())
        parts += [future.result() for future in pending]
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: pa.concat_tables([part[name] for part in parts if name in part]) for name in names}, busy


def _environment(worker: Worker) -> dict[str, Any]:
    own = getattr(worker, "environment", dict)
    return {**versions(), **own(), "worker": f"{platform.node()}:{os.getpid()}"}


def versions() -> dict[str, str]:
    """The Python, the machine and the packages that output bytes depend on, by name."""
    packages = ("raygen", "torch", "diffusers", "numpy", "pillow", "pyarrow")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: _installed_version(name) for name in packages},
    }


@cache  # each look-up parses a package's whole METADATA file, and every commit asks for six
def _installed_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _cast_tables(tables: Tables) -> tuple[Tables, dict[str, int]]:
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
