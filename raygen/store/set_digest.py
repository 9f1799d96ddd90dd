"""Digests of sets of rows, independent of the order of the rows and of the shards."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

from raygen.core.hashing import canonical, digest

__all__ = ["KEYS", "SetDigest", "table_digest"]

_MODULUS: Final = 1 << 2048
#: Key columns of each table.
KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "faces": ("face_id",),
    "conditions": ("sample_id",),
    "samples": ("sample_id", "attempt"),
    "scores": ("sample_id", "attempt", "metric"),
    "selection": ("sample_id", "attempt"),
    "latents": ("face_id", "transform"),
    "influence": ("sample_id", "step", "name"),
    "quarantine": ("id", "table"),
}


class SetDigest:
    """Digest of a set of lines, independent of their order and of how they are divided into shards.

    The state is the sum of 2048-bit hashes of the lines (Bellare and Micciancio's AdHash), so shards merge by
    addition and no process ever holds all lines of a large set.
    """

    def __init__(self, state: int = 0) -> None:
        self.state = state

    def add(self, line: str) -> None:
        """Put one line into the set."""
        self.state = (self.state + int.from_bytes(hashlib.shake_256(line.encode()).digest(256), "big")) % _MODULUS

    def merge(self, other: "SetDigest") -> "SetDigest":
        """Digest of the union of two disjoint sets."""
        return SetDigest((self.state + other.state) % _MODULUS)

    def hex(self) -> str:
        """64 hexadecimal digits: sha256 of the state."""
        return digest(self.state.to_bytes(256, "big"))


def table_digest(name: str, table: pa.Table) -> SetDigest:
    """Digest of the rows of one table: a line a row of its key and content, in any order.

    A row of SAMPLES enters by the sha256 of its picture, or the class of its error.
    """
    state = SetDigest()
    if name == "samples":
        for row in table.select(["sample_id", "attempt", "image_sha256", "error"]).to_pylist():
            error = (row["error"] or "error").split(":", 1)[0]
            state.add(f"{row['sample_id']}:{row['attempt']}:{row['image_sha256'] or error}")
        return state
    key = KEYS.get(name, tuple(table.column_names[:1]))
    for row in table.to_pylist():
        state.add(":".join([name, *(str(row[part]) for part in key), digest(canonical(_plain(row)))]))
    return state


def _plain(value: Any) -> Any:
    """As JSON values; bytes become their sha256."""
    if isinstance(value, bytes):
        return digest(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
