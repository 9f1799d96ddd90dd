"""Exactly once on Ray: any number of actors, killed actors, a killed driver, a poisoned and a hanging shard."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from raygen.commands.verify import verify
from raygen.core.config import Resources
from raygen.core.errors import ConfigError, InfrastructureError
from raygen.execution.executor import execute, local_runner
from raygen.execution.ray.actors import ray_runner
from raygen.store.run_store import RunStore
from tests.fakes import Fake, build, build_refused, plan_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


GOOD = Fake()


def run(folder: Path, plan, fake=GOOD, workers=2, **resources):
    settings = Resources(runner="ray", workers=workers, **resources)
    return execute(RunStore(str(folder)), plan, partial(build, fake), settings, ray_runner, max_error_fraction=0)


@pytest.fixture
def plan(tmp_path):
    return plan_of(tmp_path, rows=96, shard_rows=8, batch=4)


@pytest.fixture
def golden(tmp_path, plan):
    outcome = execute(
        RunStore(str(tmp_path / "golden")),
        plan,
        partial(build, Fake()),
        Resources(),
        local_runner,
        max_error_fraction=0,
    )
    return outcome.manifest


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_same_rows_for_any_number_of_actors(tmp_path, plan, golden, workers):
    assert run(tmp_path / "out", plan, workers=workers).manifest == golden


def test_a_killed_actor_costs_a_try_and_no_row(tmp_path, plan, golden):
    flag = tmp_path / "flag"
    flag.touch()
    outcome = run(tmp_path / "out", plan, Fake(seconds=0.05, kind="once", at="r000030", trouble=str(flag)))
    assert not flag.exists()  # the actor really died
    assert outcome.manifest["set_digest"] == golden["set_digest"]
    assert outcome.manifest["rows"] == {"samples": 96}
    assert verify(RunStore(str(tmp_path / "out"))).ok
    starts = [p.name for p in (tmp_path / "out/attempt-00/starts").iterdir()]
    assert any(name.startswith("shard-00003.") and name.endswith(".a2.json") for name in starts)


@pytest.mark.parametrize("kind", ["kill", "kill_at_end"])  # on the device, or while the next shard has it
def test_a_poisoned_shard_is_set_aside_and_the_rest_is_done(tmp_path, plan, kind):
    flag = tmp_path / "flag"
    flag.touch()
    with pytest.raises(InfrastructureError, match="1 of 12 shards are not committed: shard 3: 2 starts"):
        run(tmp_path / "out", plan, Fake(kind=kind, at="r000030", trouble=str(flag)), workers=1, max_attempts=2)
    assert len(RunStore(str(tmp_path / "out")).committed()) == 11


def test_a_hanging_shard_is_ended_with_its_stack_and_set_aside(tmp_path, plan):
    flag = tmp_path / "flag"
    flag.touch()
    began = time.time()
    fake = Fake(kind="hang", at="r000030", trouble=str(flag))
    with pytest.raises(InfrastructureError, match="shard 3"):
        run(tmp_path / "out", plan, fake, max_attempts=1, shard_timeout_s=3)
    assert time.time() - began < 120
    assert len(RunStore(str(tmp_path / "out")).committed()) == 11


def test_more_actors_than_cpus_go_on_with_those_that_fit_and_say_so(tmp_path, plan, golden):
    """Ray Data 2.60 runs no task of its own for rows from the driver, so the actors may take every CPU."""
    remarks = []
    settings = Resources(runner="ray", workers=50)
    store = RunStore(str(tmp_path / "out"))
    fake = partial(build, GOOD)
    outcome = execute(
        store,
        plan,
        fake,
        settings,
        ray_runner,
        max_error_fraction=0,
        report=lambda progress: remarks.append(progress.waiting),
    )
    assert outcome.manifest == golden
    assert any(re.match(r"room for \d+ of 50 x 1 CPU, the others start as nodes join", text) for text in remarks)


def test_a_worker_that_can_never_fit_is_refused_at_once(tmp_path, plan):
    with pytest.raises(InfrastructureError, match="room for 0 of 1 x 1 GPU, and nothing adds nodes to it: 1 node"):
        run(tmp_path / "out2", plan, gpus=1)


def test_refused_settings_are_told_by_the_actor_at_once(tmp_path, plan, capfd):
    settings = Resources(runner="ray", workers=2)
    refused = partial(build_refused, "guidance: text: the model takes mask")
    with pytest.raises(ConfigError, match=r"^guidance: text: the model takes mask$"):
        execute(RunStore(str(tmp_path / "out")), plan, refused, settings, ray_runner, max_error_fraction=0)
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "out").exists(), "the plan is withdrawn, since no shard has begun"


DRIVER = """
import sys
from functools import partial
from pathlib import Path
from raygen.execution.ray.actors import ray_runner
from raygen.execution.executor import execute
from raygen.core.config import Resources
from raygen.store.run_store import RunStore
from tests.fakes import Fake, build, build_refused, plan_of
folder = Path(sys.argv[1])
plan = plan_of(folder, rows=96, shard_rows=8, batch=4)
resources = Resources(runner="ray", workers=2)
store, fake = RunStore(str(folder / "out")), partial(build, Fake(seconds=0.3))
execute(store, plan, fake, resources, ray_runner, max_error_fraction=0)
"""


def test_a_killed_driver_costs_at_most_a_shard_an_actor(tmp_path, plan, golden):
    """SIGKILL by progress, not by time; then the same command again."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    environment.pop("RAY_ADDRESS", None)
    commits = tmp_path / "out/attempt-00/commits"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], env=environment, start_new_session=True)
    deadline = time.time() + 180
    while time.time() < deadline and len(list(commits.glob("shard-*"))) < 3:
        assert driver.poll() is None, "the driver ended before it could be killed"
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(2)  # its actors notice that they are orphans
    before = len(RunStore(str(tmp_path / "out")).committed())
    assert 3 <= before < 12
    outcome = run(tmp_path / "out", plan)
    assert outcome.manifest["set_digest"] == golden["set_digest"]
    assert outcome.manifest["rows"] == golden["rows"]
    assert verify(RunStore(str(tmp_path / "out"))).ok
    assert outcome.progress.resumed_shards >= before
    record = json.loads((tmp_path / "out/attempt-00/run.json").read_text())
    assert record["exit_code"] == 0
    starts = len(list((tmp_path / "out/attempt-00/starts").iterdir()))
    assert starts <= 12 + 2  # at most one shard of each of the two actors was done twice


def test_the_drivers_memory_hardly_grows_with_the_number_of_shards(tmp_path):
    """100 MB a million rows at 1,024 rows a shard is 0.1 MB a shard, whatever a shard holds."""
    import psutil

    shards, settled = 400, 150
    marks = {}

    def watch(state):
        marks.setdefault(state.done_shards, psutil.Process().memory_info().rss)

    plan = plan_of(tmp_path, rows=shards, shard_rows=1, batch=1)
    resources = Resources(runner="ray", workers=2)
    store = RunStore(str(tmp_path / "out"))
    execute(store, plan, partial(build, Fake()), resources, ray_runner, max_error_fraction=0, report=watch)
    grown = (marks[shards] - marks[settled]) / 1e6
    assert grown <= 0.1024 * (shards - settled), f"{grown:.0f} MB for {shards - settled} shards"
