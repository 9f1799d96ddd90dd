"""What every job has in common: what, where, out; and how work over shards is prepared, estimated and run.

Knows the way from a job to a plan and through the loop over shards. Knows no particular job, and imports Ray
only where a job asks for it.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import Field

from raygen.core.config import Config, Resources
from raygen.core.errors import ConfigError
from raygen.core.hashing import digest, run_id
from raygen.execution.executor import Outcome, PlannedRun, Progress, Runner, execute_all, local_runner
from raygen.execution.worker import Worker
from raygen.store.filesystem import FileStore
from raygen.store.parquet import Slice, read_slice, to_parquet
from raygen.store.run_store import Plan, make_shards, open_input

__all__ = [
    "Estimate",
    "Inputs",
    "Job",
    "PreparedRun",
    "ProgressCallback",
    "Result",
    "ShardedJob",
    "Sharding",
    "Throughput",
    "estimate_cost",
    "extrapolate",
    "open_inputs",
    "outcome_facts",
    "plan_run",
    "run_sharded",
    "runner_of",
    "store_listing",
    "time_one_batch",
]


ProgressCallback = Callable[[Progress], None]


class Sharding(Config):
    """Settings of every job over shards."""

    shard_rows: int = Field(
        1024, ge=1, le=1_000_000, description="input rows in a shard, the unit of commit; cut to whole batches"
    )
    max_error_fraction: float = Field(
        0.01, ge=0, le=1, description="fraction of rows that may fail before the run does"
    )


@dataclass(frozen=True)
class Result:
    """How a job ended, for whoever prints it: where the result is, and facts by name."""

    out: str
    facts: Mapping[str, object]


@dataclass(frozen=True)
class Estimate:
    """What a dry run can say. Seconds come from really working on a few rows here."""

    rows: int
    shards: int
    done_shards: int
    bytes: int
    seconds: float
    notes: tuple[str, ...] = ()


class Job(Config):
    """A job: its settings, `resources` and `out`. Subclasses add `kind: Literal[...]` and their settings."""

    resources: Resources = Field(default_factory=Resources, description="where and how wide the job runs")
    out: str = Field(..., min_length=1, description="folder or URL that the result goes to")

    def settings(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """The settings without `kind`, `resources`, `out` and those of `exclude`, as plain values."""
        return self.model_dump(mode="json", exclude={"kind", "resources", "out", *exclude})

    def document(self) -> dict[str, Any]:
        """The job as its file would say it: kind, settings, resources, out."""
        kind, resources = getattr(self, "kind", None), self.resources.model_dump(mode="json")
        return {"kind": kind, **self.settings(), "resources": resources, "out": self.out}

    @abstractmethod
    def run(self, report: ProgressCallback) -> Result:
        """Do it; `report` hears of progress. Raises the errors of `raygen.core.config`."""

    @abstractmethod
    def estimate(self) -> Estimate:
        """Rows, shards, bytes and time, without writing anything."""


class ShardedJob(Job, Sharding):
    """A job that is one pass over shards."""

    @abstractmethod
    def prepare(self, *, write: bool) -> "PreparedRun":
        """Plan and worker; with `write`, inputs that the job makes itself are stored for the actors to read."""

    def run(self, report: ProgressCallback) -> Result:
        """Every shard, committed exactly once."""
        work = self.prepare(write=True)
        said = {"note": "; ".join(work.notes)} if work.notes else {}
        return Result(self.out, {**outcome_facts(run_sharded(work, self.resources, report)), **said})

    def estimate(self) -> Estimate:
        """Work on one batch of the first shard, keep nothing, and scale up."""
        return estimate_cost(self.prepare(write=False), self.resources)


@dataclass(frozen=True)
class Inputs:
    """Input rows by slices, and the name of their content."""

    slices: Sequence[Slice]
    digest: str


@dataclass(frozen=True, kw_only=True)
class PreparedRun(PlannedRun):
    """A planned run with its worker: `build` is called in each actor, and has to be picklable."""

    build: Callable[[], Worker]
    first: pa.Table | None = None  # rows to probe where the inputs are not written yet
    notes: tuple[str, ...] = ()  # what a person should know of the plan


def open_inputs(url: str, table: str) -> Inputs:
    """The committed rows of `table` of a complete earlier run; `ConfigError` where there is none."""
    store, content = open_input(url)
    if not store.has(table):
        raise ConfigError(f"{url}: holds what `raygen {store.plan().kind}` makes, and no rows of {table.upper()}")
    return Inputs(store.slices(table), content)


def store_listing(listing: pa.Table, out: str, *also: str, write: bool) -> Inputs:
    """Rows that the driver made, as an input: stored under `out` with `write`, so that actors read what it saw.

    `also`: digests of what else the rows mean.
    """
    data = to_parquet(listing, row_group_rows=4096)
    name = f"listing-{digest(data)[:12]}.parquet"
    storage = FileStore(out)
    if write:
        storage.require()
        storage.put(name, data)
    return Inputs([Slice(storage.address(name), 0, listing.num_rows)], ":".join((digest(data), *also)))


def plan_run(
    kind: str,
    settings: Mapping[str, Any],
    inputs: Inputs,
    *,
    batch: int,
    shard_rows: int,
    attempt: int = 0,
) -> Plan:
    """The plan of a run, named by `settings` and the digest of the inputs.

    Shards are whole multiples of the batch, so that every full batch holds the same rows with any number of workers.
    """
    rows = max(batch, shard_rows // batch * batch)
    parts = {"kind": kind, "settings": settings, "inputs": inputs.digest, "shard_rows": rows, "attempt": attempt}
    return Plan(kind, run_id(parts), settings, batch, make_shards(inputs.slices, rows))


def runner_of(resources: Resources) -> Runner:
    """The plain loop or Ray; Ray is imported here and nowhere else outside `cluster`."""
    if resources.runner == "local":
        return local_runner
    from raygen.execution.ray.actors import ray_runner

    return ray_runner


def run_sharded(work: PreparedRun, resources: Resources, report: ProgressCallback) -> Outcome:
    """All shards of `work`; see `raygen.execution.executor.execute` for the errors."""
    return execute_all([work], work.build, resources, runner_of(resources), report=report)[0]


def outcome_facts(outcome: Outcome) -> dict[str, object]:
    """What a person wants to know of a finished pass."""
    manifest, progress = outcome.manifest, outcome.progress
    return {
        "rows": manifest["rows"],
        "quarantined": manifest["quarantined"] or "none",
        "shards": f"{manifest['shards']} ({progress.resumed_shards} were there already)",
        "bytes": manifest["bytes"],
        "rows_per_s": round(progress.rate, 1),
        "run_id": manifest["run_id"],
        "set_digest": manifest["set_digest"],
    }


@dataclass(frozen=True)
class Throughput:
    """What a row takes on one worker, measured on `rows` of them."""

    seconds: float
    bytes: int
    rows: int


def estimate_cost(work: PreparedRun, resources: Resources) -> Estimate:
    """What `work` would make and how long it would take: one batch done here, scaled up, nothing kept."""
    rate = time_one_batch(work)
    return extrapolate(work, resources, rate, (f"timed on {rate.rows} rows with one worker on this machine",))


def time_one_batch(work: PreparedRun) -> Throughput:
    """One batch done here, nothing kept."""
    size = min(work.plan.batch, max(work.plan.rows, 1))
    rows = work.first if work.first is not None else _head(work.plan, size, work.columns)
    rows = rows.slice(0, size)
    worker = work.build()
    worker.start(rows.slice(0, 1))()  # lazy imports and first-call costs are not the rate
    began = time.perf_counter()
    tables = worker.start(rows)()
    each = (time.perf_counter() - began) / max(rows.num_rows, 1)
    return Throughput(each, sum(table.nbytes for table in tables.values()) // max(rows.num_rows, 1), rows.num_rows)


def extrapolate(work: PreparedRun, resources: Resources, rate: Throughput, notes: tuple[str, ...]) -> Estimate:
    """All of `work` at a rate; shards that are committed take no time."""
    done = len(work.store.committed())
    left = work.plan.rows * (1 - done / max(len(work.plan.shards), 1))
    return Estimate(
        work.plan.rows,
        len(work.plan.shards),
        done,
        rate.bytes * work.plan.rows,
        rate.seconds * left / resources.workers,
        (*work.notes, *notes),
    )


def _head(plan: Plan, rows: int, columns: tuple[str, ...] | None) -> pa.Table:
    shard = plan.shards[0]
    piece = shard.inputs[0]
    return read_slice(piece._replace(rows=min(piece.rows, rows)), columns)
