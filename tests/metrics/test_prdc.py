"""Precision, recall, density and coverage against balls drawn one by one, on ties too, and torch-fidelity."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from raygen.metrics.prdc import prdc, precision_recall

Array = npt.NDArray[Any]


def cloud(n: int, seed: int, shift: float = 0.0) -> Array:
    return (np.random.default_rng(seed).normal(size=(n, 6)) + shift).astype(np.float32)


def lattice(n: int, seed: int, shift: int = 0) -> Array:
    """Distances that are equal everywhere, and copies of rows."""
    return (np.random.default_rng(seed).integers(0, 4, size=(n, 3)) + shift) / 10


def by_hand(real: Array, made: Array, k: int, strict: bool) -> tuple[float, float, float, float]:
    """From the definitions, row by row."""

    def far(a: Array, b: Array) -> Array:
        return np.asarray(np.sqrt(((a.astype(np.float64)[:, None] - b.astype(np.float64)[None]) ** 2).sum(-1)))

    def radii(a: Array) -> Array:
        return np.array([np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(far(a, a))])

    compare = np.less if strict else np.less_equal
    whole = far(real, made)
    in_real, in_made = compare(whole, radii(real)[:, None]), compare(whole, radii(made)[None])
    return (
        float(np.mean([in_real[:, j].any() for j in range(len(made))])),
        float(np.mean([in_made[i].any() for i in range(len(real))])),
        float(in_real.sum() / (k * len(made))),
        float(np.mean([in_real[i].any() for i in range(len(real))])),
    )


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("make", [cloud, lattice])
@pytest.mark.parametrize("block", [11, 1024])
def test_equals_the_definitions(make: Callable[..., Array], k: int, strict: bool, block: int) -> None:
    real, made = make(130, 1), make(90, 2, 1)
    found = prdc(real, made, k=k, strict=strict, block=block)
    expected = by_hand(real, made, k, strict)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected, abs=1e-14)
    assert (found.k, found.strict, found.n_real, found.n_generated) == (k, strict, 130, 90)


def test_ties_tell_strict_from_not() -> None:
    real, made = lattice(130, 1), lattice(90, 2, 1)
    assert prdc(real, made, strict=True).density < prdc(real, made, strict=False).density


@pytest.mark.parametrize("make", [cloud, lattice])
def test_precision_and_recall_of_torch_fidelity(make: Callable[..., Array]) -> None:
    real, made = make(200, 3).astype(np.float64), make(150, 4, 1).astype(np.float64)
    if make is lattice:
        real, made = np.rint(real * 10), np.rint(made * 10)  # whole numbers: their distances are exact too
    theirs = prc_features_to_metric(
        torch.from_numpy(made),
        torch.from_numpy(real),
        prc_neighborhood=3,
        prc_batch_size=64,
        save_cpu_ram=False,
        verbose=False,
    )
    found = precision_recall(real, made)
    assert found == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)
    assert found[0] != found[1]


def test_far_from_the_origin_nothing_changes() -> None:
    real, made = lattice(130, 5) * 10, lattice(90, 6) * 10
    assert prdc(real, made) == prdc(real + 4096, made + 4096)


def test_blind_to_order_and_block() -> None:
    real, made = cloud(300, 7), cloud(200, 8, 0.5)
    found = prdc(real, made, block=1)
    assert found == prdc(real[::-1], np.roll(made, 5, axis=0)) == prdc(real, made, dtype=torch.float64)


def test_the_same_set_apart_and_a_collapsed_one() -> None:
    real = cloud(300, 9)
    same = prdc(real, real + np.float32(1e-6))
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    apart = prdc(real, real + 1000)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)
    narrow = prdc(real, real.mean(0) + 0.01 * cloud(300, 10))
    assert narrow.precision == 1
    assert narrow.recall < 0.1
    assert narrow.density > 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: prdc(np.ones((30, 4)), cloud(30, 0)[:, :4]),
        lambda: prdc(cloud(30, 0)[:, :4], np.ones((30, 4))),
        lambda: prdc(cloud(5, 0), cloud(30, 1)),
        lambda: prdc(cloud(30, 0), cloud(5, 1)),
        lambda: prdc(cloud(30, 0), cloud(30, 1), k=0),
        lambda: prdc(cloud(30, 0), cloud(30, 1)[:, :4]),
        lambda: prdc(cloud(30, 0), cloud(30, 1) * np.nan),
    ],
)
def test_what_has_no_balls_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        call()
