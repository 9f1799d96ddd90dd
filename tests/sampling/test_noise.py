"""Keyed noise: pinned, normal, unrelated between streams and keys, and the same bits however it is made."""

import hashlib
from statistics import NormalDist

import numpy as np
import pytest
import torch

from raygen.sampling import noise
from raygen.sampling.noise import KeyedNoise, keyed_normal, noise_key

CPU = torch.device("cpu")


def test_keys_are_stable_and_differ_in_every_part() -> None:
    assert noise_key(1, "a", 0) == noise_key(1, "a", 0) < 2**128
    keys = {noise_key(s, i, a) for s in (0, 1, 2**40) for i in ("a", "b", "1", "0") for a in range(3)}
    assert len(keys) == 36
    assert noise_key(1, "0", 1) != noise_key(1, "1", 0)


def test_noise_is_pinned() -> None:
    # A change here changes every picture of every run.
    assert noise_key(0, "sample", 0) == 165512757085010863581101650100970171373
    first, second = (keyed_normal(noise_key(0, "sample", 0), stream, (3,)) for stream in (0, 1))
    np.testing.assert_array_equal(first, np.float32([0.42815387, -0.60304403, -0.7953699]))
    np.testing.assert_array_equal(second, np.float32([0.057079613, 1.863435, 2.1594884]))
    numbers = keyed_normal(noise_key(0, "sample", 0), 2, (1 << 16,))
    assert (
        hashlib.sha256(numbers.tobytes()).hexdigest()
        == "4ae85b7daa9dd4a76cdf7b0f6e20fcba9e7e96e13ff9151e76193afbb4cac8c1"
    )


def test_operations_on_integers_make_the_words_of_numpys_philox() -> None:
    keys = [noise_key(0, "a", 0), 0, 2**128 - 1, 2**64 - 1]
    made = noise._DeviceWords(keys, CPU)
    for stream in (0, 1, 1000, 1 << 42):
        words = made(stream, 50)
        for row, key in zip(words, keys, strict=True):
            expected = np.random.Philox(key=key, counter=stream << 192).random_raw(200)
            np.testing.assert_array_equal(row.numpy().view(np.uint64), expected)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_noise_has_the_same_bits_on_every_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    keys = [noise_key(0, "a", 0), None, noise_key(0, "b", 0)]
    host, other = KeyedNoise(keys, (3, 5, 7), CPU), KeyedNoise(keys, (3, 5, 7), torch.device(device))
    if device == "cpu":
        other._words = noise._DeviceWords(other.keys, CPU)
    for stream in (0, 1, 9):
        here, there = host(stream), other(stream).cpu()
        assert here.shape == (3, 3, 5, 7)
        assert torch.equal(here.view(torch.int32), there.view(torch.int32))
        assert not here[1].any()
        assert np.array_equal(here[2].numpy(), keyed_normal(noise_key(0, "b", 0), stream, (3, 5, 7)))


def test_numbers_are_quantiles() -> None:
    """Every octave of the probability, its ends and the middle; both signs."""
    counts = sorted({min(max(n + d, 0), 2**31 - 1) for n in (2**i for i in range(32)) for d in (-1, 0, 1, n // 3)})
    bits = torch.tensor(counts, dtype=torch.int32)
    lower = noise._normal(bits, *noise._numbers(CPU))
    upper = noise._normal(bits | -(2**31), *noise._numbers(CPU))
    exact = [NormalDist().inv_cdf((n + 0.5) / 2**32) for n in counts]
    np.testing.assert_allclose(lower.numpy(), exact, atol=2e-5)
    assert torch.equal(upper, -lower)
    assert float(lower.min()) == pytest.approx(-6.338, abs=1e-3)


def test_streams_and_keys_are_normal_and_unrelated() -> None:
    keys = [noise_key(0, name, 0) for name in ("s", "t", "u")]
    made = KeyedNoise(keys, (40_000,), CPU)
    rows = torch.cat([made(stream) for stream in (0, 1, 2, 500)]).double().numpy()
    n, whole = rows.shape[1], np.sort(rows.ravel())
    assert np.abs(rows.mean(axis=1)).max() < 4 / n**0.5
    assert np.abs(rows.std(axis=1) - 1).max() < 4 / (2 * n) ** 0.5
    assert np.abs(np.corrcoef(rows) - np.eye(len(rows))).max() < 4.5 / n**0.5
    for lag in (1, 2, 4, 8):
        assert np.abs((rows[:, lag:] * rows[:, :-lag]).mean(axis=1)).max() < 4.5 / n**0.5
    assert abs((whole**3).mean()) < 4 * (15 / len(whole)) ** 0.5
    assert abs((whole**4).mean() - 3) < 4 * (96 / len(whole)) ** 0.5
    cdf = torch.special.ndtr(torch.from_numpy(whole)).numpy()
    distance = np.abs(cdf - (np.arange(len(whole)) + 0.5) / len(whole)).max()
    assert distance < 1.95 / len(whole) ** 0.5  # Kolmogorov and Smirnov at 0.1 %
