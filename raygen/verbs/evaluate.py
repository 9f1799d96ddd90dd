"""`raygen evaluate`: SAMPLES (and reference FACES) -> SCORES -> METRICS.

Knows which sets are scored, what is scored already, and where the table goes. Does not know how anything is
measured.

    out/scores/{samples,reference,roundtrip,related}/   SCORES, as stores of their own
    out/metrics/metrics.parquet  metrics.json   METRICS
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from raygen.bundled import resolve
from raygen.encoding import RoundTrip
from raygen.models.checkpoint import digest as checkpoint_digest
from raygen.references import StoredRows
from raygen.relations import COLUMNS, RelationSpec, RelationWorker
from raygen.scoring import Observer, Scored, ScoreSpec, ScoreWorker, gather, measure
from raygen.shards import Worker
from raygen.spec import ConfigError, run_id
from raygen.storage import Storage
from raygen.store import Store, open_input
from raygen.tables import METRICS, cast, to_parquet
from raygen.verbs.base import Estimate, Job, Prepared, Report, Result, ShardedWhat, inputs, prepared, probe, run_sharded

__all__ = ["EvaluateJob", "EvaluateWhat"]

UInt8Array = npt.NDArray[np.uint8]
#: Measurements of how pictures were made; no later look at them can have these.
MADE: Final = ("influence", "edit")
#: Passes over what is judged.
OF_SAMPLES: Final = ("samples", "related")


class EvaluateWhat(ShardedWhat):
    """What is judged, against what, and how."""

    samples: str = Field(..., description="folder of a generate run")
    reference: str | None = Field(None, description="folder of an ingest run: the real pictures")
    round_trip: str | None = Field(None, description="checkpoint whose first stage the reference also goes through")
    score: ScoreSpec = Field(default_factory=ScoreSpec)
    relate: RelationSpec | None = Field(None, description="what only two pictures together say")
    batch: int = Field(32, ge=1, le=4096)


class EvaluateJob(Job):
    """SAMPLES -> METRICS."""

    kind: Literal["evaluate"] = "evaluate"
    what: EvaluateWhat

    def run(self, report: Report) -> Result:
        """Score what is not scored yet, then compute."""
        if self.what.score.similarity and self.what.reference is None:
            raise ConfigError("what.score.similarity: needs `reference`, the folder of the faces that rows name")
        passes = self._passes()
        for work in passes.values():
            run_sharded(work, self.where, report)
        sets: dict[str, dict[str, Scored]] = {}
        if "samples" not in passes:
            sets["all"] = gather(self._samples.tables("scores"))
        for name, work in passes.items():
            found = gather(work.store.tables("scores"))
            sets.setdefault("all" if name in OF_SAMPLES else name, {}).update(found)
        if "samples" in passes and self._samples.has("scores"):  # what only the making of them could know
            made = gather(self._samples.tables("scores"))
            sets["all"] |= {name: found for name, found in made.items() if name.partition(":")[0] in MADE}
        return Result(self.out, self._write(sets))

    def estimate(self) -> Estimate:
        """Of all passes together."""
        parts = [probe(work, self.where) for work in self._passes().values()]
        notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
        return Estimate(
            sum(p.rows for p in parts), sum(p.shards for p in parts), sum(p.done_shards for p in parts),
            sum(p.bytes for p in parts), sum(p.seconds for p in parts), notes,
        )  # fmt: skip

    @property
    def _samples(self) -> Store:
        return open_input(self.what.samples)[0]

    def _passes(self) -> dict[str, Prepared]:
        """The sets that have to be scored. Samples that were scored while they were made are not scored again."""
        passes = {}
        if not self._scored_inline():
            passes["samples"] = self._pass("samples", self.what.samples, "samples", None)
        if self.what.reference is not None:
            passes["reference"] = self._pass("reference", self.what.reference, "faces", None)
            if self.what.round_trip is not None:
                checkpoint = resolve(self.what.round_trip)
                passes["roundtrip"] = self._pass("roundtrip", self.what.reference, "faces", checkpoint)
        if self.what.relate is not None:
            passes["related"] = self._related(self.what.relate)
        return passes

    def _related(self, relate: RelationSpec) -> Prepared:
        """One more look at the samples, each beside another."""
        before = None if relate.baseline is None else open_input(relate.baseline)[1]
        what = {"set": "related", "relate": relate.model_copy(update={"baseline": before})}
        given, samples, threads = inputs(self.what.samples, "samples"), self.what.samples, self.where.threads
        return prepared(
            self.model_copy(update={"out": f"{self.out}/scores/related"}), "evaluate", what, given,
            lambda run: partial(RelationWorker, relate, samples, run_id=run, threads=threads),
            batch=self.what.batch, sharding=self.what, columns=COLUMNS,
        )  # fmt: skip

    def _scored_inline(self) -> bool:
        plan = self._samples.plan()
        return plan.what.get("score") == self.what.score.model_dump(mode="json") and self._samples.has("scores")

    def _pass(self, name: str, url: str, table: str, checkpoint: str | None) -> Prepared:
        what = {
            "set": name, "score": self.what.score,
            "checkpoint": None if checkpoint is None else checkpoint_digest(checkpoint),
        }  # fmt: skip
        given = inputs(url, table)
        key = "sample_id" if table == "samples" else "face_id"
        job = self.model_copy(update={"out": f"{self.out}/scores/{name}"})
        sources = self.what.reference if table == "samples" else None
        builder = partial(_build, self.what.score, self.where.threads, checkpoint, sources)
        return prepared(
            job, "evaluate", what, given, lambda run: partial(builder, run),
            batch=self.what.batch, sharding=self.what, columns=(key, "image", "mask", "attributes", "source"),
        )  # fmt: skip

    def _write(self, sets: dict[str, dict[str, Scored]]) -> dict[str, object]:
        """metrics.parquet and metrics.json; the headline numbers by name."""
        store, content = open_input(self.what.samples)
        reference = None if self.what.reference is None else open_input(self.what.reference)[1]
        parts = {"samples": content, "reference": reference, "what": self.what.score, "relate": self.what.relate}
        name = run_id({"kind": "evaluate", **parts})
        observer = Observer(self.what.score, run_id=name)
        protocols = {**observer.protocols(), "edit": {"judges": store.plan().what.get("judges", {})}}
        if self.what.relate is not None:
            protocols["relate"] = {"margin": self.what.relate.margin}
        table = measure(
            sets, run_id=store.plan().run_id, reference=reference, protocols=protocols,
            frechet_name="" if observer.features is None else observer.features.metric,
        )  # fmt: skip
        folder = Storage(f"{self.out}/metrics")
        folder.put("metrics.parquet", to_parquet(cast(table, METRICS)))
        rows = [
            {**row, "protocol": json.loads(row["protocol"]), "created": row["created"].isoformat()}
            for row in table.to_pylist()
        ]
        folder.put("metrics.json", json.dumps(rows, indent=1).encode())
        return {f"{row['metric']} [{row['slice']}]": round(row["value"], 4) for row in rows if "/" not in row["slice"]}


def _build(score: ScoreSpec, threads: int, checkpoint: str | None, sources: str | None, name: str) -> Worker:
    """The worker of an actor; `sources`: folder of the faces that samples name."""
    through: Callable[[UInt8Array], UInt8Array] | None = None if checkpoint is None else RoundTrip(checkpoint)
    faces = None if sources is None else StoredRows(sources, ("image",))
    return ScoreWorker(score, run_id=name, threads=threads, through=through, sources=faces)
