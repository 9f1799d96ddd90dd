"""Unfinished files: whose they are, when they are left over, and who removes them."""

import os
import platform
import subprocess
import sys
import time

from raygen.commands.registry import make
from raygen.commands.verify import verify
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


def test_files_of_other_machines_are_left_over_after_a_day():
    def name(seconds: float) -> str:
        return f"{disk.TEMPORARY}elsewhere.example.{os.getpid()}.{int((time.time() - seconds) * 1e9):x}-x"

    assert not disk.is_left_over(name(80_000))
    assert disk.is_left_over(name(90_000))
    assert not disk.is_left_over("data.parquet")
    assert not disk.is_left_over(f"{disk.TEMPORARY}of-somebody-else")


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
    assert [path for path in verify(store).orphans if path.startswith(".")] == [names[1]]
    job.start(lambda _: None)
    assert not any(path.exists() for path in left)
    assert verify(store).orphans == []
