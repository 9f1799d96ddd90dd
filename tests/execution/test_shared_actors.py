"""Runs that follow each other in the same actors: the rows of each are those it would have had alone."""

import gc
import json
import weakref
from functools import partial
from pathlib import Path

import pytest

from raygen.commands.base import PreparedRun, run_together
from raygen.core.config import Resources
from raygen.core.errors import ConfigError, InputError
from raygen.execution.shared_actors import WorkersInTurn
from raygen.store.run_store import RunStore
from tests.fakes import Fake, build, plan_of


def prepared(folder: Path, name: str, *fakes: Fake) -> list[PreparedRun]:
    """A run for each fake, over the same rows."""
    plan = plan_of(folder)
    return [
        PreparedRun(RunStore(str(folder / f"{name}-{i}")), plan, 0.0, build=partial(build, fake))
        for i, fake in enumerate(fakes)
    ]


def test_each_run_has_the_rows_and_the_seconds_of_its_own(tmp_path):
    fakes = Fake(seed=1, seconds=0.1), Fake(seed=2), Fake(seed=3)
    together = run_together(prepared(tmp_path, "together", *fakes), Resources(), lambda _: None)
    for i, outcome in enumerate(together):
        alone = run_together(prepared(tmp_path, f"alone-{i}", fakes[i]), Resources(), lambda _: None)
        assert outcome.manifest == alone[0].manifest
    records = [json.loads((tmp_path / f"together-{i}/attempt-00/run.json").read_text()) for i in range(3)]
    assert [record["exit_code"] for record in records] == [0, 0, 0]
    assert records[0]["seconds"] >= 0.1 * len(plan_of(tmp_path).shards)
    assert records[2]["seconds"] < records[0]["seconds"], "the other runs' time is not in it"
    assert records[0]["finished"] <= records[2]["finished"]
    assert run_together([], Resources(), lambda _: None) == []


class Held:
    def start(self, rows):
        raise AssertionError


def test_one_worker_is_held_and_built_once_in_a_row():
    alive: weakref.WeakSet[Held] = weakref.WeakSet()
    most = []

    def made() -> Held:
        gc.collect()
        most.append(len(alive))
        worker = Held()
        alive.add(worker)
        return worker

    workers = WorkersInTurn([made, made])
    for run in (0, 0, 1, 1, 0):
        workers.for_run(run)
    assert most == [0, 0, 0], "the worker of another run is freed before the next one is built"


@pytest.mark.parametrize("error", [ConfigError("no weights"), InputError("the weights are damaged", reason="network")])
def test_a_worker_that_cannot_be_built_is_tried_once_a_round_and_its_error_is_told(tmp_path, error):
    tries = []

    def refuse() -> Fake:
        tries.append(1)
        raise error

    first, second = prepared(tmp_path, "run", Fake(), Fake())
    second = PreparedRun(second.store, second.plan, 0.0, build=refuse)
    with pytest.raises(type(error), match=str(error)):
        run_together([first, second], Resources(), lambda _: None)
    assert len(tries) <= Resources().max_attempts < len(second.plan.shards)
    assert not second.store.committed()
