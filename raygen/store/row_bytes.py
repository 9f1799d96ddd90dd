"""Rows of Arrow tables as canonical bytes: what a digest of rows is computed from.

Two rows have the same bytes exactly where they have the same columns and values. Chunks, slices, dictionary and
run-end encoding, the width of offsets, the order of columns and fields, and what lies in the slots of nulls do not
matter. Numbers are little-endian. A row is the parts of its columns, which are sorted by name:

    number, time      null bits, then each value (0 for null); every NaN is the same NaN, 0.0 and -0.0 differ
    text              the length of each value as int64 (-1 for null), then the UTF-8 of all
    binary            null bits, then the sha256 of each value that is there: pictures enter by their hash
    list, map         the length of each value as int64 (-1 for null), then all elements as a part
    struct            null bits, then a part for each field, sorted by name, of the values that are there

"Each value" is one value in a column, and all elements of the row in a list. `null bits` have a bit a value, the first
one lowest, in whole bytes; 1 is null. The types are not in these bytes but in `head_of`, so a part ends where its
types and lengths say: `[a, b]` and `[ab]`, null and empty, and values that moved to another column all differ.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raygen.core.types import Int64Array, UInt8Array

__all__ = ["head_of", "row_bytes"]


#: Parts whose runs have more bytes than this in the mean are copied run by run; an index of every byte costs more.
LONG: Final = 64
SHA256_BYTES: Final = 32


class _Runs(NamedTuple):
    """Bytes of all rows, one after the other: row i has those from `bounds[i]` to `bounds[i + 1]`."""

    data: UInt8Array
    bounds: Int64Array


def head_of(name: str, schema: pa.Schema) -> bytes:
    """32 bytes for the name of a table and the names and types of its columns; they precede the bytes of each row."""
    columns = sorted((field.name, _type_name(field.type)) for field in schema)
    return hashlib.sha256(json.dumps([name, columns], separators=(",", ":")).encode()).digest()


def row_bytes(table: pa.Table) -> tuple[UInt8Array, Int64Array]:
    """The bytes of all rows, and the bounds of each: int64 [rows + 1]. Takes about the memory of the table.

    `TypeError` for a type without canonical bytes, such as a union.
    """
    n = table.num_rows
    each_row = np.arange(n + 1, dtype=np.int64)
    columns = (table.column(name).combine_chunks() for name in sorted(table.column_names))
    parts = list(_joined((part for column in columns for part in _parts(column, each_row)), n))
    sizes = [np.diff(part.bounds) for part in parts]
    bounds = _bounds(np.sum(sizes, axis=0, dtype=np.int64) if parts else np.zeros(n, np.int64))
    data = np.zeros(bounds[-1], np.uint8)
    at = bounds[:-1].copy()
    for part, size in zip(parts, sizes, strict=True):
        _place(part, size, data, at)
        at += size
    return data, bounds


def _joined(parts: Iterable[_Runs], rows: int) -> Iterator[_Runs]:
    """The parts, with neighbours whose runs are equally long as one part of up to `LONG` bytes a row.

    The 40 attributes are 80 parts of one byte, and placing a part takes longer than copying its bytes.
    """
    each_row = np.arange(rows + 1, dtype=np.int64)
    block: list[UInt8Array] = []  # [rows, width]
    together = 0

    def join() -> Iterator[_Runs]:
        nonlocal together
        if block:
            joined = np.concatenate(block, axis=1) if len(block) > 1 else block[0]
            yield _Runs(joined.reshape(-1), each_row * together)
        block.clear()
        together = 0

    for part in parts:
        width = int(part.bounds[1]) if rows else 0
        if not width or width > LONG or part.bounds[-1] != rows * width or (np.diff(part.bounds) != width).any():
            yield from join()
            yield part
            continue
        if together + width > LONG:
            yield from join()
        block.append(part.data[: rows * width].reshape(rows, width))
        together += width
    yield from join()


def _place(part: _Runs, sizes: Int64Array, data: UInt8Array, at: Int64Array) -> None:
    """Copy the run of each row to its place `at` in `data`."""
    starts = part.bounds[:-1]
    if not len(sizes) or not part.bounds[-1]:
        return
    if (width := sizes[0]) <= LONG and (sizes == width).all():
        data[at[:, None] + np.arange(width)] = part.data[: len(sizes) * width].reshape(-1, width)
    elif part.bounds[-1] > LONG * len(sizes):
        for start, size, place in zip(starts.tolist(), sizes.tolist(), at.tolist(), strict=True):
            data[place : place + size] = part.data[start : start + size]
    else:  # the bytes of all runs follow each other, so byte i of `part` moves by the distance of its run
        moved = np.repeat(at - starts, sizes)
        moved += np.arange(part.bounds[-1])
        data[moved] = part.data[: part.bounds[-1]]


def _bounds(sizes: Int64Array) -> Int64Array:
    bounds = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=bounds[1:])
    return bounds


def _parts(array: pa.Array, bounds: Int64Array) -> Iterator[_Runs]:
    """The parts of an array of which row i has the values from `bounds[i]` to `bounds[i + 1]`, from 0 to all."""
    array = _plain(array)
    kind = array.type
    if pa.types.is_large_list(kind) or pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        sizes = pc.list_value_length(array).cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        yield _of_numbers(sizes, bounds)
        yield from _parts(array.flatten(), _bounds(sizes.clip(min=0))[bounds])  # without the elements of null lists
    elif pa.types.is_large_string(kind):
        sizes = pc.binary_length(array).fill_null(-1).to_numpy(zero_copy_only=False)
        yield _of_numbers(sizes, bounds)
        yield _Runs(_content(array)[0], _bounds(sizes.clip(min=0))[bounds])
    elif pa.types.is_large_binary(kind):
        yield _null_bits(array, bounds)
        data, ends = _content(array)
        view, edges = data.data, ends.tolist()
        hashes = b"".join(hashlib.sha256(view[start:end]).digest() for start, end in pairwise(edges))
        yield _Runs(np.frombuffer(hashes, np.uint8), _kept(array)[bounds] * SHA256_BYTES)
    elif pa.types.is_struct(kind):
        yield _null_bits(array, bounds)
        inner = _kept(array)[bounds] if array.null_count else bounds
        fields = (array.drop_null() if array.null_count else array).flatten()
        for _, i in sorted((kind.field(i).name, i) for i in range(kind.num_fields)):
            yield from _parts(fields[i], inner)
    else:
        yield _null_bits(array, bounds)
        if not pa.types.is_null(kind):
            yield _of_numbers(_numbers(array), bounds)


def _of_numbers(values: npt.NDArray[np.generic], bounds: Int64Array) -> _Runs:
    """Values [m], or the bytes of values [m, width], as runs."""
    if values.ndim == 1:
        values = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False))
        values = values.view(np.uint8).reshape(len(values), values.dtype.itemsize)
    return _Runs(values.reshape(-1).view(np.uint8), bounds * values.shape[1])


def _kept(array: pa.Array) -> Int64Array:
    """The number of values before each place that are not null, [m + 1]."""
    if not array.null_count:
        return np.arange(len(array) + 1, dtype=np.int64)
    return _bounds(array.is_valid().to_numpy(zero_copy_only=False).astype(np.int64))


def _null_bits(array: pa.Array, bounds: Int64Array) -> _Runs:
    sizes = np.diff(bounds)
    byte_bounds = bounds if (sizes == 1).all() else _bounds((sizes + 7) // 8)
    bits = np.zeros(byte_bounds[-1], np.uint8)
    if array.null_count:
        places = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))
        row = np.searchsorted(bounds, places, side="right") - 1
        within = places - bounds[row]
        np.bitwise_or.at(bits, byte_bounds[row] + within // 8, (1 << within % 8).astype(np.uint8))
    return _Runs(bits, byte_bounds)


def _content(array: pa.Array) -> tuple[UInt8Array, Int64Array]:
    """The bytes of all values of large text or binary that are not null, and their bounds from 0."""
    kept = array.drop_null() if array.null_count else array
    _, offsets, data = kept.buffers()
    if not len(kept) or offsets is None:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    ends = np.frombuffer(offsets, np.int64, len(kept) + 1, kept.offset * 8)
    content = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return content[ends[0] : ends[-1]], ends - ends[0]


def _numbers(array: pa.Array) -> npt.NDArray[np.generic]:
    """Values of fixed width [m], or their bytes [m, width]; 0 for null, and one NaN."""
    kind = array.type
    if pa.types.is_boolean(kind):
        return np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False)).astype(np.uint8)
    width = kind.bit_width // 8
    data = array.buffers()[1]
    start = array.offset * width
    raw = np.frombuffer(data, np.uint8, len(array) * width, start) if data is not None else np.zeros(0, np.uint8)
    values: npt.NDArray[np.generic] = raw.reshape(len(array), width)
    if pa.types.is_floating(kind):
        values = values.reshape(-1).view(f"f{width}")
        if (nan := np.isnan(values)).any():
            values = values.copy()
            values[nan] = np.nan
    if array.null_count:
        values = values.copy()
        values[array.is_null().to_numpy(zero_copy_only=False)] = 0
    return values


def _plain(array: pa.Array) -> pa.Array:
    """The same values in one of the types that `_parts` knows."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(array.storage)
    if pa.types.is_dictionary(kind):
        return _plain(array.dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        return _plain(pc.run_end_decode(array))
    if pa.types.is_map(kind):
        return array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return array.cast(pa.large_string())
    if pa.types.is_binary(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        return array.cast(pa.large_binary())
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return array.cast(pa.large_list(kind.value_type))
    return array


def _type_name(kind: pa.DataType) -> str:
    """The name of a type that is the same for all ways to hold the same values; `TypeError` where there is none."""
    if isinstance(kind, pa.BaseExtensionType):
        return _type_name(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _type_name(kind.value_type)
    if pa.types.is_map(kind):
        return f"list<{_type_name(pa.struct([('key', kind.key_type), ('value', kind.item_type)]))}>"
    if pa.types.is_struct(kind):
        fields = sorted((field.name, _type_name(field.type)) for field in kind)
        return f"struct<{','.join(f'{json.dumps(name)}:{inner}' for name, inner in fields)}>"
    if any(test(kind) for test in _LISTS):
        return f"list<{_type_name(kind.value_type)}>"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_fixed_size_binary(kind) or any(test(kind) for test in _BINARY):
        return "binary"
    if pa.types.is_null(kind) or pa.types.is_primitive(kind) or pa.types.is_decimal(kind):
        return str(kind)
    raise TypeError(f"{kind} has no canonical bytes")


_LISTS: Final = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_BINARY: Final = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
