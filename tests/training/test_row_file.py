"""Arrays in files, and training data that is read from them."""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raygen.core.errors import InputError, IntegrityError, StorageError
from raygen.core.hashing import canonical, digest
from raygen.training import row_file
from raygen.training.data import TrainingData, order
from raygen.training.loading import load_training_data
from raygen.training.prepared import prepare
from raygen.training.row_file import RowFile, RowWriter
from tests.training.test_trainer import faces, latents


@pytest.fixture(params=["small", "large"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Files whose arrays are in memory, and files that are read row by row."""
    monkeypatch.setattr(row_file, "SMALL", 0 if request.param == "large" else 1 << 20)
    return str(request.param)


@pytest.mark.usefixtures("kept")
def test_rows_come_back_in_any_order(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(50, 3, 4)).astype(np.float16)
    writer = RowWriter(tmp_path / "x")
    for start in range(0, 50, 7):
        writer.add(values[start : start + 7])
    file = RowFile(tmp_path / "x", writer.close())
    rows = np.array([49, 0, 7, 7])
    assert np.array_equal(file[rows], values[rows])
    assert np.array_equal(file[3:20], values[3:20])
    assert np.array_equal(file[:], values)
    assert len(file) == 50


def test_a_changed_or_missing_byte_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_file, "SMALL", 0)
    writer = RowWriter(tmp_path / "x")
    writer.add(np.zeros((10, 8), dtype=np.uint8))
    file = RowFile(tmp_path / "x", writer.close())
    with (tmp_path / "x").open("r+b") as changed:
        changed.seek(8 * 4 + 3)
        changed.write(b"\1")
    assert not file[np.array([3, 5])].any()
    with pytest.raises(IntegrityError, match="damaged in row 4"):
        file[np.array([4])]
    os.truncate(tmp_path / "x", 75)
    with pytest.raises(IntegrityError, match="damaged in row 9"):
        file[np.array([9])]


CASES: dict[str, Callable[[Path | None], TrainingData]] = {
    "pictures": lambda folder: load_training_data(
        [faces()], size=16, modalities=["mask", "attributes"], split="train", folder=folder
    ),
    "latents": lambda folder: load_training_data(
        [faces().slice(0, 5), faces().slice(5)],
        size=16,
        modalities=["mask"],
        latents=[latents(faces()["face_id"].to_pylist()[::-1])],
        folder=folder,
    ),
}


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("case", list(CASES))
def test_files_give_the_batches_that_memory_gives(tmp_path: Path, case: str) -> None:
    memory, files = CASES[case](None), CASES[case](tmp_path)
    assert memory.digest == files.digest
    rows = order(3, len(memory), range(2 * len(memory)))
    mirror = np.arange(len(rows)) % 3 == 0
    expected, found = memory.batch(rows, mirror), files.batch(rows, mirror)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        assert values.dtype == found[name].dtype, name
        assert np.array_equal(values, found[name]), name


def test_latents_of_several_shapes_are_refused() -> None:
    table = latents(faces()["face_id"].to_pylist())
    rows = table.to_pylist()
    rows[3]["shape"] = rows[3]["shape"][::-1]
    for other in ([*rows[3]["shape"], 1], [2, 2, 4, 1]):
        assert other != rows[0]["shape"]
        changed = pa.Table.from_pylist([{**row, "shape": other} if i == 3 else row for i, row in enumerate(rows)])
        with pytest.raises(InputError, match="several shapes"):
            load_training_data([faces()], size=16, latents=[changed.cast(table.schema)])


def test_data_is_made_once_and_again_where_it_is_damaged(tmp_path: Path) -> None:
    made: list[Path] = []

    def load(folder: Path) -> TrainingData:
        made.append(folder)
        return CASES["pictures"](folder)

    first = prepare(tmp_path / "data", {"a": 1}, load)
    assert prepare(tmp_path / "data", {"a": 1}, load).digest == first.digest
    assert len(made) == 1
    inode = next((tmp_path / "data").glob("*/images")).stat().st_ino
    prepare(tmp_path / "data", {"a": 2}, load)
    assert len(made) == 2
    (folder,) = (path for path in (tmp_path / "data").iterdir() if (path / "images").stat().st_ino == inode)
    for number, name in enumerate(sorted(path.name for path in folder.iterdir()), 3):
        os.truncate(folder / name, (folder / name).stat().st_size // 2)
        assert prepare(tmp_path / "data", {"a": 1}, load).digest == first.digest
        assert len(made) == number, name
    assert sorted(path.name.startswith(".") for path in (tmp_path / "data").iterdir()) == [False] * 2


def test_a_full_disk_names_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("raygen.training.row_file.RowWriter.add", "raygen.training.prepared.os.rename"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(StorageError, match=r"No space left.*`cache`"):
                prepare(tmp_path / "data", {}, CASES["pictures"])
        assert list((tmp_path / "data").iterdir()) == []


def test_an_input_that_cannot_be_read_is_not_a_full_disk(tmp_path: Path) -> None:
    def load(_: Path) -> TrainingData:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        prepare(tmp_path / "data", {}, load)
    assert list((tmp_path / "data").iterdir()) == []


def test_two_processes_that_cannot_lock_a_folder_both_end_well(tmp_path: Path) -> None:
    """As over NFS: another process published the same data while this one made it."""

    def load(folder: Path) -> TrainingData:
        made = CASES["pictures"](folder)
        shutil.copytree(folder, folder.parent / digest(canonical({"a": 1}))[:16])
        return made

    assert prepare(tmp_path / "data", {"a": 1}, load).digest == CASES["pictures"](None).digest
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_unfinished_data_of_killed_processes_is_removed(tmp_path: Path) -> None:
    """Also of another machine once it is a day old, as of a spot node that has another name the next time."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    old, young = (tmp_path / f".tmp-elsewhere.{process}.1-1" for process in (1, 2))
    killed = tmp_path / f".tmp-{platform.node()}.{gone.pid}.1-1"
    for folder in (old, young, killed):
        (folder / "images").mkdir(parents=True)
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    prepare(tmp_path, {}, CASES["pictures"])
    assert sorted(path.name for path in tmp_path.glob(".*")) == [young.name]


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is decoded at the same time is in memory, and of a batch its rows."""
    import tracemalloc

    monkeypatch.setattr(row_file, "SMALL", 1 << 16)
    monkeypatch.setattr("raygen.training.loading.DECODED", 1 << 19)

    def tables(n: int) -> list[pa.Table]:
        columns = faces().column_names
        names = [f"p{i}" for i in range(n)]
        table = pa.concat_tables([faces()] * -(-n // faces().num_rows)).slice(0, n)
        return [table.set_column(columns.index("face_id"), "face_id", pa.array(names))]

    peaks = []
    for n in (500, 2000):
        whole = tables(n)
        (tmp_path / str(n)).mkdir()
        tracemalloc.start()
        data = load_training_data(whole, size=64, folder=tmp_path / str(n))
        data.batch(np.arange(16), np.zeros(16, dtype=bool))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (tmp_path / str(n) / "images").stat().st_size == n * 64 * 64 * 3
    assert peaks[1] < 1.2 * peaks[0] + 2e6
