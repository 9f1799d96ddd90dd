"""Verification of a set of faces: SCORES `identity:…` and who each row shows -> METRICS, a histogram, ROC, pairs.

Knows rows and people. Does not know how faces are embedded, nor how a rate is computed or a pair is drawn.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from raygen.gates import IDENTITY
from raygen.measures import MetricRows, Scored
from raygen.metrics.identity import BINS, Verification, fold_accuracy, unit, verification
from raygen.pairs import Pairs, drawn
from raygen.slices import column
from raygen.spec import InputError, Spec
from raygen.store import Store

__all__ = ["IDENTITY", "ROC_HEAD", "VerificationSpec", "histogram", "paired", "people_of", "roc_lines", "verified"]

#: Bars of a drawn histogram.
BARS: Final = 100
#: Pairs that are compared at once.
CHUNK: Final = 4096
#: First line of roc.csv.
ROC_HEAD: Final = "set,threshold,far,tar"


class VerificationSpec(Spec):
    """How people are told apart, and how much of it is written down."""

    far: tuple[float, ...] = Field((1e-3, 1e-4), description="shares of impostors that may be accepted")
    most: int = Field(20_000, ge=2, description="pictures that are compared, of whole people; time grows as its square")
    pairs: int = Field(
        0, ge=0, le=1_000_000,
        description="pairs in pairs.txt and pairs.csv, half of them genuine, with their accuracy; 0 draws none",
    )  # fmt: skip
    folds: int = Field(10, ge=1, le=100, description="parts that pairs are in, as LFW's; no two share a person")
    seed: int = Field(0, ge=0, description="of the pairs")


def verified(
    spec: VerificationSpec, where: str, name: str, scored: Scored, people: Mapping[str, str],
    protocol: Mapping[str, Any], rows: MetricRows,
) -> Verification:  # fmt: skip
    """Add EER, TAR at each FAR and the mean cosines of one set to `rows`; all its counts.

    `people`: identity by row; rows without one do not take part. `InputError` where there are no two people, or
    nobody with two pictures.
    """
    ids = [one for one in scored.ids if one in people]
    everyone = sorted({people[one] for one in ids})
    names = everyone[:: max(1, -(-len(ids) // spec.most))]
    chosen = set(names)
    used = [one for one in ids if people[one] in chosen]
    place = {one: i for i, one in enumerate(scored.ids)}
    number = {who: i for i, who in enumerate(names)}
    who = np.array([number[people[one]] for one in used], np.int64)
    try:
        found = verification(scored.vectors[[place[one] for one in used]], who)
    except ValueError as error:
        there = f"it has {len(names)} people in {len(used)} pictures"
        raise InputError(f"{where}: {error}; {there}", reason="people") from error
    genuine, impostor = found.pairs
    network = name.removeprefix(IDENTITY)
    said = {
        **protocol, "people": len(names), "pictures": len(used), "genuine_pairs": genuine, "impostor_pairs": impostor,
        "interval": "bootstrap over people", "threshold_step": 2 / BINS,
    }  # fmt: skip
    rows.add(f"eer:{network}", where, found.eer(), len(used), said, found.interval(found.eer))
    for far in spec.far:
        tar, threshold = found.tar(far)
        # With fewer than ten impostor pairs above the threshold its place is chance.
        how = {**said, "far": far, "threshold": threshold, "low_n": far * impostor < 10}
        interval = found.interval(partial(_tar, found, far))
        rows.add(f"tar@{far:g}:{network}", where, tar, len(used), how, interval)
    for kind, value in zip(("genuine", "impostor"), found.means(), strict=True):
        rows.add(f"cosine_{kind}:{network}", where, value, len(used), {**said, "level": f"mean over {kind} pairs"})
    return found


def _tar(found: Verification, far: float, weight: npt.NDArray[np.int64]) -> float:
    return found.tar(far, weight)[0]


def histogram(found: Verification) -> dict[str, Any]:
    """Shares of genuine and of impostor pairs by cosine in `BARS` equal parts of -1..1, for a drawing."""
    parts = {"genuine": found.genuine.sum(axis=0), "impostor": found.impostor.sum(axis=0)}
    shares = {k: v.reshape(BARS, -1).sum(axis=1) / max(int(v.sum()), 1) for k, v in parts.items()}
    return {"bars": BARS, **{k: [round(float(x), 6) for x in v] for k, v in shares.items()}}


def people_of(store: Store, table: str, key: str) -> tuple[dict[str, str], dict[str, int] | None]:
    """Who each row with a picture shows, by id; and variants, None where the table knows none.

    A row that failed, or that a selection refused, keeps its identity and has no picture.
    """
    people = column(store, table, key, "identity_id")
    if table != "samples":
        return people, None
    gone = column(store, table, key, "error").keys()
    variants: Mapping[str, Any] = column(store, table, key, "variant")
    return {one: who for one, who in people.items() if one not in gone}, dict(variants)


def paired(
    spec: VerificationSpec, where: str, name: str, scored: Scored, people: Mapping[str, str],
    variants: Mapping[str, int] | None, protocol: Mapping[str, Any], rows: MetricRows,
) -> Pairs:  # fmt: skip
    """Pairs among the rows with an embedding, and their accuracy over folds in percent, added to `rows`.

    `InputError` (`pairs`) where there are not so many. One fold has no others to choose a threshold on: no accuracy.
    """
    place = {one: i for i, one in enumerate(scored.ids)}
    known = {one: who for one, who in people.items() if one in place}
    pairs = drawn(known, variants, pairs=spec.pairs, folds=spec.folds, seed=spec.seed)
    if spec.folds == 1:
        return pairs
    at = np.array([place[one] for one in pairs.ids], np.int64)
    mean, error = fold_accuracy(_cosines(scored, at[pairs.first], at[pairs.second]), pairs.same, pairs.fold)
    said = {
        **protocol, "people": len(set(pairs.who)), "pictures": len(pairs.ids), "pairs": len(pairs.first),
        "folds": spec.folds, "seed": spec.seed, "standard_error": error, "unit": "percent", "counts": "pairs",
        "threshold": "of each fold the best of the others", "interval": "mean +- 1.96 standard errors over folds",
    }  # fmt: skip
    interval = max(mean - 1.96 * error, 0.0), min(mean + 1.96 * error, 100.0)
    rows.add(f"verification_accuracy:{name.removeprefix(IDENTITY)}", where, mean, len(pairs.first), said, interval)
    return pairs


def _cosines(scored: Scored, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Of pairs of rows, a few thousand at a time."""
    parts = [slice(i, i + CHUNK) for i in range(0, len(first), CHUNK)]
    sides = ((unit(scored.vectors[first[part]]), unit(scored.vectors[second[part]])) for part in parts)
    return np.concatenate([np.einsum("nd,nd->n", a, b, dtype=np.float64) for a, b in sides])


def roc_lines(where: str, found: Verification) -> list[str]:
    """Lines of roc.csv: set, threshold, share of impostor and of genuine pairs at or above it, by rising threshold."""
    thresholds = np.arange(BINS + 1) * 2 / BINS - 1
    rates = zip(thresholds.tolist(), *(side.tolist() for side in found.rates()), strict=True)
    return [f"{where},{threshold:.3f},{far:.9g},{tar:.9g}" for threshold, far, tar in rates]
