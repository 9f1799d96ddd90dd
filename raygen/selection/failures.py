"""Failure analysis: scores of refused images by the rarity of their mask, at the first and at later tries.

There are two causes of failure: a rare mask, which other noise should not help, and an unlucky combination of mask and
noise, which it should. The second try is not selected by its score, so its mean is unbiased; the mean of accepted
images is biased upwards by the selection.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raygen.core.types import Float64Array, UInt8Array
from raygen.evaluation.aggregate import MetricRows
from raygen.metrics.image_similarity import bootstrap_mean
from raygen.metrics.mask_rarity import COMPARED, KINDS, SHARE, Frequencies, small
from raygen.selection.config import FailureAnalysisConfig
from raygen.selection.retries import Attempt, RetryState, ScoredAttempt, accepted_rows
from raygen.store.images import decode_mask

__all__ = ["analyze_failures", "rarities"]


def rarities(made: ScoredAttempt) -> dict[str, float]:
    """Rarity of each row's mask among all of them, in nats per pixel; rows without a mask are left out.

    Reads the masks twice, a file at a time: first to count, then to compare.
    """
    counts = Frequencies()
    rarity: dict[str, float] = {}
    for _, masks in _masks(made):
        counts.add(masks)
    for ids, masks in _masks(made):
        rarity |= dict(zip(ids, counts.rarity(masks).tolist(), strict=True))
    return rarity


def _masks(made: ScoredAttempt) -> Iterator[tuple[list[str], UInt8Array]]:
    for table in made.read("mask"):
        rows = [row for row in table.to_pylist() if row["mask"] is not None and row["mask"]["bytes"] is not None]
        if rows:
            yield [row["id"] for row in rows], np.stack([small(decode_mask(r["mask"]["bytes"])) for r in rows])


def analyze_failures(
    config: FailureAnalysisConfig, rounds: RetryState, first: ScoredAttempt, run: str
) -> list[dict[str, Any]]:
    """METRICS rows `picture:…`: the mean of images' values by the first gate, by kind of sample and by try.

    `first` is the first attempt, whose masks are compared.
    """
    rare = rarities(first)
    limit = float(np.quantile(list(rare.values()), 1 - config.rare)) if rare else float("inf")
    table = MetricRows(run, None)
    shared = {"rare_share": config.rare, "rare_limit": limit if np.isfinite(limit) else None, "unit": "nats a pixel"}
    for kind, ids in _kinds(rounds, rare, limit).items():
        if not ids:
            continue
        for when, values in _values([rounds.tries[name] for name in ids]).items():
            if len(values):
                protocol = {**shared, "kind": kind, "when": when, "samples": len(ids), "level": "mean over pictures"}
                metric = f"picture:{rounds.gates[0].name}"
                table.add(metric, f"{kind}/{when}", float(values.mean()), len(values), protocol, bootstrap_mean(values))
        if kind.startswith("refused"):
            passed = np.array([any(t.accepted and t.reason is None for t in rounds.tries[name]) for name in ids], float)
            protocol = {**shared, "kind": kind, "level": "share that passed in a later round"}
            table.add(SHARE, kind, float(passed.mean()), len(ids), protocol, bootstrap_mean(passed))
    return table.rows


def _kinds(rounds: RetryState, rare: Mapping[str, float], limit: float) -> dict[str, list[str]]:
    """Ids of samples by `KINDS`."""
    refused = [name for name, tries in rounds.tries.items() if tries[0].reason is not None]
    with_rare_mask = [name for name in refused if name in rare and rare[name] >= limit]
    with_usual_mask = [name for name in refused if name in rare and rare[name] < limit]
    at_once = [name for name, tries in rounds.tries.items() if tries[0].reason is None]
    return dict(zip(KINDS, (list(rounds.tries), refused, with_rare_mask, with_usual_mask, at_once), strict=True))


def _values(samples: Sequence[Sequence[Attempt]]) -> dict[str, Float64Array]:
    """Finite values by `COMPARED`: of the first try, of the second where there is one, and of the accepted one."""
    first, second = [tries[0].value for tries in samples], [tries[1].value for tries in samples if len(tries) > 1]
    accepted = [attempt.value for tries in samples if (attempt := accepted_rows(tries)) is not None]
    by_try = zip(COMPARED, (first, second, accepted), strict=True)
    return {name: np.array([value for value in values if np.isfinite(value)]) for name, values in by_try}
