"""`raygen evaluate`: SAMPLES (and reference FACES) -> SCORES -> METRICS; FACES alone -> a reference to compare with.

Knows which sets are scored, what is scored already, and where the table goes. Does not know how anything is
measured.

    out/scores/{samples,reference,roundtrip,related}/   SCORES, as stores of their own
    out/metrics/metrics.parquet  metrics.json   METRICS
    out/metrics/closest.json  duplicates.json   pairs of a sample and a training face, and of two samples: the nearest
    out/metrics/pictures.json                   folders that the pictures of these pairs are in
    out/metrics/verification.json  roc.csv      cosines of genuine and impostor pairs; FAR and TAR by threshold
    out/metrics/pairs.txt  pairs.csv            pairs as LFW lists them; the same by `sample_id`
    out/metrics/unpaired.json                   rows with a picture and no mask, or the reverse; only if there are any
    out/metrics/common/                         METRICS over the rows that all variants of an ablation have
    out/reference.json                          what the reference is; the folder is one that others may name
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
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
    open_inputs,
    plan_run,
    run_sharded,
)
from raygen.core.assets import resolve
from raygen.core.errors import ConfigError, InputError
from raygen.core.hashing import run_id
from raygen.evaluation.aggregate import MetricRows, ScoreMatrix, aggregate, gather_scores, write_metrics
from raygen.evaluation.external_stats import compare_to_statistics
from raygen.evaluation.feature_metrics import FeatureMetricsConfig, Grouping, few_rows
from raygen.evaluation.memorization import MemorizationConfig, ScoreSets, compare_to_training
from raygen.evaluation.pairwise import COLUMNS, PairwiseConfig, PairwiseWorker
from raygen.evaluation.pairwise import protocols as relations
from raygen.evaluation.reference import ReferenceSet, find_unpaired
from raygen.evaluation.scoring import ScoreConfig, Scorer, ScoreWorker
from raygen.evaluation.slices import by_slices, check_slices, column, grouping_of, select_ids
from raygen.evaluation.verification import (
    IDENTITY,
    ROC_HEAD,
    VerificationConfig,
    as_csv,
    as_lfw,
    histogram,
    identities_of,
    pairs_of,
    roc_lines,
    verification_metrics,
)
from raygen.models.checkpoint import digest as checkpoint_digest
from raygen.sampling.encode import RoundTrip
from raygen.store.filesystem import FileStore
from raygen.store.lookup import StoredRows
from raygen.store.parquet import from_parquet
from raygen.store.run_store import RunStore, open_input
from raygen.store.set_digest import KEYS

__all__ = ["JOB", "EvaluateJob"]


UInt8Array = npt.NDArray[np.uint8]
#: Measurements of how pictures were made; no later look at them can have these.
MADE: Final = ("influence", "edit")
#: Passes over what is judged.
OF_SAMPLES: Final = ("samples", "related")
TRAINING: Final = "training"
UNPAIRED: Final = "unpaired.json"
#: Folder of the numbers over only those rows that others have too.
COMMON: Final = "metrics/common"


class EvaluateJob(Job, Sharding):
    """SAMPLES -> METRICS.

    What is judged, against what, and how.
    """

    kind: Literal["evaluate"] = "evaluate"
    samples: str | None = Field(None, description="folder of a generate run; without it the reference is prepared")
    reference: str | None = Field(
        None, description="folder of an ingest run, the real pictures, or of an evaluation that scored them"
    )
    round_trip: str | None = Field(None, description="checkpoint whose first stage the reference also goes through")
    score: ScoreConfig = Field(default_factory=ScoreConfig)
    pairwise: PairwiseConfig | None = Field(None, description="what only two pictures together say")
    compare: FeatureMetricsConfig | None = Field(
        None, description="KID, precision and recall … beside the Fréchet distance"
    )
    slices: tuple[str, ...] = Field((), description="attributes, classes or `identity`: all numbers by these, too")
    memorization: MemorizationConfig | None = Field(
        None, description="faces that the model was trained on: did it copy them?"
    )
    verification: VerificationConfig | None = Field(
        None, description="EER and TAR over pairs of pictures; needs `score.identity` and rows that say who they are"
    )
    reference_stats: str | None = Field(
        None,
        description="mu and sigma of other tools, as .npz or as torch saved them: the Fréchet distance to them, too",
    )
    batch: int = Field(32, ge=1, le=4096)

    @model_validator(mode="after")
    def _says_what_is_judged(self) -> "EvaluateJob":
        if self.samples is None and self.reference is None:
            raise ValueError("name `samples`, or a `reference` to prepare")
        if self.reference_stats is not None and (self.samples is None or self.score.features is None):
            raise ValueError("`reference_stats` needs `samples`, and `score.features` of the network that they are of")
        if self.samples is None and self.pairwise is not None:
            raise ValueError("`pairwise` compares `samples`, and none are named")
        if self.verification is not None and self.score.identity is None:
            raise ValueError("`verification` needs `score.identity`, the embedder that people are told apart with")
        check_slices(self.slices)
        if self.memorization is not None and (self.reference is None or self.score.features is None):
            raise ValueError("`memorization` needs `score.features`, and a `reference` of faces that were held out")
        return self

    def run(self, report: ProgressCallback) -> Result:
        """Score what is not scored yet, then compute."""
        if (key := self.score.to_source) and self.reference is None:
            raise ConfigError(f"score.{key}: needs `reference`, the folder of the faces that rows name")
        reference, samples = self._reference(), self._samples()
        passes = self._passes(reference, samples)
        for work in passes.values():
            run_sharded(work, self.resources, report)
        if reference is not None and "reference" in passes:
            reference.record(self.score.by_content(), self.out)
        return Result(self.out, self._write(self._sets(passes, reference, samples), reference, samples))

    def rows(self) -> dict[str, frozenset[str]]:
        """Ids of what is judged, by measurement, once `run` has ended."""
        reference, samples = self._reference(), self._samples()
        sets = self._sets(self._passes(reference, samples), reference, samples)
        return {name: frozenset(found.ids) for name, found in sets.get("all", {}).items()}

    def over(self, rows: Mapping[str, frozenset[str]]) -> pa.Table:
        """METRICS as `run` has them, but over these ids of these measurements; also in `metrics/common`.

        For after `run`: nothing is scored again, and what `run` wrote stays.
        """
        reference, samples = self._reference(), self._samples()
        sets = self._sets(self._passes(reference, samples), reference, samples)
        for name in rows.keys() & sets["all"].keys():
            sets["all"] |= select_ids({name: sets["all"][name]}, rows[name])
        self._write(sets, reference, samples, COMMON)
        return from_parquet(FileStore(f"{self.out}/{COMMON}").get("metrics.parquet"))

    def _sets(
        self, passes: Mapping[str, PreparedRun], reference: ReferenceSet | None, samples: RunStore | None
    ) -> dict[str, dict[str, ScoreMatrix]]:
        """Scores of all sets, where every pass has ended."""
        sets: dict[str, dict[str, ScoreMatrix]] = {}
        if samples is not None and "samples" not in passes:
            sets["all"] = gather_scores(samples.tables("scores"))
        if reference is not None and reference.scores is not None:
            sets["reference"] = gather_scores(reference.tables())
        for name, work in passes.items():
            found = gather_scores(work.store.tables("scores"))
            sets.setdefault("all" if name in OF_SAMPLES else name, {}).update(found)
        if samples is not None and "samples" in passes and samples.has("scores"):  # what only their making could know
            made = gather_scores(samples.tables("scores"))
            sets["all"] |= {name: found for name, found in made.items() if name.partition(":")[0] in MADE}
        return sets

    def estimate(self) -> Estimate:
        """Of all passes together."""
        parts = [
            estimate_cost(work, self.resources) for work in self._passes(self._reference(), self._samples()).values()
        ]
        notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
        return Estimate(
            sum(p.rows for p in parts),
            sum(p.shards for p in parts),
            sum(p.done_shards for p in parts),
            sum(p.bytes for p in parts),
            sum(p.seconds for p in parts),
            notes,
        )

    def _samples(self) -> RunStore | None:
        return None if self.samples is None else open_input(self.samples)[0]

    def _reference(self) -> ReferenceSet | None:
        return None if self.reference is None else ReferenceSet.open(self.reference)

    def _passes(self, reference: ReferenceSet | None, samples: RunStore | None) -> dict[str, PreparedRun]:
        """The sets that have to be scored. What was scored before, or while it was made, is not scored again."""
        passes = {}
        if reference is not None and samples is not None:
            reference.check(self.score.by_content(), samples)
            if (key := self.score.to_source) and reference.scores is not None:
                raise ConfigError(f"score.{key}: needs the pictures; name their ingest run as `reference`")
        if self.samples is not None and samples is not None and not self._scored_inline(samples):
            passes["samples"] = self._pass("samples", self.samples, "samples", None)
        if reference is not None and reference.scores is None:
            passes["reference"] = self._pass("reference", reference.url, "faces", None)
        if reference is not None and self.round_trip is not None:
            if reference.scores is not None:
                raise ConfigError("round_trip: needs the pictures; name their ingest run as `reference`")
            passes["roundtrip"] = self._pass("roundtrip", reference.url, "faces", resolve(self.round_trip))
        if self.memorization is not None:
            if reference is not None:
                reference.check_size(open_input(self.memorization.faces)[0], "faces")
            only = ScoreConfig(parser=None, classifier=None, features=self.score.features)
            passes[TRAINING] = self._pass(TRAINING, self.memorization.faces, "faces", None, only)
        if self.pairwise is not None and self.samples is not None:
            passes["related"] = self._related(self.pairwise, self.samples)
        return passes

    def _related(self, pairwise: PairwiseConfig, samples: str) -> PreparedRun:
        """One more look at the samples, each beside another."""
        before = None if pairwise.baseline is None else open_input(pairwise.baseline)[1]
        settings = {"set": "related", "pairwise": pairwise.model_copy(update={"baseline": before})}
        given, threads = open_inputs(samples, "samples"), self.resources.threads
        plan = plan_run("evaluate", settings, given, batch=self.batch, shard_rows=self.shard_rows)
        build = partial(PairwiseWorker, pairwise, samples, run_id=plan.run_id, threads=threads)
        store = RunStore(f"{self.out}/scores/related")
        return PreparedRun(store, plan, self.max_error_fraction, COLUMNS, build=build)

    def _scored_inline(self, samples: RunStore) -> bool:
        return samples.plan().settings.get("score") == self.score.by_content() and samples.has("scores")

    def _pass(
        self, name: str, url: str, table: str, checkpoint: str | None, score: ScoreConfig | None = None
    ) -> PreparedRun:
        score = score or self.score
        settings = {
            "set": name,
            "score": score.by_content(),
            "checkpoint": None if checkpoint is None else checkpoint_digest(checkpoint),
        }
        given = open_inputs(url, table)
        key = KEYS[table][0]
        plan = plan_run("evaluate", settings, given, batch=self.batch, shard_rows=self.shard_rows)
        sources = self.reference if table == "samples" else None
        build = partial(_score_worker, score, self.resources.threads, checkpoint, sources, plan.run_id)
        columns = (key, "image", "mask", "attributes", "source", "text")
        store = RunStore(f"{self.out}/scores/{name}")
        return PreparedRun(store, plan, self.max_error_fraction, columns, build=build)

    def _write(
        self,
        sets: dict[str, dict[str, ScoreMatrix]],
        reference: ReferenceSet | None,
        samples: RunStore | None,
        where: str = "metrics",
    ) -> dict[str, object]:
        """metrics.parquet and metrics.json in the folder `where`; the headline numbers by name."""
        content = None if self.samples is None else open_input(self.samples)[1]
        against = None if reference is None else reference.content
        parts = {
            "samples": content,
            "reference": against,
            "score": self.score.by_content(),
            "pairwise": self.pairwise,
        }
        name = run_id({"kind": "evaluate", **parts})
        observer = Scorer(self.score, run_id=name)
        plan = None if samples is None else samples.plan()
        protocols: dict[str, Mapping[str, Any]] = {
            **observer.protocols(),
            "edit": {"judges": plan.settings.get("judges", {}) if plan else {}},
        }
        if reference is not None:
            protocols["reference"] = {"made": reference.made, "size": list(reference.size)}
        if self.pairwise is not None:
            protocols |= relations(self.pairwise)
        training, named = sets.pop(TRAINING, None), name if plan is None else plan.run_id
        features, together = observer.features, Grouping() if samples is None else grouping_of(samples)
        finish = partial(
            aggregate,
            run_id=named,
            reference=against,
            protocols=protocols,
            frechet_name="" if features is None else features.metric,
            compare=self.compare,
            grouping=together,
        )
        folder = FileStore(f"{self.out}/{where}")
        facts = self._unpaired(folder, protocols, reference, samples)
        tables = [finish(sets)]
        if self.slices:
            people = column(samples, "samples", "sample_id", "identity_id") if samples is not None else {}
            tables += by_slices(self.slices, sets, people, finish)
        if self.reference_stats is not None and features is not None:
            tables.append(compare_to_statistics(self.reference_stats, sets["all"], features, named, together))
        if self.memorization is not None and training is not None and reference is not None and features is not None:
            rows = MetricRows(named, against)
            closest, twins = compare_to_training(self.memorization, sets, training, reference, features, rows)
            folder.put("closest.json", json.dumps(closest, indent=1).encode())
            folder.put("duplicates.json", json.dumps(twins, indent=1).encode())
            places = {"samples": self.samples, "training": self.memorization.faces}
            folder.put("pictures.json", json.dumps(places, indent=1).encode())
            tables.append(rows.table())
        if self.verification is not None:
            tables.append(self._verified(self.verification, sets, protocols, folder, MetricRows(named, against)))
        found = pa.concat_tables(tables).to_pylist()
        write_metrics(folder, found)
        whole = [row for row in found if "/" not in row["slice"]]
        return {f"{row['metric']} [{row['slice']}]": round(row["value"], 4) for row in whole} | few_rows(whole) | facts

    def _verified(
        self,
        config: VerificationConfig,
        sets: ScoreSets,
        protocols: Mapping[str, Any],
        folder: FileStore,
        rows: MetricRows,
    ) -> pa.Table:
        """METRICS of verification in each set; histograms, rates by threshold, and pairs of the first set as files."""
        stores = {"all": (self._samples(), "samples", "sample_id")}
        real = self._reference()
        if real is not None and real.scores is None:  # of one that was scored elsewhere nobody knows who is who
            stores["reference"] = (open_input(real.url)[0], "faces", "face_id")
        shown: dict[str, Any] = {}
        roc = [ROC_HEAD]
        for where, (store, table, key) in stores.items():
            name = next((n for n in sets.get(where, {}) if n.startswith(IDENTITY)), None)
            if name is None or store is None:
                continue
            people, variants = identities_of(store, table, key)
            given = where, name, sets[where][name], people
            protocol = protocols.get(name.removeprefix(IDENTITY), {})
            if config.pairs and not shown:
                pairs = pairs_of(config, *given, variants, protocol, rows)
                folder.put("pairs.txt", as_lfw(pairs).encode())
                folder.put("pairs.csv", as_csv(pairs).encode())
            elif config.pairs:
                with suppress(InputError):  # a reference of fewer people is no reason to say nothing of the others
                    pairs_of(config, *given, variants, protocol, rows)
            found = verification_metrics(config, *given, protocol, rows)
            shown[where] = histogram(found)
            roc += roc_lines(where, found)
        folder.put("verification.json", json.dumps(shown).encode())
        folder.put("roc.csv", "\n".join([*roc, ""]).encode())
        return rows.table()

    def _unpaired(
        self,
        folder: FileStore,
        protocols: dict[str, Mapping[str, Any]],
        reference: ReferenceSet | None,
        samples: RunStore | None,
    ) -> dict[str, object]:
        """Rows with a picture and no mask, or the reverse: as facts, as `unpaired.json`, and beside mIoU."""
        stores = {"all": (samples, "samples", "sample_id")} if samples is not None else {}
        if reference is not None and reference.scores is None:
            stores |= {"reference": (open_input(reference.url)[0], "faces", "face_id")}
        facts: dict[str, object] = {}
        lists = {}
        for where, (store, table, key) in stores.items() if self.score.parser is not None else ():
            found = find_unpaired(store, table, key)
            if found is not None and (counts := found.counts()):
                lists[table] = {"without_mask": found.without_mask, "without_picture": found.without_picture}
                protocols[f"unpaired/{where}"] = {"not_compared": counts}
                facts |= {f"{name} [{where}]": f"{n:,} of {found.rows:,} rows" for name, n in counts.items()}
        if lists:
            folder.put(UNPAIRED, json.dumps(lists, indent=1).encode())
            facts["listed in"] = folder.address(UNPAIRED)
        elif folder.exists(UNPAIRED):
            folder.remove(UNPAIRED)
        return facts


def _score_worker(
    score: ScoreConfig, threads: int, checkpoint: str | None, sources: str | None, run_id: str
) -> ScoreWorker:
    """`checkpoint`: a first stage that pictures pass through. `sources`: folder of the faces that samples name."""
    through: Callable[[UInt8Array], UInt8Array] | None = None if checkpoint is None else RoundTrip(checkpoint)
    faces = None if sources is None else StoredRows(sources, ("image",))
    return ScoreWorker(score, run_id=run_id, threads=threads, through=through, sources=faces)


JOB = EvaluateJob
