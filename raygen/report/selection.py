"""What a report shows of a selection: how often pictures were tried, why some were refused, and a few before and after.

Knows the tries of a run folder and its METRICS. Reads the few pictures that it shows. Knows no HTML.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from raygen.core.errors import ConfigError
from raygen.metrics.mask_rarity import KINDS, SHARE, WHENS
from raygen.report import pictures as picture_rows
from raygen.store.filesystem import FileStore
from raygen.store.run_store import RunStore, open_input
from raygen.store.set_digest import KEYS

__all__ = ["ATTEMPTS", "FailureKind", "SelectionRound", "SelectionSection", "selection_section"]


#: Where the pictures of each attempt lie, in the folder of a selection.
ATTEMPTS: Final = "attempts.json"
#: Begin of the reason where the best of several refused pictures counts.
BEST: Final = "best of "
#: Pictures that are shown before and after.
SHOWN: Final = 12


class SelectionRound(NamedTuple):
    """One attempt: pictures that were made, and those that passed."""

    attempt: int
    tried: int
    passed: int


class FailureKind(NamedTuple):
    """Samples of one kind: how many, their mean at each try (value, low, high), and the share that passed later."""

    name: str
    samples: int
    means: Sequence[tuple[float, float | None, float | None] | None]
    mended: float | None


class Retry(NamedTuple):
    """A sample that was refused: what was made first, what counts, and what was said of both."""

    pair: picture_rows.ImageWithMask
    after: str | None
    why: str
    then: str


@dataclass(frozen=True)
class SelectionSection:
    """All of it."""

    metric: str
    rounds: Sequence[SelectionRound]
    left_out: int
    kinds: Sequence[FailureKind]
    changes: Sequence[Retry]
    #: Whether pictures were made, and could be tried again; not those of an ingest run.
    made: bool


def selection_section(root: str, rows: Sequence[Mapping[str, Any]]) -> SelectionSection | None:
    """Of the selection in `root`; None where there is none."""
    try:
        store, _ = open_input(f"{root.rstrip('/')}/selected")
    except ConfigError:
        return None
    tried, passed, counted = Counter[int](), Counter[int](), 0
    again: dict[str, list[Mapping[str, Any]]] = {}
    for table in store.tables("selection"):
        for row in table.to_pylist():
            tried[row["attempt"]] += 1
            passed[row["attempt"]] += row["accepted"] and row["reason"] is None
            counted += row["accepted"]
            if row["attempt"] or not row["accepted"] or row["reason"]:
                again.setdefault(row["sample_id"], []).append(row)
    rounds = [SelectionRound(n, tried[n], passed[n]) for n in sorted(tried)]
    metric = next((str(row["metric"]) for row in rows if str(row["metric"]).startswith("picture:")), "")
    return SelectionSection(
        metric.removeprefix("picture:"),
        rounds,
        tried[0] - counted,
        list(_kinds(rows)),
        _changes(root, store, again),
        store.has("samples"),
    )


def _kinds(rows: Sequence[Mapping[str, Any]]) -> Iterator[FailureKind]:
    by = {(str(row["metric"]).partition(":")[0], row["slice"]): row for row in rows}
    for name in KINDS:
        found = [by.get(("picture", f"{name}/{when}")) for when in WHENS]
        first, mended = found[0], by.get((SHARE, name))
        if first is not None:
            means = [None if row is None else (row["value"], row["ci_low"], row["ci_high"]) for row in found]
            yield FailureKind(
                name, int(json.loads(first["protocol"])["samples"]), means, None if mended is None else mended["value"]
            )


def _changes(root: str, store: RunStore, again: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Retry]:
    """At even distances through those that were refused at first: nobody chose them."""
    names = list(again)[:: max(1, len(again) // SHOWN)][:SHOWN]
    storage = FileStore(root)
    if not names or not storage.exists(ATTEMPTS):
        return []
    try:
        before, _ = open_input(json.loads(storage.get(ATTEMPTS))["0"], 0)
    except ConfigError:
        return []  # the first attempt was moved away
    table = "samples" if store.has("samples") else "faces"
    key = KEYS[table][0]
    old, new = (
        picture_rows.find(run.slices(table), key, names, ("image", "mask", "source")) for run in (before, store)
    )
    found = []
    for name in names:
        pair = picture_rows.pair(old[name], key) if name in old else None
        after = picture_rows.pair(new[name], key) if name in new else None
        if pair is not None:
            tries = sorted(again[name], key=lambda row: row["attempt"])
            chosen = next((row for row in tries if row["accepted"]), None)
            then = "left out" if chosen is None else chosen["reason"] or f"passed at try {chosen['attempt'] + 1}"
            why = str(tries[0]["reason"])
            why = why.partition(": ")[2] if why.startswith(BEST) else why
            found.append(Retry(pair, after and after.image, why, then))
    return found
