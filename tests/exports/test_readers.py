"""Exports as their users open them: pictures, labels, counts, order and shuffling.

`datasets`, DuckDB, Polars and torchvision are in the environment. The others are in the folder that RAYGEN_READERS
names, which `make nightly` fills; mlcroissant has `test_croissant`, and cards of the hub `test_hub`.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import polars
import pytest
from PIL import Image

from tests.exports.export_runs import export, pixels, sample, store_rows

COUNT = 22
IDS = [f"s{i:03d}" for i in range(COUNT)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 pictures of three people in six shards, in every format that holds pictures."""
    root = tmp_path_factory.mktemp("sets")
    run = store_rows(root / "run", [sample(i) for i in range(COUNT)])
    for kind in ("folder", "webdataset", "huggingface", "mds"):
        export(run, root / kind, kind)
    export(run, root / "recordio", "recordio", form={"size": 16, "codec": "png"})
    return root


def same(image: object, number: int) -> bool:
    """Whether a reader's picture is that of row `number`."""
    data = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
    return np.array_equal(np.asarray(data), pixels(number))


# --- the environment ---


def test_torchvision_counts_labels_and_shuffles_a_folder(sets: Path) -> None:
    from torch import Generator
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    data = ImageFolder(str(sets / "folder/dataset/images"), transform=lambda image: np.asarray(image).copy())
    assert data.classes == ["p0", "p1", "p2"]
    by_person = sorted(range(COUNT), key=lambda i: (i % 3, i))
    assert len(data) == COUNT
    for number, (image, label) in zip(by_person, data, strict=True):
        assert (label, same(image, number)) == (number % 3, True)
    loader = DataLoader(data, batch_size=5, shuffle=True, generator=Generator().manual_seed(1))
    seen = [
        (image.tobytes(), int(label))
        for images, labels in loader
        for image, label in zip(images.numpy(), labels, strict=True)
    ]
    assert seen != [(pixels(i).tobytes(), i % 3) for i in by_person]
    assert sorted(seen) == sorted((pixels(i).tobytes(), i % 3) for i in range(COUNT))


def test_datasets_shuffles_and_divides_without_losing_a_row(sets: Path, tmp_path: Path) -> None:
    import datasets
    from datasets.distributed import split_dataset_by_node

    folder = str(sets / "huggingface/dataset")
    data = datasets.load_dataset(folder, split="train", cache_dir=str(tmp_path))
    assert data["sample_id"][:] == IDS
    shuffled = data.shuffle(seed=1)
    assert shuffled["sample_id"][:] != IDS
    assert sorted(shuffled["sample_id"][:]) == IDS
    assert all(same(row["image"], int(row["sample_id"][1:])) for row in shuffled)
    assert all(row["label"] == int(row["sample_id"][1:]) % 3 for row in shuffled)
    stream = datasets.load_dataset(folder, split="train", streaming=True, cache_dir=str(tmp_path))
    assert [row["sample_id"] for row in stream] == IDS
    ranks = [[row["sample_id"] for row in split_dataset_by_node(stream, rank, 3)] for rank in range(3)]
    assert sorted(name for rank in ranks for name in rank) == IDS, "six files are divided among three ranks"
    mixed = [row["sample_id"] for row in stream.shuffle(seed=2, buffer_size=8)]
    assert mixed != IDS
    assert sorted(mixed) == IDS


def test_duckdb_and_polars_read_the_columns(sets: Path) -> None:
    files = str(sets / "huggingface/dataset/data/*.parquet")
    rows = duckdb.sql(f"select sample_id, label, image.bytes, attributes.Male from '{files}'").fetchall()
    assert [row[0] for row in rows] == IDS, "files in the order of their names"
    assert all(same(bytes(data), i) and label == i % 3 for i, (_, label, data, _) in enumerate(rows))
    assert duckdb.sql(f"select count(distinct identity_id) from '{files}'").fetchall() == [(3,)]
    frame = polars.read_parquet(files)
    assert frame["sample_id"].to_list() == IDS
    images = frame["image"].struct.field("bytes").to_list()
    assert all(same(data, i) for i, data in enumerate(images))
    labels = sets / "folder/dataset/labels.csv"
    table = polars.read_csv(labels)
    assert table.select("sample_id", "label").rows() == [(name, i % 3) for i, name in enumerate(IDS)]
    assert duckdb.sql(f"select sample_id, label from '{labels}'").fetchall() == [
        (name, i % 3) for i, name in enumerate(IDS)
    ]


# --- packages beside it ---


@pytest.fixture
def readers() -> Iterator[Path]:
    """The folder with the packages, at the end of the path."""
    named = os.environ.get("RAYGEN_READERS")
    if not named:
        pytest.skip("RAYGEN_READERS is not set")
    folder = Path(named).resolve()
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.mark.nightly
def test_webdataset_reads_every_sample_once_on_one_rank_and_on_two(
    sets: Path, readers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """webdataset 1.0.2: `split_by_node` gives a rank whole files, so a set of fewer files than ranks leaves some idle.

    Without it, more than one rank is an error.
    """
    import webdataset

    urls = str(sets / "webdataset/dataset/train-{000000..000005}.tar")
    data = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [row["__key__"] for row in data] == IDS
    for i, row in enumerate(data):
        assert (row["cls"], row["txt"], row["json"]["seed"], same(row["png"], i)) == (i % 3, f"Face, {i}", 5, True)
        assert set(row["mask.png"].ravel()) == {i % 19}, "the class index in each of three channels"
    mixed = [
        row["__key__"]
        for row in webdataset.WebDataset(urls, shardshuffle=6, seed=1, detshuffle=True).shuffle(8, seed=1)
    ]
    assert mixed != IDS
    assert sorted(mixed) == IDS
    monkeypatch.setenv("WORLD_SIZE", "2")
    ranks = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        part = webdataset.WebDataset(urls, shardshuffle=False, nodesplitter=webdataset.split_by_node)
        ranks.append([row["__key__"] for row in part])
    assert sorted(ranks[0] + ranks[1]) == IDS
    assert [len(rank) for rank in ranks] == [12, 10]
    with pytest.raises(ValueError, match="nodesplitter"):
        list(webdataset.WebDataset(urls, shardshuffle=False))


@pytest.mark.nightly
def test_mosaicml_streaming_reads_mds_in_order_and_shuffled(sets: Path, readers: Path, tmp_path: Path) -> None:
    """mosaicml-streaming 0.13.0 compares hashes where it copies a shard from a remote place, and not on a local set.

    A shard that differs ends the iteration early and without an exception; only the next access raises one.
    """
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    folder = str(sets / "mds/dataset")
    data = StreamingDataset(local=folder, batch_size=1, validate_hash="sha256", num_canonical_nodes=1)
    assert len(data) == COUNT
    rows = list(data)
    assert [row["sample_id"] for row in rows] == IDS
    for i, row in enumerate(rows):
        assert (row["label"], row["text"], row["attributes"]["Male"]) == (i % 3, f"Face, {i}", 1)
        assert row["image"].format == "PNG"
        assert same(row["image"], i)
        assert set(np.asarray(Image.open(io.BytesIO(row["mask"]))).ravel()) == {i % 19}
    assert data[17]["sample_id"] == "s017"
    mixed = StreamingDataset(local=folder, batch_size=1, shuffle=True, shuffle_seed=3, num_canonical_nodes=1)
    epochs = [[row["sample_id"] for row in mixed] for _ in range(2)]
    assert epochs[0] != IDS
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == IDS
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    shard = damaged / "shard.00002.mds"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    copied = StreamingDataset(
        remote=str(damaged), local=str(tmp_path / "copy"), batch_size=1, validate_hash="sha256", num_canonical_nodes=1
    )
    assert len(list(copied)) < COUNT
    with pytest.raises(RuntimeError, match="Background thread failed"):
        copied[9]


@pytest.mark.nightly
def test_litdata_reads_the_parquet_files_in_an_order_of_its_own(sets: Path, readers: Path, tmp_path: Path) -> None:
    """litdata 0.2.76 takes the files as the file system lists them: rows of a file follow each other, files do not."""
    import litdata
    from litdata.streaming.item_loader import ParquetLoader

    folder = str(sets / "huggingface/dataset/data")
    litdata.index_parquet_dataset(folder, str(tmp_path))
    data = litdata.StreamingDataset(folder, item_loader=ParquetLoader(), index_path=str(tmp_path))
    assert len(data) == COUNT
    rows = [data[i] for i in range(COUNT)]
    assert sorted(row["sample_id"] for row in rows) == IDS
    for row in rows:
        number = int(row["sample_id"][1:])
        assert same(row["image"]["bytes"], number)
        assert row["label"] == number % 3
    starts = [int(row["sample_id"][1:]) for row in rows if int(row["sample_id"][1:]) % 4 == 0]
    assert sorted(starts) == [0, 4, 8, 12, 16, 20]


#: mxnet 1.9.1 needs numpy 1.23: it runs in a process that sees its own folder of packages alone.
MXNET = """
import json, sys
import mxnet as mx

folder, found = sys.argv[1], []
records = mx.recordio.MXIndexedRecordIO(f"{folder}/train.idx", f"{folder}/train.rec", "r")
first, rest = mx.recordio.unpack(records.read_idx(0))
keys = [int(line.split("\\t")[0]) for line in open(f"{folder}/train.lst")]
for key in keys:
    header, data = mx.recordio.unpack(records.read_idx(key))
    found.append([float(header.label), mx.image.imdecode(data).asnumpy().tolist()])
rest_keys = range(len(keys) + 1, len(records.keys))
people = [mx.recordio.unpack(records.read_idx(key))[0].label.tolist() for key in rest_keys]
print(json.dumps([first.label.tolist(), len(rest), found, people]))
"""


@pytest.mark.nightly
def test_mxnet_reads_the_records(sets: Path, readers: Path) -> None:
    packages = readers / "mxnet-1.9.1"
    if not packages.is_dir():
        pytest.skip("mxnet and numpy 1.23 are not installed; there are none for this Python")
    command = [sys.executable, "-S", "-c", MXNET, str(sets / "recordio/dataset")]
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    head, size, found, people = json.loads(ended.stdout.splitlines()[-1])
    assert (head, size) == ([COUNT + 1, COUNT + 1 + 3], 0)
    by_person = sorted(range(COUNT), key=lambda i: (i % 3, i))
    assert len(found) == COUNT
    for number, (label, image) in zip(by_person, found, strict=True):
        assert (label, same(np.array(image, np.uint8), number)) == (number % 3, True)
    assert people == [[1, 9], [9, 16], [16, 23]]


@pytest.mark.nightly
def test_dali_reads_the_records_of_an_index_of_pictures(sets: Path, readers: Path, tmp_path: Path) -> None:
    """nvidia-dali 2.4.0, on the CPU: the index is that of the keys in train.lst, as the card says."""
    dali = pytest.importorskip("nvidia.dali", reason="nvidia-dali is not installed")
    folder = sets / "recordio/dataset"
    offsets = dict(line.split("\t") for line in (folder / "train.idx").read_text().splitlines())
    keys = [line.split("\t")[0] for line in (folder / "train.lst").read_text().splitlines()]
    (tmp_path / "pictures.idx").write_text("".join(f"{key}\t{offsets[key]}\n" for key in keys))

    @dali.pipeline_def(batch_size=COUNT, num_threads=1, device_id=None)
    def pipeline() -> tuple[object, object]:
        files, labels = dali.fn.readers.mxnet(
            path=[str(folder / "train.rec")], index_path=[str(tmp_path / "pictures.idx")], name="records"
        )
        return dali.fn.decoders.image(files, device="cpu"), labels

    made = pipeline()
    made.build()
    assert made.epoch_size("records") == COUNT
    images, labels = made.run()
    for at, number in enumerate(sorted(range(COUNT), key=lambda i: (i % 3, i))):
        assert same(np.asarray(images.at(at)), number)
        assert float(labels.at(at)[0]) == number % 3
