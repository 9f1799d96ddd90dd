"""`raygen select`: generate pictures, reject those that fail a gate, and try these again with other noise. Or test the
faces of an ingest run, and keep those that pass.

    out/samples/                the first attempt, unless `samples` names its folder
    out/rerolls/attempt-01/ …   the further attempts
    out/selected/               the accepted SAMPLES and their SCORES, and SELECTION of all rows: a run like any other
                                (with `faces`: FACES and SELECTION)
    out/real/…                  scores of real faces: those that gates compare with, and those of `faces`
    out/attempts.json           folders of the attempts
    out/metrics/selection.*     METRICS of the attempts, by how rare the mask is
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from raygen.commands.base import Estimate, Job, PreparedRun, ProgressCallback, Result, estimate_cost, run_sharded
from raygen.commands.evaluate import EvaluateJob
from raygen.commands.generate import GenerateJob
from raygen.commands.inputs import check_splits, keep_listings, listing_inputs, open_inputs
from raygen.core.config import parse
from raygen.core.errors import ConfigError
from raygen.core.hashing import run_id
from raygen.core.location import Location
from raygen.evaluation.config import ScoreConfig
from raygen.exports.row_scan import GATES_FILE
from raygen.report.selection import ATTEMPTS
from raygen.selection import gate_field
from raygen.selection.config import FailureAnalysisConfig
from raygen.selection.gates import Gate, RealFaces, ScorePool
from raygen.selection.retries import (
    OnExhausted,
    RetryState,
    ScoredAttempt,
    SelectWorker,
    accepted_rows,
    failures,
    listing,
)
from raygen.store.filesystem import FileStore
from raygen.store.parquet import read_slice
from raygen.store.run_store import Plan, RunStore, make_shards, open_input
from raygen.store.sealed import to_text

__all__ = ["JOB", "SelectJob"]


if TYPE_CHECKING:
    AnyGate: TypeAlias = Gate
else:
    AnyGate = gate_field()
#: Settings of a generate job that a selection sets itself.
OWN: Final = frozenset({"attempt"})
#: Settings of the generate job that are stored with the selection. None of them is a path.
SETTINGS: Final = (
    "checkpoint",
    "sampler",
    "guidance",
    "guidance_parametrization",
    "guidance_interval",
    "negative_keeps",
    "use_conditions",
    "seed",
    "noise",
    "batch",
    "precision",
    "mixing",
    "missing",
    "codec",
)
#: Settings of a planning that are paths of the machine it ran on.
FILES: Final = frozenset({"names", "file"})


class SelectJob(Job):
    """CONDITIONS -> the SAMPLES that pass all gates, and SELECTION."""

    kind: Literal["select"] = "select"
    generate: dict[str, Any] | None = Field(
        None, description="settings of a generate job; gates read what its `score` measures. Or name `faces`"
    )
    samples: Location | None = Field(
        None, description="folder of a finished run of `generate`, used as the first attempt; default: OUT/samples"
    )
    faces: Location | None = Field(
        None, description="folder of an ingest run whose faces are tested, in place of `generate`; nothing is generated"
    )
    score: ScoreConfig | None = Field(None, description="with `faces`: measurements that the gates read")
    gates: tuple[AnyGate, ...] = Field(
        ..., min_length=1, description="tests of a picture, chosen by their `kind`; it is accepted if it passes all"
    )
    max_retries: int = Field(
        2, ge=0, le=20, description="how many more attempts rejected pictures get, each with different noise"
    )
    on_exhausted: OnExhausted = Field(
        "leave_out",
        description="what to do with a row that never passed. leave_out: no picture. best: the best picture by the "
        "first gate, among those rejected only for their quality (by a `score` gate or the `min` of `identity`)",
    )
    failure_analysis: FailureAnalysisConfig = Field(
        default_factory=FailureAnalysisConfig, description="analysis of the rejected pictures"
    )

    @model_validator(mode="after")
    def _check_settings(self) -> "SelectJob":
        if (self.generate is None) == (self.faces is None):
            raise ValueError("name either `generate` or `faces`")
        if self.faces is not None and (self.score is None or self.samples is not None):
            raise ValueError("`faces` needs `score`, and cannot be used with `samples`")
        if self.faces is not None and (unused := sorted({"max_retries", "on_exhausted"} & self.model_fields_set)):
            raise ValueError(f"`faces` are tried once; remove {' and '.join(unused)}")
        if self.score is not None and self.faces is None:
            raise ValueError("`score` can only be used with `faces`; for generated pictures set generate.score")
        if own := sorted(OWN & set(self.generate or ())):
            raise ValueError(f"generate: {', '.join(own)} is set by the selection")
        if self._score is None:
            raise ConfigError("generate.score: gates need measurements; set at least `score: {}`")
        return self

    @property
    def _score(self) -> ScoreConfig | None:
        return self.score if self.faces is not None else self._generate_job(0).score

    def _generate_job(self, attempt: int) -> GenerateJob:
        assert self.generate is not None
        out = f"{self.out}/rerolls" if attempt else self.samples or f"{self.out}/samples"
        document = {
            "kind": "generate",
            **self.generate,
            "attempt": attempt,
            "resources": self.resources.model_dump(),
            "out": out,
        }
        return parse(GenerateJob, document, "generate")

    def _scoring_job(self, faces: str, score: ScoreConfig | None) -> EvaluateJob:
        """The job that scores real faces, with a folder for each set of faces and each configuration."""
        settings = (score or ScoreConfig()).model_dump()
        document = {
            "kind": "evaluate",
            "reference": faces,
            "score": settings,
            "resources": self.resources.model_dump(),
            "out": f"{self.out}/real/{run_id([faces, settings])}",
        }
        job: EvaluateJob = parse(EvaluateJob, document, "faces")
        return job

    def run(self, report: ProgressCallback) -> Result:
        """Run the attempts, write the accepted rows, then the metrics of the selection."""
        self.check()
        rounds = RetryState(self.gates, self.on_exhausted)
        real: dict[RealFaces, ScorePool] = {}
        for gate in self.gates:
            if gate.real_faces is not None:
                real[gate.real_faces] = real.get(gate.real_faces) or self._score_faces(gate, gate.real_faces, report)
        attempts: dict[int, ScoredAttempt] = {}
        rejected: list[str] | None = None
        for attempt in range(self.max_retries + 1 if self.faces is None else 1):
            if rejected is not None and not rejected:
                break
            attempts[attempt] = self._run_attempt(attempt, rejected, report)
            rejected = self._judge(rounds, attempt, attempts[attempt], real)
        rounds.settle()
        folders = {str(attempt): scored.rows.url for attempt, scored in attempts.items()}
        FileStore(self.out).update(ATTEMPTS, json.dumps(folders, indent=1).encode())
        work = self._selected(rounds, attempts)
        work.store.create(work.plan)  # first, so that no other selection in the same folder gets these gates
        work.store.storage.update(GATES_FILE, to_text({"gates": rounds.describe()}))
        run_sharded(work, self.resources, report)
        from raygen.evaluation.aggregate import write_metrics
        from raygen.selection.failures import analyze_failures

        rows = analyze_failures(self.failure_analysis, rounds, attempts[0], work.plan.run_id)
        write_metrics(FileStore(f"{self.out}/metrics"), rows, "selection")
        facts = selection_facts(rounds, retries=None if self.faces is not None else len(attempts) - 1)
        return Result(self.out, {**facts, "set_digest": open_input(f"{self.out}/selected")[1]})

    def estimate(self) -> Estimate:
        """The first attempt only; how many pictures will be tried again is not known yet."""
        self.check()
        if self.faces is not None:
            return self._scoring_job(self.faces, self.score).estimate()
        first = estimate_cost(self._generate_job(0).prepare(write=False), self.resources)
        note = f"first attempt only; at most {self.max_retries} more attempts of the rejected pictures come on top"
        return replace(first, notes=(*first.notes, note))

    def _run_attempt(self, attempt: int, rejected: Sequence[str] | None, report: ProgressCallback) -> ScoredAttempt:
        """Generate and score the pictures of one attempt: all rows, or the `rejected` ones in the same order."""
        if self.faces is not None:
            scoring = self._scoring_job(self.faces, self.score)
            scoring.run(report)
            return ScoredAttempt(open_input(self.faces)[0], RunStore(f"{scoring.out}/scores/reference"), "faces")
        job = self._generate_job(attempt)
        if rejected is None:
            work = job.prepare(write=True)
        else:
            ids = pa.array(rejected, pa.string())
            tables = [read_slice(piece) for piece in open_inputs(job.conditions, "conditions").slices]
            rows = pa.concat_tables([table.filter(pc.is_in(table["sample_id"], ids)) for table in tables])
            inputs = listing_inputs(rows, f"{self.out}/rerolls", write=True)
            inputs.store()
            work = job.planned(inputs)
        run_sharded(work, self.resources, report)
        return ScoredAttempt(work.store, work.store)

    def check(self) -> None:
        """The errors of gates and inputs that would only be met after pictures have been made and scored."""
        if self.faces is None:
            open_inputs(self._generate_job(0).conditions, "conditions")
        if self.samples is not None:
            open_input(self.samples, 0)
        score = self._score
        assert score is not None
        for gate in self.gates:
            if gate.real_faces is not None:
                self._check_real_faces(gate, gate.real_faces[0])
                check_splits(gate.real_faces[0], filter(None, [gate.real_faces[1]]), f"gates: {gate.name}.split")
            if not all(map(score.measures, gate.needs)):
                raise self._unmeasured(gate)

    def _unmeasured(self, gate: Gate) -> ConfigError:
        key = "score" if self.faces is not None else "generate.score"
        return ConfigError(f"gates: {key} does not measure what {gate.name} needs")

    def _check_real_faces(self, gate: Gate, faces: str) -> None:
        """`ConfigError` where no embedder is configured, or every tested face would resemble itself."""
        if self._score is None or self._score.identity is None:
            raise ConfigError(f"gates: {gate.name} needs `score.identity`, the embedder that faces are compared with")
        open_inputs(faces, "faces")
        if gate.refuses_real_people and self.faces is not None and open_input(faces)[1] == open_input(self.faces)[1]:
            raise ConfigError(f"gates: {gate.name}.faces: {faces} are the tested faces: all are like themselves")

    def _score_faces(self, gate: Gate, real_faces: RealFaces, report: ProgressCallback) -> ScorePool:
        """Embeddings of the real faces (folder, split) that a gate compares with."""
        assert self._score is not None
        folder, split = real_faces
        score = ScoreConfig(parser=None, features=None, classifier=None, identity=self._score.identity)
        job = self._scoring_job(folder, score)
        job.run(report)
        from raygen.evaluation.aggregate import gather_scores
        from raygen.evaluation.slices import column, select_ids

        faces = open_input(folder)[0]
        splits = column(faces, "faces", "face_id", "split")
        ids = frozenset(face_id for face_id, face_split in splits.items() if split in (None, face_split))
        scores = select_ids(gather_scores(RunStore(f"{job.out}/scores/reference").tables("scores")), ids)
        if not scores:
            raise ConfigError(f"gates: {gate.name}.split: {folder} has no faces of {split!r}")
        people = column(faces, "faces", "face_id", "identity_id")
        return ScorePool(scores, {face_id: person for face_id, person in people.items() if face_id in ids})

    def _judge(
        self, rounds: RetryState, attempt: int, scored: ScoredAttempt, real: Mapping[RealFaces, ScorePool]
    ) -> list[str]:
        """Apply the gates to one attempt; the ids of the rejected rows."""
        from raygen.evaluation.aggregate import gather_scores

        ids: list[str] = []
        people: dict[str, str] = {}
        for table in scored.read("identity_id"):
            table_ids = table["id"].to_pylist()
            ids += table_ids
            pairs = zip(table_ids, table["identity_id"].to_pylist(), strict=True)
            people |= {row_id: person for row_id, person in pairs if person}
        needs = tuple(name for gate in self.gates for name in gate.needs)
        pool = ScorePool(gather_scores(scores_of(scored.scores.tables("scores"), needs)), people, real)
        # Only for the first attempt: a later one may consist of rows that cannot be measured.
        for gate in self.gates if ids and not attempt else ():
            if any(pool.of(kind) is None for kind in gate.needs):
                raise self._unmeasured(gate)
        return rounds.judge(attempt, ids, pool, failures(scored))

    def _selected(self, rounds: RetryState, attempts: Mapping[int, ScoredAttempt]) -> PreparedRun:
        """The pass that copies the accepted rows. Its plan has the settings that the data card shows."""
        inputs = listing_inputs(listing(rounds, attempts), f"{self.out}/rerolls", write=True)
        first = attempts[0].rows.plan()
        settings = {
            "gates": [gate.model_dump(mode="json") for gate in self.gates],
            "limits": [dict(limits) for limits in rounds.limits],
            "judged_by": sorted({name.partition(":")[2] for name in rounds.accepted.scores}),
            "attempts": {str(attempt): scored.rows.plan().run_id for attempt, scored in attempts.items()},
        }
        if self.faces is not None:
            settings["data"] = first.settings.get("data")
        else:
            settings |= {
                "max_retries": self.max_retries,
                "on_exhausted": self.on_exhausted,
                "score": first.settings.get("score"),
            }
            settings["generate"] = {name: first.settings[name] for name in SETTINGS if name in first.settings}
            planning = open_input(self._generate_job(0).conditions)[0].plan().settings.get("planning")
            if isinstance(planning, Mapping):
                settings["planning"] = {key: value for key, value in planning.items() if key not in FILES}
        rows = max(shard.rows for shard in first.shards)
        name = run_id({"kind": "select", "settings": settings, "inputs": inputs.digest})
        plan = Plan("select", name, settings, rows, make_shards(inputs.slices, rows))
        store = RunStore(f"{self.out}/selected")
        keep_listings(store, plan, inputs)
        return PreparedRun(store, plan, 1.0, build=SelectWorker)


def scores_of(tables: Iterator[pa.Table], prefixes: Sequence[str]) -> Iterator[pa.Table]:
    """The SCORES whose metrics are one of `prefixes`, or begin with one that ends with a colon."""
    open_ended = tuple(prefix for prefix in prefixes if prefix.endswith(":"))
    for table in tables:
        metrics = table["metric"].unique().to_pylist()
        names = [name for name in metrics if name in prefixes or name.startswith(open_ended)]
        yield table.filter(pc.is_in(table["metric"], pa.array(names, pa.string())))


def selection_facts(rounds: RetryState, retries: int | None) -> dict[str, object]:
    """Counts of a finished selection, to be printed; `retries` is None for faces, which are tried once."""
    accepted = [row for tries in rounds.tries.values() if (row := accepted_rows(tries)) is not None]
    first = sum(row.attempt == 0 and row.reason is None for row in accepted)
    later = sum(row.attempt > 0 and row.reason is None for row in accepted)
    facts: dict[str, object] = {"rows": len(rounds.tries), "passed at once": first}
    if retries is not None:
        facts[f"passed in {retries} more rounds"] = later
    if rounds.on_exhausted == "best":
        facts["the best of what failed"] = len(accepted) - first - later
    facts["left out"] = len(rounds.tries) - len(accepted)
    if people := rounds.each():
        counts = [count for _, count in people.values()]
        fewer = sum(count < planned for planned, count in people.values())
        facts["pictures of an identity"] = (
            f"at least {min(counts)}, median {np.median(counts):g}; {fewer:,} of {len(counts):,} identities have fewer "
            f"than planned, {counts.count(0):,} have none"
        )
    refused = [f"{name} {count:,}" for name, count in rounds.refused.items() if count]
    return {**facts, "refusals": ", ".join(refused) or "none"}


JOB = SelectJob
