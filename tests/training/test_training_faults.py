"""Training goes on where it stopped: SIGKILL of the command, and of one of two Ray Train workers."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from raygen.commands.registry import make
from raygen.commands.verify import verify_folder
from raygen.core.errors import ConfigError
from raygen.store.filesystem import FileStore
from tests.store.test_run_store import s3

__all__ = ["s3"]

STEPS = 30


def job(faces: Path, out: Path, **resources) -> dict:
    """Three channels a normalisation group: a bias in front of a group of one has no gradient but rounding, which Adam
    turns into whole steps.
    """
    what = {
        "faces": str(faces),
        "model": {"kind": "autoencoder", "image_size": 32, "patch": 2, "channels": [12, 12], "mid_attention": False},
        "training": {"steps": STEPS, "batch": 8, "warmup": 2, "save_every": 3, "log_every": 3, "seed": 4, "lr": 1e-3},
        "save_dtype": "float32",
    }
    return {"kind": "train", **what, "resources": resources, "out": str(out)}


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "vae/diffusion_pytorch_model.safetensors")


def has_state(out: Path) -> bool:
    return any((out / "training").glob("step-*/state.json"))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces") / "faces"
    data = {"kind": "procedural", "identities": 8, "pictures": 4, "size": 32, "seed": 1}
    make({"kind": "ingest", "data": data, "out": str(folder)}).run(lambda _: None)
    return folder


@pytest.fixture(scope="module")
def golden(faces, tmp_path_factory):
    out = tmp_path_factory.mktemp("golden") / "out"
    make(job(faces, out)).run(lambda _: None)
    return weights(out)


def test_a_killed_command_goes_on_and_ends_in_the_same_weights(faces, golden, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job(faces, out)))
    command = [sys.executable, "-m", "raygen", "train", str(tmp_path / "job.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not has_state(out) and time.time() < deadline:
        assert first.poll() is None
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not (out / "raygen.json").exists(), "it ended before it could be killed"
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    found = weights(out)
    assert all(torch.equal(golden[name], found[name]) for name in golden)
    assert (out / "training/result.json").exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_killed_worker_costs_no_step(faces, golden, tmp_path):
    """Two ranks that share the state of the optimizer train what one trains, whichever of them is killed on the way.

    Their job has relative paths.
    """
    out = tmp_path / "out"
    killed = []

    def kill_one() -> None:
        deadline = time.time() + 300
        while not has_state(out) and time.time() < deadline:
            time.sleep(0.005)
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
                return

    watcher = threading.Thread(target=kill_one)
    watcher.start()
    document = job(Path(os.path.relpath(faces)), Path(os.path.relpath(out)), runner="ray", workers=2)
    document["training"] |= {"sharding": "zero1", "sheet_every": 15}
    result = make(document).run(lambda _: None)
    watcher.join()
    assert killed, "there was no worker to kill"
    assert result.facts["steps"] == STEPS
    found = weights(out)
    assert max(float((golden[name] - found[name]).abs().max()) for name in golden) < 1e-4


def test_a_rank_that_does_not_see_the_folder_of_its_job_says_so(tmp_path, monkeypatch):
    """As on another machine, with a folder of that name of its own."""
    from raygen.execution.ray.train import _loop

    monkeypatch.chdir(tmp_path)  # and back: the process of a rank keeps to the folder of its job
    facts = {"folder": str(tmp_path), "shared": str(tmp_path / "out"), "mark": ".ray-train/shared-1", "failed": "-"}
    with pytest.raises(ConfigError, match=r"does not see this folder; set `out` to a URL"):
        _loop({"task": lambda rank, size: iter(()), **facts})


@pytest.mark.nightly
@pytest.mark.skipif("RAYGEN_NIGHTLY" not in os.environ, reason="takes two minutes; RAYGEN_NIGHTLY is not set")
@pytest.mark.parametrize("without", ["a worker", "credentials"])
def test_ranks_train_into_a_bucket(s3, faces, golden, tmp_path, without):
    """Also where one of them is killed; a command without credentials ends with 2 before any work."""
    out = f"{s3}/{without.replace(' ', '-')}"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job(faces, out, runner="ray", workers=2)))
    command = [sys.executable, "-m", "raygen", "train", str(tmp_path / "job.yaml")]
    environment = {**os.environ, "RAYGEN_CACHE": str(tmp_path / "cache"), "AWS_EC2_METADATA_DISABLED": "true"}
    if without == "credentials":
        environment |= {"HOME": str(tmp_path)}
        del environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
        ended = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert ended.returncode == 2
        assert "credentials" in ended.stdout + ended.stderr
        return
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    states, deadline = FileStore(f"{out}/training"), time.time() + 300
    while not any(name.endswith("state.json") for name, _ in states.files("")) and time.time() < deadline:
        assert driver.poll() is None
        time.sleep(0.05)
    children = psutil.Process(driver.pid).children(recursive=True)
    next(child for child in children if "RayTrainWorker" in " ".join(child.cmdline())).kill()
    assert driver.wait() == 0
    assert verify_folder(out).problems == []
    FileStore(out).download("vae/diffusion_pytorch_model.safetensors", tmp_path / "weights")
    found = load_file(tmp_path / "weights")
    assert max(float((golden[name] - found[name]).abs().max()) for name in golden) < 1e-4


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_ranks_do_not_try_a_wrong_job_again(tmp_path):
    missing = job(tmp_path / "nothing", tmp_path / "other", runner="ray", workers=2)
    with pytest.raises(ConfigError, match="no complete run is here"):
        make(missing).run(lambda _: None)
