"""Canonical JSON, digests, and run ids."""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel

__all__ = ["canonical", "digest", "run_id"]


def canonical(value: object) -> bytes:
    """Canonical JSON, UTF-8: sorted keys, no spaces; configs by their fields."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain).encode()


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no canonical form")


def digest(data: bytes) -> str:
    """sha256 as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def run_id(parts: object) -> str:
    """Name of a run: 16 hexadecimal digits, a hash of its settings and the digests of its inputs."""
    return hashlib.blake2b(canonical(parts), digest_size=8).hexdigest()
