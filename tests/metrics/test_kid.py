"""The kernel distance against double loops, torch-fidelity, torchmetrics, and its variance over new draws."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.kid import poly_mmd

from raygen.metrics.kid import kid, kid_of_subsets, kid_subsets

Array = npt.NDArray[Any]


def features(n: int, seed: int, shift: float = 0.0, width: int = 24) -> npt.NDArray[np.float32]:
    """Not negative and off the origin, as a network's are."""
    random = np.random.default_rng(seed)
    return np.maximum(random.normal(size=(n, width)) * np.geomspace(1, 0.1, width) + 0.3 + shift, 0).astype(np.float32)


def by_hand(x: Array, y: Array) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)

    def k(a: Array, b: Array) -> Array:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    def others(a: Array) -> float:
        return float((k(a, a).sum() - np.trace(k(a, a))) / (len(a) * (len(a) - 1)))

    return others(x) + others(y) - 2 * float(k(x, y).mean())


@pytest.mark.parametrize("block", [1, 17, 1000])
@pytest.mark.parametrize(("n", "m"), [(90, 130), (130, 90), (2, 3)])
def test_equals_all_pairs_in_any_blocks(n: int, m: int, block: int) -> None:
    x, y = features(n, 1), features(m, 2, 0.1)
    assert kid(x, y, block=block).value == pytest.approx(by_hand(x, y), abs=1e-12)
    assert kid(x, y, block=block, dtype=torch.float32).value == pytest.approx(by_hand(x, y), abs=1e-6)


def test_equals_torchmetrics_on_whole_sets() -> None:
    x, y = features(150, 3), features(150, 4, 0.05)
    theirs = poly_mmd(torch.from_numpy(x).double(), torch.from_numpy(y).double())
    assert kid(x, y).value == pytest.approx(float(theirs), abs=1e-12)


def test_the_same_subsets_give_what_torch_fidelity_and_torchmetrics_give() -> None:
    x, y = features(300, 5), features(260, 6, 0.05)
    random = np.random.RandomState(2020)
    pairs = [[random.choice(n, 100, replace=False) for n in (300, 260)] for _ in range(8)]
    values = kid_of_subsets(x, y, np.stack([i for i, _ in pairs]), np.stack([j for _, j in pairs]))
    theirs = kid_features_to_metric(
        torch.from_numpy(x).double(),
        torch.from_numpy(y).double(),
        kid_subsets=8,
        kid_subset_size=100,
        rng_seed=2020,
        verbose=False,
    )
    assert values.mean() == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-12)
    assert values.std() == pytest.approx(theirs["kernel_inception_distance_std"], abs=1e-12)
    single = [float(poly_mmd(torch.from_numpy(x[i]), torch.from_numpy(y[j]))) for i, j in pairs]
    np.testing.assert_allclose(values, single, atol=1e-6)


def test_subsets_are_fixed_by_the_seed_and_scatter_around_the_whole() -> None:
    x, y = features(400, 7), features(400, 8, 0.1)
    mean, spread = kid_subsets(x, y, subsets=40, size=100, seed=1)
    assert (mean, spread) == kid_subsets(x, y, subsets=40, size=100, seed=1)
    assert mean != kid_subsets(x, y, subsets=40, size=100, seed=2)[0]
    assert mean == pytest.approx(kid(x, y).value, abs=3 * spread / np.sqrt(40))
    whole = kid_subsets(x, y, subsets=3, size=400)
    assert whole == pytest.approx((kid(x, y).value, 0), abs=1e-12)


def test_symmetric_and_blind_to_order_and_rotation() -> None:
    x, y = features(80, 9), features(60, 10, 0.1)
    turn = np.linalg.qr(np.random.default_rng(11).normal(size=(24, 24)))[0]
    found = kid(x, y)
    for other in (kid(y, x), kid(x[::-1], np.roll(y, 7, axis=0)), kid(x @ turn, y @ turn)):
        assert other.value == pytest.approx(found.value, abs=1e-12)
        assert other.standard_error == pytest.approx(found.standard_error, rel=1e-6)


def test_a_shift_is_found_and_none_is_not() -> None:
    x = features(600, 12)
    same, other = kid(x, features(500, 13)), kid(x, features(500, 14, 0.15))
    assert same.low < 0 < same.high
    assert other.low > 0
    assert other.low < other.value < other.high


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.95, 1.5), (0.1, 0.95, 1.25), (0.5, 0.9, 1.1)])
def test_the_interval_covers_and_the_error_is_that_over_new_draws(shift: float, low: float, high: float) -> None:
    """Where nothing differs the interval is the wider one of two; where much does, the error is right."""
    draws = [kid(features(60, 2 * i, width=6), features(80, 2 * i + 1, shift, width=6)) for i in range(300)]
    values = np.array([d.value for d in draws])
    truth = kid(features(3000, 9001, width=6), features(3000, 9002, shift, width=6)).value if shift else 0.0
    assert np.mean([d.low <= truth <= d.high for d in draws]) >= 0.9
    assert low < np.sqrt(np.mean([d.standard_error**2 for d in draws])) / values.std() < high
    assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(300) + 0.05 * truth


@pytest.mark.parametrize(
    "call",
    [
        lambda: kid(features(1, 0), features(9, 0)),
        lambda: kid(features(9, 0), features(9, 0, width=5)),
        lambda: kid(features(9, 0), np.full((9, 24), np.inf)),
        lambda: kid_subsets(features(9, 0), features(8, 0), size=9),
        lambda: kid_subsets(features(9, 0), features(8, 0), size=1),
        lambda: kid_subsets(features(9, 0), features(8, 0), size=4, subsets=0),
        lambda: kid_of_subsets(features(9, 0), features(8, 0), np.zeros((3, 4), int), np.zeros((2, 4), int)),
    ],
)
def test_what_has_no_distance_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        call()
