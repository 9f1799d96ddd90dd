"""Attribute agreement against hand-counted cases."""

import numpy as np
import pytest

from raygen.metrics.attributes import Agreement, bootstrap_accuracy, codes, mean


def test_codes_say_what_was_wanted_and_found() -> None:
    wanted = np.array([[-1, -1, 1, 1, 0]], dtype=np.int8)
    found = np.array([[False, True, False, True, True]])
    assert codes(wanted, found).tolist() == [[1, 2, 3, 4, 0]]


def test_accuracy_by_hand() -> None:
    # Four wanted no, one of them found; three no and one yes, all right; never asked for.
    wanted = np.array([[-1, -1, 0], [-1, -1, 0], [-1, -1, 0], [-1, 1, 0]], dtype=np.int8)
    found = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 1, 1]], dtype=bool)
    made = Agreement.of(codes(wanted, found).astype(np.float32))
    np.testing.assert_allclose(made.accuracy(), [0.75, 1.0, np.nan])
    np.testing.assert_allclose(made.balanced(), [np.nan, 1.0, np.nan])
    assert mean(made.accuracy()) == 0.875
    assert np.isnan(mean(np.full(3, np.nan)))


def test_never_is_half_right_when_yes_and_no_count_alike() -> None:
    wanted = np.full((100, 1), -1, dtype=np.int8)
    wanted[:7] = 1
    made = Agreement.of(codes(wanted, np.zeros((100, 1), dtype=bool)).astype(np.float32))
    assert made.accuracy()[0] == pytest.approx(0.93)
    assert made.balanced()[0] == 0.5


def test_the_interval_holds_the_value_and_shrinks() -> None:
    random = np.random.default_rng(0)
    wanted = random.choice([-1, 1], (2000, 4)).astype(np.int8)
    right = random.random((2000, 4)) < 0.8
    vectors = codes(wanted, (wanted > 0) == right).astype(np.float32)
    low, high = bootstrap_accuracy(vectors)
    few = bootstrap_accuracy(vectors[:100])
    assert low < mean(Agreement.of(vectors).balanced()) < high
    assert high - low < few[1] - few[0]
