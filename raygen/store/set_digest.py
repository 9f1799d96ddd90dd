"""Digests of sets of rows, independent of the order of the rows and of the shards."""

import hashlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Final

import pyarrow as pa

from raygen.core.hashing import digest
from raygen.store.row_bytes import head_of, row_bytes

__all__ = ["KEYS", "SetDigest", "table_digest"]

#: Bytes of the hash of a row, and the number that sums are taken by.
HASH_BYTES: Final = 256
_MODULUS: Final = 1 << 8 * HASH_BYTES
#: Rows whose bytes are made at once, at most, and about how many bytes they have in their table.
ROWS, BYTES = 8192, 32 << 20
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
        self.state = (
            self.state + int.from_bytes(hashlib.shake_256(line.encode()).digest(HASH_BYTES), "big")
        ) % _MODULUS

    def merge(self, other: "SetDigest") -> "SetDigest":
        """Digest of the union of two disjoint sets."""
        return SetDigest((self.state + other.state) % _MODULUS)

    def hex(self) -> str:
        """64 hexadecimal digits: sha256 of the state."""
        return digest(self.state.to_bytes(HASH_BYTES, "big"))


def table_digest(name: str, table: pa.Table) -> SetDigest:
    """Digest of the rows of one table, in any order: a row enters by its `row_bytes` after the head of its table.

    A row of SAMPLES enters by its key and the sha256 of its picture, or the class of its error.
    """
    state = SetDigest()
    if name == "samples":
        columns = (table[column].to_pylist() for column in ("sample_id", "attempt", "image_sha256", "error"))
        for sample_id, attempt, sha256, error in zip(*columns, strict=True):
            state.add(f"{sample_id}:{attempt}:{sha256 or (error or 'error').split(':', 1)[0]}")
        return state
    head = hashlib.shake_256(head_of(name, table.schema))
    rows = max(1, min(ROWS, BYTES * table.num_rows // max(table.nbytes, 1)))
    for start in range(0, table.num_rows, rows):
        data, bounds = row_bytes(table.slice(start, rows))
        view, ends = data.data, bounds.tolist()
        total = 0
        for begin, end in pairwise(ends):
            row = head.copy()
            row.update(view[begin:end])
            total += int.from_bytes(row.digest(HASH_BYTES), "big")
        state = state.merge(SetDigest(total))
    return state
