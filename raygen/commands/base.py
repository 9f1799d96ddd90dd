"""What every job has in common, and how a job over shards is planned, estimated and run.

Ray is imported only for a job with `resources.runner: ray`.
"""

import os
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import pyarrow as pa
from pydantic import Field, model_validator

from raygen.core.config import Config, Resources
from raygen.core.errors import RaygenError, TooManyBadRows
from raygen.core.location import Location
from raygen.execution.bottleneck import encoding_text
from raygen.execution.executor import Outcome, PlannedRun, Progress, Runner, bad_rows_text, execute_all, local_runner
from raygen.execution.shared_actors import WorkersInTurn
from raygen.execution.worker import Worker, failed_rows, reasons_of
from raygen.metrics.noise import check_noise
from raygen.store.filesystem import FileStore
from raygen.store.lookup import evenly, images_of
from raygen.store.parquet import read_slice
from raygen.store.run_store import RunStore

__all__ = [
    "Estimate",
    "Job",
    "PreparedRun",
    "ProgressCallback",
    "Result",
    "ShardedJob",
    "Sharding",
    "Throughput",
    "estimate_cost",
    "extrapolate",
    "noise_facts",
    "outcome_facts",
    "parallel_workers",
    "report_stage",
    "run_sharded",
    "run_together",
    "runner_of",
    "sum_estimates",
    "time_one_batch",
]


ProgressCallback = Callable[[Progress], None]


class Sharding(Config):
    """How rows are divided into shards, and how many of them may fail."""

    shard_rows: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="input rows per shard, the unit of work and of commit; rounded down to whole batches",
    )
    max_error_fraction: float = Field(
        0.01, ge=0, le=1, description="fraction of rows that may fail; the run fails with exit code 3 where more do"
    )


@dataclass(frozen=True)
class Result:
    """How a job ended: `out`, the folder or URL of the result, and facts about it by name, to be printed."""

    out: str
    facts: Mapping[str, object]


@dataclass(frozen=True)
class Estimate:
    """Size and time of a job. `bytes` and `seconds` are extrapolated from a few rows that were processed here."""

    rows: int
    shards: int
    done_shards: int
    bytes: int
    seconds: float
    notes: tuple[str, ...] = ()


class Job(Config):
    """Base of all jobs. Subclasses add `kind: Literal[...]` and their settings."""

    resources: Resources = Field(default_factory=Resources, description="where the job runs, and with how many workers")
    out: Location = Field(
        ..., min_length=1, description="folder or URL, such as s3://bucket/run, that the result is written to"
    )

    @model_validator(mode="after")
    def _find_accelerator(self) -> "Job":
        if self.resources.runner == "local" and self.resources.gpus:
            import torch

            if not torch.cuda.is_available():
                raise ValueError(
                    f"resources.gpus is {self.resources.gpus:g}, and torch finds no GPU on this machine; set "
                    "resources.gpus=0 to run on the CPU, or resources.runner=ray with a cluster that has one"
                )
        return self

    @model_validator(mode="after")
    def _find_tf32(self) -> "Job":
        for part in (self, getattr(self, "training", None)):
            if getattr(part, "precision", None) == "tf32" and not self.resources.gpus:
                raise ValueError(
                    "precision: tf32 is arithmetic of NVIDIA GPUs, and resources.gpus is 0; set it, or use float32"
                )
        return self

    def settings(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """The settings without `kind`, `resources`, `out` and those of `exclude`, as plain values."""
        return self.model_dump(mode="json", exclude={"kind", "resources", "out", *exclude})

    def document(self) -> dict[str, Any]:
        """The job as plain values, as in a job file: kind, settings, resources, out."""
        kind, resources = getattr(self, "kind", None), self.resources.model_dump(mode="json")
        return {"kind": kind, **self.settings(), "resources": resources, "out": self.out}

    def start(self, report: ProgressCallback) -> Result:
        """`run`, after the unfinished files of killed commands were removed from `out`."""
        self.remove_leftovers()
        return self.run(report)

    def remove_leftovers(self) -> None:
        """Remove the unfinished files of killed commands from `out`."""
        with suppress(RaygenError, OSError):  # storage that cannot be read is told by the job itself
            FileStore(self.out).remove_leftovers()

    def check(self) -> None:
        """Raise what a run would refuse before it begins; nothing is written, and nothing large is read."""

    @abstractmethod
    def run(self, report: ProgressCallback) -> Result:
        """Run the job; `report` is called with the progress. Raises the errors of `raygen.core.errors`."""

    @abstractmethod
    def estimate(self) -> Estimate:
        """Rows, shards, bytes and seconds of the job. Writes nothing."""


class ShardedJob(Job, Sharding):
    """A job that is one pass over the shards of its input."""

    @abstractmethod
    def prepare(self, *, write: bool) -> "PreparedRun":
        """Plan and worker of the job. With `write`, input rows that the job makes itself are stored for the actors."""

    def check(self) -> None:
        """See `Job.check`."""
        work = self.prepare(write=False)
        work.store.check(work.plan)

    def run(self, report: ProgressCallback) -> Result:
        """Process every shard that is not committed yet."""
        work = self.prepare(write=True)
        facts = outcome_facts(run_sharded(work, self.resources, report)) | noise_facts(work.store)
        return Result(self.out, {**facts, "note": "; ".join(work.notes)} if work.notes else facts)

    def estimate(self) -> Estimate:
        """Process one batch of the first shard, discard the result, and scale up."""
        return estimate_cost(self.prepare(write=False), self.resources)


@dataclass(frozen=True, kw_only=True)
class PreparedRun(PlannedRun):
    """A planned run with its worker: `build` is called in each actor, and has to be picklable.

    `first`: rows to estimate with where the inputs are not written yet. `notes`: remarks on the plan for the user.
    """

    build: Callable[[], Worker]
    first: pa.Table | None = None
    notes: tuple[str, ...] = ()


def runner_of(resources: Resources) -> Runner:
    """The runner that `resources` name: a loop in this process, or Ray actors. Imports Ray where it is asked for."""
    if resources.runner == "local":
        return local_runner
    from raygen.execution.ray.actors import ray_runner

    return ray_runner


def run_sharded(work: PreparedRun, resources: Resources, report: ProgressCallback) -> Outcome:
    """Process the missing shards of `work`. Raises the errors of `execute_all`."""
    return execute_all([work], work.build, resources, runner_of(resources), report=report)[0]


def run_together(works: Sequence[PreparedRun], resources: Resources, report: ProgressCallback) -> list[Outcome]:
    """`run_sharded` for runs that do not read each other's results: the same actors process one after the other.

    An actor holds the worker of one run at a time. Raises the errors of `execute_all`.
    """
    if len(works) < 2:
        return [run_sharded(work, resources, report) for work in works]
    build = partial(WorkersInTurn, tuple(work.build for work in works))
    return execute_all(works, build, resources, runner_of(resources), report=report)


def report_stage(report: ProgressCallback, stage: str) -> ProgressCallback:
    """`report` for one stage of a job; the stages of a stage are named after it: `gamma-1/scores/reference`."""

    def report_with_stage(progress: Progress) -> None:
        report(replace(progress, stage="/".join(filter(None, (stage, progress.stage)))))

    return report_with_stage


def outcome_facts(outcome: Outcome) -> dict[str, object]:
    """Counts, rate and digests of a finished pass over shards, to be printed."""
    manifest, progress = outcome.manifest, outcome.progress
    return {
        "rows": manifest["rows"],
        "quarantined": manifest["quarantined"] or "none",
        "shards": f"{manifest['shards']} ({progress.resumed_shards} were already committed)",
        "bytes": manifest["bytes"],
        **({"rows_per_s": round(progress.rate, 1)} if progress.new_rows else {}),
        **({"workers": outcome.waited} if progress.new_rows and outcome.waited else {}),
        "run_id": manifest["run_id"],
        "set_digest": manifest["set_digest"],
    }


#: Pictures of a run that are looked at, and how many of them follow each other.
LOOKED_AT: Final = 64
BLOCK: Final = 8


def noise_facts(store: RunStore, name: str = "warning") -> dict[str, object]:
    """Says how many of a few pictures of SAMPLES or FACES are noise or of one colour; empty where none are."""
    table = next((table for table in ("samples", "faces") if store.has(table)), None)
    pieces = [] if table is None else store.slices(table)
    try:
        found = check_noise(images_of(evenly(pieces, LOOKED_AT, ["image"], block=BLOCK)))
    except RaygenError:  # a file is gone or damaged, which `raygen verify` says
        return {}
    return {name: sentence} if found is not None and (sentence := found.sentence()) else {}


@dataclass(frozen=True)
class Throughput:
    """Seconds and bytes per row on one worker, measured on `rows` rows; and remarks, empty or not."""

    seconds: float
    bytes: float
    rows: int
    remarks: tuple[str, ...] = ()


def estimate_cost(work: PreparedRun, resources: Resources) -> Estimate:
    """Size and time of `work`, extrapolated from one batch that is processed here and discarded.

    `ConfigError` where its folder cannot hold it, as in a run.
    """
    work.store.check(work.plan)
    rate = time_one_batch(work)
    return extrapolate(work, resources, rate, (f"timed on {rate.rows} rows with one worker on this machine",))


def time_one_batch(work: PreparedRun) -> Throughput:
    """Process one batch here and discard the result.

    `TooManyBadRows` where more rows of this batch fail than the whole run may have.
    """
    size = min(work.plan.batch, max(work.plan.rows, 1))
    if work.first is not None:
        rows = work.first.slice(0, size)
    else:
        piece = work.plan.shards[0].inputs[0]
        rows = read_slice(piece._replace(rows=min(piece.rows, size)), work.columns)
    worker = work.build()
    worker.start(rows.slice(0, 1))()  # the first call pays for lazy imports
    began = time.perf_counter()
    tables = worker.start(rows)()
    seconds = (time.perf_counter() - began) / max(rows.num_rows, 1)
    size_bytes, bad = sum(table.nbytes for table in tables.values()), failed_rows(tables)
    text = bad_rows_text(len(bad), rows.num_rows, reasons_of(bad), bad[0]) if bad else ""
    if len(bad) > work.max_error_fraction * work.plan.rows:
        allowed = f"at most {work.max_error_fraction:.2%} of all {work.plan.rows} rows are allowed"
        raise TooManyBadRows(f"of those tried, {text}; {allowed}. Correct these inputs, or set `max_error_fraction`")
    encoding = encoding_text(tables.get("samples"), seconds, work.plan.settings.get("codec"))
    remarks = (text and f"of those tried, {text}", encoding)
    return Throughput(seconds, size_bytes // max(rows.num_rows, 1), rows.num_rows, remarks)


def parallel_workers(resources: Resources) -> float:
    """How many times faster than one worker `resources` are: on this machine no more workers than it has cores."""
    if resources.runner == "local":
        return 1.0
    if resources.gpus or resources.address or os.environ.get("RAY_ADDRESS"):
        return float(resources.workers)
    return min(float(resources.workers), max(1.0, (os.cpu_count() or 1) / resources.threads))


def extrapolate(work: PreparedRun, resources: Resources, rate: Throughput, notes: tuple[str, ...]) -> Estimate:
    """Size and time of all of `work` at a rate; committed shards take no time."""
    width = parallel_workers(resources)
    if resources.runner == "ray" and width < resources.workers:
        cores = os.cpu_count() or 1
        notes = (*notes, f"{resources.workers} workers share the {cores} cores of this machine")
    done = len(work.store.committed())
    left = work.plan.rows * (1 - done / max(len(work.plan.shards), 1))
    return Estimate(
        work.plan.rows,
        len(work.plan.shards),
        done,
        int(rate.bytes * work.plan.rows),
        rate.seconds * left / width,
        (*work.notes, *filter(None, [*notes, *rate.remarks])),
    )


def sum_estimates(parts: Sequence[Estimate], notes: tuple[str, ...]) -> Estimate:
    """The estimates of several passes that run one after the other, as one."""
    return Estimate(
        sum(part.rows for part in parts),
        sum(part.shards for part in parts),
        sum(part.done_shards for part in parts),
        sum(part.bytes for part in parts),
        sum(part.seconds for part in parts),
        notes,
    )
