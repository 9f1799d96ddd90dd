"""Trackers get what a training and an evaluation record, and neither waits for them nor fails with them."""

import io
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raygen.commands.evaluate import EvaluateJob
from raygen.commands.registry import make
from raygen.commands.train import TrainJob
from raygen.core.config import parse
from raygen.core.errors import ConfigError
from raygen.evaluation.track import track
from raygen.tracking import background, base, wandb
from raygen.tracking.background import Trackers, contact_sheet
from raygen.tracking.base import TrackedRun, measured, tracked
from raygen.training.logger import TrainingLogger
from raygen.training.trainer import TrainStep
from tests.drawn import quiet

RUN = TrackedRun("train", "0123", "model", "/nothing/model", {"training.lr": "0.1"})


class FakeTracker:
    """Keeps its records; raises at the step `fails`."""

    def __init__(self, run: TrackedRun, fails: int | None = None) -> None:
        self.run, self.fails = run, fails
        self.values: list[tuple[int, Mapping[str, float]]] = []
        self.pictures: list[tuple[str, int, tuple[int, int]]] = []
        self.closed = 0

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        if step == self.fails:
            raise ConnectionError("https://user:secret@server/api is away")
        self.values.append((step, values))

    def picture(self, name: str, png: bytes, step: int) -> None:
        self.pictures.append((name, step, Image.open(io.BytesIO(png)).size))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[FakeTracker]]:
    """The trackers that were started in place of MLflow's and of Weights & Biases'; the latter fails at step 2."""
    started: dict[str, list[FakeTracker]] = {"mlflow": [], "wandb": []}

    real = background.start_tracker

    def start(name: str, run: TrackedRun) -> Any:
        if name == "tensorboard":
            return real(name, run)
        started[name].append(FakeTracker(run, 2 if name == "wandb" else None))
        return started[name][-1]

    monkeypatch.setattr(background, "start_tracker", start)
    monkeypatch.setattr(base, "find_spec", lambda name: SimpleNamespace(origin=name))
    return started


def step(number: int) -> TrainStep:
    return TrainStep(number, 0.5, 1e-3, 10.0, 0.0, float(number), {"loss": 0.5, "odd": float("nan")})


def png(width: int = 6, height: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_training_records_losses_rates_and_sheets(fakes: dict[str, list[FakeTracker]], tmp_path: Path) -> None:
    logger = TrainingLogger(tmp_path, Trackers(["mlflow"], RUN), tensorboard=False)
    for number in (1, 2):
        logger.write(step(number))
    logger.picture(2, png())
    logger.close()
    assert logger.trackers is not None
    assert logger.trackers.close() == []
    (tracker,) = fakes["mlflow"]
    rates = {"loss/loss": 0.5, "lr": 1e-3, "images_per_s": 10.0, "data_wait_s": 0.0}
    assert tracker.values == [(1, rates), (2, rates)], "a value that is not finite is left out"
    assert (tracker.pictures, tracker.closed) == ([("sheet", 2, (6, 4))], 1)
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.filterwarnings("ignore:log")
def test_a_tracker_that_fails_ends_nothing_and_is_named_without_its_password(
    fakes: dict[str, list[FakeTracker]],
) -> None:
    trackers = Trackers(["wandb", "mlflow"], RUN)
    for number in (1, 2, 3):
        trackers.numbers({"loss": 1.0}, number)
    problems = trackers.close()
    assert len(problems) == 1
    assert problems[0].startswith("wandb: ConnectionError: ")
    assert "secret" not in problems[0]
    assert [number for number, _ in fakes["wandb"][0].values] == [1]
    assert [number for number, _ in fakes["mlflow"][0].values] == [1, 2, 3]
    assert (fakes["wandb"][0].closed, fakes["mlflow"][0].closed) == (0, 1)


@pytest.mark.filterwarnings("error:log")
def test_a_server_that_does_not_answer_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even another tracker, and not where warnings are errors."""
    answer = threading.Event()
    started = {"mlflow": lambda: answer.wait(30) and FakeTracker(RUN), "wandb": lambda: FakeTracker(RUN, 1)}
    other = FakeTracker(RUN)
    monkeypatch.setattr(background, "start_tracker", lambda name, run: started.get(name, lambda: other)())
    monkeypatch.setattr(background, "LAST_S", 0.5)
    monkeypatch.setattr(background, "WAITING", 3)
    trackers = Trackers(["mlflow", "wandb", "tensorboard"], RUN)
    for number in range(8):
        trackers.numbers({"loss": 1.0}, number)
        for _ in range(500):
            if len(other.values) == number + 1:
                break
            time.sleep(0.01)
    begun = time.monotonic()
    assert set(trackers.close()) == {
        "mlflow: records were dropped: they are not taken as fast as they come",
        "mlflow: not all was recorded within 0 s",
        "wandb: ConnectionError: https://***@server/api is away",
    }
    assert time.monotonic() - begun < 5
    assert ([number for number, _ in other.values], other.closed) == ([*range(8)], 1)
    answer.set()


def test_a_package_that_is_missing_is_told_with_the_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where a folder of its name is on the path: Python takes such folders for packages without files."""
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"log: mlflow needs the package mlflow: pip install mlflow"):
        parse(EvaluateJob, {"reference": "x", "log": ["mlflow"], "out": "y"}, "job")
    (tmp_path / "mlflow").mkdir()
    monkeypatch.undo()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match="log: mlflow needs"):
        parse(EvaluateJob, {"reference": "x", "log": ["mlflow"], "out": "y"}, "job")
    with pytest.raises(ConfigError, match="log"):
        parse(EvaluateJob, {"reference": "x", "log": ["papyrus"], "out": "y"}, "job")


def test_who_watches_a_training_does_not_change_its_run(fakes: dict[str, list[FakeTracker]]) -> None:
    job = {"kind": "train", "model": {"kind": "parser", "image_size": 16}, "faces": "f", "training": {"steps": 1}}
    jobs = [make({**job, "out": "o", "log": log}) for log in ([], ["tensorboard", "mlflow"])]
    assert jobs[0].settings() == jobs[1].settings()
    assert jobs[1].document()["log"] == ["tensorboard", "mlflow"]
    assert parse(TrainJob, {**job, "out": "o"}, "job").log == ("tensorboard",)


def test_settings_and_results_are_flat() -> None:
    run = tracked({"kind": "train", "training": {"lr": 0.1, "betas": [0.9, 0.999]}, "out": "s3://b/runs/model/"}, "01")
    assert (run.name, run.folder) == ("model", "s3://b/runs/model")
    assert run.settings["training.lr"] == "0.1"
    assert run.settings["training.betas"] == "[0.9, 0.999]"
    facts = {"steps": 3, "compiled": True, "checkpoint": "ab", "reconstruction": {"psnr": 30.5}}
    assert measured(facts) == {"result/steps": 3.0, "result/reconstruction/psnr": 30.5}


@pytest.mark.filterwarnings("ignore:log")
def test_local_files_of_a_run_on_object_storage_are_nowhere() -> None:
    trackers = Trackers(["tensorboard"], RUN._replace(folder="s3://bucket/runs/model"))
    (problem,) = trackers.close()
    assert problem.startswith("tensorboard: ValueError: `out` is a URL, so there is no folder for local files; name a")
    assert not Path("s3:").exists()


def test_a_sheet_has_its_pictures_in_lines() -> None:
    pictures = [np.full((10, 10, 3), value, np.uint8) for value in (10, 200, 90)]
    sheet = contact_sheet(pictures, side=4, across=2)
    assert sheet is not None
    pixels = np.asarray(Image.open(io.BytesIO(sheet)))
    assert pixels.shape == (8, 8, 3)
    assert [int(pixels[y, x, 0]) for y, x in ((1, 1), (1, 5), (5, 1), (5, 5))] == [10, 200, 90, 255]
    assert contact_sheet([]) is None


def evaluation(root: Path, log: list[str]) -> Any:
    """An evaluation that scores drawn faces with the bundled parser, as a reference."""
    data = {"kind": "procedural", "identities": 4, "pictures": 1, "size": 64, "seed": 3}
    make({"kind": "ingest", "data": data, "out": f"{root}/faces"}).run(quiet)
    score = {"features": None, "classifier": None}
    return make({"kind": "evaluate", "reference": f"{root}/faces", "score": score, "log": log, "out": f"{root}/scores"})


def test_an_evaluation_records_its_metrics_and_a_sheet_of_each_set(
    fakes: dict[str, list[FakeTracker]], tmp_path: Path
) -> None:
    result = evaluation(tmp_path, ["tensorboard", "mlflow"]).run(quiet)
    (tracker,) = fakes["mlflow"]
    ((number, values),) = tracker.values
    metrics = json.loads((tmp_path / "scores/metrics/metrics.json").read_text())
    rows = {f"{row['metric']}/{row['slice']}": row["value"] for row in metrics if row["value"] is not None}
    assert (number, values) == (0, rows)
    assert "miou:raygen-parser/reference" in values
    assert tracker.pictures == [("sheet/reference", 0, (4 * 128, 128))]
    assert tracker.run.settings["score.parser.kind"] == "small"
    assert "not_logged" not in result.facts
    assert {tag for tag, _ in events(tmp_path / "scores/tensorboard")} >= {*rows, "sheet/reference"}


@pytest.mark.filterwarnings("ignore:log")
def test_what_an_evaluation_could_not_record_has_the_name_that_trainings_give_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(name: str, run: TrackedRun) -> None:
        raise SystemExit(f"{name} ends the process")

    monkeypatch.setattr(background, "start_tracker", start)
    assert track(["mlflow"], RUN, [], {}) == {"not_logged": "mlflow: SystemExit: mlflow ends the process"}


@pytest.mark.filterwarnings("ignore:log")
def test_a_training_job_records_its_steps_and_result_and_says_what_was_not(
    fakes: dict[str, list[FakeTracker]], tmp_path: Path
) -> None:
    """Weights & Biases fails at step 2; the training goes on to its end."""
    data = {"kind": "procedural", "identities": 4, "pictures": 1, "size": 64, "seed": 3}
    make({"kind": "ingest", "data": data, "out": f"{tmp_path}/faces"}).run(quiet)
    job = {
        "kind": "train",
        "model": {"kind": "parser", "image_size": 64, "channels": [8, 16]},
        "faces": f"{tmp_path}/faces",
        "training": {"steps": 3, "batch": 2, "log_every": 1, "warmup": 1},
        "log": ["mlflow", "wandb"],
        "out": f"{tmp_path}/parser",
    }
    facts = make(job).run(quiet).facts
    mlflow, wandb = fakes["mlflow"][0], fakes["wandb"][0]
    assert [number for number, _ in mlflow.values] == [1, 2, 3, 3]
    assert "loss/loss" in mlflow.values[0][1]
    assert mlflow.values[-1][1]["result/steps"] == 3
    assert (mlflow.run.run_id, mlflow.run.name, mlflow.closed) == (facts["run_id"], "parser", 1)
    assert mlflow.run.settings["training.batch"] == "2"
    assert [number for number, _ in wandb.values] == [1]
    assert str(facts["not_logged"]).startswith("wandb: ConnectionError")
    assert not (tmp_path / "parser/training/tensorboard").exists()


def events(folder: Path) -> list[tuple[str, Any]]:
    """Tags and values in TensorBoard's event files."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in folder.iterdir():
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            found += [(value.tag, value) for value in event.summary.value]
            data = data[12 + size + 4 :]
    return found


def test_sheets_of_a_training_are_in_tensorboard_too(tmp_path: Path) -> None:
    logger = TrainingLogger(tmp_path)
    logger.write(step(5))
    logger.picture(5, png(30, 20))
    logger.close()
    (image,) = [value.image for tag, value in events(tmp_path / "tensorboard") if tag == "sheet"]
    assert (image.width, image.height, image.encoded_image_string) == (30, 20, png(30, 20))


# --- the packages themselves ---------------------------------------------------------------------------------------

nightly = pytest.mark.nightly


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow and Weights & Biases from a folder beside the environment, whose own packages come first."""
    if (folder := os.environ.get("RAYGEN_TRACKERS")) is None:
        pytest.skip("RAYGEN_TRACKERS does not name a folder with mlflow and wandb")
    monkeypatch.setattr(sys, "path", [*sys.path, folder])


@nightly
@pytest.mark.usefixtures("packages")
def test_mlflow_keeps_a_run_that_is_resumed_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a local store beside the run; a training that was killed goes on in the same run, without points twice."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    run = RUN._replace(
        folder=str(tmp_path / "model"), settings={"a.b": "x" * 3000, **{f"k{i}": "1" for i in range(150)}}
    )
    first = Trackers(["mlflow"], run)
    for number in (1, 2, 3):
        first.numbers({"loss/loss": float(number), "fid@clean/all": 2.0}, number)
    first.picture("sheet", png(), 3)
    (thread,) = first._threads
    thread._queue.put(None)
    thread._thread.join(60)  # killed: it was not closed
    assert first.problems == []
    again = Trackers(["mlflow"], run)
    for number in (3, 4):
        again.numbers({"loss/loss": 10.0 + number}, number)
    assert again.close() == []
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("raygen")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("model", "FINISHED")
    history = client.get_metric_history(found.info.run_id, "loss/loss")
    assert sorted((point.step, point.value) for point in history) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 14.0)]
    assert found.data.metrics["fid_clean/all"] == 2.0
    assert len(found.data.params) == 151
    assert [file.path for file in client.list_artifacts(found.info.run_id, "sheet")] == ["sheet/step-000000003.png"]
    assert (tmp_path / "mlflow").is_dir()


@nightly
@pytest.mark.usefixtures("packages")
def test_wandb_is_offline_without_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    trackers = Trackers(["wandb"], RUN._replace(folder=str(tmp_path / "model")))
    trackers.numbers({"loss/loss": 0.5}, 1)
    trackers.picture("sheet", png(), 1)
    assert trackers.close() == []
    (folder,) = (tmp_path / "wandb").glob("offline-run-*-0123")
    assert list(folder.glob("*.wandb"))
    assert list(folder.rglob("sheet*.png"))


@nightly
@pytest.mark.usefixtures("packages")
def test_mlflow_of_an_evaluation_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    monkeypatch.chdir(tmp_path)
    assert "not_logged" not in evaluation(tmp_path, ["mlflow"]).run(quiet).facts
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/shared.db")
    (found,) = client.search_runs([client.get_experiment_by_name("raygen").experiment_id])
    assert found.data.metrics["miou:raygen-parser/reference"] > 0.5
    assert found.data.tags["raygen.kind"] == "evaluate"


def test_an_account_of_wandb_needs_no_folder_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    fake = SimpleNamespace(
        init=lambda **values: given.append(values), Settings=lambda **values: values, Image=None, run=None
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", "not a real one")
    wandb.start(RUN._replace(folder="s3://bucket/runs/model"))
    assert Path(given[0]["dir"]).is_dir()
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(ValueError, match="no folder for local files"):
        wandb.start(RUN._replace(folder="s3://bucket/runs/model"))
