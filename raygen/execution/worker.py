"""One shard of work from input rows to commit: what an actor does.

`ShardWorker` drives any `Worker`: planned batches, threads that finish a batch while the device starts the next one,
failed rows, attempts, time limits, commit. It knows neither Ray nor what the worker computes.
"""

import faulthandler
import os
import platform
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import pyarrow as pa

from raygen.core.errors import ConfigError, InputError, IntegrityError, RaygenError, StorageError, to_record
from raygen.core.version import __version__
from raygen.store.filesystem import PERMANENT
from raygen.store.run_store import RunStore, Shard
from raygen.store.schemas import QUARANTINE, SCHEMAS, cast

__all__ = [
    "RunTarget",
    "ShardItem",
    "ShardSummary",
    "ShardTask",
    "ShardWorker",
    "SharedWorker",
    "Tables",
    "Worker",
    "WorkerFactory",
    "failed_rows",
    "reasons_of",
    "versions",
]


T = TypeVar("T")
Tables = dict[str, pa.Table]
#: Batches that may be in their second half (see `Worker.start`) while the device works on the next one.
MAX_PENDING = 2


class Worker(Protocol):
    """Turns one batch of rows into tables. Built once in each actor."""

    def start(self, rows: pa.Table) -> Callable[[], Tables]:
        """Do the device's work now. The returned call does the rest and may run in another thread."""
        ...


@runtime_checkable
class SharedWorker(Protocol):
    """The workers of several runs in one actor, so that they can share loaded networks."""

    def for_run(self, run: int) -> Worker:
        """The worker of run number `run` of `ShardTask.runs`."""
        ...


#: Called once in each actor. Has to be picklable: usually a `functools.partial` of a worker class.
WorkerFactory = Callable[[], Worker] | Callable[[], SharedWorker]


@dataclass(frozen=True)
class RunTarget:
    """Where the shards of one run go, and how they are cut."""

    url: str
    attempt: int
    batch: int
    shards: int
    columns: tuple[str, ...] | None = None
    create_only: bool | None = None


class ShardItem(NamedTuple):
    """A shard, and the number of its run in `ShardTask.runs`."""

    run: int
    shard: Shard


@dataclass(frozen=True)
class ShardTask:
    """What an actor needs to work on any shard of the runs. Small and picklable.

    `launch` names this call of the driver; attempts of a shard are counted by launch.
    """

    runs: tuple[RunTarget, ...]
    launch: str
    max_attempts: int
    timeout_s: float
    build: WorkerFactory


@dataclass(frozen=True)
class ShardSummary:
    """Result of one shard: counts only, no rows."""

    run: int
    shard: int
    status: str  # committed | present | failed | exhausted | refused
    rows: int = 0
    bad: int = 0
    bytes: int = 0
    seconds: float = 0.0
    divergent: bool = False
    error: str = ""
    worker: str = ""
    refusal: dict[str, str] | None = None  # `to_record` of an error that raygen raised on purpose


class ShardWorker:
    """Reads the rows of a shard, runs the worker on its batches, commits. The body of an actor.

    Two shards may be in work: while one is encoded, hashed and committed, the next one has the device. Only the first
    attempt of a shard runs beside another one. Later attempts are alone in their process, so that a shard that kills
    its process uses up no attempts of others. With `max_attempts` 1 every attempt is alone.
    """

    def __init__(self, task: ShardTask) -> None:
        self.task = task
        self.refusal: dict[str, str] | None = None
        try:
            self.worker = task.build()
        except RaygenError as error:  # a dead actor would be started again, and Ray would print its stack each time
            self.refusal = to_record(error)
        self.threads = ThreadPoolExecutor(MAX_PENDING, thread_name_prefix="finish")
        # A shard takes the second lock before it gives up the first one, so at most two shards are in memory.
        self.device, self.committing = threading.Lock(), threading.Lock()

    def __call__(self, item: ShardItem) -> ShardSummary:
        """Work on a shard, for two threads at a time. A failure is returned; only a dead process returns none."""
        started = self.start(item)
        return started if isinstance(started, ShardSummary) else started()

    def start(self, item: ShardItem) -> ShardSummary | Callable[[], ShardSummary]:
        """The device's part of a shard, as soon as the device is free: how it ended, or the call that does the rest.

        That call has to be made, by this thread or by another one; the next start may wait for it.
        """
        if self.refusal is not None:
            return ShardSummary(item.run, item.shard.index, "refused", refusal=self.refusal)
        with ExitStack() as held:
            finish = self._guarded(item, partial(self._on_device, item, held))
            if isinstance(finish, ShardSummary):
                return finish
            until_the_end = held.pop_all()

        def rest() -> ShardSummary:
            with until_the_end:
                return self._guarded(item, finish)

        return rest

    def _guarded(self, item: ShardItem, step: Callable[[], T]) -> T | ShardSummary:
        """What `step` returns, or how it failed."""
        index = item.shard.index
        try:
            return step()
        except (ConfigError, StorageError) as error:  # every attempt would meet it
            return ShardSummary(item.run, index, "refused", refusal=to_record(error))
        except (InputError, IntegrityError) as error:  # a file that reads badly may have been read badly
            return ShardSummary(item.run, index, "failed", error=str(error), refusal=to_record(error))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in PERMANENT:
                full = StorageError(f"shard {index}: {error.strerror}")
                return ShardSummary(item.run, index, "refused", refusal=to_record(full))
            # Out of memory, a lost bucket or a defect fails the attempt. It never becomes a failed row.
            trace = traceback.format_exc(limit=-6)
            sys.stderr.write(f"shard {index}:\n{trace}")
            return ShardSummary(item.run, index, "failed", error=f"{type(error).__name__}: {error}"[:500])

    def _on_device(self, item: ShardItem, held: ExitStack) -> ShardSummary | Callable[[], ShardSummary]:
        """Begin an attempt and do the device's part of it; `held` gets what the attempt holds until its end."""
        target, index, limit = self.task.runs[item.run], item.shard.index, self.task.timeout_s
        store = RunStore(target.url, target.attempt, create_only=target.create_only)
        with _time_limit(limit, f"shard {index}"):
            if store.is_committed(index):
                return ShardSummary(item.run, index, "present")
            attempt = _Attempt.begin(item, store, self.task, 1) if self.task.max_attempts > 1 else None
        alone = attempt is None
        with self.device:
            if alone:
                held.enter_context(self.committing)
            held.enter_context(_time_limit(limit, f"shard {index}"))
            attempt = attempt or _Attempt.begin(item, store, self.task, self.task.max_attempts)
            if attempt is None:
                error = f"{self.task.max_attempts} starts without a commit"
                return ShardSummary(item.run, index, "exhausted", error=error)
            attempt.run(
                self.worker.for_run(item.run) if isinstance(self.worker, SharedWorker) else self.worker, self.threads
            )
            if alone:
                return attempt.commit()
            held.enter_context(self.committing)
        return attempt.commit


class _Attempt:
    """One attempt of a shard."""

    def __init__(self, item: ShardItem, store: RunStore, target: RunTarget, number: int) -> None:
        self.item, self.store, self.target, self.number = item, store, target, number
        before = time.time()
        self.rows = item.shard.read(target.columns)
        self.timings = {"read_s": time.time() - before}
        self.parts: list[Future[Tables]] = []
        self.environment: dict[str, str] = {}

    @classmethod
    def begin(cls, item: ShardItem, store: RunStore, task: ShardTask, most: int) -> "_Attempt | None":
        """Record an attempt and read the rows; None if `most` attempts were begun before."""
        number = store.begin(item.shard.index, task.launch, most)
        return cls(item, store, task.runs[item.run], number) if number else None

    def run(self, worker: Worker, threads: ThreadPoolExecutor) -> None:
        """Start the batches one after the other; `threads` finish them, and at most `MAX_PENDING` wait for that."""
        self.timings["started"] = time.time()  # reading and waiting for the device was beside another shard
        device_s = 0.0
        for start in range(0, self.rows.num_rows, self.target.batch):
            before = time.perf_counter()
            finish = worker.start(self.rows.slice(start, self.target.batch))
            device_s += time.perf_counter() - before
            self.parts.append(threads.submit(finish))
            if len(self.parts) > MAX_PENDING:
                self.parts[-1 - MAX_PENDING].result()
        self.timings["device_s"] = device_s
        own_environment = getattr(worker, "environment", dict)
        self.environment = {**versions(), **own_environment(), "worker": f"{platform.node()}:{os.getpid()}"}

    def commit(self) -> ShardSummary:
        """Wait for the batches and commit their tables."""
        parts = [part.result() for part in self.parts]
        names = dict.fromkeys(name for part in parts for name in part)
        tables = {name: pa.concat_tables([part[name] for part in parts if name in part]) for name in names}
        self.timings["work_s"] = time.time() - self.timings["started"]
        tables, reasons = _cast_tables(tables)
        commit, divergent = self.store.commit(
            self.item.shard.index,
            self.target.shards,
            tables,
            timings=self.timings,
            environment=self.environment,
            reasons=reasons,
        )
        return ShardSummary(
            self.item.run,
            self.item.shard.index,
            "committed",
            rows=self.rows.num_rows,
            bad=sum(reasons.values()),
            bytes=sum(int(entry["bytes"]) for entry in commit.files),
            seconds=time.time() - self.timings["started"],
            divergent=divergent,
            error=f"attempt {self.number}" if self.number > 1 else "",
            worker=self.environment["worker"],
        )


def versions() -> dict[str, str]:
    """The Python, the machine and the packages that output bytes depend on, by name."""
    packages = ("torch", "diffusers", "numpy", "pillow", "pyarrow")
    return {
        "raygen": __version__,
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
    """Every table in its schema, with the table `quarantine` of failed rows; and the failed rows by reason.

    SAMPLES also keeps its failed rows.
    """
    typed: Tables = {}
    for name, table in tables.items():
        schema = SCHEMAS[name]
        if "error" in table.column_names and "error" not in schema.names:
            table = table.filter(table["error"].is_null()).drop_columns(["error"])
        typed[name] = cast(table, schema)
    failed = failed_rows(tables)
    if failed:
        typed["quarantine"] = pa.Table.from_pylist(failed, QUARANTINE)
    return typed, reasons_of(failed)


def failed_rows(tables: Tables) -> list[dict[str, str]]:
    """QUARANTINE rows of a worker's tables: those with an error."""
    failed: list[dict[str, str]] = []
    for name, table in tables.items():
        if "error" in table.column_names:
            bad = table.filter(table["error"].is_valid())
            ids, errors = bad[SCHEMAS[name].names[0]].to_pylist(), bad["error"].to_pylist()
            failed += [{"id": str(i), "table": name, "error": e} for i, e in zip(ids, errors, strict=True)]
    return failed


def reasons_of(failed: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """QUARANTINE rows by the first word of their error."""
    return dict(Counter(row["error"].split(":", 1)[0] for row in failed))


@contextmanager
def _time_limit(seconds: float, task: str) -> Iterator[None]:
    """End the process, with the stacks of all threads on stderr, if the block takes longer than `seconds`.

    A call that hangs in a driver or a dead socket cannot be interrupted from Python. A dead process is replaced, and
    its shard is attempted again.
    """

    def expire() -> None:
        sys.stderr.write(f"{task}: no end after {seconds:.0f} s; stacks follow\n")
        faulthandler.dump_traceback(all_threads=True)
        os._exit(4)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
