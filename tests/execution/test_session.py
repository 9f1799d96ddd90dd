"""What a local Ray opens to the machine and to the network: nothing beyond loopback and this user."""

import os
import stat
from pathlib import Path

import psutil
import pytest
import ray

from raygen.execution.ray.session import StderrFilter

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@ray.remote
class Actor:
    def process(self) -> int:
        return os.getpid()


def test_every_server_of_a_local_ray_listens_on_loopback():
    """Ray 2.60 on Linux replaces 127.0.0.1 by the address of the machine unless it is told not to."""
    actor = Actor.remote()
    working = ray.get(actor.process.remote())
    driver = psutil.Process()
    family = [driver, *driver.children(recursive=True)]
    assert working in {process.pid for process in family}
    listening = {}
    for process in family:
        for socket in process.net_connections(kind="inet"):
            if socket.status == psutil.CONN_LISTEN:
                listening[f"{process.name()} {socket.laddr.port}"] = socket.laddr.ip.removeprefix("::ffff:")
    assert len(listening) >= 8, "the servers of a Ray were looked at"
    assert {name: ip for name, ip in listening.items() if ip not in ("127.0.0.1", "::1")} == {}
    ray.kill(actor)


def test_the_files_of_a_local_ray_are_closed_to_other_users():
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    closed = [folder for folder in session.parents if not stat.S_IMODE(folder.stat().st_mode) & 0o077]
    assert closed, f"somebody else can enter {session}"
    assert closed[0].stat().st_uid == os.getuid()


def test_after_an_interrupt_nothing_of_ray_is_printed(capfd):
    """Ray 2.60 prints what its raylet says, such as that a task of a killed actor will be retried, to stdout."""

    def say(line: str) -> None:
        ray._private.worker.print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, False)

    with StderrFilter() as stderr:
        say("first line")
        stderr.silence()
        stderr.silence()
        say("second line")
        os.write(2, b"third line\n")
    say("fourth line")
    shown = "".join(capfd.readouterr())
    assert "first line" in shown
    assert "fourth line" in shown
    assert "second line" not in shown
    assert "third line" not in shown
