"""Tables as Parquet bytes, and reading a slice of rows from a file."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from raygen.core.errors import ConfigError, InputError

__all__ = ["RANGE", "Slice", "from_parquet", "read_slice", "to_parquet"]

#: Path of the table that needs no file: its one column `index` counts the rows from 0.
RANGE = "range:"


class Slice(NamedTuple):
    """Rows `start` to `start + rows` of one Parquet file, or of the endless table `RANGE` of row numbers."""

    path: str
    start: int
    rows: int


def read_slice(piece: Slice, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one slice, reading only the row groups they lie in; page checksums are verified.

    `columns` that the file does not have are left out; `image.path` is one field of a column.
    """
    if piece.path == RANGE:
        return pa.table({"index": pa.array(range(piece.start, piece.start + piece.rows), pa.int64())})
    fs, path = fsspec.core.url_to_fs(piece.path)
    try:
        with fs.open(path, "rb") as file:
            return _read_rows(file, piece, columns)
    except FileNotFoundError as error:
        raise ConfigError(f"{piece.path}: no such file") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{piece.path}: {str(error)[:200]}", reason="parquet") from error


def _read_rows(file: Any, piece: Slice, columns: Sequence[str] | None) -> pa.Table:
    reader = pq.ParquetFile(file, page_checksum_verification=True)
    groups, first = _groups(reader, piece)
    known = reader.schema_arrow.names
    table = reader.read_row_groups(
        groups, columns=None if columns is None else [c for c in columns if c.partition(".")[0] in known]
    )
    return table.slice(piece.start - first, piece.rows)


def _groups(reader: pq.ParquetFile, piece: Slice) -> tuple[list[int], int]:
    """Row groups that overlap the slice, and the number of the first row in them."""
    spans = list(_spans(reader))
    chosen = [(i, start) for i, start, rows in spans if start < piece.start + piece.rows and piece.start < start + rows]
    return [i for i, _ in chosen], chosen[0][1] if chosen else 0


def _spans(reader: pq.ParquetFile) -> Iterator[tuple[int, int, int]]:
    start = 0
    for index in range(reader.num_row_groups):
        rows = reader.metadata.row_group(index).num_rows
        yield index, start, rows
        start += rows


def to_parquet(table: pa.Table, *, row_group_rows: int = 128) -> bytes:
    """One Parquet file as bytes: page checksums on, small row groups, statistics for plain columns only."""
    pictures = {f.name for f in table.schema if pa.types.is_nested(f.type) or pa.types.is_binary(f.type)}
    plain = [name for name in table.schema.names if name not in pictures]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=row_group_rows,
        compression={**dict.fromkeys(plain, "zstd")} if plain else "none",
        use_dictionary=plain,
        write_statistics=plain,
        write_page_checksum=True,
        store_schema=True,
    )
    return bytes(sink.getvalue().to_pybytes())


def from_parquet(data: bytes | pa.Buffer, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Parquet bytes -> table with page checksums verified; `InputError` (`parquet`) where they do not hold."""
    try:
        reader = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        return reader.read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(str(error)[:200], reason="parquet") from error
