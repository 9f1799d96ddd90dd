"""No fault at any operation of any command loses, doubles or changes anything.

`RAYGEN_FAULTS_EVERY=1` tries every operation; by default each 240th, and the results of all are in docs/results.md.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.world import prepare
from tests.store.test_run_store import s3

__all__ = ["s3"]

pytestmark = pytest.mark.slow
EVERY = os.environ.get("RAYGEN_FAULTS_EVERY", "240")
KINDS = (
    "ingest,plan,encode,train,generate,evaluate,select,"
    "export:csv,export:folder,export:huggingface,export:recordio,export:webdataset"
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The inputs of all jobs, in memory where there is such a disk: every operation waits for the disk."""
    shared = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="raygen-faults-", dir=shared if shared.is_dir() else None))
    prepare(made)
    yield made
    shutil.rmtree(made)


def trials(*words: object) -> list[dict[str, object]]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.faults.runner", *map(str, words)]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.timeout(36_000)
def test_a_fault_at_any_operation_of_any_command(folder: Path) -> None:
    found = trials(folder, KINDS, "kill,ENOSPC,EIO,second", EVERY)
    assert [trial["kind"] for trial in found] == [kind for kind in KINDS.split(",") for _ in range(4)]
    assert sum(int(str(trial["tried"])) for trial in found) >= 4800 // int(EVERY)
    assert [trial for trial in found if trial["wrong"]] == []


@pytest.mark.timeout(36_000)
def test_clocks_that_are_days_off(folder: Path) -> None:
    faults = "kill:ahead,kill:behind,second:ahead,second:behind"
    kinds = "plan" if int(EVERY) > 1 else KINDS
    found = trials(folder, kinds, faults, min(80, int(EVERY)))
    assert sum(int(str(trial["tried"])) for trial in found) >= 4
    assert [trial for trial in found if trial["wrong"]] == []


@pytest.mark.timeout(36_000)
def test_a_fault_at_any_request_to_s3(folder: Path, s3: str) -> None:
    """Also a kill, and a second driver, at each request that changes something.

    A training into a bucket is ended here only if all are tried; tests/training/test_states.py has two such ends.
    """
    kinds = "ingest" if int(EVERY) > 1 else "ingest,train,generate,evaluate,select,export:csv"
    every = min(64, int(EVERY))
    of_writes = "kill,lost" if int(EVERY) > 1 else "kill,second,lost,409"
    found = trials(folder, kinds, of_writes, max(1, every * 3 // 8), f"{s3}/faults")
    of_requests = "reset,outage" if int(EVERY) > 1 else "500,503,reset,burst,outage"
    found += trials(folder, kinds, of_requests, 2 * every if every > 1 else 1, f"{s3}/faults")
    assert [trial for trial in found if trial["wrong"]] == []
    assert all(int(str(trial["operations"])) >= (7 if trial["fault"] == "409" else 16) for trial in found)
    assert {trial["fault"] for trial in found if trial["tried"]} >= {"kill", "lost", "reset", "outage"}
