"""Section: how many images passed the gates at each attempt, and a few before and after."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from raygen.core.errors import ConfigError
from raygen.metrics.mask_rarity import COMPARED, KINDS, SHARE
from raygen.report.images import ImageWithMask, find_rows, image_with_mask
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section
from raygen.store.run_store import RunStore, open_input
from raygen.store.set_digest import KEYS

__all__ = ["ATTEMPTS", "AttemptCounts", "FailureKind", "Retry", "section"]


#: File in the folder of a selection that says where the images of each attempt lie.
ATTEMPTS: Final = "attempts.json"
#: Begin of the reason where the best of several refused images was accepted.
BEST: Final = "best of "
#: Images that are shown before and after.
MAX_RETRIES: Final = 12


class AttemptCounts(NamedTuple):
    """One attempt: how many images it made, and how many of them passed."""

    attempt: int
    tried: int
    passed: int


class FailureKind(NamedTuple):
    """Samples of one kind: how many, their mean at each try (value, low, high), and the share that passed later."""

    name: str
    samples: int
    means: Sequence[tuple[float, float | None, float | None] | None]
    passed_later: float | None


class Retry(NamedTuple):
    """A sample that was refused: its first and its accepted image, why it was refused, and what became of it."""

    before: ImageWithMask
    after: str | None
    reason: str
    outcome: str


def section(run: RunFolder) -> Section | None:
    """Attempts, means by kind of failure, and refused samples; None where the folder has no selection."""
    try:
        store, _ = open_input(f"{run.url}/selected")
    except ConfigError:
        return None
    tried, passed, accepted = Counter[int](), Counter[int](), 0
    refused: dict[str, list[Mapping[str, Any]]] = {}
    for table in store.tables("selection"):
        for row in table.to_pylist():
            tried[row["attempt"]] += 1
            passed[row["attempt"]] += row["accepted"] and row["reason"] is None
            accepted += row["accepted"]
            if row["attempt"] or not row["accepted"] or row["reason"]:
                refused.setdefault(row["sample_id"], []).append(row)
    metric = next((str(row["metric"]) for row in run.rows if str(row["metric"]).startswith("picture:")), "")
    variables = {
        "attempts": [AttemptCounts(n, tried[n], passed[n]) for n in sorted(tried)],
        "left_out": tried[0] - accepted,
        "metric": metric.removeprefix("picture:"),
        "kinds": list(_kinds(run.rows)),
        "retries": _retries(run, store, refused),
        # Faces of an ingest run are not generated, so they are judged once.
        "generated": store.has("samples"),
    }
    return Section("selection", "Selection", "selection.html.j2", variables)


def _kinds(rows: Sequence[Mapping[str, Any]]) -> Iterator[FailureKind]:
    by_slice = {(str(row["metric"]).partition(":")[0], row["slice"]): row for row in rows}
    for name in KINDS:
        tries = [by_slice.get(("picture", f"{name}/{when}")) for when in COMPARED]
        first, later = tries[0], by_slice.get((SHARE, name))
        if first is not None:
            means = [None if row is None else (row["value"], row["ci_low"], row["ci_high"]) for row in tries]
            samples = int(json.loads(first["protocol"])["samples"])
            yield FailureKind(name, samples, means, None if later is None else later["value"])


def _retries(run: RunFolder, store: RunStore, refused: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Retry]:
    """Evenly spaced samples of those that were refused at first."""
    names = list(refused)[:: max(1, len(refused) // MAX_RETRIES)][:MAX_RETRIES]
    places = run.json(ATTEMPTS)
    if not names or places is None:
        return []
    try:
        first, _ = open_input(places["0"], 0)
    except ConfigError:
        return []  # the first attempt was moved away
    table = "samples" if store.has("samples") else "faces"
    key = KEYS[table][0]
    before, after = (find_rows(s.slices(table), key, names, ("image", "mask", "source")) for s in (first, store))
    retries = []
    for name in names:
        image = image_with_mask(before[name], key) if name in before else None
        new = image_with_mask(after[name], key) if name in after else None
        if image is not None:
            tries = sorted(refused[name], key=lambda row: row["attempt"])
            chosen = next((row for row in tries if row["accepted"]), None)
            passed = "left out" if chosen is None else chosen["reason"] or f"passed at try {chosen['attempt'] + 1}"
            reason = str(tries[0]["reason"])
            reason = reason.partition(": ")[2] if reason.startswith(BEST) else reason
            retries.append(Retry(image, new and new.image, reason, passed))
    return retries
