"""Attempts of a selection: images that pass their gates are accepted, the others are tried again with other noise.

FACES of an ingest run are judged the same way, but tried once.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygen.selection.gates import Gate, ScorePool, Verdicts
from raygen.store.parquet import Slice, read_slice
from raygen.store.run_store import RunStore
from raygen.store.schemas import REFUSED, SAMPLES, SCORES, SELECTION
from raygen.store.set_digest import KEYS

__all__ = ["LISTING", "Attempt", "RetryState", "ScoredAttempt", "SelectWorker", "accepted_rows", "failures", "listing"]


OnExhausted = Literal["leave_out", "best"]
_TRIES: Final = pa.list_(pa.struct([("attempt", pa.int32()), ("accepted", pa.bool_()), ("reason", pa.string())]))
#: One row for each sample or face: its tries, and where the accepted one (or the first one) lies.
LISTING: Final = pa.schema(
    [
        ("sample_id", pa.string()),
        ("tries", _TRIES),
        ("table", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("scores", pa.string()),
        ("scored", pa.int64()),
    ]
)


@dataclass(frozen=True)
class ScoredAttempt:
    """Images of one attempt, SAMPLES or FACES, and the run that has their scores."""

    rows: RunStore
    scores: RunStore
    table: Literal["samples", "faces"] = "samples"

    @property
    def key(self) -> str:
        """Column of the row ids."""
        return KEYS[self.table][0]

    def read(self, *names: str) -> Iterator[pa.Table]:
        """The columns `names` of all rows and `id`; a column that the table lacks is null."""
        for table in self.rows.tables(self.table, [self.key, *names]):
            nulls = pa.nulls(table.num_rows, pa.string())
            columns = {name: table[name] if name in table.column_names else nulls for name in names}
            yield pa.table({"id": table[self.key], **columns})


class Attempt(NamedTuple):
    """One image of a sample: accepted, or refused for `reason`; `value` is its value by the first gate.

    `final`: it was refused by a gate that is not about quality, so it is never accepted later.
    """

    attempt: int
    accepted: bool
    reason: str | None
    value: float
    final: bool = False


def accepted_rows(tries: Sequence[Attempt]) -> Attempt | None:
    """The accepted one of a sample's tries."""
    return next((attempt for attempt in tries if attempt.accepted), None)


@dataclass
class RetryState:
    """The tries of every sample, in the order of the plan."""

    gates: Sequence[Gate]
    on_exhausted: OnExhausted = "leave_out"
    tries: dict[str, list[Attempt]] = field(default_factory=dict)
    accepted: ScorePool = field(default_factory=ScorePool)
    limits: list[Mapping[str, float]] = field(default_factory=list)
    #: Identity by id of the first attempt's rows, where they have one.
    people: dict[str, str] = field(default_factory=dict)
    #: Number of images that each gate refused.
    refused: Counter[str] = field(default_factory=Counter)
    #: Images of each attempt that were refused for their quality only, and may be the best of their sample.
    spare: dict[int, ScorePool] = field(default_factory=dict)

    def judge(self, attempt: int, ids: Sequence[str], fresh: ScorePool, failed: Mapping[str, str]) -> list[str]:
        """Judge the images `ids` of one attempt; returns the ids to try again.

        `failed` has the errors of rows without an image, by id. An image that passes every gate is accepted.
        """
        if not self.limits:
            self.people = dict(fresh.people)
            self.limits = [gate.limits(fresh) for gate in self.gates]
        reasons: dict[str, list[str]] = {name: [error] for name, error in failed.items()}
        final: set[str] = set(failed)
        self.refused["no picture"] += len(failed)
        for gate, verdicts in self._verdicts([name for name in ids if name not in failed], fresh):
            self.refused[gate.name] += len(verdicts)
            final |= set() if gate.quality else verdicts.keys()
            for name, reason in verdicts.items():
                reasons.setdefault(name, []).append(reason)
        values = self.gates[0].values(fresh)
        for name in ids:
            refused = "; ".join(reasons[name]) if name in reasons else None
            judged = Attempt(attempt, refused is None, refused, values.get(name, -np.inf), name in final)
            self.tries.setdefault(name, []).append(judged)
        self.accepted = self.accepted.with_more(fresh, frozenset(name for name in ids if name not in reasons))
        if self.on_exhausted == "best":
            self.spare[attempt] = fresh.only(reasons.keys() - final)
        return [name for name in ids if name in reasons]

    def _verdicts(
        self, ids: Sequence[str], fresh: ScorePool, *, strict: bool = False
    ) -> Iterator[tuple[Gate, Verdicts]]:
        """The verdicts of each rule; rules that compare images come last and see only what no earlier rule refused.

        So no image is compared with one that is refused anyway. `strict` leaves out rules about quality.
        """
        pairs = zip(self.gates, self.limits, strict=True)
        rules = [(rule, limits) for gate, limits in pairs for rule in gate.rules() if not (strict and rule.quality)]
        refused: set[str] = set()
        for rule, limits in sorted(rules, key=lambda pair: pair[0].together):
            pool = fresh.without(refused) if rule.together else fresh
            names = [name for name in ids if name not in refused] if rule.together else ids
            missing = dict.fromkeys(pool.unmeasured(rule.needs, names), f"not measured: {rule.name}")
            verdicts = missing | rule.judge(pool, self.accepted, limits)
            refused |= verdicts.keys()
            yield rule, verdicts

    def describe(self) -> list[dict[str, Any]]:
        """Each gate for the data card of an export: its description, and whether it refuses real people."""
        pairs = zip(self.gates, self.limits, strict=True)
        return [
            {"description": gate.describe(limits), "refuses_real_people": gate.refuses_real_people}
            for gate, limits in pairs
        ]

    def each(self) -> dict[str, tuple[int, int]]:
        """Planned and accepted images of each identity."""
        planned = Counter(self.people.values())
        accepted = Counter(who for name, who in self.people.items() if accepted_rows(self.tries[name]) is not None)
        return {identity: (n, accepted[identity]) for identity, n in planned.items()}

    def settle(self) -> None:
        """After the last attempt: with `best`, the best refused image of a sample is accepted, and its reason says so.

        An image that a gate refused for another reason than quality stays refused. Images that were not compared with
        others yet, because their quality was refused first, are compared now.
        """
        if self.on_exhausted == "leave_out":
            return
        waiting: dict[str, list[Attempt]] = {}
        for name, tries in self.tries.items():
            # A row that failed has no value.
            usable = [t for t in tries if not t.final and np.isfinite(t.value)] if accepted_rows(tries) is None else []
            if usable:
                waiting[name] = sorted(usable, key=lambda t: (-t.value, t.attempt))
        while waiting:
            best, names = ScorePool(), set(waiting)
            for attempt, spare in self.spare.items():
                best = best.with_more(spare, {name for name, queue in waiting.items() if queue[0].attempt == attempt})
            refused: Verdicts = {}
            for _, verdicts in self._verdicts(list(waiting), best, strict=True):
                refused = verdicts | refused
            for name in list(waiting):
                chosen, reason = waiting[name].pop(0), refused.get(name)
                if reason is None:
                    result = chosen._replace(accepted=True, reason=f"best of {len(self.tries[name])}: {chosen.reason}")
                else:
                    result = chosen._replace(reason=f"{chosen.reason}; {reason}")
                self.tries[name] = [result if t is chosen else t for t in self.tries[name]]
                if reason is None or not waiting[name]:
                    del waiting[name]
            self.accepted = self.accepted.with_more(best, names - refused.keys())


def failures(made: ScoredAttempt) -> dict[str, str]:
    """Errors of rows by id."""
    errors: dict[str, str] = {}
    for table in made.read("error"):
        failed = table.filter(table["error"].is_valid())
        errors |= dict(zip(failed["id"].to_pylist(), failed["error"].to_pylist(), strict=True))
    return errors


def listing(rounds: RetryState, attempts: Mapping[int, ScoredAttempt]) -> pa.Table:
    """LISTING of all samples or faces, in the order of the first attempt."""
    wanted = {name: (accepted_rows(tries) or tries[0]).attempt for name, tries in rounds.tries.items()}
    places: dict[str, tuple[str, int, str, int]] = {}
    for number, attempt in attempts.items():
        for piece, scores in zip(attempt.rows.slices(attempt.table), _score_files(attempt), strict=True):
            for row, name in enumerate(read_slice(piece, [attempt.key])[attempt.key].to_pylist()):
                if wanted.get(name) == number:
                    places[name] = (piece.path, piece.start + row, *scores)
    rows = []
    for name, tries in rounds.tries.items():
        place = dict(zip(("file", "row", "scores", "scored"), places[name], strict=True))
        judged = [{"attempt": t.attempt, "accepted": t.accepted, "reason": t.reason} for t in tries]
        rows.append({"sample_id": name, "tries": judged, "table": attempts[tries[0].attempt].table, **place})
    return pa.Table.from_pylist(rows, LISTING)


def _score_files(attempt: ScoredAttempt) -> Iterable[tuple[str, int]]:
    """For each file of rows the file of SCORES that the same shard committed, and its rows; '' where it has none.

    FACES are scored in a run of their own with other shards, so their scores are not copied.
    """
    for commit in attempt.rows.commits():
        files = {entry["table"]: entry for entry in commit.files}
        if attempt.table in files and files[attempt.table]["rows"]:
            scores = files.get("scores") if attempt.rows is attempt.scores else None
            yield ("", 0) if scores is None else (attempt.rows.storage.address(scores["path"]), int(scores["rows"]))


class SelectWorker:
    """LISTING rows -> SAMPLES and SCORES, or FACES, of the accepted tries, and SELECTION of all tries.

    A sample without an accepted try stays a row: its first one, without the image, and `refused` as its error. A face
    that is refused goes to quarantine.
    """

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Nothing for a device to do."""
        return lambda: self._work(rows.to_pylist())

    def _work(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Table]:
        name = rows[0]["table"]
        parts, scores = [], []
        by_file = sorted(rows, key=lambda row: (row["file"], row["row"]))
        for (path, score_file, scored), group in groupby(by_file, key=lambda r: (r["file"], r["scores"], r["scored"])):
            own = list(group)
            first, last = own[0]["row"], own[-1]["row"]
            table = read_slice(Slice(path, first, last - first + 1)).take([row["row"] - first for row in own])
            reasons = [_refusal(row) for row in own]
            if name == "samples":
                parts.append(_without_images(table, reasons))
            else:
                parts.append(table.append_column("error", pa.array(reasons, pa.string())))
            if score_file:
                ids = [row["sample_id"] for row, reason in zip(own, reasons, strict=True) if reason is None]
                measured = read_slice(Slice(score_file, 0, scored))
                scores.append(measured.filter(pc.is_in(measured["sample_id"], pa.array(ids, pa.string()))))
        place = {row["sample_id"]: i for i, row in enumerate(rows)}
        whole = pa.concat_tables(parts)
        order = np.argsort([place[sample] for sample in whole.column(0).to_pylist()], kind="stable")
        tries = [{"sample_id": row["sample_id"], **attempt} for row in rows for attempt in row["tries"]]
        tables = {name: whole.take(order), "selection": pa.Table.from_pylist(tries, SELECTION)}
        return tables | ({"scores": pa.concat_tables(scores).cast(SCORES)} if scores else {})


def _refusal(row: Mapping[str, Any]) -> str | None:
    """Why a sample has no image; None where one of its tries was accepted."""
    return None if any(t["accepted"] for t in row["tries"]) else f"{REFUSED}{row['tries'][-1]['reason']}"[:300]


def _without_images(table: pa.Table, reasons: Sequence[str | None]) -> pa.Table:
    """SAMPLES; those with a reason have it as their error and lose their image."""
    if not any(reasons):
        return table
    keep = pa.array([reason is None for reason in reasons])
    for name in ("image", "image_sha256"):
        column = table[name].combine_chunks()
        kept = pc.if_else(keep, column, pa.nulls(table.num_rows, SAMPLES.field(name).type))
        table = table.set_column(table.schema.get_field_index(name), SAMPLES.field(name), kept)
    error = pa.array(list(reasons), pa.string())
    return table.set_column(table.schema.get_field_index("error"), SAMPLES.field("error"), error)
