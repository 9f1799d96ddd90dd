"""Metrics that compare the features of two sets: Fréchet distance, KID, precision and recall, memorization."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np

from raygen.core.errors import InputError
from raygen.core.types import AnyArray
from raygen.evaluation.config import FeatureMetricsConfig
from raygen.metrics.frechet import FactoredReference, frechet_from
from raygen.metrics.frechet_jackknife import LEAST, blocks_of, margin, most_blocks
from raygen.metrics.frechet_stats import POINTS, ROWS_A_VALUE, frechet_infinity
from raygen.metrics.registry import lookup
from raygen.store.filenames import name_key

__all__ = [
    "UNGROUPED",
    "AddMetric",
    "FeatureSet",
    "Grouping",
    "ReferenceCache",
    "add_feature_metrics",
    "add_frechet",
    "add_memorization",
    "few_rows",
    "too_few",
]


Interval = tuple[float, float] | tuple[None, None]
#: Rows of each subset of `kid_subsets`, in the protocol of torch-fidelity and torchmetrics.
SUBSET = 1000


class AddMetric(Protocol):
    """Adds a number to METRICS, as `MetricRows.add` does."""

    def __call__(
        self, metric: str, slice_: str, value: float, n: int, protocol: Mapping[str, Any], interval: Interval = ..., /
    ) -> None:
        """See `METRICS`."""
        ...


@dataclass(frozen=True)
class FeatureSet:
    """Features [n, D] of the rows of one set, with their ids."""

    ids: Sequence[str]
    vectors: AnyArray


def too_few(config: FeatureMetricsConfig, generated: int, real: int, width: int) -> dict[str, str]:
    """The metrics of `config` that need more rows, by name, with the reason; features have `width` values."""
    n = min(generated, real)
    required = {
        "kid": (config.kid, n, 2),
        "kid_subsets": (config.kid_subsets, n, SUBSET),
        "precision": (config.knn is not None, n, (config.knn or 0) + 1),
        "infinity": (config.fid_infinity, generated, math.ceil(ROWS_A_VALUE * width) + POINTS - 1),
    }
    return {name: f"needs {rows:,} rows" for name, (asked, n, rows) in required.items() if asked and n < rows}


def add_feature_metrics(
    add: AddMetric,
    slice_: str,
    network: str,
    generated: FeatureSet,
    real: FeatureSet,
    protocol: Mapping[str, Any],
    config: FeatureMetricsConfig,
    factored: Callable[[], FactoredReference] | None = None,
) -> dict[str, str]:
    """Adds the metrics of `config` for which there are enough rows.

    `network` is appended to the name of a metric, such as `@clean`. `factored` returns the factored `real`, if it is
    kept. Returns the metrics that are left out, with the reason: too few rows, or degenerate features.
    """
    from raygen.metrics.kid import kid, kid_subsets  # these import torch, which a Fréchet distance does not need
    from raygen.metrics.prdc import Degenerate, prdc

    x, y, n = generated.vectors, real.vectors, len(generated.ids)
    few = too_few(config, n, len(y), x.shape[1])
    base = {**protocol, "n_reference": len(real.ids)}
    how: dict[str, Any]
    if config.kid and "kid" not in few:
        distance = kid(x, y)
        how = {"kernel": "(x.y / D + 1)^3", "estimator": "unbiased, all pairs", "interval": "variance of a U-statistic"}
        add(f"kid{network}", slice_, distance.value, n, {**base, **how}, (distance.low, distance.high))
    if config.kid_subsets and "kid_subsets" not in few:
        mean, deviation = kid_subsets(x, y, size=SUBSET)
        how = {"kernel": "(x.y / D + 1)^3", "estimator": f"mean of 100 subsets of {SUBSET}", "seed": 0}
        add(f"kid_subsets{network}", slice_, mean, n, {**base, **how, "deviation": deviation})
    if config.knn is not None and "precision" not in few:
        try:
            shares = prdc(y, x, k=config.knn)
        except Degenerate as error:
            few["precision"] = str(error)
        else:
            how = {"k": shares.k, "inside": "nearer than the k-th neighbour (<)"}
            for name in ("precision", "recall", "density", "coverage"):
                add(f"{name}{network}", slice_, getattr(shares, name), n, {**base, **how})
    if config.fid_infinity and "infinity" not in few:
        limit = frechet_infinity(x, factored() if factored else FactoredReference.of_features(y))
        how = {
            "sizes": [int(size) for size in limit.sizes],
            "seed": 0,
            "standard_error_of_fit": limit.standard_error,
            "bias": "that of the reference's own rows stays",
        }
        kind = "fid" if network.startswith("@") else "fd"
        add(f"{kind}_infinity{network}", slice_, limit.value, n, {**base, **how})
    return few


def add_memorization(
    add: AddMetric,
    slice_: str,
    network: str,
    generated: FeatureSet,
    training: FeatureSet,
    held_out: FeatureSet,
    protocol: Mapping[str, Any],
    q: float,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Adds the shares of samples close to a training face and close to another sample, on the scale of held-out faces.

    Returns the closest pairs of a sample and a training face, and of two samples, for inspection. `InputError`
    (`held_out`) where too few faces are held out.
    """
    from raygen.metrics.memorization import duplicates, memorization

    try:
        memorized = memorization(generated.vectors, training.vectors, held_out.vectors, q=q)
        copies = duplicates(generated.vectors, held_out.vectors, q=q)
    except ValueError as error:
        raise InputError(f"memorisation: {error}", reason="held_out") from error
    n = len(generated.ids)
    base = {**protocol, "n_training": len(training.ids), "n_held_out": len(held_out.ids), "q": q}
    how: dict[str, Any] = {"threshold": memorized.threshold, "expected": q, "interval": "Wilson, of the samples"}
    add(f"memorized{network}", slice_, memorized.share, n, {**base, **how}, (memorized.low, memorized.high))
    level = {"level": "median distance to training over that of held-out faces; below 1 is nearer"}
    if math.isfinite(memorized.median_ratio):  # it is NaN where half of the held-out faces are training faces
        add(f"training_distance{network}", slice_, memorized.median_ratio, n, {**base, **level})
    how = {"threshold": copies.threshold, "pairs": copies.pair_share, "pairs_of_held_out": copies.held_out_pair_share}
    add(f"duplicates{network}", slice_, copies.share, n, {**base, **how}, (copies.low, copies.high))
    closest = [
        {
            "sample_id": generated.ids[pair.sample],
            "face_id": training.ids[pair.training],
            "distance": pair.distance,
            "ratio": pair.ratio,
        }
        for pair in memorized.closest
    ]
    between_samples = [
        {"sample_id": generated.ids[i], "other_id": generated.ids[j], "distance": distance}
        for i, j, distance in copies.closest
    ]
    return closest, between_samples


@dataclass(frozen=True)
class Grouping:
    """Rows that are not independent, by id: their `group_id`, such as one mask, and their `identity_id`."""

    groups: Mapping[str, str] = field(default_factory=dict)
    people: Mapping[str, str] = field(default_factory=dict)


#: All rows are independent.
UNGROUPED: Final = Grouping()


class ReferenceCache:
    """Factored references of Fréchet distances by the name of their features.

    An entry is computed again where other vectors come under the same name.
    """

    def __init__(self) -> None:
        self._entries: dict[str, tuple[object, FactoredReference]] = {}

    def of(self, name: str, real: FeatureSet) -> FactoredReference:
        """The factored reference of `real`; errors as `FactoredReference.of_features`."""
        entry = self._entries.get(name)
        if entry is None or entry[0] is not real.vectors:
            entry = self._entries[name] = real.vectors, FactoredReference.of_features(real.vectors)
        return entry[1]


def add_frechet(
    add: AddMetric,
    slice_: str,
    name: str,
    generated: FeatureSet,
    reference: FactoredReference,
    protocol: Mapping[str, Any],
    grouping: Grouping = UNGROUPED,
) -> None:
    """Adds the Fréchet distance of features to `reference`, with its interval and warnings in its protocol.

    `ValueError` for fewer than two rows or another width.
    """
    n, m, width = len(generated.ids), reference.n, generated.vectors.shape[1]
    distance = frechet_from(reference, generated.vectors)
    few = n if m is None else min(n, m)
    interval, how = _interval(distance.value, generated, reference, grouping.people or grouping.groups)
    protocol = {
        **protocol,
        "n_reference": "unknown" if m is None else m,
        "low_n": few < lookup(name).min_n,
        "fewer_rows_than_values": few <= width,
        "clipped": distance.clipped,
        "interval": how,
    }
    add(name, slice_, distance.value, n, protocol, interval)


def _interval(
    value: float, generated: FeatureSet, reference: FactoredReference, groups: Mapping[str, str]
) -> tuple[tuple[float, float] | tuple[None, None], str]:
    """95 % jackknife interval of a distance, and its description for the protocol, or the reason why there is none.

    Whole groups are left out together, unless there are too few of them. Blocks are drawn by a hash of the ids, because
    the order of ids may follow the content.
    """
    ways = {"whole groups of kin": [groups.get(row_id, row_id) for row_id in generated.ids], "rows": generated.ids}
    for words, names in (
        ways.items() if any(row_id in groups for row_id in generated.ids) else [("rows", generated.ids)]
    ):
        keys = np.array([name_key(name) for name in names], np.uint64)
        blocks = blocks_of(keys, most_blocks(len(np.unique(keys)), generated.vectors.shape[1]))
        if len(blocks) >= LEAST:
            half = margin(generated.vectors, reference, blocks)
            description = (
                f"delete-1/{len(blocks)} jackknife of the generated rows ({words} by a hash of their ids), Student's "
                "t; the reference is held fixed, and the bias of few rows stays"
            )
            return (value - half, value + half), description
    return (None, None), f"none: fewer than {2 * LEAST} rows"


def few_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, object]:
    """Warnings for the METRICS rows whose protocols say that they are over few rows, by metric and slice."""
    facts: dict[str, object] = {}
    for row in rows:
        protocol, name = json.loads(row["protocol"] or "{}"), f"{row['metric']} [{row['slice']}]"
        if protocol.get("fewer_rows_than_values"):
            facts[f"{name}, few rows"] = "no more rows than a feature has values: most of it may be bias"
        elif protocol.get("low_n") and "n_reference" in protocol:
            facts[f"{name}, few rows"] = (
                f"fewer than {lookup(row['metric']).min_n:,}: biased upwards, compare at the same n only"
            )
    return facts
