"""Unfinished files: whose they are, when they are left over, and who removes them."""

import os
import platform
import subprocess
import sys
import time
from functools import partial

from raygen.commands.verify import verify
from raygen.core.config import Resources
from raygen.execution.executor import execute, local_runner
from raygen.store import disk
from raygen.store.filesystem import FileStore
from raygen.store.run_store import RunStore
from tests.fakes import Fake, build, plan_of


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


def test_files_of_other_machines_are_left_over_after_a_day(tmp_path):
    path = tmp_path / f"{disk.TEMPORARY}elsewhere.example.{os.getpid()}.1f-x"
    path.touch()
    assert not disk.is_left_over(path)
    os.utime(path, (time.time() - 90_000,) * 2)
    assert disk.is_left_over(path)
    ordinary = tmp_path / "data.parquet"
    ordinary.touch()
    os.utime(ordinary, (0, 0))
    assert not disk.is_left_over(ordinary)


def test_the_next_command_removes_what_a_killed_one_left(tmp_path):
    plan, out = plan_of(tmp_path), tmp_path / "out"
    store = RunStore(str(out))
    store.create(plan)
    names = [f"{disk.TEMPORARY}{platform.node()}.{gone()}.1f-x", f"{disk.PROBE}{platform.node()}.{gone()}.1f"]
    left = [out / names[0], out / "attempt-00" / names[1]]
    for path in left:
        path.write_bytes(b"half")
    assert [path for path in verify(store).orphans if path.startswith(".")] == [names[1]]
    execute(store, plan, partial(build, Fake()), Resources(), local_runner, max_error_fraction=0)
    assert not any(path.exists() for path in left)
    assert verify(store).orphans == []
