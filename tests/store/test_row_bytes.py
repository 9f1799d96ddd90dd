"""The canonical bytes of rows, through the digest of a table: the same for any layout, another for any other cell."""

import copy
import hashlib
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raygen.core.face_labels import ATTRIBUTES
from raygen.store.parquet import from_parquet, to_parquet
from raygen.store.row_bytes import head_of, row_bytes
from raygen.store.schemas import CONDITIONS, SCORES
from raygen.store.set_digest import SetDigest, table_digest

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("flag", pa.bool_()),
        ("count", pa.int32()),
        ("half", pa.float16()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("image", PICTURE),
        ("words", pa.list_(pa.string())),
        ("vector", pa.list_(pa.float32())),
        ("points", pa.list_(pa.list_(pa.float32(), 2))),
        ("texts", pa.map_(pa.string(), pa.string())),
        ("pairs", pa.list_(pa.struct([("key", pa.string()), ("value", pa.int64())]))),
    ]
)
#: Cells that are easily taken for each other, a list a column.
CELLS: dict[str, list[Any]] = {
    "id": ["a", "ab", "", None, "ä" * 80],
    "flag": [True, False, None],
    "count": [0, 1, -1, None, 256],
    "half": [0.0, -0.0, 1.5, None, float("nan")],
    "time": [0, 1, None],
    "image": [None, *({"bytes": b, "path": p} for b in (None, b"", b"x") for p in (None, "", "x"))],
    "words": [None, [], [None], [""], ["a", "b"], ["ab"], ["b", "a"], ["a", None, "b"], ["a"] * 9],
    "vector": [None, [], [0.0], [None], [0.0, 0.0], [0.0, None], [None, 0.0], [None] * 9, [1.0] * 40],
    "points": [None, [], [None], [[0.0, None]], [[None, 0.0]], [[0.0, 0.0], [1.0, 1.0]]],
    "texts": [None, [], [("a", "b")], [("a", None)], [("ab", "")], [("a", "b"), ("c", "d")], [("c", "d"), ("a", "b")]],
    "pairs": [None, [], [None], [{"key": None, "value": None}], [{"key": "", "value": 0}], [{"key": "a", "value": 1}]],
}


def rows(n: int = 60) -> list[dict[str, Any]]:
    """Rows in which every cell occurs beside others."""
    random = np.random.default_rng(3)
    return [{name: cells[int(random.integers(len(cells)))] for name, cells in CELLS.items()} for _ in range(n)]


def made(data: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> pa.Table:
    columns = [pa.array([row[field.name] for row in data], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def test_every_other_cell_gives_another_digest():
    """Null, empty and each way of cutting the same letters are different values, in every type."""
    base = rows(1)[0]
    for name, cells in CELLS.items():
        digests = {table_digest("t", made([{**base, name: cell}])).hex() for cell in cells}
        assert len(digests) == len(cells), name


def test_a_cell_that_moves_to_another_row_or_column_gives_another_digest():
    schema = pa.schema([("a", pa.string()), ("b", pa.string())])
    cases = [[("x", "y"), ("", "")], [("x", ""), ("", "y")], [("xy", ""), ("", "")], [("", "xy"), ("", "")]]
    tables = [made([{"a": a, "b": b} for a, b in case], schema) for case in cases]
    digests = {table_digest("t", table).hex() for table in tables}
    assert len(digests) == len(cases)
    assert table_digest("t", tables[0]).hex() != table_digest("u", tables[0]).hex()
    assert table_digest("t", tables[0]).hex() != table_digest("t", tables[0].rename_columns(["a", "c"])).hex()


def test_the_layout_of_a_table_does_not_matter():
    """Chunks, slices, order of rows and columns, dictionaries, wide offsets and views, and Parquet."""
    data = rows()
    table = made(data)
    want = table_digest("t", table).hex()
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1, 0), table.slice(1, 30), table.slice(31)])
    around = pa.concat_tables([made(rows(7)), table, made(rows(5))]).combine_chunks().slice(7, len(data))
    wide = {
        "id": pa.large_string(),
        "words": pa.large_list(pa.large_string()),
        "pairs": pa.large_list(SCHEMA.field("pairs").type.value_type),
    }
    cast = table
    for name, kind in wide.items():
        cast = cast.set_column(cast.column_names.index(name), name, cast[name].cast(kind))
    encoded = table.set_column(0, "id", table["id"].dictionary_encode())
    views = table.set_column(0, "id", table["id"].cast(pa.string_view()))
    for other in (
        chunked,
        around,
        cast,
        encoded,
        views,
        table.select(table.column_names[::-1]),
        table.take(list(range(len(data)))[::-1]),
        from_parquet(to_parquet(table.drop_columns(["texts"]))).append_column("texts", table["texts"]),
    ):
        assert table_digest("t", other).hex() == want
    halves = [table_digest("t", table.slice(start, 30)) for start in (0, 30)]
    assert SetDigest.merge(*halves).hex() == want


def test_what_lies_under_nulls_does_not_matter():
    """Arrow keeps any bytes in the slot of a null, also characters and elements of a list."""
    bits = pa.py_buffer(bytes([0b101]))
    numbers = [np.array([1, dirty, 3], np.int32) for dirty in (0, 77)]
    offsets = pa.py_buffer(np.array([0, 1, 3, 4], np.int32))
    tight = pa.py_buffer(np.array([0, 1, 1, 2], np.int32))
    child = pa.array([1.0, 9.0, 9.0, 2.0], pa.float32())
    for clean, dirty in (
        [pa.Array.from_buffers(pa.int32(), 3, [bits, pa.py_buffer(values)]) for values in numbers],
        [
            pa.Array.from_buffers(pa.string(), 3, [bits, *rest])
            for rest in ((tight, pa.py_buffer(b"ab")), (offsets, pa.py_buffer(b"axxb")))
        ],
        [
            pa.Array.from_buffers(pa.binary(), 3, [bits, *rest])
            for rest in ((tight, pa.py_buffer(b"ab")), (offsets, pa.py_buffer(b"axxb")))
        ],
        [
            pa.array([[1.0], None, [2.0]], pa.list_(pa.float32())),
            pa.Array.from_buffers(pa.list_(pa.float32()), 3, [bits, offsets], children=[child]),
        ],
        [
            pa.array([{"x": 1}, None, {"x": 3}], pa.struct([("x", pa.int32())])),
            pa.StructArray.from_arrays([pa.array([1, 9, 3], pa.int32())], ["x"], mask=pa.array([False, True, False])),
        ],
    ):
        assert clean.to_pylist() == dirty.to_pylist()
        assert table_digest("t", pa.table({"c": clean})).hex() == table_digest("t", pa.table({"c": dirty})).hex()
    signalling = np.array([0x7F800001], np.uint32).view(np.float32)
    plain = table_digest("t", pa.table({"c": np.array([np.nan], np.float32)})).hex()
    assert table_digest("t", pa.table({"c": signalling})).hex() == plain


def test_every_cell_of_the_tables_of_runs_counts():
    """Each column of CONDITIONS and SCORES, each field of its structs and each attribute is in the digest."""
    condition: dict[str, Any] = dict.fromkeys(CONDITIONS.names)
    condition |= {"sample_id": "s", "plan": "p", "seed": 1, "attributes": dict.fromkeys(ATTRIBUTES, 0)}
    condition |= {"mask": {"bytes": b"m", "path": None}, "style_reference_a": {"face_id": "f", "sha256": "0"}}
    score = {
        "sample_id": "s",
        "attempt": 0,
        "metric": "m",
        "run_id": "r",
        "value": 1.0,
        "names": ["n"],
        "vector": [1.0],
    }
    for name, schema, row in (("conditions", CONDITIONS, condition), ("scores", SCORES, score)):
        want, seen = table_digest(name, made([row], schema)).hex(), 0
        for field in schema:
            for changed in _changed(row[field.name], field.type):
                assert table_digest(name, made([{**row, field.name: changed}], schema)).hex() != want, field.name
                seen += 1
        assert seen >= len(schema)


def _changed(value: Any, kind: pa.DataType) -> list[Any]:
    """The value with each of its parts changed once."""
    if pa.types.is_struct(kind):
        inside = value or {field.name: None for field in kind}
        changes = [(f.name, other) for f in kind for other in _changed(inside[f.name], f.type)]
        return [{**copy.copy(inside), name: other} for name, other in changes]
    if pa.types.is_list(kind):
        return [[*(value or []), *_changed(None, kind.value_type)]]
    if pa.types.is_binary(kind):
        return [(value or b"") + b"1"]
    return [f"{value or ''}1"] if pa.types.is_string(kind) else [(value or 0) + 1]


def test_bytes_of_a_row_are_those_of_the_description():
    """The form is fixed: a digest that is stored has to be found again."""
    table = pa.table({"b": pa.array(["hé", None]), "a": pa.array([None, 258], pa.int16())})
    data, bounds = row_bytes(table)
    parts = [bytes(data[start:end]) for start, end in pairwise(bounds)]
    assert parts == [b"\1\0\0" + (3).to_bytes(8, "little") + "hé".encode(), b"\0\2\1" + b"\xff" * 8]
    head = hashlib.sha256(b'["t",[["a","int16"],["b","text"]]]').digest()
    assert head_of("t", table.schema) == head
    state = sum(int.from_bytes(hashlib.shake_256(head + part).digest(256), "big") for part in parts) % 2**2048
    assert table_digest("t", table).hex() == hashlib.sha256(state.to_bytes(256, "big")).hexdigest()


def test_a_type_without_bytes_is_refused():
    union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])
    with pytest.raises(TypeError, match="has no canonical bytes"):
        table_digest("t", pa.table({"c": union}))
