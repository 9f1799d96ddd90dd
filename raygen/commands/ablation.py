"""`raygen ablation`: the same jobs for several variants of a setting, and one table of their metrics.

    out/NAME/              results of the `shared` jobs, which run once
    out/VARIANT/NAME/      results of the `stages`; an evaluation writes into out/VARIANT itself
    out/metrics/           metrics.parquet, metrics.json of all variants; table.md

Each stage is an ordinary job. Finished stages are not repeated when the command is run again.

The table has only comparable numbers: measured against the same reference, with the same networks and protocol, over
the same number of rows. Where variants have unequal numbers of pictures, all are measured on the rows they have in
common.
"""

import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar

import pyarrow as pa
from pydantic import Field, model_validator

from raygen.commands.base import Estimate, Job, ProgressCallback, Result, report_stage
from raygen.commands.evaluate import EvaluateJob
from raygen.commands.generate import GenerateJob
from raygen.commands.registry import COMMANDS, job_type
from raygen.commands.train import TrainJob
from raygen.core.config import nearest, override, parse, texts_in
from raygen.core.errors import ConfigError
from raygen.evaluation.comparison import (
    Grid,
    check_comparable,
    check_counts,
    grid,
    side_by_side,
    variant_of,
)
from raygen.metrics.registry import SECONDS
from raygen.store.filesystem import FileStore
from raygen.store.parquet import from_parquet
from raygen.store.run_records import Commit
from raygen.store.run_store import open_input
from raygen.store.schemas import METRICS

__all__ = ["JOB", "AblationJob"]


T = TypeVar("T")
#: Files that a finished job leaves in its folder: a run, a checkpoint, a trained network, a scored reference.
MADE: Final = ("attempt-00/_SUCCESS", "raygen.json", "model.safetensors", "reference.json")
#: Names of variants and jobs; they become folders.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class AblationJob(Job):
    """Several jobs for each variant of a setting -> one METRICS table.

    The jobs are written without `out`. In their values, `{shared}` stands for `out` and `{variant}` for `out/VARIANT`.
    """

    kind: Literal["ablation"] = "ablation"
    shared: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="jobs that run once, by name; the result of job NAME is in {shared}/NAME"
    )
    stages: dict[str, dict[str, Any]] = Field(
        ...,
        min_length=1,
        description="jobs that run for every variant, by name; the result of job NAME is in {variant}/NAME",
    )
    variants: dict[str, tuple[str, ...]] = Field(
        ...,
        min_length=1,
        description="overrides of the stages for each variant, by its name, such as {p2: [model.loss.gamma=0.5]}; an "
        "empty list is the stages as they are",
    )

    @model_validator(mode="after")
    def _check_jobs(self) -> "AblationJob":
        for name in (*self.shared, *self.stages, *self.variants):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot be the name of a folder; use letters, digits, '.', '_' and '-'")
        if both := set(self.shared) & set(self.variants):
            raise ValueError(f"{sorted(both)} are names of shared jobs and of variants")
        for overrides in self.variants.values():
            for assignment in overrides:
                if assignment.partition(".")[0] not in self.stages:
                    raise ValueError(f"{assignment!r} changes none of the stages {', '.join(self.stages)}")
        list(self.jobs())
        return self

    def jobs(self) -> Iterator[tuple[str, str, Job]]:
        """(variant or an empty string, stage, job) in the order in which they run."""
        for name, document in self.shared.items():
            yield "", name, self._job(name, document, "", f"{self.out}/{name}")
        for variant, overrides in self.variants.items():
            for name, document in override(self.stages, overrides).items():
                folder = f"{self.out}/{variant}"
                out = folder if document.get("kind") == "evaluate" else f"{folder}/{name}"
                yield variant, name, self._job(name, document, variant, out)

    def _job(self, name: str, document: Mapping[str, Any], variant: str, out: str) -> Job:
        kind = str(document.get("kind"))
        stages = [command for command, record in COMMANDS.items() if record.stage]
        if kind not in stages:
            message = f"must be one of {', '.join(stages)} (got {document.get('kind')!r}){nearest(kind, stages)}"
            raise ConfigError(f"{name}: kind: {message}")
        if "out" in document:
            raise ConfigError(f"{name}: out: is set by the ablation; leave it out")
        filled = fill_placeholders(document, {"{shared}": self.out, "{variant}": f"{self.out}/{variant}"})
        resources = {**self.resources.model_dump(exclude_unset=True), **filled.get("resources", {})}
        job: Job = parse(
            job_type(kind), {**filled, "resources": resources, "out": out}, f"{variant or 'shared'}/{name}"
        )
        return job

    def run(self, report: ProgressCallback) -> Result:
        """Run every job in turn, then write the table."""
        began = time.time()
        for variant, name, job in self.jobs():
            if not self._waits(job):
                self._checked(variant, name, job.check)
        measured: dict[str, list[dict[str, Any]]] = {}
        for variant, name, job in self.jobs():
            label = f"{variant}/{name}" if variant else name
            job.run(report_stage(report, label))
            if isinstance(job, EvaluateJob):
                measured.setdefault(variant, []).extend(evaluation_rows(job, variant, name))
                check_comparable(measured)  # now, and not after hours of work on the next variant
        table = self.collect_metrics()
        facts = {
            variant: {metric: round(value, 4) for metric, value in values.items()}
            for variant, values in grid(table.to_pylist()).values.items()
        }
        return Result(self.out, {**facts, "seconds": round(time.time() - began, 1)})

    def estimate(self) -> Estimate:
        """The sum of the jobs whose inputs exist; the other jobs are named in the notes."""
        rows, size, seconds = 0, 0, 0.0
        notes = ["rows, bytes and time are of the jobs whose inputs exist; the waiting jobs come on top"]
        for variant, name, job in self.jobs():
            label = f"{variant}/{name}" if variant else name
            if self._waits(job):
                notes.append(f"{label}: waits for earlier jobs")
                continue
            estimate = self._checked(variant, name, job.estimate)
            rows, size, seconds = rows + estimate.rows, size + estimate.bytes, seconds + estimate.seconds
            notes.append(f"{label}: {'; '.join(estimate.notes)}")
        return Estimate(rows, 0, 0, size, seconds, tuple(notes))

    def _waits(self, job: Job) -> bool:
        """Whether a job reads what an earlier one has not made yet."""
        inputs = {key: value for key, value in job.document().items() if key != "out"}
        made = {text for text in texts_in(inputs) if text.startswith(f"{self.out}/")}
        return not all(any(map(FileStore(folder).exists, MADE)) for folder in made)

    @staticmethod
    def _checked(variant: str, name: str, call: Callable[[], T]) -> T:
        """The result of a call of a job; its configuration errors also name the job."""
        try:
            return call()
        except ConfigError as error:
            raise ConfigError(f"{variant or 'shared'}/{name}: {error}") from error

    def collect_metrics(self) -> pa.Table:
        """METRICS of all variants, with the variant in each row's protocol; also written to `out/metrics`.

        `ConfigError` where they were not measured with one protocol, `InputError` where distances have unequal n.
        """
        from raygen.evaluation.aggregate import write_metrics

        rows: list[dict[str, Any]] = []
        common = self._common_rows()
        for variant, name, job in self.jobs():
            if isinstance(job, EvaluateJob):
                rows += evaluation_rows(job, variant, name, common.get(name) if variant else None)
            elif isinstance(job, TrainJob) and variant:
                rows += training_rows(job, variant, name)
            elif isinstance(job, GenerateJob) and variant:
                rows += generation_rows(job, variant, name)
        by_variant: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_variant.setdefault(str(variant_of(row)), []).append(row)
        check_comparable(by_variant)
        for column, cells in side_by_side(rows).items():
            check_counts(column, cells)
        table = pa.Table.from_pylist(rows, METRICS)
        folder = FileStore(f"{self.out}/metrics")
        write_metrics(folder, rows)
        folder.update("table.md", markdown_table(grid(table.to_pylist())).encode())
        return table

    def _common_rows(self) -> dict[str, dict[str, frozenset[str]]]:
        """By stage and score, the ids that all variants have, for the scores of unequal numbers of rows.

        A score without any common row is left out: its means stay as they are, with their own n, and distances are
        refused.
        """
        ids_of: dict[str, dict[str, list[frozenset[str]]]] = {}
        for variant, name, job in self.jobs():
            if variant and isinstance(job, EvaluateJob):
                for score, ids in job.rows().items():
                    ids_of.setdefault(name, {}).setdefault(score, []).append(ids)
        common = {
            name: {
                score: ids
                for score, sets in scores.items()
                if len({len(ids) for ids in sets}) > 1 and (ids := frozenset.intersection(*sets))
            }
            for name, scores in ids_of.items()
        }
        return {name: scores for name, scores in common.items() if scores}


def evaluation_rows(
    job: EvaluateJob, variant: str, stage: str, common: Mapping[str, frozenset[str]] | None = None
) -> list[dict[str, Any]]:
    """METRICS of an evaluation that has run; with `common` (ids by score) only over these rows."""
    if common is None:
        rows = from_parquet(FileStore(f"{job.out}/metrics").get("metrics.parquet")).to_pylist()
        return [{**row, "protocol": _add_variant(row["protocol"], variant, stage)} for row in rows]
    more = {"rows": "those that all variants have"}
    return [
        {**row, "protocol": _add_variant(row["protocol"], variant, stage, more)} for row in job.over(common).to_pylist()
    ]


def training_rows(job: TrainJob, variant: str, stage: str) -> list[dict[str, Any]]:
    """The final loss of a training, and the reconstruction scores of a first stage, as METRICS rows."""
    facts = json.loads(FileStore(job.out).get("training/result.json"))
    protocol = {"steps": facts["steps"], "parameters": facts["parameters"], "trained_s": facts["trained_s"]}
    values = {"loss": facts.get("loss"), **facts.get("reconstruction", {})}
    scored = facts.get("scored", {})
    reconstruction = {**protocol, "split": scored.get("split"), "size": getattr(job.model, "image_size", None)}
    row = {"run_id": facts["run_id"], "slice": stage, "ci_low": None, "ci_high": None, "reference": None}
    return [
        {
            **row,
            "metric": metric,
            "value": value,
            "n": facts["pictures"] if metric == "loss" else scored.get("pictures", 0),
            "protocol": _add_variant(json.dumps(protocol if metric == "loss" else reconstruction), variant, stage),
            "created": datetime.now(UTC),
        }
        for metric, value in values.items()
        if value is not None
    ]


def generation_rows(job: GenerateJob, variant: str, stage: str) -> list[dict[str, Any]]:
    """Seconds per picture on one worker as a METRICS row, without starting the worker and loading the model."""
    store, _ = open_input(job.out)
    commits = list(store.commits())
    pictures = sum(commit.rows("samples") for commit in commits)
    if not pictures:
        return []
    environment = commits[0].environment
    resources = {key: environment.get(key) for key in ("device", "precision", "tf32", "threads", "torch")}
    protocol = {
        **resources,
        "workers": job.resources.workers,
        "includes": "sampling, first stage, encoding" + (", scoring" if job.score is not None else ""),
        "variant": variant,
        "stage": stage,
    }
    return [
        {
            "run_id": store.plan().run_id,
            "metric": SECONDS,
            "slice": "all",
            "value": busy_seconds(commits) / pictures,
            "n": pictures,
            "ci_low": None,
            "ci_high": None,
            "reference": None,
            "protocol": json.dumps(protocol, sort_keys=True),
            "created": datetime.now(UTC),
        }
    ]


def busy_seconds(commits: Iterable[Commit]) -> float:
    """Seconds in which workers worked on the rows of shards, summed over workers.

    A worker begins a shard while it still encodes the last one. Such seconds count once.
    """
    total, ends = 0.0, defaultdict[str, float](float)
    for commit in sorted(commits, key=lambda commit: commit.timings["started"]):
        worker, started = str(commit.environment.get("worker", "")), commit.timings["started"]
        end = started + commit.timings["work_s"]
        total += max(end - max(started, ends[worker]), 0.0)
        ends[worker] = max(end, ends[worker])
    return total


def fill_placeholders(value: Any, folders: Mapping[str, str]) -> Any:
    """A copy of a job document with the placeholders in its strings replaced by folders."""
    if isinstance(value, str):
        for placeholder, folder in folders.items():
            value = value.replace(placeholder, folder)
        return value
    if isinstance(value, Mapping):
        return {key: fill_placeholders(item, folders) for key, item in value.items()}
    return [fill_placeholders(item, folders) for item in value] if isinstance(value, list | tuple) else value


def markdown_table(values: Grid) -> str:
    """A row per variant and a column per metric; a value has its own n where the variants' n differ."""
    lines = ["| variant | " + " | ".join(values.columns) + " |", "|" + "---|" * (len(values.columns) + 1)]
    for variant, by_metric in values.values.items():
        cells = []
        for metric in values.columns:
            own_n = f" (n {values.n[variant][metric]:,})" if metric in by_metric and values.n_of(metric) is None else ""
            cells.append(f"{by_metric[metric]:.4g}{own_n}" if metric in by_metric else "")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    counts = ("" if (n := values.n_of(metric)) is None else f"{n:,}" for metric in values.columns)
    lines.append("| *n* | " + " | ".join(counts) + " |")
    return "\n".join(lines) + "\n"


def _add_variant(protocol: str, variant: str, stage: str, more: Mapping[str, str] | None = None) -> str:
    return json.dumps({**json.loads(protocol), **(more or {}), "variant": variant, "stage": stage}, sort_keys=True)


JOB = AblationJob
