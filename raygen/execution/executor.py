"""The loop over the missing shards of one run or of several runs.

`execute` takes a runner, which hands shards to `ShardWorker`s: `local_runner` here, `ray_runner` in
`raygen.execution.ray.actors`.
"""

import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from raygen.core.config import Resources
from raygen.core.errors import (
    ConfigError,
    InfrastructureError,
    InputError,
    IntegrityError,
    RaygenError,
    TooManyBadRows,
    from_record,
)
from raygen.core.location import redact
from raygen.execution.bottleneck import WorkerTime
from raygen.execution.shared_actors import built_first
from raygen.execution.worker import (
    RunTarget,
    ShardItem,
    ShardSummary,
    ShardTask,
    ShardWorker,
    WorkerFactory,
    versions,
)
from raygen.store.run_store import Plan, RunStore
from raygen.store.sealed import open_record, to_bytes

__all__ = [
    "Outcome",
    "PlannedRun",
    "Progress",
    "Runner",
    "amend_record",
    "bad_rows_text",
    "execute",
    "execute_all",
    "local_runner",
]


#: Yields summaries, and between them sentences on what it waits for (empty: nothing).
Runner = Callable[[Sequence[ShardItem], ShardTask, Resources], Iterator[ShardSummary | str]]


def local_runner(items: Sequence[ShardItem], task: ShardTask, resources: Resources) -> Iterator[ShardSummary | str]:
    """Work on the shards one after the other, in this process; a thread commits one while the next is begun."""
    worker = ShardWorker(task)
    with ThreadPoolExecutor(1, thread_name_prefix="commit") as thread:
        last: Future[ShardSummary] | None = None
        for item in items:
            started = worker.start(item)
            following = None if isinstance(started, ShardSummary) else thread.submit(started)
            if last is not None:
                yield last.result()
            if isinstance(started, ShardSummary):
                yield started
            last = following
        if last is not None:
            yield last.result()


@dataclass
class Progress:
    """Counts of a run so far."""

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
    stage: str = ""  # part of a job that has several
    waiting: str = ""  # what the cluster lacks

    @property
    def rate(self) -> float:
        """New rows a second since the start."""
        return self.new_rows / max(time.time() - self.began, 1e-9)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at this rate; None before the first shard."""
        return max(self.rows - self.done_rows, 0) / self.rate if self.new_rows else None

    @staticmethod
    def together(parts: Sequence["Progress"]) -> "Progress":
        """The sum over runs that are executed together."""
        if len(parts) == 1:
            return parts[0]
        names = ("shards", "rows", "done_shards", "done_rows", "resumed_shards", "bad", "bytes", "failed_tries")
        sums = {name: sum(getattr(part, name) for part in parts) for name in (*names, "new_rows")}
        first_commits = [part.first_commit_s for part in parts if part.first_commit_s is not None]
        began = min(part.began for part in parts)
        return Progress(**sums, began=began, first_commit_s=min(first_commits, default=None))


@dataclass(frozen=True)
class Outcome:
    """The manifest of a complete run, its counts, the shards whose attempts differed, and what workers waited for."""

    manifest: Mapping[str, Any]
    progress: Progress
    divergent: tuple[int, ...]
    waited: str = ""


@dataclass(frozen=True)
class PlannedRun:
    """A run to execute: its folder, its plan, the fraction of rows that may fail, the input columns it reads.

    `without_rows`: why the run may end without any row, which is then an `InputError`; empty where it may.
    """

    store: RunStore
    plan: Plan
    max_error_fraction: float
    columns: tuple[str, ...] | None = None
    without_rows: str = ""

    @property
    def target(self) -> RunTarget:
        """The part of it that an actor needs."""
        shards, create_only = len(self.plan.shards), self.store.create_only
        return RunTarget(self.store.url, self.store.attempt, self.plan.batch, shards, self.columns, create_only)


class _RunState:
    """Progress of one run, and how it ends."""

    def __init__(self, run: PlannedRun, number: int, runs: int) -> None:
        """`number`: the place of this run among the `runs` that are executed together."""
        self.run, self.number, self.runs = run, number, runs
        self.first_shard, self.last_shard = math.inf, 0.0  # times of the begin of one and the end of the other
        self.divergent: list[int] = []
        self.errors: list[str] = []
        self.refusal: dict[str, str] | None = None
        self.unchanged = False
        self.progress = Progress(len(run.plan.shards), run.plan.rows)

    def resume(self) -> None:
        """Count the shards that earlier commands committed."""
        missing, progress = self.run.store.missing(self.run.plan), self.progress
        progress.resumed_shards = progress.done_shards = progress.shards - len(missing)
        progress.done_rows = progress.rows - sum(shard.rows for shard in missing)
        self.unchanged = not missing and self.run.store.is_complete()

    def count(self, summary: ShardSummary) -> None:
        """Add the result of one attempt of a shard."""
        progress, now = self.progress, time.time()
        self.first_shard, self.last_shard = min(self.first_shard, now - summary.seconds), now
        if summary.status in ("committed", "present"):
            progress.done_shards += 1
            progress.done_rows += self.run.plan.shards[summary.shard].rows
            progress.new_rows += summary.rows
            progress.bad += summary.bad
            progress.bytes += summary.bytes
            if progress.first_commit_s is None:
                progress.first_commit_s = time.time() - progress.began
        else:
            progress.failed_tries += 1
            self.errors.append(f"shard {summary.shard}: {summary.error}")
            self.refusal = summary.refusal or self.refusal
        if summary.divergent:
            self.divergent.append(summary.shard)

    def conclude(self) -> Outcome:
        """Write the manifest of the complete run; see `execute` for the errors."""
        store, plan = self.run.store, self.run.plan
        missing = store.missing(plan)
        if missing and self.refusal is not None:
            raise from_record(self.refusal)
        if missing:
            detail = "; ".join(dict.fromkeys(self.errors)) or "no worker finished them"
            raise InfrastructureError(f"{len(missing)} of {len(plan.shards)} shards are not committed: {detail[:1500]}")
        reasons: Counter[str] = Counter()
        rows, worker_time = 0, WorkerTime()
        for commit in store.commits():
            worker_time.add(commit)
            reasons.update(commit.quarantined)
            rows += sum(int(entry["rows"]) for entry in commit.files)
        if rows == 0 and self.run.without_rows:
            raise InputError(f"{store.url}: no rows: {self.run.without_rows}", reason="empty")
        bad = self.progress.bad = sum(reasons.values())
        if bad > self.run.max_error_fraction * plan.rows:
            text = bad_rows_text(bad, plan.rows, reasons, next(_quarantined(store), None))
            raise TooManyBadRows(
                f"{text}; at most {self.run.max_error_fraction:.2%} are allowed. Correct these inputs, or allow more "
                f"with `max_error_fraction`; every failed row and its reason is in {store.storage.url}/quarantine"
            )
        manifest = store.manifest() if self.unchanged else store.finish(plan)
        if self.divergent:
            raise IntegrityError(
                f"shards {self.divergent[:20]} gave other rows in a second attempt; the first commit is kept"
            )
        return Outcome(manifest, self.progress, tuple(self.divergent), worker_time.sentence(plan.settings))

    def record(
        self, resources: Resources, error: BaseException | None, manifest: Mapping[str, Any] | None = None
    ) -> None:
        """Write run.json: exit code, error, counts, resources and versions of this command.

        Nothing is written where the run was complete before: run.json then tells how its rows were made.
        """
        if self.unchanged:
            if error is None:
                amend_record(self.run.store, None)  # the command that made the rows may have failed after that
            return
        plan, progress = self.run.plan, self.progress
        began, ended = progress.began, time.time()
        if self.runs > 1 and self.last_shard:  # the time of the other runs is not of this one
            began, ended = self.first_shard if self.number else began, self.last_shard
        seconds = ended - began
        record = {
            "run_id": plan.run_id,
            "kind": plan.kind,
            **_outcome_of(error),
            "shards": progress.shards,
            "committed_shards": progress.done_shards,
            "resumed_shards": progress.resumed_shards,
            "rows": progress.rows,
            "new_rows": progress.new_rows,
            "bad_rows": progress.bad,
            "failed_tries": progress.failed_tries,
            "seconds": round(seconds, 3),
            "rows_per_s": round(progress.new_rows / max(seconds, 1e-9), 3),
            "first_commit_s": progress.first_commit_s,
            "set_digest": (manifest or {}).get("set_digest"),
            "resources": resources.model_dump(mode="json"),
            "versions": versions(),
            "finished": ended,
        }
        self.run.store.storage.put("run.json", to_bytes(record))


def _outcome_of(error: BaseException | None) -> dict[str, object]:
    """Exit code and error of run.json."""
    if error is None:
        return {"exit_code": 0, "error": ""}
    other = InfrastructureError.exit_code if isinstance(error, OSError) else 1
    code = getattr(error, "exit_code", other if isinstance(error, Exception) else 130)
    return {"exit_code": code, "error": redact(f"{type(error).__name__}: {error}")[:2000]}


def amend_record(store: RunStore, error: BaseException | None) -> None:
    """Write into run.json how a command ended that went on after the shards of `store`."""
    with suppress(FileNotFoundError):
        record = open_record(store.storage.get("run.json"), "run.json")
        store.storage.update("run.json", to_bytes({**record, **_outcome_of(error)}))


def bad_rows_text(bad: int, rows: int, reasons: Mapping[str, int], example: Mapping[str, str] | None) -> str:
    """`4 of 40 rows failed (identity 4), such as a: identity: ...`; `example` is a QUARANTINE row."""
    listed = ", ".join(f"{reason} {n}" for reason, n in Counter(reasons).most_common(5))
    such = f", such as {example['id']}: {example['error']}" if example else ""
    return f"{bad} of {rows} rows failed ({listed}){such}"


def _quarantined(store: RunStore) -> Iterator[dict[str, str]]:
    """QUARANTINE rows in the order of shards."""
    for table in store.tables("quarantine"):
        yield from table.to_pylist()


def execute(
    store: RunStore,
    plan: Plan,
    build: WorkerFactory,
    resources: Resources,
    runner: Runner,
    *,
    max_error_fraction: float,
    columns: tuple[str, ...] | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Commit every missing shard of `plan` and write the manifest.

    Raises `InfrastructureError` where shards stay uncommitted, `TooManyBadRows` above the fraction
    `max_error_fraction`, `IntegrityError` where two attempts of a shard gave different rows. `run.json` is written in
    every case but one: a run that was complete before stays as it is.
    """
    run = PlannedRun(store, plan, max_error_fraction, columns)
    return execute_all([run], build, resources, runner, report=report)[0]


def execute_all(
    runs: Sequence[PlannedRun],
    build: WorkerFactory,
    resources: Resources,
    runner: Runner,
    *,
    report: Callable[[Progress], None] = lambda _: None,
) -> list[Outcome]:
    """`execute` for several runs: their shards go through the same actors, in the order of `runs`.

    With more than one run, `build` has to make a `SharedWorker`. Each run has its own run.json, whose seconds are those
    of its own shards; those of the first run begin with the command. The first error is raised after all runs have
    ended. With the local runner, settings that cannot run leave no plan behind: the worker is built first.
    """
    for run in runs:
        run.store.check(run.plan)
    if runner is local_runner:
        build = built_first(build, [number for number, run in enumerate(runs) if run.store.missing(run.plan)])
    for run in runs:
        run.store.storage.require()
    created = [run.store.create(run.plan) for run in runs]
    targets, launch = tuple(run.target for run in runs), uuid.uuid4().hex[:8]
    task = ShardTask(targets, launch, resources.max_attempts, resources.shard_timeout_s, build)
    states = [_RunState(run, number, len(runs)) for number, run in enumerate(runs)]
    try:
        _run_missing(states, task, resources, runner, report)
    except BaseException as error:
        refused = isinstance(error, ConfigError | InputError)
        for state, new in zip(states, created, strict=True):
            if not (refused and new and state.run.store.withdraw()):
                state.record(resources, error)
        raise
    outcomes: list[Outcome] = []
    first_error: BaseException | None = None
    for state in states:
        try:
            outcome = state.conclude()
        except BaseException as error:
            state.record(resources, error)
            first_error = first_error or error
        else:
            try:
                state.record(resources, None, outcome.manifest)
            except (
                OSError,
                RaygenError,
            ) as error:  # the record may be there: it must not say that the command ended well
                with suppress(Exception):
                    state.record(resources, error)
                raise
            outcomes.append(outcome)
    if first_error is not None:
        raise first_error
    return outcomes


def _run_missing(
    states: Sequence[_RunState],
    task: ShardTask,
    resources: Resources,
    runner: Runner,
    report: Callable[[Progress], None],
) -> None:
    """Hand the missing shards to the runner until all are committed, at most `max_attempts` times."""
    for state in states:
        state.resume()
    waiting = ""

    def tell() -> None:
        report(replace(Progress.together([state.progress for state in states]), waiting=waiting))

    tell()
    for _ in range(resources.max_attempts):
        missing = [
            ShardItem(number, shard)
            for number, state in enumerate(states)
            for shard in state.run.store.missing(state.run.plan)
        ]
        if not missing:
            return
        for summary in runner(missing, task, resources):
            if isinstance(summary, str):
                if summary or waiting:
                    waiting = summary
                    tell()
                continue
            if summary.status == "refused" and summary.refusal is not None:
                raise from_record(summary.refusal)
            states[summary.run].count(summary)
            tell()
