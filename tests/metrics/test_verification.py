"""Verification against scikit-learn-free definitions by hand, and against all pairs one by one."""

import itertools
from functools import partial

import numpy as np
import pytest

from raygen.metrics.verification import BINS, VerificationHistogram, unit, verification


def people(n: int, each: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(n, 16))
    who = np.repeat(np.arange(n), each)
    return centres[who] + spread * random.normal(size=(n * each, 16)), who


def test_every_pair_counts_once_by_kind() -> None:
    vectors, who = people(40, 20, 0.7)  # more rows than a block
    found = verification(vectors, who)
    assert found.pairs == (40 * 190, 40 * 39 // 2 * 400)
    x = unit(vectors).astype(np.float64)
    genuine, impostor = [], []
    for i, j in itertools.combinations(range(len(x)), 2):
        (genuine if who[i] == who[j] else impostor).append(x[i] @ x[j])
    far, tar = found.rates()
    for threshold in (-0.5, 0.0, 0.3, 0.8):
        place = int((threshold + 1) * BINS / 2)
        assert far[place] == pytest.approx(np.mean(np.array(impostor) >= threshold), abs=2e-3)
        assert tar[place] == pytest.approx(np.mean(np.array(genuine) >= threshold), abs=2e-3)
    assert (far[0], tar[0], far[-1], tar[-1]) == (1.0, 1.0, 0.0, 0.0)
    assert found.means() == pytest.approx((np.mean(genuine), np.mean(impostor)), abs=1e-3)


def test_equal_error_rate_is_where_both_errors_meet() -> None:
    vectors, who = people(60, 6, 1.2)
    found = verification(vectors, who)
    far, tar = found.rates()
    i = int(np.abs(far - (1 - tar)).argmin())
    assert found.eer() == pytest.approx((far[i] + 1 - tar[i]) / 2, abs=5e-3)
    assert 0.01 < found.eer() < 0.4
    low, high = found.interval(found.eer)
    assert low < found.eer() < high


def test_people_far_apart_are_told_apart_without_error() -> None:
    vectors, who = people(20, 4, 1e-3)
    found = verification(vectors, who)
    assert found.eer() == 0.0
    assert found.tar(1e-3)[0] == 1.0


def test_noise_tells_nobody_apart() -> None:
    random = np.random.default_rng(1)
    found = verification(random.normal(size=(300, 32)), np.repeat(np.arange(30), 10))
    assert found.eer() == pytest.approx(0.5, abs=0.05)
    assert found.tar(0.01)[0] < 0.05


def test_the_threshold_accepts_no_more_than_it_may() -> None:
    vectors, who = people(60, 6, 1.0)
    found = verification(vectors, who)
    far, _ = found.rates()
    for most in (1e-1, 1e-2, 1e-3):
        tar, threshold = found.tar(most)
        i = round((threshold + 1) * BINS / 2)
        assert far[i] <= most < far[i - 1]
        assert tar == pytest.approx(found.rates()[1][i])


def test_intervals_draw_people_and_cover_what_more_people_give() -> None:
    """95 % of them, for what depends on genuine pairs, on impostor pairs, and on both."""

    def faces(n: int, seed: int) -> VerificationHistogram:
        random = np.random.default_rng(seed)
        who = np.repeat(np.arange(n), 10)
        vectors = random.normal(size=(n, 3))[who] + 0.3 * random.normal(size=(len(who), 3))
        return verification(vectors, who)

    numbers = {
        "eer": lambda of, w: of.eer(w),
        "tar": lambda of, w: of.tar(0.01, w)[0],
        "far at a cosine of 0.9": lambda of, w: float(of.rates(w)[0][1900]),
    }
    whole = faces(600, 3)
    parts = [faces(30, 100 + seed) for seed in range(60)]
    for name, number in numbers.items():
        intervals = [part.interval(partial(number, part), rounds=100) for part in parts]
        inside = sum(low <= number(whole, None) <= high for low, high in intervals)
        # Without the pairs' second person 49 of the TAR and 45 of the FAR are inside.
        assert 53 <= inside <= 59, f"{name}: {inside} of 60; 57 are to be expected, fewer where people are few"


@pytest.mark.parametrize("who", [[0, 0, 0], [0, 1, 2]])
def test_without_both_kinds_of_pair_there_is_nothing_to_verify(who: list[int]) -> None:
    with pytest.raises(ValueError, match="two people"):
        verification(np.eye(3), np.array(who))
