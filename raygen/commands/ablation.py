"""`raygen ablation`: the same few jobs for several variants of one setting, and one table of what came out.

Knows how variants become jobs and how their numbers become one METRICS table. Does not know what any job does; each
stage is a job that could be run by hand, and goes on where an earlier command left it.

    out/NAME/              what `shared` jobs make, once
    out/VARIANT/NAME/      what `stages` make; an evaluation writes into out/VARIANT itself
    out/metrics/           metrics.parquet, metrics.json of all variants; table.md

Only what was measured alike is put into one table: against the same reference, by the same networks and protocol, over
as many rows. Where variants made unequal numbers of pictures, all are judged by the rows that each of them has.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from raygen.commands.base import Estimate, Job, ProgressCallback, Result
from raygen.commands.evaluate import EvaluateJob
from raygen.commands.generate import GenerateJob
from raygen.commands.registry import COMMANDS, job_type
from raygen.commands.train import TrainJob
from raygen.core.config import override, parse
from raygen.core.errors import ConfigError, RaygenError
from raygen.evaluation.aggregate import write_metrics
from raygen.evaluation.comparison import (
    Grid,
    check_counts,
    check_names,
    check_protocols,
    grid,
    side_by_side,
    variant_of,
)
from raygen.metrics.registry import SECONDS
from raygen.store.filesystem import FileStore
from raygen.store.parquet import from_parquet
from raygen.store.run_store import open_input
from raygen.store.schemas import METRICS

__all__ = ["JOB", "AblationJob"]


NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class AblationJob(Job):
    """Variants of one setting -> one METRICS table.

    Jobs without `out`; in their texts `{shared}` and `{variant}` stand for the two folders.
    """

    kind: Literal["ablation"] = "ablation"
    shared: dict[str, dict[str, Any]] = Field(default_factory=dict, description="jobs that run once, by folder")
    stages: dict[str, dict[str, Any]] = Field(..., min_length=1, description="jobs that run for every variant")
    variants: dict[str, tuple[str, ...]] = Field(
        ..., min_length=1, description="overrides of the stages, as on the command line: model.loss.gamma=0.5"
    )

    @model_validator(mode="after")
    def _named(self) -> "AblationJob":
        for name in (*self.shared, *self.stages, *self.variants):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot be the name of a folder")
        if both := set(self.shared) & set(self.variants):
            raise ValueError(f"{sorted(both)} are names of shared jobs and of variants")
        for words in self.variants.values():
            for word in words:
                if word.partition(".")[0] not in self.stages:
                    raise ValueError(f"{word!r} changes none of the stages {', '.join(self.stages)}")
        return self

    @model_validator(mode="after")
    def _every_job_is_one(self) -> "AblationJob":
        list(self.jobs())
        return self

    def jobs(self) -> Iterator[tuple[str, str, Job]]:
        """(variant or nothing, stage, job) in the order in which they run."""
        for name, document in self.shared.items():
            yield "", name, self._job(name, document, "", f"{self.out}/{name}")
        for variant, words in self.variants.items():
            for name, document in override(self.stages, words).items():
                folder = f"{self.out}/{variant}"
                out = folder if document.get("kind") == "evaluate" else f"{folder}/{name}"
                yield variant, name, self._job(name, document, variant, out)

    def _job(self, name: str, document: Mapping[str, Any], variant: str, out: str) -> Job:
        kind = str(document.get("kind"))
        stages = [command for command, record in COMMANDS.items() if record.stage]
        if kind not in stages:
            raise ConfigError(f"{name}: kind: must be one of {', '.join(stages)} (got {document.get('kind')!r})")
        filled = _fill(document, {"{shared}": self.out, "{variant}": f"{self.out}/{variant}"})
        resources = {**self.resources.model_dump(exclude_unset=True), **filled.get("resources", {})}
        job: Job = parse(
            job_type(kind), {**filled, "resources": resources, "out": out}, f"{variant or 'shared'}/{name}"
        )
        return job

    def run(self, report: ProgressCallback) -> Result:
        """Every job in turn, then the table."""
        began = time.time()
        measured: dict[str, list[dict[str, Any]]] = {}
        for variant, name, job in self.jobs():
            label = f"{variant}/{name}" if variant else name

            def say(progress: Any, label: str = label) -> None:
                note = progress.note or f"{progress.done_rows:,}/{progress.rows:,} rows"
                progress.note = f"{label}: {note.removeprefix(f'{label}: ')}"
                report(progress)

            job.run(say)
            if isinstance(job, EvaluateJob):
                measured.setdefault(variant, []).extend(_rows(job, variant, name))
                _check(measured)  # before hours go into the next variant
        table = self._metrics()
        return Result(self.out, {**_headline_metrics(table), "seconds": round(time.time() - began, 1)})

    def estimate(self) -> Estimate:
        """Of the jobs whose inputs are there; the others are named."""
        rows, size, seconds = 0, 0, 0.0
        notes = ["rows, bytes and time are of the jobs whose inputs are there; those that wait come on top"]
        for variant, name, job in self.jobs():
            label = f"{variant}/{name}" if variant else name
            try:
                found = job.estimate()
            except RaygenError:
                notes.append(f"{label}: waits for the jobs before it")
                continue
            rows, size, seconds = rows + found.rows, size + found.bytes, seconds + found.seconds
            notes.append(f"{label}: {'; '.join(found.notes)}")
        return Estimate(rows, 0, 0, size, seconds, tuple(notes))

    def _metrics(self) -> pa.Table:
        """All numbers of all variants, the variant in each one's protocol; written to `out/metrics`.

        `ConfigError` where they were not measured alike, `InputError` where distances are of unequal n.
        """
        rows: list[dict[str, Any]] = []
        common = self._common()
        for variant, name, job in self.jobs():
            if isinstance(job, EvaluateJob):
                rows += _rows(job, variant, name, common.get(name) if variant else None)
            elif isinstance(job, TrainJob) and variant:
                rows += _trained(job, variant, name)
            elif isinstance(job, GenerateJob) and variant:
                rows += _made(job, variant, name)
        by_variant: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_variant.setdefault(str(variant_of(row)), []).append(row)
        _check(by_variant)
        for column, cells in side_by_side(rows).items():
            check_counts(column, cells)
        table = pa.Table.from_pylist(rows, METRICS)
        folder = FileStore(f"{self.out}/metrics")
        write_metrics(folder, rows)
        folder.put("table.md", _markdown(table).encode())
        return table

    def _common(self) -> dict[str, dict[str, frozenset[str]]]:
        """Of each stage that judges, the measurements with unequal numbers of rows, and the ids that all of them have.

        Those that have no row in common are left as they are: their means stand with their n, distances are refused.
        """
        found: dict[str, dict[str, list[frozenset[str]]]] = {}
        for variant, name, job in self.jobs():
            if variant and isinstance(job, EvaluateJob):
                for measurement, ids in job.rows().items():
                    found.setdefault(name, {}).setdefault(measurement, []).append(ids)
        common = {
            name: {
                measurement: ids
                for measurement, sets in by.items()
                if len({len(one) for one in sets}) > 1 and (ids := frozenset.intersection(*sets))
            }
            for name, by in found.items()
        }
        return {name: by for name, by in common.items() if by}


def _rows(
    job: EvaluateJob, variant: str, stage: str, common: Mapping[str, frozenset[str]] | None = None
) -> list[dict[str, Any]]:
    """METRICS of an evaluation that has run; of `common`, ids by measurement, where that is not None."""
    if common is None:
        found = from_parquet(FileStore(f"{job.out}/metrics").get("metrics.parquet"))
        return [{**row, "protocol": _named(row["protocol"], variant, stage)} for row in found.to_pylist()]
    said = {"rows": "those that all variants have"}
    return [{**row, "protocol": _named(row["protocol"], variant, stage, said)} for row in job.over(common).to_pylist()]


def _check(measured: Mapping[str, list[dict[str, Any]]]) -> None:
    """`ConfigError` where rows of variants were not measured alike."""
    columns = side_by_side(row for found in measured.values() for row in found)
    for column, cells in columns.items():
        check_protocols(column, cells)
    check_names({variant: [cells[variant] for cells in columns.values() if variant in cells] for variant in measured})


def _fill(value: Any, places: Mapping[str, str]) -> Any:
    """A copy with the placeholders in its texts replaced."""
    if isinstance(value, str):
        for place, text in places.items():
            value = value.replace(place, text)
        return value
    if isinstance(value, Mapping):
        return {key: _fill(item, places) for key, item in value.items()}
    return [_fill(item, places) for item in value] if isinstance(value, list | tuple) else value


def _named(protocol: str, variant: str, stage: str, more: Mapping[str, str] | None = None) -> str:
    return json.dumps({**json.loads(protocol), **(more or {}), "variant": variant, "stage": stage}, sort_keys=True)


def _trained(job: TrainJob, variant: str, stage: str) -> list[dict[str, Any]]:
    """A training's last loss, and a first stage's scores, as METRICS rows."""
    facts = json.loads((Path(job.out) / "training" / "result.json").read_text(encoding="utf-8"))
    protocol = {"steps": facts["steps"], "parameters": facts["parameters"], "trained_s": facts["trained_s"]}
    values = {"loss": facts.get("loss"), **facts.get("reconstruction", {})}
    scored = facts.get("scored", {})
    pictures = scored.get("pictures", 0)
    judged = {"split": scored.get("split"), "size": getattr(job.model, "image_size", None)}
    row = {"run_id": facts["run_id"], "slice": stage, "ci_low": None, "ci_high": None, "reference": None}
    return [
        {
            **row,
            "metric": metric,
            "value": value,
            "n": facts["pictures"] if metric == "loss" else pictures,
            "protocol": _named(json.dumps(protocol if metric == "loss" else {**protocol, **judged}), variant, stage),
            "created": datetime.now(UTC),
        }
        for metric, value in values.items()
        if value is not None
    ]


def _made(job: GenerateJob, variant: str, stage: str) -> list[dict[str, Any]]:
    """What a picture cost: a worker's seconds over the pictures of its shards, without start and loading."""
    store, _ = open_input(job.out)
    commits = list(store.commits())
    made = sum(commit.rows("samples") for commit in commits)
    if not made:
        return []
    environment = commits[0].environment
    resources = {name: environment.get(name) for name in ("device", "dtype", "threads", "torch")}
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
            "value": sum(commit.timings["work_s"] for commit in commits) / made,
            "n": made,
            "ci_low": None,
            "ci_high": None,
            "reference": None,
            "protocol": json.dumps(protocol, sort_keys=True),
            "created": datetime.now(UTC),
        }
    ]


def _headline_metrics(table: pa.Table) -> dict[str, object]:
    values = grid(table.to_pylist()).values
    return {variant: {name: round(value, 4) for name, value in found.items()} for variant, found in values.items()}


def _markdown(table: pa.Table) -> str:
    found = grid(table.to_pylist())
    columns = found.columns
    lines = ["| variant | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for variant in found.values:
        lines.append(f"| {variant} | " + " | ".join(_cell(found, variant, name) for name in columns) + " |")
    counts = ("" if (n := found.n_of(name)) is None else f"{n:,}" for name in columns)
    lines.append("| *n* | " + " | ".join(counts) + " |")
    return "\n".join(lines) + "\n"


def _cell(found: Grid, variant: str, name: str) -> str:
    """A value, with its own n where variants differ there: of means, which may stand beside each other all the same."""
    if name not in found.values[variant]:
        return ""
    own = "" if found.n_of(name) is not None else f" (n {found.n[variant][name]:,})"
    return f"{found.values[variant][name]:.4g}{own}"


JOB = AblationJob
