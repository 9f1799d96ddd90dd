"""`raygen evaluate`: SAMPLES and reference FACES -> SCORES -> METRICS. FACES alone -> a reference to compare with.

out/scores/{samples,reference,roundtrip,related}/   SCORES, each a run of its own
out/metrics/metrics.parquet  metrics.json   METRICS
out/metrics/closest.json  duplicates.json   nearest pairs of a sample and a training face, and of two samples
out/metrics/pictures.json                   folders of the pictures of these pairs, and of the samples
out/metrics/published.json                  values that papers print, as the job has them
out/metrics/verification.json  roc.csv      cosines of genuine and impostor pairs; FAR and TAR by threshold
out/metrics/pairs.txt  pairs.csv            pairs in the format of LFW; the same by `sample_id`
out/metrics/unpaired.json                   rows with a picture and no mask, or the reverse, if there are any
out/metrics/common/                         METRICS over the rows that all variants of an ablation have
out/reference.json                          description of the reference; other jobs may name this folder
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from raygen.commands.base import (
    Estimate,
    Job,
    PreparedRun,
    ProgressCallback,
    Result,
    Sharding,
    estimate_cost,
    noise_facts,
    report_stage,
    run_together,
    sum_estimates,
)
from raygen.commands.inputs import open_inputs, plan_run
from raygen.core.assets import resolve
from raygen.core.errors import ConfigError
from raygen.core.hashing import run_id
from raygen.core.location import LocalInput, Location
from raygen.core.types import UInt8Array
from raygen.evaluation.config import (
    FeatureMetricsConfig,
    MemorizationConfig,
    PairwiseConfig,
    PublishedConfig,
    ScoreConfig,
    VerificationConfig,
    check_slices,
)
from raygen.evaluation.protocols import FeatureNetwork, protocols_of
from raygen.evaluation.reference import ReferenceSet, baseline_content, check_held_out, write_unpaired
from raygen.evaluation.sample_facts import described, kept_ids, method_of, pictures_of, published_facts, restrict
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.evaluation.track import track
from raygen.models.checkpoint_folder import digest as checkpoint_digest
from raygen.store.filesystem import FileStore
from raygen.store.lookup import StoredRows
from raygen.store.parquet import from_parquet
from raygen.store.run_store import RunStore, open_input
from raygen.store.set_digest import KEYS
from raygen.tracking.base import LOG, LogTo, tracked

if TYPE_CHECKING:
    from raygen.evaluation.scoring import ScoreWorker

__all__ = ["JOB", "EvaluateJob"]


#: Scores that can only be measured while pictures are generated.
MADE: Final = ("influence", "edit")
#: Passes that score the samples.
OF_SAMPLES: Final = ("samples", "related")
TRAINING: Final = "training"
#: Folder of the metrics over the rows that all variants of an ablation have.
COMMON: Final = "metrics/common"


class EvaluateJob(Job, Sharding):
    """SAMPLES and reference FACES -> METRICS."""

    kind: Literal["evaluate"] = "evaluate"
    samples: Location | None = Field(
        None, description="folder of the generate, edit or select run to evaluate; without it, `reference` is prepared"
    )
    reference: Location | None = Field(
        None,
        description="folder of an ingest run with the real pictures, or of an evaluate run that has scored them",
    )
    reference_split: str | None = Field(
        None, description="split of the reference that is measured and compared with, such as test; default: all faces"
    )
    round_trip: Location | None = Field(
        None,
        description="checkpoint whose first stage encodes and decodes the reference; it is scored as a further set",
    )
    score: ScoreConfig = Field(default_factory=ScoreConfig, description="measurements of each picture")
    pairwise: PairwiseConfig | None = Field(
        None, description="measurements of pairs of pictures: change, leakage and diversity; default none"
    )
    compare: FeatureMetricsConfig | None = Field(
        None, description="comparisons of features besides the Fréchet distance: KID, precision, recall; default none"
    )
    slices: tuple[str, ...] = Field(
        (), description="attributes, classes or `identity`: METRICS are also computed for each of their values"
    )
    memorization: MemorizationConfig | None = Field(
        None, description="comparison with the training faces, to find memorized pictures; default none"
    )
    verification: VerificationConfig | None = Field(
        None,
        description="face verification: EER and TAR over pairs of pictures; needs `score.identity` and rows with "
        "`identity_id`; default none",
    )
    reference_stats: LocalInput | None = Field(
        None,
        description="file with mean and covariance of features (.npz, or saved by torch) from another tool, to which "
        "the Fréchet distance is computed as well",
    )
    rows_of: tuple[Location, ...] = Field(
        (),
        description="folders of other runs with SAMPLES: METRICS are over the rows that have a picture in all of them, "
        "so that methods which failed on different rows compare; default: all rows",
    )
    published: tuple[PublishedConfig, ...] = Field(
        (), description="values that papers print, shown beside the measured ones; they are never part of METRICS"
    )
    batch: int = Field(32, ge=1, le=4096, description="pictures that are scored at once")
    log: LogTo = Field((), description=LOG)

    @model_validator(mode="after")
    def _check_settings(self) -> "EvaluateJob":
        if self.samples is None and self.reference is None:
            raise ValueError("name `samples`, or a `reference` to prepare")
        if self.reference_stats is not None and (self.samples is None or self.score.features is None):
            raise ValueError("`reference_stats` needs `samples`, and the `score.features` that it was computed with")
        if self.reference is None and self.reference_split is not None:
            raise ValueError("`reference_split` needs `reference`")
        if self.samples is None and self.rows_of:
            raise ValueError("`rows_of` needs `samples`")
        if self.samples is None and self.pairwise is not None:
            raise ValueError("`pairwise` needs `samples`")
        if self.verification is not None and self.score.identity is None:
            raise ValueError("`verification` needs `score.identity`, a face embedder")
        check_slices(self.slices)
        if self.memorization is not None and (self.reference is None or self.score.features is None):
            raise ValueError("`memorization` needs `score.features`, and a `reference` of held-out faces")
        return self

    def run(self, report: ProgressCallback) -> Result:
        """Score the pictures that are not scored yet, then compute the metrics."""
        reference, samples = self._reference(), self._samples()
        self._check_inputs()
        passes = self._passes(reference, samples)
        run_together(list(passes.values()), self.resources, report_stage(report, ", ".join(passes)))
        if reference is not None and "reference" in passes:
            reference.record(self.score.by_content(), self.out)
        return Result(self.out, self._write(self._sets(passes, reference, samples), reference, samples))

    def rows(self) -> dict[str, frozenset[str]]:
        """Ids of the scored samples by score. Call it after `run`."""
        reference, samples = self._reference(), self._samples()
        sets = self._sets(self._passes(reference, samples), reference, samples)
        return {name: frozenset(matrix.ids) for name, matrix in sets.get("all", {}).items()}

    def over(self, rows: Mapping[str, frozenset[str]]) -> pa.Table:
        """METRICS over only the rows with these ids (by score); also written to `metrics/common`.

        Call it after `run`: nothing is scored again, and the files of `run` stay.
        """
        from raygen.evaluation.slices import select_ids

        reference, samples = self._reference(), self._samples()
        sets = self._sets(self._passes(reference, samples), reference, samples)
        for name in rows.keys() & sets["all"].keys():
            sets["all"] |= select_ids({name: sets["all"][name]}, rows[name])
        self._write(sets, reference, samples, COMMON)
        return from_parquet(FileStore(f"{self.out}/{COMMON}").get("metrics.parquet"))

    def _sets(
        self, passes: Mapping[str, PreparedRun], reference: ReferenceSet | None, samples: RunStore | None
    ) -> dict[str, dict[str, ScoreMatrix]]:
        """Scores of all sets, after the passes have run."""
        from raygen.evaluation.aggregate import gather_scores

        sets: dict[str, dict[str, ScoreMatrix]] = {}
        if samples is not None and "samples" not in passes:
            sets["all"] = gather_scores(samples.tables("scores"))
        if reference is not None and reference.scores is not None:
            sets["reference"] = gather_scores(reference.tables())
        for name, work in passes.items():
            scores = gather_scores(work.store.tables("scores"))
            sets.setdefault("all" if name in OF_SAMPLES else name, {}).update(scores)
        if samples is not None and "samples" in passes and samples.has("scores"):
            scores = gather_scores(samples.tables("scores"))
            sets["all"] |= {name: matrix for name, matrix in scores.items() if name.partition(":")[0] in MADE}
        restrict(sets, self._kept())
        return sets

    def _kept(self) -> dict[str, frozenset[str]]:
        """The ids that `rows_of` and `reference_split` keep, by set; `ConfigError` where there are none."""
        return kept_ids(self.samples, self.rows_of, self.reference, self.reference_split)

    def _check_inputs(self) -> None:
        """`ConfigError` for what would only fail after the pictures are scored."""
        if (key := self.score.to_source) and self.reference is None:
            raise ConfigError(f"score.{key}: needs `reference`, the folder of the faces that rows name")
        self._kept()
        if self.reference_stats is not None and self.score.features is not None:
            from raygen.evaluation.external_stats import check_statistics

            check_statistics(self.reference_stats, self.score.features)

    def check(self) -> None:
        """See `Job.check`."""
        for work in self.passes():
            work.store.check(work.plan)

    def estimate(self) -> Estimate:
        """The sum of all passes."""
        reference, samples = self._reference(), self._samples()
        self._check_inputs()
        passes = self._passes(reference, samples).values()
        parts = [estimate_cost(work, self.resources) for work in passes]
        return sum_estimates(parts, tuple(dict.fromkeys(note for part in parts for note in part.notes)))

    def _samples(self) -> RunStore | None:
        return None if self.samples is None else open_input(self.samples)[0]

    def _reference(self) -> ReferenceSet | None:
        return None if self.reference is None else ReferenceSet.open(self.reference)

    def passes(self) -> list[PreparedRun]:
        """The passes over pictures that `run` makes before it computes the metrics."""
        self._check_inputs()
        return list(self._passes(self._reference(), self._samples()).values())

    def _passes(self, reference: ReferenceSet | None, samples: RunStore | None) -> dict[str, PreparedRun]:
        """The passes over sets that are not scored yet, neither by an evaluation nor while they were generated."""
        passes = {}
        if reference is not None and samples is not None:
            reference.check(self.score.by_content(), samples)
            if (key := self.score.to_source) and reference.scores is not None:
                raise ConfigError(f"score.{key}: needs the pictures; name their ingest run as `reference`")
        if self.samples is not None and samples is not None:
            scored = samples.plan().settings.get("score") == self.score.by_content() and samples.has("scores")
            if not scored:
                passes["samples"] = self._pass("samples", self.samples, "samples", None)
        if reference is not None and reference.scores is None:
            passes["reference"] = self._pass("reference", reference.url, "faces", None)
        if reference is not None and self.round_trip is not None:
            if reference.scores is not None:
                raise ConfigError("round_trip: needs the pictures; name their ingest run as `reference`")
            passes["roundtrip"] = self._pass("roundtrip", reference.url, "faces", resolve(self.round_trip))
        if self.memorization is not None:
            if reference is not None:
                check_held_out(self.memorization, reference, self.reference_split)
                reference.check_size(open_input(self.memorization.faces)[0], "faces")
            features = ScoreConfig(parser=None, classifier=None, features=self.score.features)
            passes[TRAINING] = self._pass(TRAINING, self.memorization.faces, "faces", None, features)
        if self.pairwise is not None and self.samples is not None:
            passes["related"] = self._pairwise_pass(self.pairwise, self.samples)
        return passes

    def _pairwise_pass(self, pairwise: PairwiseConfig, samples: str) -> PreparedRun:
        """A pass over the samples that compares each with a related one."""
        settings = {"set": "related", "pairwise": pairwise.by_content(baseline_content(pairwise.baseline, samples))}
        inputs, threads = open_inputs(samples, "samples"), self.resources.threads
        plan = plan_run("evaluate", settings, inputs, batch=self.batch, shard_rows=self.shard_rows)
        from raygen.evaluation.pairwise import COLUMNS, PairwiseWorker

        build = partial(PairwiseWorker, pairwise, samples, run_id=plan.run_id, threads=threads)
        store = RunStore(f"{self.out}/scores/related")
        return PreparedRun(store, plan, self.max_error_fraction, COLUMNS, build=build)

    def _pass(
        self, name: str, url: str, table: str, checkpoint: str | None, score: ScoreConfig | None = None
    ) -> PreparedRun:
        score = score or self.score
        settings: dict[str, Any] = {
            "set": name,
            "score": score.by_content(),
            "checkpoint": None if checkpoint is None else checkpoint_digest(checkpoint),
        }
        inputs = open_inputs(url, table)
        key = KEYS[table][0]
        plan = plan_run("evaluate", settings, inputs, batch=self.batch, shard_rows=self.shard_rows)
        sources = self.reference if table == "samples" else None
        pinned = score.pinned(settings["score"])
        build = partial(score_worker, pinned, self.resources.threads, checkpoint, sources, plan.run_id)
        columns = (key, "image", "mask", "attributes", "source", "text", "landmarks")
        store = RunStore(f"{self.out}/scores/{name}")
        return PreparedRun(store, plan, self.max_error_fraction, columns, build=build)

    def _protocols(
        self, reference: ReferenceSet | None, samples: RunStore | None
    ) -> tuple[str, dict[str, Mapping[str, Any]], FeatureNetwork | None]:
        """Run id of the METRICS, protocols by metric, and the network of the features."""
        parts = {
            "samples": None if self.samples is None else open_input(self.samples)[1],
            "reference": None if reference is None else reference.content,
            "score": self.score.by_content(),
            "pairwise": self.pairwise,
        }
        name = run_id({"kind": "evaluate", **parts})
        networks, features = protocols_of(self.score)
        plan = None if samples is None else samples.plan()
        protocols: dict[str, Mapping[str, Any]] = {
            **networks,
            "edit": {"judges": plan.settings.get("judges", {}) if plan else {}},
        }
        if reference is not None:
            protocols["reference"] = {"made": reference.made, "size": list(reference.size)}
            if self.reference_split is not None:
                protocols["reference"] = {**protocols["reference"], "split": self.reference_split}
        if self.pairwise is not None:
            from raygen.evaluation.pairwise import protocols as pairwise_protocols

            protocols |= pairwise_protocols(self.pairwise)
        return name if plan is None else plan.run_id, protocols, features

    def _write(
        self,
        sets: dict[str, dict[str, ScoreMatrix]],
        reference: ReferenceSet | None,
        samples: RunStore | None,
        where: str = "metrics",
    ) -> dict[str, object]:
        """Write METRICS of the sets into the folder `where`; the metrics of whole sets by name, to be printed."""
        from raygen.evaluation.aggregate import MetricRows, aggregate, write_metrics
        from raygen.evaluation.feature_metrics import Grouping, few_rows
        from raygen.evaluation.memorization import compare_to_training
        from raygen.evaluation.slices import by_slices, column, grouping_of

        folder, is_main = FileStore(f"{self.out}/{where}"), where != COMMON
        content = None if reference is None else reference.content
        run, protocols, features = self._protocols(reference, samples)
        stores = pictures_of(reference, samples)
        folders = {} if self.samples is None else {"samples": self.samples}
        if self.memorization is not None:
            folders["training"] = self.memorization.faces
        if folders:
            folder.update("pictures.json", json.dumps(folders, indent=1).encode())
        facts = write_unpaired(stores if self.score.parser is not None else {}, protocols, folder)
        for name, (store, _, _) in stores.items():
            facts |= noise_facts(store, "warning" if name == "all" else f"warning [{name}]")
        training, grouping = sets.pop(TRAINING, None), Grouping() if samples is None else grouping_of(samples)
        finish = partial(
            aggregate,
            run_id=run,
            reference=content,
            protocols=protocols,
            frechet_name="" if features is None else features.metric,
            compare=self.compare,
            grouping=grouping,
        )
        tables = [finish(sets)]
        if self.slices:
            people = column(samples, "samples", "sample_id", "identity_id") if samples is not None else {}
            tables += by_slices(self.slices, sets, people, finish)
        if self.reference_stats is not None and features is not None:
            from raygen.evaluation.external_stats import compare_to_statistics

            tables.append(compare_to_statistics(self.reference_stats, sets["all"], features, run, grouping))
        if self.memorization is not None and training is not None and reference is not None and features is not None:
            rows = MetricRows(run, content)
            closest, duplicates = compare_to_training(self.memorization, sets, training, reference, features, rows)
            for file, document in (("closest", closest), ("duplicates", duplicates)):
                folder.update(f"{file}.json", json.dumps(document, indent=1).encode())
            tables.append(rows.table())
        if self.verification is not None:
            from raygen.evaluation.verification import write_verification

            rows = MetricRows(run, content)
            write_verification(self.verification, stores, sets, protocols, folder, rows)
            tables.append(rows.table())
        metrics = described(pa.concat_tables(tables).to_pylist(), sets.get("all", {}), method_of(samples))
        write_metrics(folder, metrics)
        folder.update("published.json", json.dumps([entry.model_dump() for entry in self.published], indent=1).encode())
        whole = [row for row in metrics if "/" not in row["slice"]]
        numbers = {f"{row['metric']} [{row['slice']}]": round(row["value"], 4) for row in whole}
        if self.log and is_main:
            facts |= track(self.log, tracked(self.document(), run), metrics, stores)
        return numbers | published_facts(self.published) | few_rows(whole) | facts


def score_worker(
    score: ScoreConfig, threads: int, checkpoint: str | None, sources: str | None, run_id: str
) -> "ScoreWorker":
    """`checkpoint`: a first stage that pictures pass through. `sources`: folder of the faces that samples name."""
    from raygen.evaluation.scoring import ScoreWorker
    from raygen.sampling.encode import RoundTrip

    through: Callable[[UInt8Array], UInt8Array] | None = None if checkpoint is None else RoundTrip(checkpoint)
    faces = None if sources is None else StoredRows(sources, ("image",))
    return ScoreWorker(score, run_id=run_id, threads=threads, through=through, sources=faces)


JOB = EvaluateJob
