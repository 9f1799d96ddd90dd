"""Canonical JSON, digests, and the run id."""

import hashlib
import json
from pathlib import Path

from pydantic import (
    BaseModel,
)

__all__ = ["canonical", "digest", "run_id"]


def canonical(value: object) -> bytes:
    """One byte string per value: sorted keys, no spaces, UTF-8, plain JSON; configs by their fields."""
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


def run_id(what: object) -> str:
    """Name of a run: 16 hexadecimal digits over *what* is made and from which inputs, never *where*."""
    return hashlib.blake2b(canonical(what), digest_size=8).hexdigest()
