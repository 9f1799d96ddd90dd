"""Intervals of the Fréchet distance: against leaving rows out by hand, and how far the distance really moves."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from raygen.metrics.frechet import FactoredReference, frechet_from, frechet_of_features
from raygen.metrics.frechet_jackknife import LEAST, blocks_of, margin, margin_of_difference, most_blocks

Array = npt.NDArray[np.float64]
D = 12


def features(n: int, seed: int, width: int = D) -> Array:
    """Correlated, off centre, with a spectrum that falls off."""
    mix = np.random.default_rng(7).normal(size=(width, width)) * np.geomspace(1, 0.05, width)
    return np.asarray(np.random.default_rng(seed).normal(size=(n, width)) @ mix.T + 3)


def keys(n: int, seed: int = 0) -> npt.NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, 1 << 63, n).astype(np.uint64)


@pytest.mark.parametrize(
    ("n", "m"), [(400, 300), (60, 300), (400, 9), (11, 300), (11, 9), (13, 12), (13, 300), (D * 2, D * 2)]
)
def test_equals_leaving_rows_out_by_hand(n: int, m: int) -> None:
    """In both branches and at their border, with blocks of unequal size."""
    x, y = features(n, 1), features(m, 2) * 1.1 + 0.2
    blocks = blocks_of(keys(n) % np.uint64(max(11, n // 3)), 11)
    assert len({len(rows) for rows in blocks}) > 1
    k = len(blocks)
    values = np.array([frechet_of_features(np.delete(x, rows, axis=0), y).value for rows in blocks])
    spread = np.sqrt((k - 1) / k * ((values - values.mean()) ** 2).sum())
    expected = stats.t.ppf(0.975, k - 1) * spread
    assert margin(x, FactoredReference.of_features(y), blocks) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "m", "width"), [(400, 4000, 8), (60, 400, 48), (60, 40, 48), (400, 24, 48)])
def test_is_as_wide_as_the_distance_moves(n: int, m: int, width: int) -> None:
    """Over new draws of the generated rows, the reference held fixed: half of the interval is t deviations."""
    reference = FactoredReference.of_features(features(m, 3, width))
    values, halves = [], []
    for seed in range(80):
        x = features(n, 100 + seed, width) * 1.2
        blocks = blocks_of(keys(n, seed), most_blocks(n, width))
        values.append(frechet_from(reference, x).value)
        halves.append(margin(x, reference, blocks))
    truth = stats.t.ppf(0.975, len(blocks) - 1) * np.std(values, ddof=1)
    assert np.sqrt(np.mean(np.square(halves))) == pytest.approx(truth, rel=0.25)


@pytest.mark.parametrize("n", [400, 60, 11])
def test_a_difference_equals_leaving_rows_out_of_both_by_hand(n: int) -> None:
    x, y = features(n, 1), features(300, 2) * 1.1 + 0.2
    z = x * 1.01 + 0.01 * features(n, 6)  # the same rows, made a little otherwise
    blocks, reference = blocks_of(keys(n), 11), FactoredReference.of_features(y)
    k = len(blocks)
    rests = [[np.delete(part, rows, axis=0) for part in (x, z)] for rows in blocks]
    values = np.array([frechet_of_features(a, y).value - frechet_of_features(b, y).value for a, b in rests])
    expected = stats.t.ppf(0.975, k - 1) * np.sqrt((k - 1) / k * ((values - values.mean()) ** 2).sum())
    half = margin_of_difference(x, z, reference, blocks)
    assert half == pytest.approx(expected, rel=1e-6)
    assert half < 0.7 * margin(x, reference, blocks)


def test_narrows_with_more_rows() -> None:
    reference = FactoredReference.of_features(features(4000, 4))
    few, many = (margin(features(n, 5), reference, blocks_of(keys(n), 50)) for n in (400, 4000))
    assert many < few / 2


def test_blocks_hold_every_row_once_and_kin_together() -> None:
    blocks = blocks_of(keys(203), 20)
    assert {len(rows) for rows in blocks} <= {10, 11}
    assert sorted(np.concatenate(blocks)) == list(range(203))
    kin = np.repeat(keys(60), 5)
    for rows in blocks_of(kin, 20):
        others = np.setdiff1d(np.arange(300), rows)
        assert not set(kin[rows].tolist()) & set(kin[others].tolist())
    assert blocks_of(keys(3), 0) == []


@pytest.mark.parametrize(("n", "width", "k"), [(5000, 512, 50), (5000, 513, 20), (40, 64, 20), (2 * LEAST, 2048, 10)])
def test_wide_features_and_few_rows_have_fewer_blocks(n: int, width: int, k: int) -> None:
    assert most_blocks(n, width) == k
