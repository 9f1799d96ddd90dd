"""The inception score against torch-fidelity's and in closed form."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from raygen.metrics.inception_score import inception_score


def logits(n: int, classes: int = 1008, seed: int = 1) -> npt.NDArray[np.float32]:
    return (3 * np.random.default_rng(seed).normal(size=(n, classes))).astype(np.float32)


@pytest.mark.parametrize("n", [10, 257, 1000])
def test_equals_torch_fidelity(n: int) -> None:
    x = logits(n)
    theirs = isc_features_to_metric(torch.from_numpy(x))
    mean, spread = inception_score(x)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert spread == pytest.approx(theirs["inception_score_std"], rel=1e-9, abs=1e-12)


def test_other_splits_and_no_shuffle() -> None:
    x = logits(103, 20)
    theirs = isc_features_to_metric(torch.from_numpy(x), splits=4, shuffle=False)
    assert inception_score(x, splits=4, seed=None)[0] == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert inception_score(x, splits=4)[0] != inception_score(x, splits=4, seed=None)[0]


def test_bounds_in_closed_form() -> None:
    sure = np.full((50, 5), -1e4)
    sure[np.arange(50), np.arange(50) % 5] = 0  # probabilities of 0 and 1: every class alike
    assert inception_score(sure, splits=1) == pytest.approx((5, 0))
    assert inception_score(np.tile(sure[:1], (50, 1)), splits=2) == pytest.approx((1, 0))
    assert inception_score(np.zeros((20, 7)), splits=2) == pytest.approx((1, 0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: inception_score(logits(9, 4)),
        lambda: inception_score(logits(9, 4), splits=0),
        lambda: inception_score(logits(9, 4)[0]),
        lambda: inception_score(logits(20, 4) * np.nan),
    ],
)
def test_what_has_no_score_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        call()
