"""Rows of a finished run by id, such as the faces that edits, styles and comparisons refer to."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from raygen.core.errors import InputError
from raygen.core.types import UInt8Array
from raygen.store.images import decode_image
from raygen.store.parquet import Slice, read_slice
from raygen.store.run_store import open_input
from raygen.store.set_digest import KEYS

__all__ = ["InMemoryRows", "Row", "RowLookup", "StoredRows", "evenly", "images_of"]


Row = Mapping[str, Any]
#: Rows of FACES by id, for experiments that refer to faces.
RowLookup = Callable[[Iterable[str]], Mapping[str, Row]]

#: Rows that are read although they are not asked for, at most, between two that are.
MAX_GAP = 16


class StoredRows:
    """FACES or SAMPLES of the run at `url`. Holds ids and positions, about 200 bytes a row, and no pictures."""

    def __init__(self, url: str, columns: Sequence[str], *, table: str = "faces") -> None:
        self.url, self.table, self.key = url, table, KEYS[table][0]
        self.columns = tuple(dict.fromkeys((self.key, *columns)))

    def __call__(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The rows of `ids`; `InputError` (`source`) names an id that the run does not have."""
        positions, wanted = self._positions, list(dict.fromkeys(ids))
        if unknown := [name for name in wanted if name not in positions]:
            raise InputError(f"{self.url} has no {self.table.removesuffix('s')} {unknown[0]!r}", reason="source")
        rows: dict[str, dict[str, Any]] = {}
        for piece, numbers in _runs(positions[name] for name in wanted):
            first = numbers[0]
            part = piece._replace(start=piece.start + first, rows=numbers[-1] - first + 1)
            table = read_slice(part, self.columns).take([number - first for number in numbers])
            rows |= {row[self.key]: row for row in table.to_pylist()}
        return {name: rows[name] for name in wanted}

    def all(self, columns: Sequence[str]) -> pa.Table:
        """A few small columns of all rows, in the order of shards."""
        store, _ = open_input(self.url)
        return pa.concat_tables([read_slice(piece, columns) for piece in store.slices(self.table)])

    @cached_property
    def _positions(self) -> dict[str, tuple[Slice, int]]:
        """Stored table and row number by id."""
        store, _ = open_input(self.url)
        return {
            name: (piece, row)
            for piece in store.slices(self.table)
            for row, name in enumerate(read_slice(piece, [self.key])[self.key].to_pylist())
        }


class InMemoryRows:
    """Rows of a small table by `face_id`: the table, or a file that is read at the first call.

    Created from a file, it is small when pickled before its first call.
    """

    def __init__(self, source: Slice | pa.Table) -> None:
        self.source = source
        self._rows: dict[str, dict[str, Any]] | None = None

    def __call__(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The rows of `ids`; `InputError` (`source`) names an id that the table does not have."""
        if self._rows is None:
            table = read_slice(self.source) if isinstance(self.source, Slice) else self.source
            self._rows = {row["face_id"]: row for row in table.to_pylist()}
        wanted = list(dict.fromkeys(ids))
        if unknown := [name for name in wanted if name not in self._rows]:
            raise InputError(f"no face {unknown[0]!r} is held", reason="source")
        return {name: self._rows[name] for name in wanted}


def _runs(positions: Iterable[tuple[Slice, int]]) -> list[tuple[Slice, list[int]]]:
    """Rows of the same file by runs that are read at once: Parquet reads whole row groups anyway."""
    runs: list[tuple[Slice, list[int]]] = []
    for piece, row in sorted(set(positions)):
        if not runs or runs[-1][0] != piece or row - runs[-1][1][-1] > MAX_GAP:
            runs.append((piece, []))
        runs[-1][1].append(row)
    return runs


def evenly(pieces: Sequence[Slice], count: int, columns: Sequence[str], *, block: int = 1) -> Iterator[dict[str, Any]]:
    """At most `count` rows, evenly spaced through all pieces; in blocks of rows that follow each other.

    A file is read by row groups, so that a block costs as much as a row.
    """
    total = sum(piece.rows for piece in pieces)
    if block > 1 and total <= count:
        for piece in pieces:
            yield from read_slice(piece, columns).to_pylist()
        return
    count = min(count // block, total)
    places = [int((i + 0.5) * total / count) for i in range(count)]
    start = 0
    for piece in pieces:
        for place in (p - start for p in places if start <= p < start + piece.rows):
            part = piece._replace(start=piece.start + place, rows=min(block, piece.rows - place))
            yield from read_slice(part, columns).to_pylist()
        start += piece.rows


def images_of(rows: Iterable[Row]) -> Iterator[UInt8Array]:
    """The pictures uint8 [H, W, 3] in the column `image` of rows; rows without one that opens are left out."""
    for row in rows:
        try:
            yield decode_image((row.get("image") or {}).get("bytes"))
        except InputError:
            continue
