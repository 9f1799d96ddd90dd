"""The Fréchet distance against scipy's matrix root, closed forms and its own symmetries."""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import linalg

from raygen.metrics.frechet import FactoredReference, Moments, frechet, frechet_from, frechet_of_features

Array = npt.NDArray[np.float64]
D = 12


def features(n: int, seed: int, width: int = D) -> Array:
    """Correlated, off centre, with a spectrum that falls off."""
    random = np.random.default_rng(seed)
    mix = random.normal(size=(width, width)) * np.geomspace(1, 0.05, width)
    return np.asarray(random.normal(size=(n, width)) @ mix.T + random.normal(size=width))


def rotation(seed: int, width: int = D) -> Array:
    return np.asarray(np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0])


def exactly(mean: Array, covariance: Array, n: int = 1001) -> Moments:
    return Moments(n, mean, covariance * (n - 1))


def by_square_root(x: Array, y: Array) -> float:
    """The textbook formula, with a general matrix root."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(linalg.sqrtm(a @ b))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root))


def test_equals_the_matrix_root() -> None:
    x, y = features(300, 1), features(500, 2)
    assert frechet_of_features(x, y).value == pytest.approx(by_square_root(x, y), abs=1e-9)
    assert frechet(Moments.of(x), Moments.of(y)).value == pytest.approx(frechet_of_features(x, y).value, rel=1e-9)


def test_two_gaussians_in_closed_form() -> None:
    a, b = np.geomspace(3, 0.01, D), np.geomspace(0.1, 5, D)
    mean_a, mean_b = np.arange(D) / 7, np.ones(D)
    turn = rotation(3)  # commuting covariances: the trace is that of the variances
    found = frechet(exactly(mean_a, turn @ np.diag(a) @ turn.T), exactly(mean_b, turn @ np.diag(b) @ turn.T, 77))
    truth = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert found.value == pytest.approx(truth, rel=1e-12)


def test_one_value_is_the_formula_of_school() -> None:
    a, b = exactly(np.array([2.0]), np.array([[9.0]])), exactly(np.array([-1.0]), np.array([[4.0]]))
    assert frechet(a, b).value == pytest.approx(3**2 + (3 - 2) ** 2)


@pytest.mark.parametrize("n", [300, D, 5])
def test_a_set_is_at_no_distance_from_itself(n: int) -> None:
    x = features(n, 4)
    assert abs(frechet_of_features(x, x).value) < 1e-8 * np.trace(np.cov(x, rowvar=False))


@pytest.mark.parametrize("n", [300, 8])
def test_shift_and_scale(n: int) -> None:
    x = features(n, 5)
    shift = np.linspace(-1, 2, D)
    assert frechet_of_features(x, x + shift).value == pytest.approx((shift**2).sum(), rel=1e-8)
    scaled = frechet_of_features(x - x.mean(0), 3 * (x - x.mean(0))).value
    assert scaled == pytest.approx((3 - 1) ** 2 * np.trace(np.cov(x, rowvar=False)), rel=1e-8)


@pytest.mark.parametrize(("n", "m"), [(300, 500), (8, 500), (7, 6)])
def test_symmetric_and_blind_to_rotation(n: int, m: int) -> None:
    x, y, turn = features(n, 6), features(m, 7), rotation(8)
    value = frechet_of_features(x, y).value
    assert frechet_of_features(y, x).value == pytest.approx(value, rel=1e-9)
    assert frechet_of_features(x @ turn, y @ turn).value == pytest.approx(value, rel=1e-9)
    assert frechet_of_features(x[::-1], np.roll(y, 3, axis=0)).value == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(9, 40), (D, 200), (10, 8)])
def test_more_rows_than_values_against_singular_values(n: int, m: int) -> None:
    x, y = features(n, 9), features(m, 10)

    def root(z: Array) -> Array:
        _, s, vt = np.linalg.svd(z - z.mean(0), full_matrices=False)
        return np.asarray(vt.T @ np.diag(s / np.sqrt(len(z) - 1)) @ vt)

    trace = np.trace(np.cov(x, rowvar=False)) + np.trace(np.cov(y, rowvar=False))
    truth = ((x.mean(0) - y.mean(0)) ** 2).sum() + trace - 2 * np.linalg.svd(root(x) @ root(y))[1].sum()
    assert frechet_of_features(x, y).value == pytest.approx(truth, rel=1e-9)


def test_shards_in_a_fixed_order_give_the_same_bits() -> None:
    x = features(1000, 11)
    cut = np.array_split(x, 7)
    whole = Moments.merge_all([Moments.of(part) for part in cut])
    ready = {i: Moments.of(cut[i]) for i in (4, 0, 6, 2, 5, 1, 3)}  # whichever shard is ready first
    late = Moments.merge_all([ready[i] for i in sorted(ready)])
    assert whole.n == late.n == 1000
    assert whole.mean.tobytes() == late.mean.tobytes()
    assert whole.m2.tobytes() == late.m2.tobytes()


@pytest.mark.parametrize("cuts", [1, 2, 5, 32])
def test_other_cuts_and_orders_agree_closely(cuts: int) -> None:
    x = features(1000, 12) + 100  # a large mean is what naive sums of squares fail on
    whole = Moments.of(x)
    parts = [Moments.of(part) for part in np.array_split(x, cuts)]
    for order in (parts, parts[::-1]):
        found = Moments.merge_all(order)
        np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-13)
        np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), atol=1e-11)


def test_float32_features_are_summed_in_float64() -> None:
    x = (features(2000, 13) + 1000).astype(np.float32)
    np.testing.assert_allclose(Moments.of(x).covariance, np.cov(x.astype(np.float64), rowvar=False), atol=1e-9)


def test_damaged_statistics_are_refused() -> None:
    good, turn = Moments.of(features(300, 14)), rotation(15)
    spectrum = np.ones(D)
    spectrum[0] = -0.01
    bad = exactly(np.zeros(D), turn @ np.diag(spectrum) @ turn.T)
    flipped = dataclasses.replace(good, m2=-good.m2)
    for a, b in ((good, bad), (bad, good), (good, flipped), (flipped, good)):
        with pytest.raises(ArithmeticError, match="damaged"):
            frechet(a, b)
    with pytest.raises(ValueError):
        frechet(good, dataclasses.replace(good, m2=good.m2 * np.nan))


@pytest.mark.parametrize(
    "call",
    [
        lambda: Moments.of(np.zeros((0, 3))),
        lambda: Moments.of(np.zeros(3)),
        lambda: Moments.of(np.array([[1.0, np.inf]])),
        lambda: Moments.of(np.zeros((1, 3))).covariance,
        lambda: Moments.merge_all([]),
        lambda: frechet(Moments.of(features(5, 0, 3)), Moments.of(features(5, 0, 4))),
        lambda: frechet_of_features(features(1, 0), features(30, 1)),
        lambda: frechet_of_features(features(5, 0, 30), features(5, 0, 31)),
    ],
)
def test_what_has_no_distance_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize(("n", "m"), [(300, 500), (9, 500), (300, 8), (9, 8), (D, D), (D + 1, D), (D, D + 1)])
def test_a_kept_reference_gives_what_both_sets_give(n: int, m: int) -> None:
    """Against the formula as it was: moments where both have more rows than values, else singular values."""
    x, y = features(n, 18), features(m, 19)
    if min(n, m) > D:
        before = frechet(Moments.of(x), Moments.of(y)).value
    else:
        left, right = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
        gap = x.mean(0) - y.mean(0)
        before = gap @ gap + (left**2).sum() + (right**2).sum() - 2 * linalg.svdvals(left @ right.T).sum()
    kept = FactoredReference.of_features(y)
    assert kept.n == m
    assert frechet_from(kept, x).value == pytest.approx(before, rel=1e-9)
    assert frechet_of_features(x, y) == frechet_from(kept, x)
    with pytest.raises(ValueError, match="not comparable"):
        frechet_from(kept, x[:, :-1])
