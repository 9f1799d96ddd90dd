"""`raygen select`: make pictures, refuse those that fail their gates, try these again, and keep what counts. Or faces
that are there already: those that pass are kept.

Knows the rounds, where each lies, and what is said of them afterwards. Does not know how a picture is made, measured or
judged.

    out/samples/                the first attempt, or the folder that `samples` names
    out/rerolls/attempt-01/ …   what was tried again, with other noise
    out/selected/               SAMPLES and SCORES of the tries that count, SELECTION of all: a run like any other
                                (of `faces`: FACES, and SELECTION)
    out/real/…                  measurements of real faces: those that nobody may look like, and of `faces`
    out/attempts.json           where the pictures of each attempt lie
    out/metrics/selection.*     what the tries were worth, by how rare the mask is
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from raygen.commands.base import (
    Estimate,
    Inputs,
    Job,
    PreparedRun,
    ProgressCallback,
    Result,
    estimate_cost,
    open_inputs,
    run_sharded,
    store_listing,
)
from raygen.commands.evaluate import EvaluateJob
from raygen.commands.generate import GenerateJob
from raygen.core.config import parse
from raygen.core.errors import ConfigError
from raygen.core.hashing import run_id
from raygen.evaluation.aggregate import gather_scores, write_metrics
from raygen.evaluation.scoring import ScoreConfig
from raygen.evaluation.slices import column, select_ids
from raygen.exports.row_scan import GATES_FILE
from raygen.report.selection import ATTEMPTS
from raygen.selection import gate_field
from raygen.selection.failures import FailureAnalysisConfig, analyze_failures
from raygen.selection.gates import Gate, RealFaces, ScorePool
from raygen.selection.rounds import (
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

__all__ = ["JOB", "SelectJob"]


if TYPE_CHECKING:
    AnyGate: TypeAlias = Gate
else:
    AnyGate = gate_field()
#: What a selection sets for each attempt itself.
OWN = frozenset({"attempt"})
#: What the attempts have in common and a reader of the selection wants to know; none of it names a path.
SETTINGS = (
    "checkpoint",
    "sampler",
    "guidance",
    "guidance_parametrization",
    "negative_keeps",
    "use_conditions",
    "seed",
    "noise",
    "batch",
    "dtype",
    "mixing",
    "missing",
    "codec",
)
#: Of a planning: files of the machine that it was made on.
FILES = frozenset({"names", "file"})


class SelectJob(Job):
    """CONDITIONS -> SAMPLES of which each passed its gates, and SELECTION.

    Pictures, rules, and how often a picture may be tried.
    """

    kind: Literal["select"] = "select"
    generate: dict[str, Any] | None = Field(
        None, description="settings of a generate job; its `score` is what gates read"
    )
    samples: str | None = Field(None, description="folder of a finished run of it; none: OUT/samples")
    faces: str | None = Field(None, description="in place of `generate`: folder of an ingest run; nothing is made")
    score: ScoreConfig | None = Field(None, description="of `faces`: what gates read")
    gates: tuple[AnyGate, ...] = Field(..., min_length=1, description="a picture counts if it passes all of them")
    max_retries: int = Field(2, ge=0, le=20, description="how often what was refused is tried again")
    on_exhausted: OnExhausted = Field(
        "leave_out",
        description="after the last round: leave_out, or best: the best by the first gate counts, of those that were "
        "refused for their quality alone (`score`, identity.min)",
    )
    failure_analysis: FailureAnalysisConfig = Field(default_factory=FailureAnalysisConfig)

    @model_validator(mode="after")
    def _attempts_are_its_own(self) -> "SelectJob":
        if (self.generate is None) == (self.faces is None):
            raise ValueError("name either `generate` or `faces`")
        if self.faces is not None and (self.score is None or self.samples is not None):
            raise ValueError("`faces` are judged by what `score` measures, and are not `samples`")
        if self.faces is not None and (again := sorted({"max_retries", "on_exhausted"} & self.model_fields_set)):
            raise ValueError(f"`faces` are tried once, so {' and '.join(again)} cannot be kept")
        if self.score is not None and self.faces is None:
            raise ValueError("`score` belongs to `faces`; pictures that are made have generate.score")
        if mine := sorted(OWN & set(self.generate or ())):
            raise ValueError(f"generate: {', '.join(mine)} is what a selection sets for each round")
        return self

    @model_validator(mode="after")
    def _gates_find_their_measurements(self) -> "SelectJob":
        if self._score is None:
            raise ConfigError("generate.score: gates judge what is measured; give `score: {}` at least")
        return self

    @property
    def _score(self) -> ScoreConfig | None:
        return self.score if self.faces is not None else self._job(0).score

    def _job(self, attempt: int) -> GenerateJob:
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

    def run(self, report: ProgressCallback) -> Result:
        """The rounds, then the rows that count, then what is said of them."""
        rounds = RetryState(self.gates, self.on_exhausted)
        real: dict[RealFaces, ScorePool] = {}
        for gate in self.gates:
            if gate.real_faces is not None:
                self._check_real_faces(gate, gate.real_faces[0])
                real[gate.real_faces] = real.get(gate.real_faces) or self._real(gate.name, gate.real_faces, report)
        attempts: dict[int, ScoredAttempt] = {}
        again: list[str] | None = None
        for attempt in range(self.max_retries + 1 if self.faces is None else 1):
            if again is not None and not again:
                break
            attempts[attempt] = self._made(attempt, again, report)
            again = self._judge(rounds, attempt, attempts[attempt], real)
        rounds.settle()
        places = {str(attempt): made.rows.url for attempt, made in attempts.items()}
        FileStore(self.out).put(ATTEMPTS, json.dumps(places, indent=1).encode())
        work = self._selected(rounds, attempts)
        work.store.create(work.plan)  # first, so that no other selection in the same folder gets these gates
        work.store.storage.put(GATES_FILE, json.dumps(rounds.describe(), indent=1).encode())
        run_sharded(work, self.resources, report)
        rows = analyze_failures(self.failure_analysis, rounds, attempts[0], work.plan.run_id)
        write_metrics(FileStore(f"{self.out}/metrics"), rows, "selection")
        return Result(self.out, self._facts(rounds, len(attempts)))

    def estimate(self) -> Estimate:
        """Of the first attempt; nobody knows yet how much will be tried again."""
        if self.faces is not None:
            return self._measuring(self.faces, self.score).estimate()
        found = estimate_cost(self._job(0).prepare(write=False), self.resources)
        note = f"the first attempt alone; at most {self.max_retries} rounds of what is refused come on top"
        return Estimate(found.rows, found.shards, found.done_shards, found.bytes, found.seconds, (*found.notes, note))

    def _made(self, attempt: int, again: Sequence[str] | None, report: ProgressCallback) -> ScoredAttempt:
        """Pictures of one attempt, and what they are measured to be."""
        if self.faces is not None:
            job = self._measuring(self.faces, self.score)
            job.run(report)
            return ScoredAttempt(open_input(self.faces)[0], RunStore(f"{job.out}/scores/reference"), "faces")
        work = self._attempt(attempt, again)
        run_sharded(work, self.resources, report)
        return ScoredAttempt(work.store, work.store)

    def _measuring(self, faces: str, score: ScoreConfig | None) -> EvaluateJob:
        """The job that measures faces, in a folder of its own for each set and each way to measure."""
        said = (score or ScoreConfig()).model_dump()
        document = {
            "kind": "evaluate",
            "reference": faces,
            "score": said,
            "resources": self.resources.model_dump(),
            "out": f"{self.out}/real/{run_id([faces, said])}",
        }
        job: EvaluateJob = parse(EvaluateJob, document, "faces")
        return job

    def _attempt(self, attempt: int, again: Sequence[str] | None) -> PreparedRun:
        job = self._job(attempt)
        if again is None:
            return job.prepare(write=True)
        # A new plan of the rows that were refused, in the order of the first one.
        wanted = pa.array(again, pa.string())
        found = []
        for piece in open_inputs(job.conditions, "conditions").slices:
            table = read_slice(piece)
            found.append(table.filter(pc.is_in(table["sample_id"], wanted)))
        return job.planned(store_listing(pa.concat_tables(found), f"{self.out}/rerolls", write=True))

    def _check_real_faces(self, gate: Gate, faces: str) -> None:
        """`ConfigError` where no embedder is configured, or every judged face would resemble itself."""
        if self._score is None or self._score.identity is None:
            raise ConfigError(f"gates: {gate.name} needs `score.identity`, the embedder that faces are compared with")
        if not gate.refuses_real_people or self.faces is None:
            return
        if open_input(faces)[1] == open_input(self.faces)[1]:
            raise ConfigError(f"gates: {gate.name}.faces: {faces} are the judged faces: all are like themselves")

    def _real(self, name: str, whom: RealFaces, report: ProgressCallback) -> ScorePool:
        """Embeddings of the real faces that a gate names, made once."""
        assert self._score is not None
        said = ScoreConfig(parser=None, features=None, classifier=None, identity=self._score.identity)
        job = self._measuring(whom[0], said)
        job.run(report)
        faces = open_input(whom[0])[0]
        splits = column(faces, "faces", "face_id", "split")
        used = frozenset(one for one, split in splits.items() if whom[1] in (None, split))
        scores = select_ids(gather_scores(RunStore(f"{job.out}/scores/reference").tables("scores")), used)
        if not scores:
            raise ConfigError(f"gates: {name}.split: {whom[0]} has no faces of {whom[1]!r}")
        return ScorePool(
            scores, {k: v for k, v in column(faces, "faces", "face_id", "identity_id").items() if k in used}
        )

    def _judge(
        self, rounds: RetryState, attempt: int, made: ScoredAttempt, real: Mapping[RealFaces, ScorePool]
    ) -> list[str]:
        """The ids of an attempt that are to be tried again."""
        needs = tuple(name for gate in self.gates for name in gate.needs)
        ids: list[str] = []
        people: dict[str, str] = {}
        for table in made.read("identity_id"):
            names = table["id"].to_pylist()
            ids += names
            people |= {one: who for one, who in zip(names, table["identity_id"].to_pylist(), strict=True) if who}
        pool = ScorePool(gather_scores(_only(made.scores.tables("scores"), needs)), people, real)
        # Of the first attempt: of what is tried again it may be all that nothing can be measured of.
        for gate in self.gates if ids and not attempt else ():
            if any(pool.of(kind) is None for kind in gate.needs):
                key = "score" if self.faces is not None else "generate.score"
                raise ConfigError(f"gates: nothing was measured that {gate.name} reads; see {key}")
        return rounds.judge(attempt, ids, pool, failures(made))

    def _selected(self, rounds: RetryState, attempts: Mapping[int, ScoredAttempt]) -> PreparedRun:
        """The pass that brings together what counts."""
        table = listing(rounds, attempts)
        given: Inputs = store_listing(table, f"{self.out}/rerolls", write=True)
        first = attempts[0].rows.plan()
        # Of faces also who drew them, so that an export says of them what it would have said of all.
        tried = {
            "max_retries": self.max_retries,
            "on_exhausted": self.on_exhausted,
            "score": first.settings.get("score"),
        }
        settings = {
            "gates": [gate.model_dump(mode="json") for gate in self.gates],
            "limits": [dict(limits) for limits in rounds.limits],
            **(tried if self.faces is None else {"data": first.settings.get("data")}),
            "judged_by": sorted({name.partition(":")[2] for name in rounds.accepted.scores}),
            "attempts": {str(n): made.rows.plan().run_id for n, made in attempts.items()},
            **({} if self.faces is not None else self._origin(first)),
        }
        rows = max(shard.rows for shard in first.shards)
        name = run_id({"kind": "select", "settings": settings, "inputs": given.digest})
        plan = Plan("select", name, settings, rows, make_shards(given.slices, rows))
        return PreparedRun(RunStore(f"{self.out}/selected"), plan, 1.0, build=SelectWorker)

    def _origin(self, first: Plan) -> dict[str, Any]:
        """How the first attempt made its pictures, and how their conditions were planned, for who gets only these."""
        said = {name: first.settings[name] for name in SETTINGS if name in first.settings}
        planning = open_input(self._job(0).conditions)[0].plan().settings.get("planning")
        planned = {k: v for k, v in planning.items() if k not in FILES} if isinstance(planning, Mapping) else None
        return {"generate": said, **({} if planned is None else {"planning": planned})}

    def _facts(self, rounds: RetryState, attempts: int) -> dict[str, object]:
        chosen = [t for tries in rounds.tries.values() if (t := accepted_rows(tries)) is not None]
        first = sum(t.attempt == 0 and t.reason is None for t in chosen)
        again = sum(t.attempt > 0 and t.reason is None for t in chosen)
        made = open_input(f"{self.out}/selected")[1]
        refused = {name: n for name, n in rounds.refused.items() if n}
        best = len(chosen) - first - again
        return {
            "rows": len(rounds.tries),
            "passed at once": first,
            **({f"passed in {attempts - 1} more rounds": again} if self.faces is None else {}),
            **({"the best of what failed": best} if self.on_exhausted == "best" else {}),
            "left out": len(rounds.tries) - len(chosen),
            **_pictures_each(rounds.each()),
            "refusals": ", ".join(f"{name} {n:,}" for name, n in refused.items()) or "none",
            "set_digest": made,
        }


def _pictures_each(people: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """How many pictures identities have now, and how many have fewer than were planned."""
    if not people:
        return {}
    have = [n for _, n in people.values()]
    fewer = sum(n < planned for planned, n in people.values())
    said = (
        f"{min(have)} at least, {np.median(have):g} in the median; {fewer:,} of {len(have):,} have fewer than planned"
    )
    return {"pictures of an identity": f"{said}, {have.count(0):,} have none"}


def _only(tables: Iterator[pa.Table], kinds: Sequence[str]) -> Iterator[pa.Table]:
    """Rows of the measurements whose names begin with one of `kinds`."""
    for table in tables:
        names = [n for n in table["metric"].unique().to_pylist() if n.startswith(tuple(kinds))]
        yield table.filter(pc.is_in(table["metric"], pa.array(names, pa.string())))


JOB = SelectJob
