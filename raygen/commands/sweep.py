"""`raygen sweep`: samplers x steps x guidance x checkpoints on the same rows with the same noise, in one pass.

out/reference/            scores of the real pictures, unless `reference` is such a folder
out/cells/NAME/           SAMPLES and SCORES of a cell: a run that `raygen generate` could have made
out/timing/1-threads/     seconds per picture of each cell on its own, without scoring and encoding
out/metrics/              metrics.parquet, metrics.json: a row per cell and metric; table.md
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

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
    runner_of,
    sum_estimates,
    time_one_batch,
)
from raygen.commands.evaluate import EvaluateJob
from raygen.commands.generate import GenerateJob
from raygen.commands.inputs import open_inputs
from raygen.core.assets import resolve
from raygen.core.config import Config, parse
from raygen.core.errors import ConfigError
from raygen.core.hashing import run_id
from raygen.core.location import Location
from raygen.evaluation.comparison import CELL, WITHIN, best_steps, curves
from raygen.evaluation.config import FeatureMetricsConfig, ScoreConfig
from raygen.evaluation.protocols import protocols_of
from raygen.evaluation.reference import ReferenceSet
from raygen.execution.executor import PlannedRun, execute_all
from raygen.metrics.registry import SECONDS, lookup
from raygen.models import checkpoint_folder
from raygen.models.config.sampler import SamplerConfig, SamplerName, Spacing
from raygen.sampling.config import Guidance, SampleConfig, TimingConfig
from raygen.store.filesystem import FileStore
from raygen.store.run_store import Plan, RunStore, Shard

if TYPE_CHECKING:
    from raygen.evaluation.scored_sampler import SharedSampler

__all__ = ["JOB", "SamplerSweep", "SweepJob"]


#: Settings of a generate job that a sweep sets itself.
OWN: Final = frozenset({"conditions", "checkpoint", "sampler", "guidance", "use_conditions", "score"})
#: Name of the default set of conditions: all that rows have.
ALL: Final = "all"


Steps = Annotated[int, Field(ge=1, le=1000)]


class SamplerSweep(Config):
    """A sampler at several step counts: one line of the plot."""

    name: SamplerName = Field(description="name of the sampler")
    eta: float = Field(0.0, ge=0, le=1, description="ddim only: 0 is deterministic, 1 has the noise of ddpm")
    spacing: Spacing | None = Field(
        None, description="spacing of the timesteps, as in diffusers; default: that of the sampler"
    )
    steps: tuple[Steps, ...] | None = Field(
        None, min_length=1, description="step counts of this sampler; default: the `steps` of the sweep"
    )

    @model_validator(mode="after")
    def _check_sampler(self) -> "SamplerSweep":
        self.sampler(1)
        return self

    def sampler(self, steps: int) -> SamplerConfig:
        """The sampler with one step count."""
        return SamplerConfig(name=self.name, steps=steps, eta=self.eta, spacing=self.spacing)

    @property
    def label(self) -> str:
        """Name of the line in tables and folders, such as `ddim-eta1-leading`."""
        eta = f"-eta{self.eta:g}" if self.eta else ""
        return f"{self.name}{eta}" + (f"-{self.spacing}" if self.spacing else "")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. `settings` are the swept settings; they become part of its protocols in METRICS."""

    name: str
    settings: Mapping[str, Any]
    job: GenerateJob


class SweepJob(Job):
    """CONDITIONS -> one METRICS table of all combinations (cells) of samplers, steps, guidance and checkpoints.

    All cells have the same rows, noise, batch and precision.
    """

    kind: Literal["sweep"] = "sweep"
    conditions: Location = Field(..., description="folder of a plan run with the rows that every cell generates")
    reference: Location = Field(
        ..., description="folder of an ingest run with the real pictures, or of an evaluate run that has scored them"
    )
    checkpoints: dict[str, Location] = Field(
        default_factory=lambda: {"bundled": "bundled"},
        min_length=1,
        description="checkpoints by name: a model folder, or `bundled`",
    )
    samplers: tuple[SamplerSweep, ...] = Field(..., min_length=1, description="samplers, each a line of the plot")
    steps: tuple[Steps, ...] = Field(
        (5, 10, 20, 50), min_length=1, description="step counts of every sampler that has none of its own"
    )
    guidance: tuple[Guidance, ...] = Field(
        (1.0,), min_length=1, description="guidance weights, each a number or a weight per condition; 1 is no guidance"
    )
    use_conditions: dict[str, tuple[str, ...] | None] = Field(
        {ALL: None},
        min_length=1,
        description="sets of conditions by name, such as {none: [], mask: [mask]}; null in place of a list uses all",
    )
    score: ScoreConfig = Field(default_factory=ScoreConfig, description="measurements of each picture")
    compare: FeatureMetricsConfig | None = Field(
        None, description="comparisons of features besides the Fréchet distance: KID, precision, recall; default none"
    )
    timing: TimingConfig | None = Field(
        default_factory=TimingConfig, description="measurement of the seconds per picture; null measures no times"
    )
    generate: dict[str, Any] = Field(
        default_factory=dict, description="other settings of the generate jobs, such as {seed: 1, batch: 16}"
    )

    @model_validator(mode="after")
    def _check_cells(self) -> "SweepJob":
        if own := sorted(OWN & set(self.generate)):
            raise ValueError(f"generate: {', '.join(own)} are set by the sweep")
        labels = [line.label for line in self.samplers]
        if duplicates := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"samplers: {', '.join(duplicates)} is there twice")
        names = [cell.name for cell in self.cells()]
        if len(set(names)) < len(names):
            raise ConfigError("two cells of the sweep are the same")
        return self

    def cells(self) -> Iterator[Cell]:
        """All cells, by checkpoint, so that each model is loaded once, and many steps first, for an even end."""
        for name, checkpoint in self.checkpoints.items():
            combinations = product(self.samplers, self.guidance, self.use_conditions.items())
            cells = [(steps, *rest) for rest in combinations for steps in (rest[0].steps or self.steps)]
            for steps, line, guidance, (conditions, used) in sorted(cells, key=lambda cell: -cell[0]):
                weight = f"{guidance:g}" if not isinstance(guidance, dict) else ""
                if isinstance(guidance, dict):
                    weight = "-".join(f"{modality}{value:g}" for modality, value in sorted(guidance.items()))
                label = f"{line.label}-{steps:04d}"
                label += f"-w{weight}" if len(self.guidance) > 1 else ""
                label += f"-{conditions}" if len(self.use_conditions) > 1 else ""
                label += f"-{name}" if len(self.checkpoints) > 1 else ""
                sampler = line.sampler(steps)
                settings = {
                    "name": label,
                    "line": line.label,
                    "steps": steps,
                    "sampler": line.name,
                    "eta": line.eta,
                    "spacing": sampler.spacing,
                    "guidance": weight,
                    "conditions": conditions,
                    "checkpoint": name,
                }
                generate = {
                    **self.generate,
                    "checkpoint": checkpoint,
                    "sampler": sampler.model_dump(),
                    "guidance": guidance,
                    "use_conditions": used,
                    "conditions": self.conditions,
                    "score": self.score.model_dump(),
                }
                if used is not None:  # guidance by what this cell leaves out has no effect in it
                    own = {k: v for k, v in guidance.items() if k in used} if isinstance(guidance, dict) else guidance
                    generate["guidance"] = own if used and own != {} else 1.0
                if generate["guidance"] == 1.0:  # it has no effect in this cell, and in others it may
                    for setting in ("negative_keeps", "guidance_interval"):
                        generate.pop(setting, None)
                document = self._document("generate", generate, f"cells/{label}")
                yield Cell(label, settings, parse(GenerateJob, document, label))

    def check(self) -> None:
        """The errors of inputs, before any library of networks is imported and before any picture is scored."""
        open_inputs(self.conditions, "conditions")
        reference = ReferenceSet.open(self.reference)
        reference.check_networks(self.score.by_content())
        for folder in map(resolve, self.checkpoints.values()):
            side = checkpoint_folder.first_stage_config(folder).image_size
            if self.score.features is not None and reference.size != (side, side):
                height, width = reference.size
                raise ConfigError(
                    f"reference: {self.reference} has pictures of {width} x {height} px, the model {folder} makes "
                    f"{side} x {side} px; ingest the reference at the model's size, so that the resize is on record"
                )

    def _document(self, kind: str, settings: Mapping[str, Any], folder: str) -> dict[str, Any]:
        return {"kind": kind, **settings, "resources": self.resources.model_dump(), "out": f"{self.out}/{folder}"}

    def run(self, report: ProgressCallback) -> Result:
        """Score the reference, generate and score all cells in one pass, time them, write the table."""
        self.check()
        cells = list(self.cells())
        works = [cell.job.prepare(write=True) for cell in cells]
        for work in works:  # before the reference is scored, which may take long
            work.store.check(work.plan)
        reference, score = ReferenceSet.open(self.reference), self.score.by_content()
        if reference.scores is None:
            settings = {"reference": self.reference, "score": self.score.model_dump()}
            job: EvaluateJob = parse(EvaluateJob, self._document("evaluate", settings, "reference"), "reference")
            job.run(report)
            reference = ReferenceSet.open(job.out)
        reference.check_networks(score)
        configs = [cell.job.sampling(work.plan.run_id) for cell, work in zip(cells, works, strict=True)]
        build = self._sampler(configs, self.score)
        execute_all(works, build, self.resources, runner_of(self.resources), report=report)
        for work in works:
            reference.check(score, work.store)
        times = {} if self.timing is None else self._measure_times(self.timing, cells, configs, report)
        return Result(self.out, self._write(cells, reference, times))

    def estimate(self) -> Estimate:
        """Time one batch of each line with its fewest steps, and scale the other cells by their steps.

        The time outside of the steps (first stage, scores, encoding) is scaled as well, so cells with many steps are
        overestimated.
        """
        self.check()
        rates: dict[tuple[Any, ...], tuple[int, Throughput]] = {}
        parts = []
        for cell in sorted(self.cells(), key=lambda cell: int(cell.settings["steps"])):
            work, steps = cell.job.prepare(write=False), int(cell.settings["steps"])
            work.store.check(work.plan)
            line = tuple(cell.settings[name] for name in ("line", "guidance", "conditions", "checkpoint"))
            if line not in rates:
                rates[line] = steps, time_one_batch(work)
            fewest, rate = rates[line]
            parts.append(extrapolate(work, self.resources, replace(rate, seconds=rate.seconds * steps / fewest), ()))
        rows = next(iter(rates.values()))[1].rows
        notes = (
            f"{len(parts)} cells; scoring the reference and timing come on top",
            f"timed on {rows} rows with one worker here, at the fewest steps of each of {len(rates)} lines",
            "other step counts are scaled by their steps, which overestimates them",
        )
        return sum_estimates(parts, notes)

    def _measure_times(
        self, timing: TimingConfig, cells: Sequence[Cell], configs: Sequence[SampleConfig], report: ProgressCallback
    ) -> Mapping[str, Sequence[float]]:
        """Seconds per picture of each cell and round. One worker times the cells one after the other."""
        from raygen.sampling.timing import SharedTiming, seconds_of

        piece = open_inputs(self.conditions, "conditions").slices[0]
        rows = min(timing.pictures, piece.rows, cells[0].job.batch)
        shard = Shard(0, (piece._replace(rows=rows),))
        parts = []
        for cell, config in zip(cells, configs, strict=True):
            settings = {"timing": timing.model_dump(mode="json"), "run": config.run_id}
            plan = Plan("timing", run_id({"kind": "timing", "settings": settings}), settings, rows, [shard])
            parts.append(PlannedRun(RunStore(self._timing(cell)), plan, 0.0))
        build = partial(SharedTiming, self._sampler(configs, None), timing, [cell.name for cell in cells])
        one_worker = self.resources.model_copy(update={"workers": 1})
        execute_all(parts, build, one_worker, runner_of(self.resources), report=report)
        return {cell.name: seconds_of(part.store) for cell, part in zip(cells, parts, strict=True)}

    def _timing(self, cell: Cell) -> str:
        """Folder of the times of a cell; each number of threads and GPUs has its own."""
        resources = self.resources
        hardware = f"{resources.threads}-threads" + (f"-{resources.gpus:g}-gpus" if resources.gpus else "")
        return f"{self.out}/timing/{hardware}/{cell.name}"

    def _sampler(self, configs: Sequence[SampleConfig], score: ScoreConfig | None) -> "partial[SharedSampler]":
        """How an actor builds the workers of all cells."""
        from raygen.evaluation.scored_sampler import SharedSampler

        return partial(SharedSampler, configs, score, self.resources.threads, self.generate.get("references"))

    def _write(
        self, cells: Sequence[Cell], reference: ReferenceSet, times: Mapping[str, Sequence[float]]
    ) -> dict[str, object]:
        """Write METRICS of all cells and table.md; for each line, the step count that is sufficient."""
        from raygen.evaluation.aggregate import FEATURES, aggregate, gather_scores, write_metrics
        from raygen.evaluation.feature_metrics import ReferenceCache
        from raygen.evaluation.slices import grouping_of, select_ids

        networks, features = protocols_of(self.score)
        protocols = {**networks, "reference": {"made": reference.made, "size": list(reference.size)}}
        stores = [RunStore(cell.job.out, cell.job.attempt) for cell in cells]
        common = common_rows(stores)
        real = gather_scores(reference.tables())
        finish = partial(
            aggregate,
            reference=reference.content,
            protocols=protocols,
            frechet_name="" if features is None else features.metric,
            cache=ReferenceCache(),
            grouping=grouping_of(stores[0]),
        )
        rows: list[dict[str, Any]] = []
        # A cell is only compared with the features of the reference. The reference's own metrics are written once.
        real_features = {key: matrix for key, matrix in real.items() if key.startswith(FEATURES)}
        for cell, store in zip(cells, stores, strict=True):  # one at a time: features of all would be gigabytes
            scores, run = gather_scores(store.tables("scores")), store.plan().run_id
            scores = {name: select_ids({name: scores[name]}, ids)[name] for name, ids in common.items()}
            metrics = finish({"all": scores, "reference": real_features}, run_id=run, compare=self.compare).to_pylist()
            for row in [*metrics, *self._timing_rows(cell, run, times.get(cell.name))]:
                protocol = {**json.loads(row["protocol"]), CELL: cell.settings}
                rows.append({**row, "protocol": json.dumps(protocol, sort_keys=True)})
        rows += finish({"reference": real}, run_id=reference.content).to_pylist()
        folder = FileStore(f"{self.out}/metrics")
        write_metrics(folder, rows)
        folder.update("table.md", markdown_table(cells, rows).encode())
        return steps_within_5pct(rows)

    def _timing_rows(self, cell: Cell, run: str, seconds: Sequence[float] | None) -> list[dict[str, Any]]:
        """Seconds per picture as a METRICS row: the median of the rounds, and as its interval the extreme rounds."""
        from raygen.evaluation.aggregate import MetricRows

        if not seconds or self.timing is None:
            return []
        environment = next(iter(RunStore(self._timing(cell)).commits())).environment
        protocol = {
            **{key: environment.get(key) for key in ("device", "precision", "tf32", "threads", "torch")},
            "rounds": len(seconds),
            "includes": "conditions, sampling, first stage; warm, alone",
            "interval": "fastest and slowest round",
        }
        n = min(self.timing.pictures, cell.job.batch)
        rows = MetricRows(run, None)
        rows.add(SECONDS, "all", float(np.median(seconds)), n, protocol, (min(seconds), max(seconds)))
        return rows.rows


def common_rows(stores: Sequence[RunStore]) -> dict[str, frozenset[str]]:
    """Ids that every cell has, by score. At a few thousand rows, an unequal n changes distances more than a sampler."""
    common: dict[str, frozenset[str]] | None = None
    for store in stores:
        ids_of: dict[str, set[str]] = {}
        for table in store.tables("scores", ["sample_id", "metric"]):
            for name in table["metric"].unique().to_pylist():
                rows = table.filter(pc.equal(table["metric"], name))
                ids_of.setdefault(name, set()).update(rows["sample_id"].to_pylist())
        if common is None:
            common = {name: frozenset(ids) for name, ids in ids_of.items()}
        else:
            common = {name: ids & ids_of[name] for name, ids in common.items() if name in ids_of}
    return common or {}


def _headline_metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Metrics of whole sets, in order."""
    return list(dict.fromkeys(row["metric"] for row in rows if row["slice"] == "all"))


def markdown_table(cells: Sequence[Cell], rows: Sequence[Mapping[str, Any]]) -> str:
    """A row per cell and a column per metric, with warnings where there are few rows."""
    from raygen.evaluation.feature_metrics import few_rows

    names = _headline_metrics(rows)
    by_cell = {(json.loads(row["protocol"])[CELL]["name"], row["metric"]): row for row in rows if row["slice"] == "all"}
    lines = ["| cell | n | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for cell in sorted(cells, key=lambda c: (c.settings["checkpoint"], c.settings["line"], c.settings["steps"])):
        metrics = [by_cell.get((cell.name, name)) for name in names]
        n = next((row["n"] for row in metrics if row is not None), 0)
        values = " | ".join("" if row is None else f"{row['value']:.4g}" for row in metrics)
        lines.append(f"| {cell.name} | {n} | {values} |")
    warnings = dict.fromkeys(str(text) for text in few_rows(by_cell.values()).values())
    lines += ["", *(f"Fréchet distances here are of few rows: {text}." for text in warnings)] if warnings else []
    return "\n".join(lines) + "\n"


def steps_within_5pct(rows: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """For each line and headline metric, the smallest step count whose value is within 5 % of the best."""
    facts: dict[str, object] = {}
    for metric in _headline_metrics(rows):
        if not lookup(metric).headline:
            continue
        for curve in curves(rows, metric):
            steps, best = best_steps(curve, metric)
            facts[f"{metric}, {curve.name}"] = f"best {best:.4g}; {steps} steps are within {WITHIN:.0%} of it"
    return facts


JOB = SweepJob
