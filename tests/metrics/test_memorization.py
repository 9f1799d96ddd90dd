"""Copies that were put there are found, and none are found where there are none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binomtest

from raygen.metrics.memorization import duplicates, memorization

Array = npt.NDArray[Any]


def cloud(n: int, seed: int, width: int = 8) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def far(a: Array, b: Array) -> npt.NDArray[np.float64]:
    return np.asarray(np.sqrt(((a.astype(np.float64)[:, None] - b.astype(np.float64)[None]) ** 2).sum(-1)))


def test_numbers_are_those_of_all_pairs() -> None:
    samples, training, held = cloud(150, 1), cloud(200, 2), cloud(120, 3)
    found = memorization(samples, training, held, q=0.1, closest=7, neighbours=4, block=31)
    whole, calibration = far(samples, training), far(held, training).min(1)
    assert (found.index == whole.argmin(1)).all()
    np.testing.assert_allclose(found.distance, whole.min(1), rtol=1e-12)
    ordered = np.sort(whole, axis=1)
    np.testing.assert_allclose(found.ratio, ordered[:, 0] / ordered[:, 1:4].mean(1), rtol=1e-12)
    rank = 0.1 * 121  # between the 12th and the 13th held-out distance
    expected = np.interp(rank, np.arange(1, 121), np.sort(calibration))
    assert found.threshold == pytest.approx(expected, rel=1e-12)
    assert found.share == np.mean(whole.min(1) < expected)
    assert found.median_ratio == pytest.approx(np.median(whole.min(1)) / np.median(calibration))
    assert [p.sample for p in found.closest] == list(np.argsort(whole.min(1))[:7])
    for pair in found.closest:
        assert pair.distance == pytest.approx(whole[pair.sample].min())
        assert pair.training == whole[pair.sample].argmin()
        assert pair.ratio == found.ratio[pair.sample]
    assert found.summary()["share"] == found.share


def test_copies_are_found_and_named() -> None:
    samples, training, held = cloud(300, 4), cloud(500, 5), cloud(300, 6)
    samples[40:70] = training[100:130] + 1e-4
    found = memorization(samples, training, held, closest=30)
    assert 0.1 <= found.share <= 0.12
    assert found.low > found.q
    assert {p.sample for p in found.closest} == set(range(40, 70))
    assert all(p.training == p.sample + 60 and p.ratio < 0.01 for p in found.closest)
    every = memorization(training[:200], training, held)
    assert (every.share, every.median_ratio, every.distance.max()) == (1, 0, 0)


def test_without_copies_the_share_is_q_on_average() -> None:
    shares, covered = [], []
    for i in range(150):
        found = memorization(cloud(100, 3 * i, 3), cloud(80, 3 * i + 1, 3), cloud(99, 3 * i + 2, 3), q=0.05)
        shares.append(found.share)
        covered.append(found.low <= 0.05 <= found.high)
    assert np.mean(shares) == pytest.approx(0.05, abs=4 * np.std(shares) / np.sqrt(150))
    assert np.mean(shares) == pytest.approx(0.05, abs=0.012)
    assert np.mean(covered) > 0.75  # not 0.95: 99 held-out rows make the threshold uncertain too


def test_training_that_has_copies_of_its_own() -> None:
    training = np.repeat(cloud(50, 7), 2, axis=0)
    found = memorization(training[:10], training, cloud(120, 8), closest=3)
    assert (found.distance == 0).all()
    assert (found.ratio == 1).all()
    assert [p.sample for p in found.closest] == [0, 1, 2]


def test_groups_are_those_of_a_walk() -> None:
    samples, held = cloud(220, 9, 3), cloud(240, 10, 3)
    found = duplicates(samples, held, q=0.2, block=37)
    own = far(held, held)
    np.fill_diagonal(own, np.inf)
    threshold = np.interp(0.2 * 241, np.arange(1, 241), np.sort(own.min(1)))
    assert found.threshold == pytest.approx(threshold, rel=1e-12)
    near = far(samples, samples) < threshold
    group = np.full(220, -1)
    for start in range(220):  # depth first
        stack = [start] if group[start] < 0 else []
        number = group.max() + 1
        while stack:
            i = stack.pop()
            if group[i] < 0:
                group[i] = number
                stack += list(np.flatnonzero(near[i]))
    assert (found.group == group).all()
    assert len(np.unique(group)) < 220
    assert max(np.bincount(group)) > 2
    assert found.share == np.mean(np.bincount(group)[group] > 1)
    assert found.low < found.share < found.high
    assert found.pair_share == pytest.approx((near.sum() - 220) / (220 * 219))
    assert found.held_out_pair_share == pytest.approx((own < threshold).sum() / (240 * 239))


def test_groups_do_not_depend_on_blocks_and_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, held = cloud(200, 11, 2), cloud(200, 12, 2)
    whole = duplicates(samples, held, q=0.3)
    monkeypatch.setattr("raygen.metrics.memorization.EDGES", 400)
    for block in (1, 23, 500):
        assert (duplicates(samples, held, q=0.3, block=block).group == whole.group).all()


def test_planted_copies_are_one_group_each() -> None:
    samples, held = cloud(300, 13), cloud(300, 14)
    samples[10:14] = samples[10]
    samples[200] = samples[20] + np.float32(1e-4)
    found = duplicates(samples, held, q=1 / 301)
    assert len(set(found.group[10:14])) == 1
    assert found.group[200] == found.group[20] != found.group[10]
    assert 6 / 300 <= found.share < 0.05
    collapsed = duplicates(np.tile(samples[:1], (150, 1)), held)
    assert (collapsed.share, collapsed.pair_share, collapsed.group.max()) == (1, 1, 0)


def test_the_closest_pairs_are_those_of_all_pairs() -> None:
    """Every row with its nearest other: a mutual pair once, by distance; more rows than are asked for are left out."""
    x = np.random.default_rng(5).normal(size=(40, 3))
    x[30], x[31] = x[4] + 1e-3, x[4]
    far = np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.fill_diagonal(far, np.inf)
    wanted = {frozenset((i, int(far[i].argmin()))): far[i].min() for i in range(40)}
    found = duplicates(x, np.random.default_rng(6).normal(size=(120, 3)), closest=50).closest
    assert {frozenset(pair[:2]) for pair in found} == set(wanted)
    assert len(found) == len(wanted)
    assert found[0] == (4, 31, 0.0)
    assert [pair[2] for pair in found] == pytest.approx(sorted(wanted.values()))
    assert duplicates(x, x[::-1] * 2, q=0.05, closest=7).closest == found[:7]


def test_groups_are_numbered_by_their_first_rows() -> None:
    group = duplicates(cloud(150, 15, 2), cloud(150, 16, 2), q=0.3).group
    assert list(dict.fromkeys(group.tolist())) == list(range(group.max() + 1))


@pytest.mark.parametrize(("hits", "n"), [(0, 50), (1, 50), (25, 50), (50, 50), (3, 100_000)])
def test_the_interval_is_that_of_wilson(hits: int, n: int) -> None:
    """Equation 1 of Wilson 1927 with z of 95 %, for scipy and for both shares."""
    p, w = hits / n, 1.959963984540054**2 / n
    middle, half = (p + w / 2) / (1 + w), np.sqrt(w * p * (1 - p) + w * w / 4) / (1 + w)
    expected = pytest.approx((max(0.0, middle - half), min(1.0, middle + half)), abs=1e-9)
    theirs = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert (theirs.low, theirs.high) == expected
    if n > 50:
        return
    training, held = np.zeros((2, 1)), np.linspace(1, 2, 120)[:, None]
    samples = np.concatenate([np.zeros((hits, 1)), np.linspace(10, 900, n - hits)[:, None]])
    found = memorization(samples, training, held, q=0.1)
    assert (found.share, (found.low, found.high)) == (p, expected)
    if hits != 1:
        twins = duplicates(samples, np.linspace(1, 100, 120)[:, None] ** 1.01, q=0.1)
        assert (twins.share, (twins.low, twins.high)) == (p, expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda: memorization(cloud(9, 0), cloud(50, 1), cloud(98, 2)),
        lambda: memorization(cloud(9, 0), cloud(1, 1), cloud(120, 2)),
        lambda: memorization(cloud(9, 0), cloud(50, 1), cloud(120, 2), neighbours=1),
        lambda: memorization(cloud(9, 0), cloud(50, 1), cloud(120, 2), q=0),
        lambda: memorization(cloud(9, 0), cloud(50, 1, 5), cloud(120, 2, 5)),
        lambda: duplicates(cloud(9, 0), cloud(98, 2)),
        lambda: duplicates(cloud(1, 0), cloud(120, 2)),
    ],
)
def test_what_cannot_be_said_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        call()
