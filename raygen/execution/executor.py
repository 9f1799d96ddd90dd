"""The loop over all shards of a plan, or of several plans at once.

Knows what is missing, how often it is tried, what is said on the way and how a run ends. Does not know what a worker
does, and not that Ray exists: `execute` takes the runner that hands items to `ShardWorker`s, of which `local_runner` is
the plain loop.
"""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raygen.core.config import Resources
from raygen.core.errors import InfrastructureError, IntegrityError, TooManyBadRows
from raygen.core.hashing import canonical
from raygen.execution.worker import (
    RunTarget,
    ShardItem,
    ShardSummary,
    ShardTask,
    ShardWorker,
    SingleWorker,
    Worker,
    WorkerFactory,
    versions,
)
from raygen.store.run_store import Plan, RunStore

__all__ = ["Outcome", "PlannedRun", "Progress", "Runner", "execute", "execute_all", "local_runner"]


Runner = Callable[[Sequence[ShardItem], ShardTask, Resources], Iterator[ShardSummary]]


def local_runner(items: Sequence[ShardItem], task: ShardTask, resources: Resources) -> Iterator[ShardSummary]:
    """Every item in this process, one after the other."""
    worker = ShardWorker(task)
    for item in items:
        yield worker(item)


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

    @staticmethod
    def together(parts: Sequence["Progress"]) -> "Progress":
        """Of runs that go on at the same time."""
        if len(parts) == 1:
            return parts[0]
        names = ("shards", "rows", "done_shards", "done_rows", "resumed_shards", "bad", "bytes", "failed_tries")
        sums = {name: sum(getattr(part, name) for part in parts) for name in (*names, "new_rows")}
        firsts = [part.first_commit_s for part in parts if part.first_commit_s is not None]
        first = min(firsts) if firsts else None
        return Progress(**sums, began=min(part.began for part in parts), first_commit_s=first)


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    manifest: Mapping[str, Any]
    progress: Progress
    divergent: tuple[int, ...]


@dataclass(frozen=True)
class PlannedRun:
    """One run among those of a pass: where it goes, its plan, the fraction of rows that may fail."""

    store: RunStore
    plan: Plan
    max_error_fraction: float
    columns: tuple[str, ...] | None = None

    @property
    def place(self) -> RunTarget:
        """What an actor needs to know of it."""
        return RunTarget(self.store.url, self.store.attempt, self.plan.batch, len(self.plan.shards), self.columns)


class _RunState:
    """A part as far as it got."""

    def __init__(self, part: PlannedRun) -> None:
        self.part = part
        self.progress = Progress(len(part.plan.shards), part.plan.rows)
        self.divergent: list[int] = []
        self.errors: list[str] = []

    def resume(self) -> None:
        """Count what earlier commands left."""
        todo, progress = self.part.store.missing(self.part.plan), self.progress
        progress.resumed_shards = progress.done_shards = progress.shards - len(todo)
        progress.done_rows = progress.rows - sum(shard.rows for shard in todo)

    def count(self, summary: ShardSummary) -> None:
        """Add what came back from a shard."""
        progress = self.progress
        if summary.status in ("committed", "present"):
            progress.done_shards += 1
            progress.done_rows += self.part.plan.shards[summary.shard].rows
            progress.new_rows += summary.rows
            progress.bad += summary.bad
            progress.bytes += summary.bytes
            if progress.first_commit_s is None:
                progress.first_commit_s = time.time() - progress.began
        else:
            progress.failed_tries += 1
            self.errors.append(f"shard {summary.shard}: {summary.error}")
        if summary.divergent:
            self.divergent.append(summary.shard)

    def conclude(self) -> Outcome:
        """The manifest, or why there is none."""
        store, plan = self.part.store, self.part.plan
        missing = store.missing(plan)
        if missing:
            detail = "; ".join(dict.fromkeys(self.errors)) or "no worker finished them"
            raise InfrastructureError(f"{len(missing)} of {len(plan.shards)} shards are not committed: {detail[:1500]}")
        reasons: Counter[str] = Counter()
        for commit in store.commits():
            reasons.update(commit.quarantined)
        bad = self.progress.bad = sum(reasons.values())
        if bad > self.part.max_error_fraction * plan.rows:
            listed = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common(5))
            allowed = f"at most {self.part.max_error_fraction:.2%} are allowed"
            raise TooManyBadRows(f"{bad} of {plan.rows} rows failed ({listed}); {allowed}")
        manifest = store.finish(plan)
        if self.divergent:
            raise IntegrityError(f"shards {self.divergent[:20]} gave other rows on a second try; the first ones count")
        return Outcome(manifest, self.progress, tuple(self.divergent))

    def record(
        self, resources: Resources, error: BaseException | None, manifest: Mapping[str, Any] | None = None
    ) -> None:
        """run.json: how this command ended, beside what it made."""
        plan, progress = self.part.plan, self.progress
        seconds = time.time() - progress.began
        record = {
            "run_id": plan.run_id,
            "kind": plan.kind,
            "exit_code": 0 if error is None else getattr(error, "exit_code", 130),
            "error": "" if error is None else f"{type(error).__name__}: {error}"[:2000],
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
            "finished": time.time(),
        }
        self.part.store.storage.put("run.json", canonical(record))


def execute(
    store: RunStore,
    plan: Plan,
    build: Callable[[], Worker],
    resources: Resources,
    runner: Runner,
    *,
    max_error_fraction: float,
    columns: tuple[str, ...] | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Make every shard of `plan` count, or say why not.

    Raises `InfrastructureError` where shards are left over, `TooManyBadRows` above the fraction `max_error_fraction`,
    `IntegrityError` where two tries of one shard gave different rows. `run.json` is written in every case.
    """
    return execute_all(
        [PlannedRun(store, plan, max_error_fraction, columns)], SingleWorker(build), resources, runner, report=report
    )[0]


def execute_all(
    parts: Sequence[PlannedRun],
    build: Callable[[], WorkerFactory],
    resources: Resources,
    runner: Runner,
    *,
    report: Callable[[Progress], None] = lambda _: None,
) -> list[Outcome]:
    """`execute` for several runs in one pass: actors go from one to the next without stopping, in the order given.

    Each run ends by itself, and has its own record. The first error is raised when all of them have ended.
    """
    for part in parts:
        part.store.storage.require()
        part.store.create(part.plan)
    task = ShardTask(
        tuple(p.place for p in parts), uuid.uuid4().hex[:8], resources.max_attempts, resources.shard_timeout_s, build
    )
    runs = [_RunState(part) for part in parts]
    try:
        _run_missing(runs, task, resources, runner, report)
    except BaseException as error:
        for run in runs:
            run.record(resources, error)
        raise
    return _conclude_all(runs, resources)


def _conclude_all(runs: Sequence[_RunState], resources: Resources) -> list[Outcome]:
    outcomes: list[Outcome] = []
    failed: BaseException | None = None
    for run in runs:
        try:
            outcome = run.conclude()
        except BaseException as error:
            run.record(resources, error)
            failed = failed or error
        else:
            run.record(resources, None, outcome.manifest)
            outcomes.append(outcome)
    if failed is not None:
        raise failed
    return outcomes


def _run_missing(
    runs: Sequence[_RunState], task: ShardTask, resources: Resources, runner: Runner, report: Callable[[Progress], None]
) -> None:
    """Hand out what is missing until nothing is, at most `tries` times."""
    for run in runs:
        run.resume()

    def say() -> None:
        report(Progress.together([run.progress for run in runs]))

    say()
    for _ in range(resources.max_attempts):
        todo = [ShardItem(i, shard) for i, run in enumerate(runs) for shard in run.part.store.missing(run.part.plan)]
        if not todo:
            return
        for summary in runner(todo, task, resources):
            runs[summary.place].count(summary)
            say()
