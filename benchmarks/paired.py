"""Paired differences between cells of a sweep, where the confidence intervals of single cells overlap.

    python benchmarks/paired.py runs/sweep/steps ddim-0010:ddpm-0010 ddim-0100:ddim-0010
    python benchmarks/paired.py runs/sweep/steps runs/sweep/many_steps/cells/ddpm-0250:ddpm-0010

All cells of a sweep have the same conditions and noise, so most of the sampling error is common to two cells. The
Fréchet distances are taken to the sweep's reference, with blocks of people left out of both cells; mIoU is resampled
over the same rows of both. Reads the stored scores of the cells and measures nothing itself.
"""

import argparse
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from raygen.evaluation.aggregate import FEATURES, gather_scores
from raygen.evaluation.reference import ReferenceSet
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.evaluation.slices import grouping_of, select_ids
from raygen.metrics.frechet import FactoredReference as Factored
from raygen.metrics.frechet import frechet_from
from raygen.metrics.frechet_jackknife import blocks_of, margin_of_difference, most_blocks
from raygen.metrics.segmentation import Counts
from raygen.store.filenames import name_key
from raygen.store.run_store import RunStore

TRIES = 1000


def distances(
    one: ScoreMatrix, other: ScoreMatrix, reference: Factored, people: Mapping[str, str]
) -> tuple[float, float, float]:
    """Both distances, and the half-width of the confidence interval of their difference."""
    keys = np.array([name_key(people.get(name, name)) for name in one.ids], np.uint64)
    blocks = blocks_of(keys, most_blocks(len(np.unique(keys)), one.vectors.shape[1]))
    half = margin_of_difference(one.vectors, other.vectors, reference, blocks)
    return frechet_from(reference, one.vectors).value, frechet_from(reference, other.vectors).value, half


def mious(one: ScoreMatrix, other: ScoreMatrix) -> tuple[float, float, float, float]:
    """Both mIoU, and the 95 % bootstrap interval of their difference, over the same resampled rows."""
    parts = [Counts.from_vectors(scored.vectors) for scored in (one, other)]
    random, n = np.random.default_rng(0), len(one.ids)
    found = []
    for _ in range(TRIES):
        weight = np.bincount(random.integers(0, n, n), minlength=n)
        found.append([_miou(part, weight) for part in parts])
    low, high = np.quantile(np.subtract(*np.array(found).T), [0.025, 0.975])
    whole = np.ones(n, np.int64)
    return _miou(parts[0], whole), _miou(parts[1], whole), float(low), float(high)


def _miou(counts: Counts, weight: npt.NDArray[np.int64]) -> float:
    return Counts(weight @ counts.both, weight @ counts.wanted, weight @ counts.predicted).scores()["miou"]


def lines(
    one: RunStore, other: RunStore, real: Mapping[str, ScoreMatrix]
) -> Iterator[tuple[str, int, float, float, str]]:
    """Metric, n, both values and their difference with its interval, over the rows of both."""
    scores, together = [gather_scores(store.tables("scores")) for store in (one, other)], grouping_of(one)
    for name in scores[0].keys() & scores[1].keys():
        ids = frozenset(scores[0][name].ids) & frozenset(scores[1][name].ids)
        first, second = (select_ids({name: found[name]}, ids)[name] for found in scores)
        if name.startswith(FEATURES):
            reference = Factored.of_features(real[name].vectors)
            a, b, half = distances(first, second, reference, together.people or together.groups)
            low, high = a - b - half, a - b + half
        elif name.startswith("segmentation:"):
            a, b, low, high = mious(first, second)
        else:
            continue
        metric = name.replace(FEATURES, "fd:").replace("segmentation:", "miou:")
        yield metric, len(ids), a, b, f"{a - b:+.4f} ({low:+.4f}, {high:+.4f})"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    parser.add_argument("pairs", nargs="+", help="CELL:CELL, each a cell of SWEEP or the folder of a run")
    options = parser.parse_args()
    real = gather_scores(ReferenceSet.open(f"{options.sweep}/reference").tables())
    print("| | n | first | second | first less second |\n|---|---|---|---|---|")
    for pair in options.pairs:
        names = pair.split(":")
        one, other = (RunStore(name if "/" in name else f"{options.sweep}/cells/{name}") for name in names)
        title = ", ".join(name.rpartition("/")[2] for name in names)
        for metric, n, a, b, difference in sorted(lines(one, other, real)):
            print(f"| {title}: {metric} | {n:,} | {a:.4f} | {b:.4f} | {difference} |", flush=True)


if __name__ == "__main__":
    main()
