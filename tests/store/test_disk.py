"""Unfinished files: whose they are, when they are left over, and who removes them."""

import os
import platform
import subprocess
import sys
import time

import pytest

from raygen.commands.registry import make
from raygen.commands.verify import verify
from raygen.core.errors import ConfigError
from raygen.core.location import folder_and_name
from raygen.store import disk
from raygen.store.filesystem import FileStore
from raygen.store.run_store import RunStore


def gone():
    """The id of a process that has ended."""
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1, check=True).stdout)


def test_files_of_living_processes_are_not_left_over(tmp_path):
    handle, path = disk.temporary(tmp_path)
    os.close(handle)
    assert FileStore(tmp_path).leftovers() == []
    mine = f".{os.getpid()}."
    os.rename(path, path.replace(mine, f".{gone()}."))
    assert len(FileStore(tmp_path).leftovers()) == 1
    assert FileStore(tmp_path).remove_leftovers() == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_process_number_went_to_another_one_is_left_over():
    name = disk.own_name(disk.PROBE)
    assert not disk.is_left_over(name)
    assert not disk.is_left_over(f"{name}-x")
    beginning, _, ticks = name.rpartition("-")
    assert disk.is_left_over(f"{beginning}-{int(ticks) - 1}")
    assert disk.is_left_over(f"{beginning}-{int(ticks) - 1}-x")


@pytest.mark.parametrize("clock_s", [0, 100_000, -100_000])
def test_files_of_other_machines_are_left_over_after_a_day(tmp_path, monkeypatch, clock_s):
    """By the clock of the disk: the clock of this machine, or that of the other one, may be a day off."""
    seconds = time.time
    monkeypatch.setattr(time, "time", lambda: seconds() + clock_s)
    for name, age in (("young", 80_000), ("old", 90_000)):
        for made in (seconds() - age, seconds() + 200_000, 0):
            path = tmp_path / f"{disk.TEMPORARY}{name}.example.{os.getpid()}.{int(made * 1e9):x}-x"
            path.write_bytes(b"half")
            os.utime(path, (seconds() - age, seconds() - age))
    (tmp_path / f"{disk.TEMPORARY}of-somebody-else").touch()
    assert FileStore(tmp_path).remove_leftovers() == 3
    assert sum("young" in path.name for path in tmp_path.iterdir()) == 3
    assert len(list(tmp_path.iterdir())) == 4, "and no probe is left"
    assert disk.is_left_over("data.parquet") is False


def test_the_next_command_removes_what_a_killed_one_left(tmp_path):
    out = tmp_path / "out"
    data = {"kind": "procedural", "identities": 1, "pictures": 2, "size": 32}
    job = make({"kind": "ingest", "data": data, "batch": 2, "out": str(out)})
    job.start(lambda _: None)
    store = RunStore(str(out))
    names = [f"{disk.TEMPORARY}{platform.node()}.{gone()}.1f-x", f"{disk.PROBE}{platform.node()}.{gone()}.1f"]
    left = [out / names[0], out / "attempt-00" / names[1]]
    for path in left:
        path.write_bytes(b"half")
    assert [path for path in verify(store).orphans if path.startswith(".")] == [names[1], f"../{names[0]}"]
    job.start(lambda _: None)
    assert not any(path.exists() for path in left)
    assert verify(store).orphans == []


def test_a_link_whose_answer_was_lost_is_ours(tmp_path, monkeypatch):
    """NFS repeats a request whose answer is lost, and the second one meets the name that the first one made."""
    link = os.link

    def twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert disk.write(tmp_path / "commit.json", b"1", once=True)
    assert not disk.write(tmp_path / "commit.json", b"2", once=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"1"]


def test_only_one_process_is_inside_a_folder(tmp_path):
    enter = "disk.exclusively(Path(sys.argv[1])).__enter__()"
    code = f"import sys; from pathlib import Path; from raygen.store import disk; {enter}"
    words = [sys.executable, "-c", code, str(tmp_path / "training")]
    with disk.exclusively(tmp_path / "training"):
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
        assert "BlockingIOError" in ended.stderr
    assert subprocess.run(words, check=False).returncode == 0
    assert list((tmp_path / "training").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_without_writing(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert disk.obstacle(tmp_path / "a/b") == ""
    assert disk.obstacle(tmp_path / "file/a/b") == f"cannot be a folder: {tmp_path}/file is a file"
    assert "cannot be a folder" in disk.obstacle(tmp_path / "dangling")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert disk.obstacle(tmp_path / "a/b") == f"not allowed to write into {tmp_path}"
    with pytest.raises(ConfigError, match=f"a/b: not allowed to write into {tmp_path}"):
        FileStore(tmp_path / "a/b").require()
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file"]


def test_the_folder_beside_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = ("a.json", "b/a.json", "/a.json", "/b/a.json", "s3://bucket/a.json")
    found = [folder_and_name(place) for place in places]
    assert found == [(folder, "a.json") for folder in (".", "b", "/", "/b", "s3://bucket")]
    assert FileStore("/").path("a.json") == "/a.json"
    assert FileStore(".").path("a.json") == str(tmp_path / "a.json")
