"""The Fréchet distance as a number of a table: what it is taken to, its interval, and what is said beside it.

Knows rows by their ids, and which of them belong together. Knows neither networks nor where features come from.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from raygen.core.config import Config
from raygen.core.errors import InputError
from raygen.metrics.frechet import LOW_N, FactoredReference, frechet_from
from raygen.metrics.frechet_jackknife import LEAST, blocks_of, margin, most_blocks
from raygen.metrics.frechet_stats import POINTS, ROWS_A_VALUE, frechet_infinity
from raygen.metrics.kid import kid, kid_subsets
from raygen.metrics.memorization import duplicates, memorization
from raygen.metrics.prdc import Degenerate, prdc
from raygen.store.filenames import name_key

__all__ = [
    "ALONE",
    "Add",
    "FeatureMetricsConfig",
    "FeatureSet",
    "Grouping",
    "ReferenceCache",
    "add_frechet",
    "add_memorization",
    "compare",
    "few_rows",
    "too_few",
]


Interval = tuple[float, float] | tuple[None, None]
#: Rows of each subset that KID is averaged over, in the protocol of torch-fidelity and torchmetrics.
SUBSET = 1000


class FeatureMetricsConfig(Config):
    """Which numbers, besides the Fréchet distance, compare the features of two sets."""

    kid: bool = Field(True, description="unbiased over all pairs, with an interval: fit for few rows")
    kid_subsets: bool = Field(False, description="mean and deviation over 100 random subsets of 1,000, as others do")
    knn: int | None = Field(5, ge=1, le=100, description="k of precision, recall, density and coverage; or none")
    fid_infinity: bool = Field(
        False, description="Fréchet distance extrapolated to endless rows (2.5 per value or more)"
    )


class Add(Protocol):
    """Takes a number into the table."""

    def __call__(
        self, metric: str, slice_: str, value: float, n: int, protocol: Mapping[str, Any], interval: Interval = ..., /
    ) -> None:
        """See `METRICS`."""
        ...


@dataclass(frozen=True)
class FeatureSet:
    """Rows of one set by id, float [n, D]."""

    ids: Sequence[str]
    vectors: npt.NDArray[Any]


def too_few(config: FeatureMetricsConfig, made: int, real: int, width: int) -> dict[str, str]:
    """Numbers that are asked for and that so few rows, of features of `width` values, do not give; and why."""
    n = min(made, real)
    least = {
        "kid": (config.kid, n, 2),
        "kid_subsets": (config.kid_subsets, n, SUBSET),
        "precision": (config.knn is not None, n, (config.knn or 0) + 1),
        "infinity": (config.fid_infinity, made, math.ceil(ROWS_A_VALUE * width) + POINTS - 1),
    }
    return {name: f"needs {rows:,} rows" for name, (asked, there, rows) in least.items() if asked and there < rows}


def compare(
    add: Add,
    where: str,
    network: str,
    made: FeatureSet,
    real: FeatureSet,
    protocol: Mapping[str, Any],
    config: FeatureMetricsConfig,
    factored: Callable[[], FactoredReference] | None = None,
) -> dict[str, str]:
    """Add the numbers of `config` that there are rows for; `network` follows a metric's name, such as `@clean`.

    `factored` gives `real` as what distances are taken to, where somebody keeps it. Returns those that are left out,
    and why: too few rows, or rows so alike that a number would say nothing.
    """
    x, y, n = made.vectors, real.vectors, len(made.ids)
    few = too_few(config, n, len(y), x.shape[1])
    said = {**protocol, "n_reference": len(real.ids)}
    how: dict[str, Any]
    if config.kid and "kid" not in few:
        found = kid(x, y)
        how = {"kernel": "(x.y / D + 1)^3", "estimator": "unbiased, all pairs", "interval": "variance of a U-statistic"}
        add(f"kid{network}", where, found.value, n, {**said, **how}, (found.low, found.high))
    if config.kid_subsets and "kid_subsets" not in few:
        mean, deviation = kid_subsets(x, y, size=SUBSET)
        how = {"kernel": "(x.y / D + 1)^3", "estimator": f"mean of 100 subsets of {SUBSET}", "seed": 0}
        add(f"kid_subsets{network}", where, mean, n, {**said, **how, "deviation": deviation})
    if config.knn is not None and "precision" not in few:
        try:
            shares = prdc(y, x, k=config.knn)
        except Degenerate as error:
            few["precision"] = str(error)
        else:
            how = {"k": shares.k, "inside": "nearer than the k-th neighbour (<)"}
            for name in ("precision", "recall", "density", "coverage"):
                add(f"{name}{network}", where, getattr(shares, name), n, {**said, **how})
    if config.fid_infinity and "infinity" not in few:
        limit = frechet_infinity(x, factored() if factored else FactoredReference.of_features(y))
        how = {
            "sizes": [int(size) for size in limit.sizes],
            "seed": 0,
            "standard_error_of_fit": limit.standard_error,
            "bias": "that of the reference's own rows stays",
        }
        kind = "fid" if network.startswith("@") else "fd"
        add(f"{kind}_infinity{network}", where, limit.value, n, {**said, **how})
    return few


def add_memorization(
    add: Add,
    where: str,
    network: str,
    made: FeatureSet,
    training: FeatureSet,
    held_out: FeatureSet,
    protocol: Mapping[str, Any],
    q: float,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Add how many samples lie nearer to a training face than held-out faces do, and how many are near each other.

    Returns the nearest pairs of both kinds, for people to look at. `InputError` (`held_out`) where too few faces are
    held out.
    """
    try:
        found = memorization(made.vectors, training.vectors, held_out.vectors, q=q)
        twins = duplicates(made.vectors, held_out.vectors, q=q)
    except ValueError as error:
        raise InputError(f"memorisation: {error}", reason="held_out") from error
    n = len(made.ids)
    said = {**protocol, "n_training": len(training.ids), "n_held_out": len(held_out.ids), "q": q}
    how: dict[str, Any] = {"threshold": found.threshold, "expected": q, "interval": "Wilson, of the samples"}
    add(f"memorized{network}", where, found.share, n, {**said, **how}, (found.low, found.high))
    level = {"level": "median distance to training over that of held-out faces; below 1 is nearer"}
    if math.isfinite(found.median_ratio):  # more than half of the held-out faces may be training faces to the bit
        add(f"training_distance{network}", where, found.median_ratio, n, {**said, **level})
    how = {"threshold": twins.threshold, "pairs": twins.pair_share, "pairs_of_held_out": twins.held_out_pair_share}
    add(f"duplicates{network}", where, twins.share, n, {**said, **how}, (twins.low, twins.high))
    closest = [
        {
            "sample_id": made.ids[pair.sample],
            "face_id": training.ids[pair.training],
            "distance": pair.distance,
            "ratio": pair.ratio,
        }
        for pair in found.closest
    ]
    near = [{"sample_id": made.ids[i], "other_id": made.ids[j], "distance": far} for i, j, far in twins.closest]
    return closest, near


@dataclass(frozen=True)
class Grouping:
    """Which rows belong together, by id: those of one `group_id`, such as a mask, and those of one person."""

    groups: Mapping[str, str] = field(default_factory=dict)
    people: Mapping[str, str] = field(default_factory=dict)


#: Every row by itself.
ALONE: Final = Grouping()


class ReferenceCache:
    """References of Fréchet distances by the name of their features, each factored once.

    Holds the vectors that they are of: others under the same name are prepared anew.
    """

    def __init__(self) -> None:
        self._made: dict[str, tuple[object, FactoredReference]] = {}

    def of(self, name: str, real: FeatureSet) -> FactoredReference:
        """Ready to be compared with; errors as `Reference.of_features`."""
        there = self._made.get(name)
        if there is None or there[0] is not real.vectors:
            there = self._made[name] = real.vectors, FactoredReference.of_features(real.vectors)
        return there[1]


def add_frechet(
    add: Add,
    where: str,
    name: str,
    made: FeatureSet,
    reference: FactoredReference,
    protocol: Mapping[str, Any],
    kin: Grouping = ALONE,
) -> None:
    """Add the Fréchet distance of features to `reference`, its interval, and what a reader should know of both.

    `ValueError` for fewer than two rows or another width.
    """
    n, m, width = len(made.ids), reference.n, made.vectors.shape[1]
    distance = frechet_from(reference, made.vectors)
    few = n if m is None else min(n, m)
    interval, how = _interval(distance.value, made, reference, kin.people or kin.groups)
    protocol = {
        **protocol,
        "n_reference": "unknown" if m is None else m,
        "low_n": few < LOW_N,
        "fewer_rows_than_values": few <= width,
        "clipped": distance.clipped,
        "interval": how,
    }
    add(name, where, distance.value, n, protocol, interval)


def _interval(
    value: float, made: FeatureSet, reference: FactoredReference, kin: Mapping[str, str]
) -> tuple[tuple[float, float] | tuple[None, None], str]:
    """95 % interval of a distance by leaving out blocks of rows, and how it was made or why there is none.

    Blocks are drawn by a hash, since ids follow content where they come from folders, plans or people.
    """
    ways = {"whole groups of kin": [kin.get(one, one) for one in made.ids], "rows": made.ids}
    for words, names in ways.items() if any(one in kin for one in made.ids) else [("rows", made.ids)]:
        keys = np.array([name_key(one) for one in names], np.uint64)
        blocks = blocks_of(keys, most_blocks(len(np.unique(keys)), made.vectors.shape[1]))
        if len(blocks) >= LEAST:  # if not, by a few people: then the interval is one of their pictures
            half = margin(made.vectors, reference, blocks)
            said = (
                f"delete-1/{len(blocks)} jackknife of the generated rows ({words} by a hash of their ids), Student's "
                "t; the reference is held fixed, and the bias of few rows stays"
            )
            return (value - half, value + half), said
    return (None, None), f"none: fewer than {2 * LEAST} rows"


def few_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, object]:
    """Of METRICS rows, the numbers that their protocols call those of few rows, as facts for people."""
    facts: dict[str, object] = {}
    for row in rows:
        said, name = json.loads(row["protocol"] or "{}"), f"{row['metric']} [{row['slice']}]"
        if said.get("fewer_rows_than_values"):
            facts[f"{name}, few rows"] = "no more rows than a feature has values: most of it may be bias"
        elif said.get("low_n") and "n_reference" in said:
            facts[f"{name}, few rows"] = f"fewer than {LOW_N:,}: biased upwards, compare at the same n only"
    return facts
