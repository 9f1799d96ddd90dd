"""Rows of a finished run by their id: the pictures that edits, styles and comparisons refer to.

Knows where each row lies, and which rows belong to a group. Reads ids once, and a row only when it is asked for.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from raygen.core.errors import InputError
from raygen.store.parquet import Slice, read_slice
from raygen.store.run_store import open_input
from raygen.store.set_digest import KEYS

__all__ = ["InMemoryRows", "Row", "RowLookup", "StoredRows"]


Row = Mapping[str, Any]
#: Rows of FACES by id, for experiments that refer to faces.
RowLookup = Callable[[Iterable[str]], Mapping[str, Row]]

#: Rows that may be read in vain between two that are wanted.
NEAR = 16


class StoredRows:
    """FACES or SAMPLES of `url`; holds their ids and places (about 200 bytes a row), never pictures."""

    def __init__(self, url: str, columns: Sequence[str], *, table: str = "faces") -> None:
        self.url, self.table, self.key = url, table, KEYS[table][0]
        self.columns = tuple(dict.fromkeys((self.key, *columns)))
        self._places: dict[str, tuple[Slice, int]] | None = None

    def __call__(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The rows of `ids`; `InputError` (`source`) names one that is not there."""
        places, wanted = self._index(), list(dict.fromkeys(ids))
        if unknown := [name for name in wanted if name not in places]:
            raise InputError(f"{self.url} has no {self.table.removesuffix('s')} {unknown[0]!r}", reason="source")
        found: dict[str, dict[str, Any]] = {}
        for piece, rows in _runs(places[name] for name in wanted):
            first = rows[0]
            part = piece._replace(start=piece.start + first, rows=rows[-1] - first + 1)
            table = read_slice(part, self.columns)
            found |= {row[self.key]: row for row in table.take([row - first for row in rows]).to_pylist()}
        return {name: found[name] for name in wanted}

    def all(self, columns: Sequence[str]) -> pa.Table:
        """A few small columns of all rows, in the order of shards."""
        store, _ = open_input(self.url)
        return pa.concat_tables([read_slice(piece, columns) for piece in store.slices(self.table)])

    def _index(self) -> dict[str, tuple[Slice, int]]:
        if self._places is None:
            store, _ = open_input(self.url)
            self._places = {
                name: (piece, row)
                for piece in store.slices(self.table)
                for row, name in enumerate(read_slice(piece, [self.key])[self.key].to_pylist())
            }
        return self._places


class InMemoryRows:
    """Rows of FACES with further columns, by `face_id`: a small file that is read at the first call and held, or the
    rows themselves. Pickled with a file it is small."""

    def __init__(self, held: Slice | pa.Table) -> None:
        self.held = held
        self._rows: dict[str, dict[str, Any]] | None = None

    def __call__(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The rows of `ids`; `InputError` (`source`) names one that is not there."""
        if self._rows is None:
            table = read_slice(self.held) if isinstance(self.held, Slice) else self.held
            self._rows = {row["face_id"]: row for row in table.to_pylist()}
        wanted = list(dict.fromkeys(ids))
        if unknown := [name for name in wanted if name not in self._rows]:
            raise InputError(f"no face {unknown[0]!r} is held", reason="source")
        return {name: self._rows[name] for name in wanted}


def _runs(places: Iterable[tuple[Slice, int]]) -> list[tuple[Slice, list[int]]]:
    """Rows of one file that lie near each other are read at once: a file gives them up by the group anyway."""
    runs: list[tuple[Slice, list[int]]] = []
    for piece, row in sorted(set(places)):
        if not runs or runs[-1][0] != piece or row - runs[-1][1][-1] > NEAR:
            runs.append((piece, []))
        runs[-1][1].append(row)
    return runs
