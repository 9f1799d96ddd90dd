"""What a dry run says of rows, workers and time."""

import os

import pytest
import torch

from raygen.commands.base import parallel_workers
from raygen.commands.registry import make
from raygen.core.config import Resources
from raygen.core.errors import ConfigError
from raygen.core.units import duration
from raygen.execution.executor import Progress
from tests.commands.test_commands import world

__all__ = ["world"]


def test_workers_on_one_machine_are_no_faster_than_its_cores(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert parallel_workers(Resources(workers=8)) == 1, "the local runner is one worker"
    assert parallel_workers(Resources(runner="ray", workers=2)) == 2
    assert parallel_workers(Resources(runner="ray", workers=8)) == 4
    assert parallel_workers(Resources(runner="ray", workers=8, threads=2)) == 2
    assert parallel_workers(Resources(runner="ray", workers=8, gpus=1)) == 8
    assert parallel_workers(Resources(runner="ray", workers=8, address="10.0.0.1:6379")) == 8


def test_settings_that_the_local_runner_does_not_use_are_told():
    assert Resources().idle() == Resources(runner="ray", workers=8).idle() == ""
    assert Resources(workers=8).idle() == "the local runner is one worker; workers=8 needs resources.runner=ray"


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_done(world, tmp_path, monkeypatch):
    document = {
        "kind": "plan",
        "faces": str(world / "faces"),
        "planning": {"kind": "from_faces"},
        "resources": {"gpus": 1},
        "out": str(tmp_path / "out"),
    }
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"resources.gpus is 1, and torch finds no GPU"):
        make(document)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert make(document).resources.gpus == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    document["resources"] = {"runner": "ray", "gpus": 1}
    assert make(document).resources.gpus == 1, "a cluster may have one"


def test_a_model_that_is_too_large_to_time_still_has_its_rows(world, tmp_path, monkeypatch):
    monkeypatch.setattr("raygen.commands.train.LARGEST_TIMED", 10)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    document = {
        "kind": "train",
        "faces": str(world / "faces"),
        "model": {"kind": "ldm", "modalities": [], "channels": [8, 16], "attention": [False, True], "head_dim": 8},
        "first_stage": str(world / "model"),
        "training": {"steps": 2, "batch": 4},
        "split": None,
        "out": str(tmp_path / "out"),
    }
    estimate = make(document).estimate()
    assert estimate.rows == 24
    assert any("too large" in note for note in estimate.notes)


def test_a_training_that_has_ended_takes_no_time(world, tmp_path):
    document = {
        "kind": "train",
        "faces": str(world / "faces"),
        "model": {"kind": "parser", "image_size": 32, "channels": [8, 16]},
        "training": {"steps": 1, "batch": 2},
        "out": str(tmp_path / "out"),
    }
    make(document).start(lambda _: None)
    estimate = make(document).estimate()
    assert (estimate.rows, estimate.seconds) == (24, 0.0)
    assert "it has ended already, and a run changes nothing" in estimate.notes
    document["training"] = {"steps": 2, "batch": 2, "lr": 0.5}
    for call in (make(document).estimate, lambda: make(document).start(lambda _: None)):
        with pytest.raises(ConfigError, match="holds another training that has ended"):
            call()
    (tmp_path / "out/training/result.json").unlink()  # as if it had not ended
    for call in (make(document).estimate, lambda: make(document).start(lambda _: None)):
        with pytest.raises(ConfigError, match="step-000000001: training began with other settings or data"):
            call()
    assert not (tmp_path / "out/.data").exists()


def test_only_workers_of_ray_share_cores(world, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    planning = {"kind": "plan", "faces": str(world / "faces"), "planning": {"kind": "from_faces"}}
    for runner, told in (("local", False), ("ray", True)):
        resources = {"runner": runner, "workers": 8}
        estimate = make({**planning, "resources": resources, "out": str(tmp_path / "out")}).estimate()
        assert ("8 workers share the 2 cores of this machine" in estimate.notes) == told


def test_no_time_is_negative():
    progress = Progress(shards=2, rows=20, done_rows=50, new_rows=50)
    assert progress.eta_s == 0
    assert duration(-1) == "0 s"
    assert [duration(s) for s in (89, 600, 7200)] == ["89 s", "10 min", "2.0 h"]
