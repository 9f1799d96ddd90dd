"""`raygen sweep`: samplers x steps x guidance x checkpoints over the same rows and the same noise, in one pass.

Knows how cells become runs, how their numbers become one table, and at which step count a sampler is as good as it
gets. Does not know how a picture is made or measured; each cell is a run that `raygen generate` could have made.

    out/reference/            the real pictures, scored once (unless `reference` is such a folder already)
    out/cells/NAME/           SAMPLES and SCORES of a cell
    out/timing/1-threads/     seconds a picture, each cell alone, without scoring and encoding
    out/metrics/              metrics.parquet, metrics.json: one row a cell and metric; table.md
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Annotated, Any, Final, Literal

import numpy as np
import pyarrow.compute as pc
from pydantic import Field, model_validator

from raygen.commands.base import (
    Estimate,
    Job,
    ProgressCallback,
    Result,
    Throughput,
    extrapolate,
    open_inputs,
    runner_of,
    time_one_batch,
)
from raygen.commands.evaluate import EvaluateJob
from raygen.commands.generate import GenerateJob, SharedSampler
from raygen.core.config import Config, parse
from raygen.core.errors import ConfigError
from raygen.core.hashing import run_id
from raygen.evaluation.aggregate import FEATURES, MetricRows, aggregate, gather_scores, write_metrics
from raygen.evaluation.comparison import CELL, WITHIN, best_steps, curves
from raygen.evaluation.feature_metrics import FeatureMetricsConfig, ReferenceCache, few_rows
from raygen.evaluation.reference import ReferenceSet
from raygen.evaluation.scoring import ScoreConfig, Scorer
from raygen.evaluation.slices import grouping_of, select_ids
from raygen.execution.executor import PlannedRun, execute_all
from raygen.metrics.registry import SECONDS, lookup
from raygen.models.schedule import SamplerConfig, SamplerName, Spacing
from raygen.sampling.guidance import Guidance
from raygen.sampling.timing import SharedTiming, TimingConfig, seconds_of
from raygen.sampling.worker import SampleConfig
from raygen.store.filesystem import FileStore
from raygen.store.run_store import Plan, RunStore, Shard

__all__ = ["JOB", "SamplerSweep", "SweepJob"]


#: Keys of a generate job that a sweep sets itself.
OWN: Final = frozenset({"conditions", "checkpoint", "sampler", "guidance", "use_conditions", "score"})
#: Name of the set of conditions that rows have.
ALL: Final = "all"


Steps = Annotated[int, Field(ge=1, le=1000)]


class SamplerSweep(Config):
    """A sampler, at each of several step counts: one line of the plot."""

    name: SamplerName
    eta: float = Field(0.0, ge=0, le=1, description="ddim only")
    spacing: Spacing | None = None
    steps: tuple[Steps, ...] | None = Field(None, min_length=1, description="its own step counts; none takes all")

    @model_validator(mode="after")
    def _is_a_sampler(self) -> "SamplerSweep":
        self.sampler(1)
        return self

    def sampler(self, steps: int) -> SamplerConfig:
        """At one step count."""
        return SamplerConfig(name=self.name, steps=steps, eta=self.eta, spacing=self.spacing)

    @property
    def label(self) -> str:
        """What the line is called, in folders too: `ddim-eta1-leading`."""
        eta = f"-eta{self.eta:g}" if self.eta else ""
        return f"{self.name}{eta}" + (f"-{self.spacing}" if self.spacing else "")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, what is special about it, and its name."""

    name: str
    settings: Mapping[str, Any]  # what a METRICS row says of it
    job: GenerateJob


class SweepJob(Job):
    """Cells -> one METRICS table.

    Which cells, over which rows, judged how. All cells share rows, noise, batch and precision.
    """

    kind: Literal["sweep"] = "sweep"
    conditions: str = Field(..., description="folder of a plan run")
    reference: str = Field(..., description="folder of an ingest run, or of an evaluation that scored one")
    checkpoints: dict[str, str] = Field(default_factory=lambda: {"bundled": "bundled"}, min_length=1)
    samplers: tuple[SamplerSweep, ...] = Field(..., min_length=1)
    steps: tuple[Steps, ...] = Field((5, 10, 20, 50), min_length=1)
    guidance: tuple[Guidance, ...] = Field((1.0,), min_length=1)
    use_conditions: dict[str, tuple[str, ...] | None] = Field(
        {ALL: None},
        min_length=1,
        description="sets of conditions by name, such as {none: [], mask: [mask]}; none in place of a list is all",
    )
    score: ScoreConfig = Field(default_factory=ScoreConfig)
    compare: FeatureMetricsConfig | None = Field(
        None, description="KID, precision and recall … beside the Fréchet distance"
    )
    timing: TimingConfig | None = Field(default_factory=TimingConfig, description="none: no cell is timed")
    generate: dict[str, Any] = Field(default_factory=dict, description="other keys of a generate job: seed, batch, …")

    @model_validator(mode="after")
    def _leaves_cells_alone(self) -> "SweepJob":
        if mine := sorted(OWN & set(self.generate)):
            raise ValueError(f"generate: {', '.join(mine)} are what a sweep sets for each cell")
        labels = [line.label for line in self.samplers]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"samplers: {', '.join(twice)} is there twice")
        return self

    @model_validator(mode="after")
    def _every_cell_is_a_job(self) -> "SweepJob":
        names = [cell.name for cell in self.cells()]
        if len(set(names)) < len(names):
            raise ConfigError("two cells of the sweep are the same")
        return self

    def cells(self) -> Iterator[Cell]:
        """By checkpoint, so that each model is loaded once; long runs first, so that the end is not one slow cell."""
        for name, checkpoint in self.checkpoints.items():
            plane = product(self.samplers, self.guidance, self.use_conditions.items())
            lines = [(steps, *rest) for rest in plane for steps in (rest[0].steps or self.steps)]
            for steps, line, guidance, (kept, only) in sorted(lines, key=lambda cell: -cell[0]):
                sampler, weight = line.sampler(steps), _weight(guidance)
                label = f"{line.label}-{steps:04d}"
                label += f"-w{weight}" if len(self.guidance) > 1 else ""
                label += f"-{kept}" if len(self.use_conditions) > 1 else ""
                label += f"-{name}" if len(self.checkpoints) > 1 else ""
                settings = {
                    "name": label,
                    "line": line.label,
                    "steps": steps,
                    "sampler": line.name,
                    "eta": line.eta,
                    "spacing": sampler.spacing,
                    "guidance": weight,
                    "conditions": kept,
                    "checkpoint": name,
                }
                own = {
                    "checkpoint": checkpoint,
                    "sampler": sampler.model_dump(),
                    "guidance": guidance,
                    "use_conditions": only,
                }
                yield Cell(label, settings, self._job(label, own))

    def _job(self, name: str, own: Mapping[str, Any]) -> GenerateJob:
        settings = {**self.generate, **own, "conditions": self.conditions, "score": self.score.model_dump()}
        job: GenerateJob = parse(GenerateJob, self._document("generate", settings, f"cells/{name}"), name)
        return job

    def _document(self, kind: str, settings: Mapping[str, Any], folder: str) -> dict[str, Any]:
        return {"kind": kind, **settings, "resources": self.resources.model_dump(), "out": f"{self.out}/{folder}"}

    def run(self, report: ProgressCallback) -> Result:
        """Reference, pictures of all cells in one pass, times, the table."""
        reference, score = self._reference(report), self.score.by_content()
        reference.check_networks(score)
        cells = list(self.cells())
        works = [cell.job.prepare(write=True) for cell in cells]
        configs = [cell.job.sampling(work.plan.run_id) for cell, work in zip(cells, works, strict=True)]
        build = self._sampler(configs, self.score)
        execute_all(works, build, self.resources, runner_of(self.resources), report=report)
        for work in works:
            reference.check(score, work.store)
        times = {} if self.timing is None else self._time(self.timing, cells, configs, report)
        return Result(self.out, self._write(cells, reference, times))

    def estimate(self) -> Estimate:
        """One cell of each line probed, that of the fewest steps; the others by their number of predictions.

        What a picture takes besides predictions (first stage, scores, encoding) is scaled with them, so many steps are
        said to take longer than they will.
        """
        rates: dict[tuple[Any, ...], tuple[int, Throughput]] = {}
        parts = []
        for cell in sorted(self.cells(), key=lambda cell: int(cell.settings["steps"])):
            work, steps = cell.job.prepare(write=False), int(cell.settings["steps"])
            line = tuple(cell.settings[name] for name in ("line", "guidance", "conditions", "checkpoint"))
            if line not in rates:
                rates[line] = steps, time_one_batch(work)
            fewest, rate = rates[line]
            parts.append(extrapolate(work, self.resources, replace(rate, seconds=rate.seconds * steps / fewest), ()))
        rows = next(iter(rates.values()))[1].rows
        return Estimate(
            sum(p.rows for p in parts),
            sum(p.shards for p in parts),
            sum(p.done_shards for p in parts),
            sum(p.bytes for p in parts),
            sum(p.seconds for p in parts),
            (
                f"{len(parts)} cells; reference and timing come on top",
                f"timed on {rows} rows with one worker here, at the fewest steps of each of {len(rates)} lines",
                "more steps are scaled by their predictions, and the rest of a picture with them: rather too long",
            ),
        )

    def _reference(self, report: ProgressCallback) -> ReferenceSet:
        found = ReferenceSet.open(self.reference)
        if found.scores is None:
            settings = {"reference": self.reference, "score": self.score.model_dump()}
            job: EvaluateJob = parse(EvaluateJob, self._document("evaluate", settings, "reference"), "reference")
            job.run(report)
            found = ReferenceSet.open(job.out)
        return found

    def _time(
        self, timing: TimingConfig, cells: Sequence[Cell], configs: Sequence[SampleConfig], report: ProgressCallback
    ) -> Mapping[str, Sequence[float]]:
        """Seconds a picture of each cell, one after the other on one worker: nothing else may slow them.

        Other threads or a GPU are other seconds: each has a folder of its own.
        """
        piece = open_inputs(self.conditions, "conditions").slices[0]
        rows = min(timing.pictures, piece.rows, cells[0].job.batch)
        shard = Shard(0, (piece._replace(rows=rows),))
        parts = []
        for cell, config in zip(cells, configs, strict=True):
            settings = {"timing": timing.model_dump(mode="json"), "run": config.run_id}
            plan = Plan("timing", run_id({"kind": "timing", "settings": settings}), settings, rows, [shard])
            parts.append(PlannedRun(RunStore(self._timing(cell)), plan, 0.0))
        build = partial(SharedTiming, self._sampler(configs, None), timing, [cell.name for cell in cells])
        execute_all(
            parts, build, self.resources.model_copy(update={"workers": 1}), runner_of(self.resources), report=report
        )
        return {cell.name: seconds_of(part.store) for cell, part in zip(cells, parts, strict=True)}

    def _timing(self, cell: Cell) -> str:
        """Folder of the times of a cell on this hardware."""
        resources = self.resources
        on = f"{resources.threads}-threads" + (f"-{resources.gpus:g}-gpus" if resources.gpus else "")
        return f"{self.out}/timing/{on}/{cell.name}"

    def _sampler(self, configs: Sequence[SampleConfig], score: ScoreConfig | None) -> "partial[SharedSampler]":
        """How an actor builds the workers of all cells."""
        return partial(SharedSampler, configs, score, self.resources.threads, self.generate.get("references"))

    def _write(
        self, cells: Sequence[Cell], reference: ReferenceSet, times: Mapping[str, Sequence[float]]
    ) -> dict[str, object]:
        """metrics.parquet, metrics.json, table.md; for each line, how many steps are enough."""
        observer = Scorer(self.score, run_id="")
        protocols = {**observer.protocols(), "reference": {"made": reference.made, "size": list(reference.size)}}
        name = "" if observer.features is None else observer.features.metric
        stores = [RunStore(cell.job.out, cell.job.attempt) for cell in cells]
        common = _common(stores)
        real = gather_scores(reference.tables())
        finish = partial(
            aggregate,
            reference=reference.content,
            protocols=protocols,
            frechet_name=name,
            cache=ReferenceCache(),
            grouping=grouping_of(stores[0]),
        )
        rows: list[dict[str, Any]] = []
        # Beside a cell the reference is only what distances are taken to: its own numbers are the same for all.
        distant = {key: scored for key, scored in real.items() if key.startswith(FEATURES)}
        for cell, store in zip(cells, stores, strict=True):  # one at a time: features of all would be gigabytes
            scores, run = gather_scores(store.tables("scores")), store.plan().run_id
            found = {name: select_ids({name: scores[name]}, ids)[name] for name, ids in common.items()}
            table = finish({"all": found, "reference": distant}, run_id=run, compare=self.compare).to_pylist()
            table += self._times(cell, store, times)
            rows += [_tag_cell(row, cell) for row in table]
        rows += finish({"reference": real}, run_id=reference.content).to_pylist()
        folder = FileStore(f"{self.out}/metrics")
        write_metrics(folder, rows)
        folder.put("table.md", _markdown(cells, rows).encode())
        return _steps_within_5pct(rows)

    def _times(self, cell: Cell, store: RunStore, times: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
        """Seconds a picture of a cell as a METRICS row: the median of the rounds, and the fastest and slowest."""
        found = times.get(cell.name)
        if not found or self.timing is None:
            return []
        n = min(self.timing.pictures, cell.job.batch)
        environment = next(iter(RunStore(self._timing(cell)).commits())).environment
        said = {key: environment.get(key) for key in ("device", "dtype", "threads", "torch")}
        said |= {"rounds": len(found), "includes": "conditions, sampling, first stage; warm, alone"}
        said |= {"interval": "fastest and slowest round"}
        rows = MetricRows(store.plan().run_id, None)
        rows.add(SECONDS, "all", float(np.median(found)), n, said, (min(found), max(found)))
        return rows.rows


def _weight(guidance: Guidance) -> str:
    if isinstance(guidance, dict):
        return "-".join(f"{name}{weight:g}" for name, weight in sorted(guidance.items()))
    return f"{guidance:g}"


def _common(stores: Sequence[RunStore]) -> dict[str, frozenset[str]]:
    """Rows that every cell has, by measurement: at few thousand, unequal n moves a distance more than samplers do."""
    common: dict[str, frozenset[str]] | None = None
    for store in stores:
        found: dict[str, set[str]] = {}
        for table in store.tables("scores", ["sample_id", "metric"]):
            for name in table["metric"].unique().to_pylist():
                rows = table.filter(pc.equal(table["metric"], name))
                found.setdefault(name, set()).update(rows["sample_id"].to_pylist())
        if common is None:
            common = {name: frozenset(ids) for name, ids in found.items()}
        else:
            common = {name: ids & found[name] for name, ids in common.items() if name in found}
    return common or {}


def _tag_cell(row: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    protocol = {**json.loads(row["protocol"]), CELL: cell.settings}
    return {**row, "protocol": json.dumps(protocol, sort_keys=True)}


def _headline_metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Metrics of whole sets, in order."""
    return list(dict.fromkeys(row["metric"] for row in rows if row["slice"] == "all"))


def _markdown(cells: Sequence[Cell], rows: Sequence[Mapping[str, Any]]) -> str:
    names = _headline_metrics(rows)
    values = {(json.loads(row["protocol"])[CELL]["name"], row["metric"]): row for row in rows if row["slice"] == "all"}
    lines = ["| cell | n | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for cell in sorted(cells, key=lambda c: (c.settings["checkpoint"], c.settings["line"], c.settings["steps"])):
        found = [values.get((cell.name, name)) for name in names]
        n = next((row["n"] for row in found if row is not None), 0)
        shown = " | ".join("" if row is None else f"{row['value']:.4g}" for row in found)
        lines.append(f"| {cell.name} | {n} | {shown} |")
    said = dict.fromkeys(str(text) for text in few_rows(values.values()).values())
    lines += ["", *(f"Fréchet distances here are of few rows: {text}." for text in said)] if said else []
    return "\n".join(lines) + "\n"


def _steps_within_5pct(rows: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """For each line and headline, the smallest step count within 5 % of its best."""
    facts: dict[str, object] = {}
    for metric in _headline_metrics(rows):
        if not lookup(metric).headline:
            continue
        for curve in curves(rows, metric):
            steps, best = best_steps(curve, metric)
            facts[f"{metric}, {curve.name}"] = f"best {best:.4g}; {steps} steps are within {WITHIN:.0%} of it"
    return facts


JOB = SweepJob
