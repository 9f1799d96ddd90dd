"""Counter-based noise: the noise of a sample depends on its row alone, and has the same bits on every device.

Words are those of Philox4x64-10 (Salmon et al. 2011) as in numpy: on the host numpy makes them, elsewhere operations on
integers do. Half a word becomes a number by a table of the inverse normal distribution: a look-up, a product and a sum
in float32, which round alike everywhere. Logarithms, sines and cosines do not.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from statistics import NormalDist
from typing import Final

import numpy as np
import torch
from torch import Tensor

from raygen.core.types import Float32Array

__all__ = ["KeyedNoise", "keyed_normal", "noise_key"]

#: Multipliers and key increments of Philox4x64.
MULTIPLIERS: Final = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
INCREMENTS: Final = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
ROUNDS: Final = 10
LOW_HALF: Final = 0xFFFFFFFF
#: A block of Philox is four words, each of two numbers.
NUMBERS: Final = 8
#: Bits of a float32 below those that name its piece of the table: 2^7 pieces for each factor of two.
WITHIN_BITS: Final = 23 - 7
#: The first piece begins at 0.5.
FIRST: Final = 0x3F000000 >> WITHIN_BITS


def noise_key(seed: int, sample_id: str, attempt: int) -> int:
    """128 bits from (seed, sample_id, attempt): BLAKE2b, so similar inputs have unrelated keys."""
    text = f"{seed}\0{attempt}\0{sample_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16, person=b"raygen-noise-1").digest(), "little")


def keyed_normal(key: int, stream: int, shape: tuple[int, ...]) -> Float32Array:
    """Standard normal float32 of `shape`, as in `KeyedNoise`, on the host."""
    values: Float32Array = KeyedNoise([key], shape, torch.device("cpu"))(stream)[0].numpy()
    return values


class KeyedNoise:
    """The noise of a batch, stream by stream. All that it needs is on the device when it has been made."""

    def __init__(self, keys: Sequence[int | None], shape: tuple[int, ...], device: torch.device) -> None:
        """`keys` of B slots; a slot without a key (a bad row, padding) gets zeros. `shape`: of one slot's noise."""
        self.keys, self.shape = [key or 0 for key in keys], shape
        self._numbers = _numbers(device)
        self._words = None if device.type == "cpu" else _DeviceWords(self.keys, device)
        self._present: Tensor | None = None
        if None in keys:
            self._present = torch.tensor([[float(key is not None)] for key in keys], device=device)

    def __call__(self, stream: int) -> Tensor:
        """Standard normal float32 [B, *shape] of a stream: 0 is the first latent, 1 + i the noise of step i."""
        size = prod(self.shape)
        blocks = -(-size // NUMBERS)
        words = _host_words(self.keys, stream, blocks) if self._words is None else self._words(stream, blocks)
        values = _normal(words.view(torch.int32)[:, :size], *self._numbers)
        if self._present is not None:
            values *= self._present
        return values.view(-1, *self.shape)


# --- words ----------------------------------------------------------------------------------------------------


def _host_words(keys: Sequence[int], stream: int, blocks: int) -> Tensor:
    """Words int64 [B, 4 blocks]. Philox counts in 256 bits; the stream is the highest 64: streams never overlap."""
    words = np.empty((len(keys), 4 * blocks), dtype=np.uint64)
    for row, key in zip(words, keys, strict=True):
        row[:] = np.random.Philox(key=key, counter=stream << 192).random_raw(4 * blocks)
    return torch.from_numpy(words.view(np.int64))


class _DeviceWords:
    """The words of `_host_words`, made on any device by products of 64 bits that wrap around."""

    def __init__(self, keys: Sequence[int], device: torch.device) -> None:
        rounds = [
            [[_signed((key >> 64 * half) + i * step) for key in keys] for half, step in enumerate(INCREMENTS)]
            for i in range(ROUNDS)
        ]
        self._keys = torch.tensor(rounds, dtype=torch.int64, device=device).unsqueeze(-1)  # [rounds, 2, B, 1]
        self._factors = torch.tensor([_signed(m) for m in MULTIPLIERS], device=device).view(2, 1, 1)
        self._last = torch.tensor([0, 1], device=device).view(2, 1, 1)

    def __call__(self, stream: int, blocks: int) -> Tensor:
        """Words int64 [B, 4 blocks]."""
        counted = torch.arange(1, blocks + 1, device=self._keys.device)
        even = torch.stack([counted, torch.zeros_like(counted)]).unsqueeze(1)  # words 0 and 2 of the counters
        odd = self._last * stream  # words 1 and 3
        for keys in self._keys:
            high, low = _product(self._factors, even)
            even, odd = high.flip(0) ^ odd ^ keys, low.flip(0)
        return torch.stack([even[0], odd[0], even[1], odd[1]], dim=-1).flatten(1)


def _product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low 64 bits of the product of unsigned numbers, all in int64."""
    a_low, a_high, b_low, b_high = a & LOW_HALF, _high_half(a), b & LOW_HALF, _high_half(b)
    first = a_high * b_low + _high_half(a_low * b_low)
    second = a_low * b_high + (first & LOW_HALF)
    return a_high * b_high + _high_half(first) + _high_half(second), a * b


def _high_half(x: Tensor) -> Tensor:
    """The upper 32 bits; the shift of a signed number repeats its sign."""
    return (x >> 32) & LOW_HALF


def _signed(value: int) -> int:
    """The number in -2^63 .. 2^63 - 1 whose lowest 64 bits are those of `value`."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


# --- numbers --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _numbers(device: torch.device) -> tuple[Tensor, Tensor]:
    """The quantile at which each piece begins, and how much it grows for each of its 2^WITHIN_BITS parts.

    Pieces divide the probabilities x / 2^32, 0.5 <= x <= 2^31, as float32 does: finer towards 0.
    """
    last = int(np.float32(2**31).view(np.int32)) >> WITHIN_BITS
    begins = (np.arange(FIRST, last + 2, dtype=np.int32) << WITHIN_BITS).view(np.float32).astype(np.float64)
    quantile = NormalDist().inv_cdf
    values = np.array([quantile(min(x / 2**32, 0.5)) for x in begins.tolist()], dtype=np.float32)
    slopes = np.diff(values) * np.float32(2.0**-WITHIN_BITS)
    with torch.inference_mode(False):  # they outlive the call
        return torch.from_numpy(values[:-1].copy()).to(device), torch.from_numpy(slopes).to(device)


def _normal(bits: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    """Standard normal float32 of uniform int32: the highest bit is the sign, the others say how far out.

    The product and the sum are two operations: fused, they would round differently.
    """
    x = (bits & 0x7FFFFFFF).float().add_(0.5).view(torch.int32)
    piece = (x >> WITHIN_BITS).sub_(FIRST).flatten()
    within = (x & ((1 << WITHIN_BITS) - 1)).float()
    result = slopes.index_select(0, piece).view(bits.shape).mul_(within)
    result.add_(values.index_select(0, piece).view(bits.shape))
    return (result.view(torch.int32) ^ (bits & -0x80000000)).view(torch.float32)
