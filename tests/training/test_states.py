"""Trainings whose `out` is a URL: complete states, resume after kills, and what fails on the way."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from raygen.commands.registry import make
from raygen.commands.verify import verify_folder
from raygen.core.errors import ConfigError, InfrastructureError, IntegrityError, StorageError
from raygen.models import checkpoint_folder
from raygen.store import disk
from raygen.store.filesystem import FileStore
from raygen.training.outputs import Outputs
from raygen.training.states import LocalStates, RemoteStates, States
from tests.store.test_run_store import s3

__all__ = ["s3"]

MODEL = {"kind": "autoencoder", "image_size": 32, "patch": 2, "channels": [4, 4], "mid_attention": False}
TRAINING = {"steps": 6, "batch": 4, "warmup": 1, "log_every": 1, "save_every": 2, "sheet_every": 3, "seed": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("RAYGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    folder = str(tmp_path_factory.mktemp("faces") / "faces")
    data = {"kind": "procedural", "identities": 4, "pictures": 2, "size": 32, "seed": 1}
    make({"kind": "ingest", "data": data, "out": folder}).run(lambda _: None)
    return folder


def train(faces: str, out: str, **training: Any) -> dict[str, Any]:
    job = {"kind": "train", "faces": faces, "model": MODEL, "training": {**TRAINING, **training}, "out": out}
    return dict(make(job).run(lambda _: None).facts)


@pytest.fixture(scope="module")
def golden(faces: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same training into a local folder."""
    out = str(tmp_path_factory.mktemp("golden") / "out")
    train(faces, out)
    return out


def records(out: str) -> list[tuple[int, float]]:
    lines = FileStore(out).get("training/history.jsonl").splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


def test_a_training_into_a_bucket_leaves_what_one_into_a_folder_leaves(
    s3: str, faces: str, golden: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = f"{s3}/whole"
    facts = train(faces, out)
    assert facts["checkpoint"] == checkpoint_folder.digest(golden) == checkpoint_folder.digest(out)
    assert records(out) == records(golden)
    local, remote = (
        {name for name, _ in FileStore(place).files("") if "tensorboard" not in name and "/step-" not in name}
        for place in (golden, out)
    )
    assert remote == local
    states = {name.split("/")[1] for name, _ in FileStore(out).files("") if "/step-" in name}
    assert states == {"sheets", "step-000000004", "step-000000006"}
    report = verify_folder(out)
    assert report.problems == [] == report.orphans
    assert not list((cache / "trainings").glob("*")), "the local part goes when the training has ended"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"], "nothing is silently local"
    assert train(faces, out)["checkpoint"] == facts["checkpoint"], "a training that has ended is left as it is"
    with pytest.raises(ConfigError, match="another training that has ended"):
        train(faces, out, lr=1e-3)


def test_a_training_whose_upload_ends_anywhere_goes_on(
    s3: str, faces: str, golden: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """The third state: without its record, and with a record whose tensors are not there."""
    out = f"{s3}/killed"
    put = FileStore.put

    def killed(store: FileStore, name: str, data: bytes) -> None:
        if name == "step-000000006/state.json":
            raise OSError(5, "gone")
        put(store, name, data)

    with monkeypatch.context() as patched:
        patched.setattr(FileStore, "put", killed)
        with pytest.raises(InfrastructureError, match=r"step-000000006: .*step-000000004 is whole"):
            train(faces, out)
    store = FileStore(f"{out}/training")
    assert [name.partition("/")[0] for name, _ in store.files("") if name.startswith("step-")] == [
        *["step-000000002"] * 2,
        *["step-000000004"] * 2,
        "step-000000006",
    ]
    fs, path = fsspec.core.url_to_fs(f"{out}/training/step-000000006")
    fs.pipe_file(f"{path}/state-000000000000.safetensors", b"of a step that was trained twice")
    resumed: list[str] = []
    opened = RemoteStates.open
    monkeypatch.setattr(
        RemoteStates, "open", lambda self, name, **k: (resumed.append(name), opened(self, name, **k))[1]
    )
    facts = train(faces, out)
    assert resumed == ["step-000000004"]
    assert facts["checkpoint"] == checkpoint_folder.digest(golden)
    assert records(out) == records(golden)
    assert verify_folder(out).problems == []
    assert len(list(store.files("step-000000006"))) == 2


def states_of(url: str, folder: Path, **more: Any) -> RemoteStates:
    return RemoteStates(FileStore(url), folder, 2, more.get("before", lambda: None))


def save(states: States, step: int, value: float) -> None:
    states.save(f"step-{step:09d}", {"x": torch.full((1000,), value)}, {"step": step})


def test_the_newest_complete_state_is_found_without_reading_tensors(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = states_of(f"{s3}/listing", tmp_path / "scratch")
    for step in (1, 2, 3):
        save(states, step, step)
    states.wait()
    read: list[str] = []
    for call in ("get", "download"):
        original = getattr(FileStore, call)
        monkeypatch.setattr(
            FileStore,
            call,
            lambda store, name, *rest, original=original: (read.append(name), original(store, name, *rest))[1],
        )
    assert list(states.names()) == ["step-000000003", "step-000000002"], "older ones are removed"
    assert read == ["step-000000003/state.json", "step-000000002/state.json"]
    fs, path = fsspec.core.url_to_fs(f"{s3}/listing/step-000000003")
    (tensors,) = (name for name in fs.find(path) if name.endswith(".safetensors"))
    whole = fs.cat_file(tensors)
    fs.pipe_file(tensors, whole[:-4])
    assert next(states.names()) == "step-000000002", "a size tells"
    fs.pipe_file(tensors, whole[:-4] + b"else")
    with pytest.raises(IntegrityError, match="is not as it was written"):
        states.open("step-000000003")
    found = states.newest()
    assert found is not None
    assert json.loads((found / "state.json").read_text())["step"] == 2
    states.release(found)
    assert list((tmp_path / "scratch").iterdir()) == []
    states.close()


def test_the_loop_waits_for_a_local_file_and_not_for_the_storage(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors may change at once, and the next state waits for the one before."""
    gate, uploads = threading.Event(), []
    upload = FileStore.upload

    def slow(store: FileStore, name: str, path: Path) -> None:
        uploads.append(name)
        assert gate.wait(60)
        upload(store, name, path)

    monkeypatch.setattr(FileStore, "upload", slow)
    states = states_of(f"{s3}/beside", tmp_path / "scratch")
    tensor = torch.ones(1000)
    states.save("step-000000001", {"x": tensor}, {"step": 1})
    tensor.zero_()
    assert list(states.names()) == [], "it is not there yet, and the loop goes on"
    threading.Timer(0.2, gate.set).start()
    save(states, 2, 2.0)
    assert "step-000000001" in list(states.names()), "complete before the next one begins"
    states.wait()
    from safetensors.torch import load_file

    folder = states.open("step-000000001")
    assert load_file(folder / "state.safetensors")["x"].sum() == 1000
    assert len(list((tmp_path / "scratch").iterdir())) == 1, "no file is left but what was opened"
    states.close()


@pytest.mark.parametrize("local", [True, False], ids=["disk", "bucket"])
def test_a_state_that_cannot_be_written_ends_the_training_with_a_sentence(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    url = f"{s3}/full"
    states: States = LocalStates(tmp_path, 2) if local else states_of(url, tmp_path)
    save(states, 1, 1.0)
    states.wait()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(*((disk, "write", full) if local else (FileStore, "upload", full)))
        save(states, 2, 2.0)
        with pytest.raises(
            StorageError,
            match=rf"^{tmp_path if local else url}/step-000000002: .*No space left.*step-000000001 is whole",
        ):
            save(states, 3, 3.0)
    states.close()
    assert list(states.names()) == ["step-000000001"]
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == (["step-000000001"] if local else [])


def test_of_two_trainings_into_one_url_the_later_one_goes_on(s3: str, tmp_path: Path) -> None:
    """Object storage has no locks; on one machine the second is refused, as it is for folders."""
    first, second = Outputs(f"{s3}/two"), Outputs(f"{s3}/two")
    first.begin()
    states = first.states(2)
    save(states, 1, 1.0)
    states.wait()
    second.begin()
    save(states, 2, 2.0)
    with pytest.raises(InfrastructureError, match="another process trains into this folder"):
        states.wait()
    states.close()
    assert list(second.states(2).names()) == ["step-000000001"]


def test_what_cannot_be_written_is_refused_before_any_work(s3: str, faces: str) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        train(faces, "s3://nowhere/run")
    from raygen.training.cleanup import alone

    out = f"{s3}/locked"
    with (
        alone(Outputs(out).folder, out),
        pytest.raises(InfrastructureError, match="another process trains into this folder"),
    ):
        train(faces, out)


def test_a_file_url_is_a_folder(faces: str, golden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(faces, f"file://{tmp_path}/out")["checkpoint"] == checkpoint_folder.digest(golden)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
