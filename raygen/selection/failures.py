"""What fails, and why: refused pictures by how rare their mask is, before and after they were tried again.

Two causes of failure are known: a mask that is unlike the others, which other noise should not mend; and an unlucky
pair of mask and noise, which it should. Nobody chose the second attempt, so it shows this without flattery; what is
accepted in the end was chosen, and is better for that reason alone.

Knows tries and masks. Knows no network.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from raygen.core.config import Config
from raygen.evaluation.aggregate import MetricRows
from raygen.metrics.image_similarity import bootstrap_mean
from raygen.metrics.mask_rarity import KINDS, SHARE, WHENS, Frequencies, small
from raygen.selection.rounds import Attempt, RetryState, ScoredAttempt, accepted_rows
from raygen.store.images import decode_mask

__all__ = ["FailureAnalysisConfig", "analyze_failures", "rarities"]


class FailureAnalysisConfig(Config):
    """How failures are told apart."""

    rare: float = Field(0.1, gt=0, lt=1, description="share of masks that count as rare")


def rarities(made: ScoredAttempt) -> dict[str, float]:
    """How rare the mask of each row is among them all, in nats a pixel; without rows that have none.

    Reads the masks twice, a file at a time: first to count, then to compare.
    """
    counts = Frequencies()
    found: dict[str, float] = {}
    for _, masks in _masks(made):
        counts.add(masks)
    for ids, masks in _masks(made):
        found |= dict(zip(ids, counts.rarity(masks).tolist(), strict=True))
    return found


def _masks(made: ScoredAttempt) -> Iterator[tuple[list[str], npt.NDArray[np.uint8]]]:
    for table in made.read("mask"):
        rows = [row for row in table.to_pylist() if row["mask"] is not None and row["mask"]["bytes"] is not None]
        if rows:
            yield [row["id"] for row in rows], np.stack([small(decode_mask(r["mask"]["bytes"])) for r in rows])


def analyze_failures(
    config: FailureAnalysisConfig, rounds: RetryState, first: ScoredAttempt, run: str
) -> list[dict[str, Any]]:
    """METRICS rows `picture:…` of the first gate: the mean of pictures' own numbers, by kind of sample and by try.

    `first`: the first attempt, whose masks are compared.
    """
    rare = rarities(first)
    limit = float(np.quantile(list(rare.values()), 1 - config.rare)) if rare else float("inf")
    table = MetricRows(run, None)
    said = {"rare_share": config.rare, "rare_limit": limit if np.isfinite(limit) else None, "unit": "nats a pixel"}
    for kind, ids in _kinds(rounds, rare, limit).items():
        if not ids:
            continue
        for when, values in _values([rounds.tries[one] for one in ids]).items():
            if len(values):
                protocol = {**said, "kind": kind, "when": when, "samples": len(ids), "level": "mean over pictures"}
                name = f"picture:{rounds.gates[0].name}"
                table.add(name, f"{kind}/{when}", float(values.mean()), len(values), protocol, bootstrap_mean(values))
        if kind.startswith("refused"):
            mended = np.array([any(t.accepted and t.reason is None for t in rounds.tries[one]) for one in ids], float)
            share = {**said, "kind": kind, "level": "share that passed in a later round"}
            table.add(SHARE, kind, float(mended.mean()), len(ids), share, bootstrap_mean(mended))
    return table.rows


def _kinds(rounds: RetryState, rare: Mapping[str, float], limit: float) -> dict[str, list[str]]:
    refused = [one for one, tries in rounds.tries.items() if tries[0].reason is not None]
    there = set(refused)
    rarely = [one for one in refused if one in rare and rare[one] >= limit]
    usual = [one for one in refused if one in rare and rare[one] < limit]
    at_once = [one for one in rounds.tries if one not in there]
    return dict(zip(KINDS, (list(rounds.tries), refused, rarely, usual, at_once), strict=True))


def _values(tries: Sequence[Sequence[Attempt]]) -> dict[str, npt.NDArray[np.float64]]:
    """Values of the first try, of the second where there is one, and of the one that counts."""
    first, second = [some[0].value for some in tries], [some[1].value for some in tries if len(some) > 1]
    found = zip(
        WHENS, (first, second, [t.value for some in tries if (t := accepted_rows(some)) is not None]), strict=True
    )
    return {name: np.array([v for v in values if np.isfinite(v)]) for name, values in found}
