"""Tables as Parquet bytes, and reading a slice of rows from a file."""

import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raygen.core.errors import ConfigError, InfrastructureError, InputError, IntegrityError, RaygenError
from raygen.core.location import redact
from raygen.store.filesystem import file_system, retry

__all__ = ["CONTENT_NAME", "RANGE", "VERIFY_ON_READ", "Slice", "from_parquet", "read_slice", "to_parquet"]

#: Path of a table without a file, whose only column `index` numbers the rows from 0.
RANGE = "range:"
#: Environment variable; `off` leaves out the check sum of whole files, see `read_slice`.
VERIFY_ON_READ: Final = "RAYGEN_VERIFY_ON_READ"
#: The end of the name of a file that is named by its content: digits of its sha256.
CONTENT_NAME: Final = re.compile(r"-([0-9a-f]{12})\.parquet$")
#: Files on object stores up to this size are fetched whole to be checked, and then read from memory.
FETCHED_WHOLE: Final = 256 << 20
CHUNK: Final = 4 << 20
#: Bytes of a row group, about.
GROUP_BYTES: Final = 1 << 20
#: Files that this process has checked: path, and size and time of change where the file system has them.
_checked: set[tuple[object, ...]] = set()


class Slice(NamedTuple):
    """Rows `start` to `start + rows` of one Parquet file, or of the endless table `RANGE` of row numbers."""

    path: str
    start: int
    rows: int


def read_slice(piece: Slice, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one slice; reads only the row groups that hold them, and verifies page checksums.

    Page checksums leave out footers and page headers, in which one bit can change values. The first time that a process
    opens a file whose name has its sha256, it therefore compares that with the whole file; not where some columns of a
    file on an object store are read, and not where the environment variable `VERIFY_ON_READ` is `off`. `columns` that
    the file does not have are left out; `image.path` is a field of a column. `ConfigError` where the file is missing or
    may not be read, `IntegrityError` where its sha256 is another one, `InputError` (`parquet`) where it is damaged, and
    `InfrastructureError` where the storage fails again and again.
    """
    if piece.path == RANGE:
        return pa.table({"index": pa.array(range(piece.start, piece.start + piece.rows), pa.int64())})
    try:
        return retry(lambda: _read_rows(piece, columns))
    except FileNotFoundError as error:
        raise ConfigError(f"{piece.path}: no such file") from error
    except PermissionError as error:
        reason = redact(error.strerror or str(error))[:200]
        raise ConfigError(f"{piece.path}: not allowed to be read ({reason}); check the rights") from error
    except RaygenError:
        raise
    except Exception as error:  # each back end has its own exception classes
        reason = redact(str(error))[:200]
        if isinstance(error, IsADirectoryError | NotADirectoryError):
            raise InputError(f"{piece.path}: {reason}", reason="parquet") from error
        name = type(error).__name__
        raise InfrastructureError(f"{piece.path}: cannot be read ({name}: {reason})") from error


def _read_rows(piece: Slice, columns: Sequence[str] | None) -> pa.Table:
    """`read_slice` of a file. Errors of the storage are raised as they are.

    In this thread alone: a thread of pyarrow (26.0.1) may let go of `file`, an object of Python, after the call has
    returned. Where the interpreter is ending then, the process is aborted, after all work was done.
    """
    fs, path = file_system(piece.path)
    with fs.open(path, "rb") as opened:
        file = _compared(opened, piece.path, whole=columns is None)
        try:
            reader = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
            group_rows = [reader.metadata.row_group(i).num_rows for i in range(reader.num_row_groups)]
            starts = list(accumulate(group_rows, initial=0))
            groups = [
                i
                for i, rows in enumerate(group_rows)
                if starts[i] < piece.start + piece.rows and piece.start < starts[i] + rows
            ]
            if columns is not None:
                known = reader.schema_arrow.names
                columns = [column for column in columns if column.partition(".")[0] in known]
            table = reader.read_row_groups(groups, columns=columns, use_threads=False)
            return table.slice(piece.start - (starts[groups[0]] if groups else 0), piece.rows)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
                raise  # of the storage; the errors of Arrow are plain ones without a number
            raise InputError(f"{piece.path}: {redact(str(error))[:200]}", reason="parquet") from error


def _compared(file: Any, path: str, *, whole: bool) -> Any:
    """`file`, or its bytes in memory, after the sha256 in its name was compared; once in a process for each file.

    A file on an object store is compared only where it is read `whole`: a column of it is a few requests.
    """
    named = CONTENT_NAME.search(path)
    if named is None or os.environ.get(VERIFY_ON_READ, "").lower() == "off":
        return file
    try:
        stat = os.stat(path)
        key: tuple[object, ...] = (path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        local = True
    except (OSError, ValueError):  # not on a local disk
        key, local = (path,), False
    if key in _checked or not (local or whole):
        return file
    state = hashlib.sha256()
    kept = io.BytesIO() if not local and (getattr(file, "size", None) or FETCHED_WHOLE + 1) <= FETCHED_WHOLE else None
    while data := file.read(CHUNK):
        state.update(data)
        if kept is not None:
            kept.write(data)
    if not state.hexdigest().startswith(named[1]):
        raise IntegrityError(f"{path}: sha256 differs from the one in its name: the file was changed or damaged")
    _checked.add(key)
    file = file if kept is None else kept
    file.seek(0)
    return file


def to_parquet(table: pa.Table, *, row_group_rows: int | None = None) -> bytes:
    """One Parquet file as bytes: page checksums on, small row groups, statistics for plain columns only.

    Pictures and vectors are neither compressed nor dictionary-encoded. Row groups have about `GROUP_BYTES` bytes and
    128 to 4096 rows: a few rows of pictures are read without many others, and small rows do not pay for many groups.
    """
    if row_group_rows is None:
        row_group_rows = min(4096, max(128, GROUP_BYTES * table.num_rows // max(table.nbytes, 1)))
    plain = [f.name for f in table.schema if not (pa.types.is_nested(f.type) or pa.types.is_binary(f.type))]
    small = [path for field in table.schema for path in _small_leaves(field.name, field.type)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=row_group_rows,
        compression=dict.fromkeys(small, "zstd") if small else "none",
        use_dictionary=small,
        write_statistics=plain,
        write_page_checksum=True,
        store_schema=True,
    )
    return bytes(sink.getvalue().to_pybytes())


def _small_leaves(path: str, kind: pa.DataType) -> Iterator[str]:
    """Paths of the Parquet columns of an Arrow column, but for pictures and lists of floats."""
    if pa.types.is_struct(kind):
        for child in kind:
            yield from _small_leaves(f"{path}.{child.name}", child.type)
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        if not pa.types.is_floating(kind.value_type):
            yield from _small_leaves(f"{path}.list.element", kind.value_type)
    elif not pa.types.is_binary(kind):
        yield path


def from_parquet(data: bytes | pa.Buffer, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Parquet bytes -> table with page checksums verified; `InputError` (`parquet`) where they do not hold."""
    try:
        reader = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, pre_buffer=False)
        return reader.read(columns=None if columns is None else list(columns), use_threads=False)  # see `_read_rows`
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(str(error)[:200], reason="parquet") from error
