"""Every table, opened by the real packages of others: pyarrow, pandas, Polars, DuckDB and `datasets`."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from raygen.commands.api import load_dataset
from raygen.core.face_labels import ATTRIBUTES, CLASSES
from raygen.exports.huggingface import SCHEMA as EXPORT
from raygen.metrics.attributes import codes
from raygen.metrics.score_rows import score_table
from raygen.metrics.segmentation import Counts, confusion
from raygen.models.config.conditions import MODALITIES
from raygen.sampling.worker import JOINT
from raygen.store.images import encode_image, picture
from raygen.store.parquet import to_parquet
from raygen.store.schemas import GUIDANCE, IMAGE, QUARANTINE, SAMPLES, SCHEMAS
from tests.exports.export_runs import sample, store_faces, store_rows

TABLES = {**SCHEMAS, "quarantine": QUARANTINE, "exported data set": EXPORT}
PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def value(kind: pa.DataType) -> Any:
    """A value of a column type that is not null anywhere."""
    if kind == IMAGE:
        return picture(encode_image(PIXELS, "png"))
    if pa.types.is_struct(kind):
        return {field.name: value(field.type) for field in kind}
    if pa.types.is_list(kind):
        return [value(kind.value_type)] * 2
    if pa.types.is_fixed_size_list(kind):
        return [value(kind.value_type)] * kind.list_size
    if pa.types.is_timestamp(kind):
        return datetime(2026, 1, 2, tzinfo=UTC)
    if pa.types.is_floating(kind):
        return np.float16(0.5) if kind == pa.float16() else 0.5
    return {pa.string(): "a", pa.binary(): b"a", pa.bool_(): True}.get(kind, 1)


@pytest.fixture(params=sorted(TABLES))
def table(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, pa.Table]:
    """A file with a row that has every value, and one that has only those that it must have."""
    schema = TABLES[request.param]
    full = {field.name: value(field.type) for field in schema}
    bare = {field.name: None if field.nullable else full[field.name] for field in schema}
    rows = pa.Table.from_pylist([full, bare], schema)
    path = tmp_path / "rows.parquet"
    path.write_bytes(to_parquet(rows))
    return path, rows


def test_pyarrow_opens_it(table: tuple[Path, pa.Table]) -> None:
    path, rows = table
    assert not any(pa.types.is_map(field.type) for field in rows.schema), "`datasets` opens no file with a map"
    assert pq.read_table(path).equals(rows)
    assert pyarrow.dataset.dataset(path).to_table().equals(rows)


def test_pandas_opens_it(table: tuple[Path, pa.Table]) -> None:
    path, rows = table
    frame = pd.read_parquet(path)
    assert list(frame.columns) == rows.column_names
    assert len(frame) == 2


def test_polars_opens_it(table: tuple[Path, pa.Table]) -> None:
    path, rows = table
    frame = pl.read_parquet(path)
    assert frame.columns == rows.column_names
    assert frame.rows()[0][0] == rows.to_pylist()[0][rows.column_names[0]]
    assert pl.scan_parquet(path).collect().height == 2


def test_duckdb_opens_it(table: tuple[Path, pa.Table]) -> None:
    path, rows = table
    found = duckdb.sql(f"SELECT * FROM '{path}'").to_arrow_table()
    assert found.column_names == rows.column_names
    assert found.num_rows == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_opens_it(table: tuple[Path, pa.Table], streaming: bool, tmp_path: Path) -> None:
    path, rows = table
    cache = str(tmp_path / "cache")
    found = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=cache, streaming=streaming)
    first, second = found
    assert list(first) == rows.column_names
    for field in rows.schema:
        if field.type == IMAGE:
            assert np.array_equal(np.asarray(first[field.name]), PIXELS), "a picture, not its bytes"
        if field.nullable and not pa.types.is_list(field.type):
            assert second[field.name] is None or set(second[field.name].values()) == {None}, field.name


# --- what is in them, by name ---


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run with three pictures, the third without attributes."""
    rows = [sample(i, attributes=None if i == 2 else (1, -1) * 20) for i in range(3)]
    url = store_rows(tmp_path_factory.mktemp("run") / "samples", rows)
    return next(Path(url).glob("attempt-00/data/samples/*.parquet"))


def test_attributes_and_guidance_are_read_by_name(samples: Path) -> None:
    asked = "SELECT sample_id, guidance.joint FROM '{}' WHERE attributes.Bags_Under_Eyes = -1 ORDER BY sample_id"
    assert duckdb.sql(asked.format(samples)).fetchall() == [("s000", 1.5), ("s001", 1.5)]
    frame = pl.read_parquet(samples)
    assert frame["attributes"].struct.field("Young").to_list() == [-1, -1, None]
    assert frame["guidance"].struct.field("joint").to_list() == [1.5] * 3
    by_name = pd.read_parquet(samples)["attributes"]
    assert by_name[0] == dict(zip(ATTRIBUTES, [1, -1] * 20, strict=True))
    assert by_name[2] is None


def test_guidance_has_a_name_for_each_condition_of_a_model() -> None:
    assert [field.name for field in GUIDANCE] == [JOINT, *MODALITIES, "style"]


def test_texts_are_read_by_name(tmp_path: Path) -> None:
    texts = [("overall", "A face."), ("Smiling", "She smiles.")]
    rows = [{"face_id": "a", "split": "train", "texts": texts}, {"face_id": "b", "split": "train"}]
    url = store_faces(tmp_path / "faces", rows)
    file = next(Path(url).glob("attempt-00/data/faces/*.parquet"))
    asked = f"SELECT map_from_entries(texts)['Smiling'] FROM '{file}' ORDER BY face_id"
    assert duckdb.sql(asked).fetchall() == [("She smiles.",), (None,)]
    first = load_dataset(url, format="datasets")[0]
    assert {entry["key"]: entry["value"] for entry in first["texts"]} == dict(texts)


def test_scores_say_what_they_count(tmp_path: Path) -> None:
    """Counts and codes by name, and a row as one number: the mIoU of the picture, the share of right attributes."""
    target, found = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    target[:2], found[:1] = CLASSES.index("hair"), CLASSES.index("hair")
    counts = Counts.of(confusion(target, found)).vector()
    wanted = np.zeros((1, 40), np.int8)
    wanted[0, [ATTRIBUTES.index("Male"), ATTRIBUTES.index("Young")]] = [1, -1]
    attributes = codes(wanted, np.ones((1, 40), bool))[0].tolist()
    rows = [
        ("a", "segmentation:p", counts),
        ("a", "attributes:c", attributes),
        ("a", "ssim:source", [0.25]),
        ("a", "features:f", [1.0, 2.0]),
    ]
    path = tmp_path / "scores.parquet"
    path.write_bytes(to_parquet(score_table(rows, "r")))
    values = dict(duckdb.sql(f"SELECT metric, value FROM '{path}'").fetchall())
    # Hair: 4 of 8 pixels found; background: 8 right, 4 too many.
    assert values == {
        "segmentation:p": pytest.approx((4 / 8 + 8 / 12) / 2),
        "attributes:c": 0.5,
        "ssim:source": 0.25,
        "features:f": None,
    }
    named = f"SELECT unnest(names) AS name, unnest(vector) AS n FROM '{path}' WHERE metric = 'segmentation:p'"
    by_name = dict(duckdb.sql(named).fetchall())
    assert [by_name[f"hair/{part}"] for part in ("both", "wanted", "predicted")] == [4, 8, 4]
    named_rows = pd.read_parquet(path).dropna(subset="names")
    frame = named_rows.explode(["names", "vector"]).set_index(["metric", "names"])["vector"]
    assert frame["attributes:c", "Male"] == 4, "asked for and there"
    assert frame["attributes:c", "Young"] == 2, "there, and was not to be"
    assert frame["attributes:c", "Bald"] == 0, "not asked for"
    exploded = pl.read_parquet(path).filter(pl.col("metric") == "segmentation:p").explode("names", "vector")
    assert exploded.filter(pl.col("names") == "background/predicted")["vector"].to_list() == [12]


def test_a_run_as_a_data_set_has_names_too(samples: Path) -> None:
    rows = load_dataset(samples.parents[3], format="datasets")
    assert rows.column_names == SAMPLES.names
    assert rows[0]["attributes"]["Male"] == 1
    unused = dict.fromkeys(("mask", "attributes", "text", "hint", "style"))
    assert rows[0]["guidance"] == {"joint": 1.5, **unused}
    assert rows[0]["image"].size == (16, 16)


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads in /proc")
def test_reading_starts_no_thread_of_pyarrow(tmp_path: Path) -> None:
    """pyarrow 26.0.1: a thread that still holds the file when the interpreter ends aborts the process (exit code 134).

    One `raygen ingest` of six pictures in fourteen ended so, after it had written and said everything.
    """
    (tmp_path / "rows.parquet").write_bytes(to_parquet(pa.table({"a": list(range(9)), "b": ["x"] * 9})))
    program = (
        "import os, sys\n"
        "from raygen.store.parquet import Slice, from_parquet, read_slice\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "read_slice(Slice(sys.argv[1], 0, 9))\n"
        "from_parquet(open(sys.argv[1], 'rb').read())\n"
        "print(len(os.listdir('/proc/self/task')) - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "rows.parquet")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"
