"""Rounds of tries: what passes its gates counts, what does not is tried again with other noise, and not for ever.

Knows which tries there were, which one counts, and how the rows that count are brought together. Does not know how a
picture is made or measured, nor whether it was made at all: FACES are tried once.
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


Otherwise = Literal["leave_out", "best"]
_TRIES: Final = pa.list_(pa.struct([("attempt", pa.int32()), ("accepted", pa.bool_()), ("reason", pa.string())]))
#: A row a sample or face: its tries, and where the one that counts (or the first one) lies.
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
    """Pictures of one attempt, SAMPLES or FACES, and where it is measured what they are."""

    rows: RunStore
    scores: RunStore
    table: Literal["samples", "faces"] = "samples"

    @property
    def key(self) -> str:
        """Column of the rows' names."""
        return KEYS[self.table][0]

    def read(self, *names: str) -> Iterator[pa.Table]:
        """These columns of all rows, beside `id`; those that the table has not are null."""
        for table in self.rows.tables(self.table, [self.key, *names]):
            have = {n: table[n] if n in table.column_names else pa.nulls(table.num_rows, pa.string()) for n in names}
            yield pa.table({"id": table[self.key], **have})


class Attempt(NamedTuple):
    """One picture of a sample: passed, or refused for `reason`; `value` by the first gate.

    `final`: refused for more than that it is not good enough.
    """

    attempt: int
    accepted: bool
    reason: str | None
    value: float
    final: bool = False


def accepted_rows(tries: Sequence[Attempt]) -> Attempt | None:
    """The one of a sample's tries that counts."""
    return next((t for t in tries if t.accepted), None)


@dataclass
class RetryState:
    """The tries of every sample, in the order of the plan."""

    gates: Sequence[Gate]
    otherwise: Otherwise = "leave_out"
    tries: dict[str, list[Attempt]] = field(default_factory=dict)
    accepted: ScorePool = field(default_factory=ScorePool)
    limits: list[Mapping[str, float]] = field(default_factory=list)
    #: Whom the rows of the first attempt are to show, where they say so.
    people: dict[str, str] = field(default_factory=dict)
    #: How often each gate refused a picture.
    refused: Counter[str] = field(default_factory=Counter)
    #: Of each attempt what is not good enough, but might be the best.
    spare: dict[int, ScorePool] = field(default_factory=dict)

    def judge(self, attempt: int, ids: Sequence[str], fresh: ScorePool, failed: Mapping[str, str]) -> list[str]:
        """Take in the pictures `ids` of one attempt; those that are to be tried again.

        `failed`: error by id of rows without a picture. One that has a picture and passes every gate is accepted.
        """
        if not self.limits:
            self.people = dict(fresh.people)
            self.limits = [gate.limits(fresh) for gate in self.gates]
        reasons: dict[str, list[str]] = {one: [error] for one, error in failed.items()}
        final: set[str] = set(failed)
        self.refused["no picture"] += len(failed)
        for gate, verdicts in self._verdicts([one for one in ids if one not in failed], fresh):
            self.refused[gate.name] += len(verdicts)
            final |= set() if gate.quality else verdicts.keys()
            for one, reason in verdicts.items():
                reasons.setdefault(one, []).append(reason)
        values = self.gates[0].values(fresh)
        for one in ids:
            why = "; ".join(reasons[one]) if one in reasons else None
            self.tries.setdefault(one, []).append(
                Attempt(attempt, why is None, why, values.get(one, -np.inf), one in final)
            )
        self.accepted = self.accepted.with_more(fresh, frozenset(one for one in ids if one not in reasons))
        if self.otherwise == "best":
            self.spare[attempt] = fresh.only(reasons.keys() - final)
        return [one for one in ids if one in reasons]

    def _verdicts(
        self, ids: Sequence[str], fresh: ScorePool, *, strict: bool = False
    ) -> Iterator[tuple[Gate, Verdicts]]:
        """What each rule says: a picture's own measurements first, then those together that no rule before refused.

        So nobody is a twin of what is refused anyway, nor measured by it. `strict`: without rules about quality.
        """
        pairs = zip(self.gates, self.limits, strict=True)
        rules = [(rule, limits) for gate, limits in pairs for rule in gate.rules() if not (strict and rule.quality)]
        out: set[str] = set()
        for rule, limits in sorted(rules, key=lambda one: one[0].together):
            seen = fresh.without(out) if rule.together else fresh
            there = [one for one in ids if one not in out] if rule.together else ids
            missing = dict.fromkeys(seen.unmeasured(rule.needs, there), f"not measured: {rule.name}")
            verdicts = missing | rule.judge(seen, self.accepted, limits)
            out |= verdicts.keys()
            yield rule, verdicts

    def each(self) -> dict[str, tuple[int, int]]:
        """Of every person how many pictures were to be, and how many count."""
        planned = Counter(self.people.values())
        have = Counter(who for one, who in self.people.items() if accepted_rows(self.tries[one]) is not None)
        return {who: (n, have[who]) for who, n in planned.items()}

    def settle(self) -> None:
        """After the last round: with `best`, the best of several refused pictures counts, and its reason says so.

        None that was refused for more than its quality: it shows somebody real, somebody else, or the same again. What
        was not compared with others, because its quality was refused first, is now.
        """
        if self.otherwise == "leave_out":
            return
        waiting: dict[str, list[Attempt]] = {}
        for one, tries in self.tries.items():
            # A row that failed has no value.
            able = [t for t in tries if not t.final and np.isfinite(t.value)] if accepted_rows(tries) is None else []
            if able:
                waiting[one] = sorted(able, key=lambda t: (-t.value, t.attempt))
        while waiting:
            best, there = ScorePool(), set(waiting)
            for attempt, spare in self.spare.items():
                best = best.with_more(spare, {one for one, able in waiting.items() if able[0].attempt == attempt})
            refused: Verdicts = {}
            for _, verdicts in self._verdicts(list(waiting), best, strict=True):
                refused = verdicts | refused
            for one in list(waiting):
                chosen, reason = waiting[one].pop(0), refused.get(one)
                said = f"best of {len(self.tries[one])}: {chosen.reason}"
                new = {"accepted": True, "reason": said} if reason is None else {"reason": f"{chosen.reason}; {reason}"}
                self.tries[one] = [t._replace(**new) if t is chosen else t for t in self.tries[one]]
                if reason is None or not waiting[one]:
                    del waiting[one]
            self.accepted = self.accepted.with_more(best, there - refused.keys())


def failures(made: ScoredAttempt) -> dict[str, str]:
    """Errors of rows by id."""
    found: dict[str, str] = {}
    for table in made.read("error"):
        bad = table.filter(table["error"].is_valid())
        found |= dict(zip(bad["id"].to_pylist(), bad["error"].to_pylist(), strict=True))
    return found


def listing(rounds: RetryState, attempts: Mapping[int, ScoredAttempt]) -> pa.Table:
    """LISTING of all samples or faces, in the order of the first attempt."""
    wanted = {one: (accepted_rows(tries) or tries[0]).attempt for one, tries in rounds.tries.items()}
    places: dict[str, tuple[str, int, str, int]] = {}
    for attempt, made in attempts.items():
        for piece, beside in zip(made.rows.slices(made.table), _beside(made), strict=True):
            for row, one in enumerate(read_slice(piece, [made.key])[made.key].to_pylist()):
                if wanted.get(one) == attempt:
                    places[one] = (piece.path, piece.start + row, *beside)
    rows = []
    for one, tries in rounds.tries.items():
        place = dict(zip(("file", "row", "scores", "scored"), places[one], strict=True))
        said = [{"attempt": t.attempt, "accepted": t.accepted, "reason": t.reason} for t in tries]
        rows.append({"sample_id": one, "tries": said, "table": attempts[tries[0].attempt].table, **place})
    return pa.Table.from_pylist(rows, LISTING)


def _beside(made: ScoredAttempt) -> Iterable[tuple[str, int]]:
    """For each file of rows the file of SCORES that the same shard committed, and its rows; '' where it has none.

    FACES are measured in a run of its own, whose shards are not theirs, so their scores stay there.
    """
    for commit in made.rows.commits():
        files = {entry["table"]: entry for entry in commit.files}
        if made.table in files and files[made.table]["rows"]:
            scores = files.get("scores") if made.rows is made.scores else None
            yield ("", 0) if scores is None else (made.rows.storage.address(scores["path"]), int(scores["rows"]))


class SelectWorker:
    """LISTING rows -> SAMPLES and SCORES, or FACES, of the tries that count, and SELECTION of all tries.

    A sample of which no try counts stays a row: its first one, without the picture, and `refused` as its error. A face
    that is refused goes to quarantine.
    """

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Nothing for a device to do."""
        return lambda: self._work(rows.to_pylist())

    def _work(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Table]:
        name = rows[0]["table"]
        found, scores = [], []
        for (path, beside, scored), group in groupby(
            sorted(rows, key=lambda r: (r["file"], r["row"])), key=lambda r: (r["file"], r["scores"], r["scored"])
        ):
            some = list(group)
            first, last = some[0]["row"], some[-1]["row"]
            table = read_slice(Slice(path, first, last - first + 1)).take([r["row"] - first for r in some])
            reasons = [_why(row) for row in some]
            found.append(_refused(table, reasons) if name == "samples" else _left_out(table, reasons))
            if beside:
                ids = pa.array([row["sample_id"] for row in some if _why(row) is None], pa.string())
                measured = read_slice(Slice(beside, 0, scored))
                scores.append(measured.filter(pc.is_in(measured["sample_id"], ids)))
        place = {row["sample_id"]: i for i, row in enumerate(rows)}
        whole = pa.concat_tables(found)
        order = np.argsort([place[one] for one in whole.column(0).to_pylist()], kind="stable")
        tries = [{"sample_id": row["sample_id"], **one} for row in rows for one in row["tries"]]
        tables = {name: whole.take(order), "selection": pa.Table.from_pylist(tries, SELECTION)}
        return tables | ({"scores": pa.concat_tables(scores).cast(SCORES)} if scores else {})


def _why(row: Mapping[str, Any]) -> str | None:
    """Why a sample has no picture; None where one of its tries counts."""
    return None if any(t["accepted"] for t in row["tries"]) else f"{REFUSED}{row['tries'][-1]['reason']}"[:300]


def _left_out(table: pa.Table, reasons: Sequence[str | None]) -> pa.Table:
    """FACES with the reasons as errors."""
    return table.append_column("error", pa.array(list(reasons), pa.string()))


def _refused(table: pa.Table, reasons: Sequence[str | None]) -> pa.Table:
    """SAMPLES, those with a reason without their picture."""
    if not any(reasons):
        return table
    keep = pa.array([reason is None for reason in reasons])
    for name in ("image", "image_sha256"):
        kind = SAMPLES.field(name).type
        column = table[name].combine_chunks()
        blank = pa.nulls(table.num_rows, kind)
        kept = pc.if_else(keep, column, blank)
        table = table.set_column(table.schema.get_field_index(name), SAMPLES.field(name), kept)
    error = pa.array(list(reasons), pa.string())
    return table.set_column(table.schema.get_field_index("error"), SAMPLES.field("error"), error)
