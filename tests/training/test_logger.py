"""Records of a training outlast what happens to the process and to the disk."""

import errno
import json
import os
from pathlib import Path

import pytest
from tensorboardX.record_writer import RecordWriter

from raygen.core.errors import InfrastructureError, StorageError
from raygen.store import disk
from raygen.training.history import read_history
from raygen.training.logger import TrainingLogger
from raygen.training.trainer import TrainStep


def step(number: int) -> TrainStep:
    return TrainStep(number, 0.5, 1e-3, 10.0, 0.0, float(number), {"loss": 0.5})


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in read_history((folder / "history.jsonl").read_text())]


def test_a_line_that_was_cut_off_behind_a_brace_is_left_out() -> None:
    line = json.dumps({"step": 1, "losses": {"loss": 0.5}}) + "\n"
    for end in range(len(line)):
        assert read_history(line + line[:end]) == read_history(line)


def test_a_resumed_run_writes_its_steps_anew_in_one_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = TrainingLogger(tmp_path)
    for number in (1, 2, 3):
        first.write(step(number))
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 4, "losses": {"loss": 0.5}')

    def killed(*names: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            TrainingLogger(tmp_path).write(step(3))
    assert steps(tmp_path) == [1, 2, 3]
    again = TrainingLogger(tmp_path)
    again.write(step(3))
    assert steps(tmp_path) == [1, 2, 3]
    assert again.last()["elapsed"] == 3.0
    again.write(step(4))
    assert steps(tmp_path) == [1, 2, 3, 4]
    for logger in (first, again):
        logger.close()


def test_records_and_sheets_are_on_the_disk_when_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync

    def recorded(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    logger = TrainingLogger(tmp_path)
    logger.write(step(1))
    monkeypatch.setattr(os, "fsync", recorded)
    logger.write(step(2))
    assert synced[0] == tmp_path / "history.jsonl"
    synced.clear()
    logger.picture(2, b"picture")
    assert [path.parent for path in synced[:2]] == [tmp_path / "sheets", tmp_path]  # the file, and the name of it
    assert (tmp_path / "sheets/step-000000002.png").read_bytes() == b"picture"
    logger.close()


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, StorageError), (errno.EIO, InfrastructureError)])
@pytest.mark.parametrize("where", ["history", "sheet", "curves"])
def test_a_disk_that_fails_is_one_sentence(
    where: str, code: int, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of TensorBoard's file as well: tensorboardX 2.6's `SummaryWriter` writes in a thread, which dies there, and after
    ten more points the training would wait for ever.
    """

    def fails(*given: object, **named: object) -> None:
        raise OSError(code, os.strerror(code))

    logger = TrainingLogger(tmp_path)
    logger.write(step(1))
    monkeypatch.setattr(
        *{"history": (os, "fsync"), "sheet": (disk, "write"), "curves": (RecordWriter, "write")}[where], fails
    )
    act = (lambda: logger.picture(1, b"picture")) if where == "sheet" else (lambda: logger.write(step(2)))
    with pytest.raises(kind, match=rf"cannot be written \({os.strerror(code)}\); run the same command again"):
        act()
