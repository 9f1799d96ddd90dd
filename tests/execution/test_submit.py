"""`ray job submit` against a head node on loopback, with the token, through jobs/submit.sh."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from raygen.commands.verify import verify
from raygen.store.run_store import RunStore

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Address and environment of a head node of this test's own."""
    port, dashboard, agent, client = free_ports(4)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        [
            RAY,
            "start",
            "--head",
            "--block",
            "--num-cpus=4",
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}",
        ],
        env=environment,
        stdout=(tmp_path / "head.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait(address, environment["RAY_AUTH_TOKEN"], process, tmp_path / "head.log")
        yield address, {**environment, "RAY_API_SERVER_ADDRESS": address}
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in family:
            one.kill()
        psutil.wait_procs(family, timeout=20)


def wait(address: str, token: str, process: subprocess.Popen, log: Path) -> None:
    """Until the dashboard answers those who have the token."""
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    deadline = time.time() + 150
    while time.time() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"no head node: {log.read_text()[-2000:]}")


def test_a_job_goes_in_through_submit_and_nobody_without_the_token(tmp_path, head):
    address, environment = head
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/api/jobs/", timeout=20)
    assert refused.value.code in (401, 403)

    def submit(*words: str) -> subprocess.CompletedProcess[str]:
        command = [ROOT / "jobs/submit.sh", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)

    out = tmp_path / "faces"
    words = ["ingest", "jobs/ingest_procedural.yaml", f"out={out}", "data.identities=8", "shard_rows=8", "batch=8"]
    ended = submit(*words)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "succeeded" in ended.stdout + ended.stderr
    assert verify(RunStore(str(out))).ok
    record = json.loads((out / "attempt-00/run.json").read_text())
    assert (record["exit_code"], record["rows"], record["resources"]["runner"]) == (0, 32, "ray")
    assert environment["RAY_AUTH_TOKEN"] not in ended.stdout + ended.stderr + json.dumps(record)
    assert "working folder" in ended.stdout, "the size is said before the upload"
    # a relative path would be in Ray's temporary copy of the folder
    ended = submit(*words[:2], "out=runs/lost")
    assert ended.returncode == 1
    assert f"write {ROOT}/runs/lost or a URL" in ended.stdout + ended.stderr
    # the job's own exit code is in run.json; submit only says that it failed
    ended = submit(*words[:3], "data.identities=9")
    assert ended.returncode == 1
    assert "holds another run" in ended.stdout + ended.stderr
