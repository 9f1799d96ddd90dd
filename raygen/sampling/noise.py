"""Counter-based noise: the noise of a sample depends on its row alone."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raygen.core.types import Float32Array

__all__ = ["batch_noise", "keyed_normal", "noise_key"]


def noise_key(seed: int, sample_id: str, attempt: int) -> int:
    """128 bits from (seed, sample_id, attempt): BLAKE2b, so similar inputs have unrelated keys."""
    text = f"{seed}\0{attempt}\0{sample_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16, person=b"raygen-noise-1").digest(), "little")


def keyed_normal(key: int, stream: int, shape: tuple[int, ...]) -> Float32Array:
    """Standard normal float32 of `shape`; stream 0 is the first latent, 1 + i the noise of step i.

    Philox counts blocks in 256 bits; the stream is the highest 64 of them, so streams never overlap.
    """
    random = np.random.Generator(np.random.Philox(key=key, counter=stream << 192))
    return random.standard_normal(shape, dtype=np.float32)


def batch_noise(keys: Sequence[int | None], stream: int, shape: tuple[int, ...]) -> Tensor:
    """Noise of each slot [B, ...]; a slot without a key (a bad row, padding) gets zeros."""
    zeros = np.zeros(shape, dtype=np.float32)
    return torch.from_numpy(np.stack([zeros if k is None else keyed_normal(k, stream, shape) for k in keys]))
