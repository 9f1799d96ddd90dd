"""Digests of sets of rows that do not depend on the order of rows or on the cut into shards."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pyarrow as pa

from raygen.core.hashing import canonical, digest

__all__ = ["KEYS", "SetDigest", "table_digest"]

_MODULUS: Final = 1 << 2048
#: What names a row of a table; the digest of a set of rows is taken over these and the row's content.
KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "faces": ("face_id",),
    "conditions": ("sample_id",),
    "samples": ("sample_id", "attempt"),
    "scores": ("sample_id", "attempt", "metric"),
    "selection": ("sample_id", "attempt"),
    "latents": ("face_id", "transform"),
    "influence": ("sample_id", "step"),
    "quarantine": ("id", "table"),
}


class SetDigest:
    """Digest of a set of lines that depends neither on their order nor on how they were cut into shards.

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
    """Digest of the rows of one table, whatever their order."""
    state = SetDigest()
    for line in _lines(name, table):
        state.add(line)
    return state


def _lines(name: str, table: pa.Table) -> Iterator[str]:
    """One line per row: its key and what it holds."""
    if name == "samples":
        columns = table.select(["sample_id", "attempt", "image_sha256", "error"]).to_pylist()
        for row in columns:
            yield f"{row['sample_id']}:{row['attempt']}:{row['image_sha256'] or _error_class(row['error'])}"
        return
    key = KEYS.get(name, tuple(table.column_names[:1]))
    for row in table.to_pylist():
        yield ":".join([name, *(str(row[part]) for part in key), digest(canonical(_plain(row)))])


def _error_class(error: str | None) -> str:
    return (error or "error").split(":", 1)[0]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return digest(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
