"""Clusters that start from nothing, grow and shrink: Ray's fake autoscaler, and two real nodes on loopback."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from raygen.core.config import Resources
from raygen.execution.executor import execute, local_runner
from raygen.execution.ray.capacity import _fits
from raygen.store.run_store import RunStore
from tests.fakes import Fake, build, plan_of

ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # with it a node keeps to 127.0.0.1
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_worker_niceness": "0",
}


def drive(scenario: str, folder: Path) -> dict[str, Any]:
    """The result of one driver. Every process that it started is ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    short = tempfile.mkdtemp(prefix="rg", dir="/tmp")  # the names of sockets have a limit
    os.mkdir(f"{short}/ray")
    environment = {**os.environ, **ENVIRONMENT, "RAY_TMPDIR": short}
    environment["PYTHONPATH"] = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.execution.cluster_driver", scenario, str(folder), str(port)]
    with (folder / "log").open("wb") as log:
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            code = driver.wait(timeout=300)
        finally:
            end(driver.pid, short)
            shutil.rmtree(short, ignore_errors=True)
    assert code == 0, (folder / "log").read_text(errors="replace")[-4000:]
    return json.loads((folder / "result.json").read_text())


def end(session: int, folder: str) -> None:
    """Nodes of the fake provider outlive their cluster: kill what is left of this session and of this Ray."""
    import psutil

    for process in psutil.process_iter():
        try:
            ours = os.getsid(process.pid) == session or f"{folder}/ray/" in " ".join(process.cmdline())
            if ours and process.pid != os.getpid():
                os.kill(process.pid, signal.SIGKILL)
        except (OSError, psutil.Error):
            continue


@pytest.fixture
def digest(tmp_path: Path) -> str:
    plan = plan_of(tmp_path / "local", rows=48, shard_rows=4, batch=4)
    store, fake = RunStore(str(tmp_path / "local/out")), partial(build, Fake())
    return str(execute(store, plan, fake, Resources(), local_runner, max_error_fraction=0).manifest["set_digest"])


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_that_starts_from_nothing(tmp_path, digest):
    result = drive("from_nothing", tmp_path)
    assert result["digest"] == digest
    assert "waiting for 2 x 1 GPU: 0 there, asked for 2" in result["remarks"]
    assert result["refused"].startswith("waited 3 s for 1 x 2 GPU: 0 there, 1 missing, one is needed.")
    assert "with 2 CPU and 1 GPU" in result["refused"]
    assert result["waiting"] == [], "a thread that waits for actors would end the process when Ray has shut down"


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_joins_is_used_and_one_that_dies_costs_a_shard_an_actor(tmp_path, digest):
    """Nodes that join are used also where nothing starts them; what can never fit is refused at once there."""
    result = drive("nodes_come_and_go", tmp_path)
    assert result["late"], "the second node committed a shard"
    assert result["digest"] == digest
    assert result["starts"] <= 12 + 2
    assert "room for 1 of 2 x 1 GPU, the others start as nodes join" in result["remarks"]
    assert result["refused"].startswith("the cluster has room for 0 of 1 x 2 GPU, and nothing adds nodes to it: ")


@pytest.mark.nightly
@pytest.mark.skipif("RAYGEN_NIGHTLY" not in os.environ, reason="takes two minutes; RAYGEN_NIGHTLY is not set")
def test_a_training_goes_on_from_its_last_state_after_a_node_died(tmp_path):
    result = drive("training", tmp_path)
    assert result["failed"] == []
    for trace in result["traces"]:
        assert set(trace) == set(range(8))
        assert len(trace) <= 8 + 1, f"at most the step at which the node died is done again: {trace}"
    assert any(len(trace) == 8 + 1 for trace in result["traces"]), "the ranks started twice"


@pytest.mark.parametrize(
    ("node", "settings", "workers"),
    [
        ({"CPU": 16, "GPU": 1}, {"gpus": 1}, 1),
        ({"CPU": 16, "GPU": 2}, {"gpus": 0.4}, 4),  # not five: no worker spans two GPUs
        ({"CPU": 2, "GPU": 8}, {"gpus": 1}, 2),
        ({"CPU": 0.3}, {"cpus": 0.1}, 3),
        ({}, {"cpus": 1}, 0),
    ],
)
def test_how_many_workers_a_node_holds(node, settings, workers):
    assert _fits(node, Resources(runner="ray", workers=8, **settings)) == workers
