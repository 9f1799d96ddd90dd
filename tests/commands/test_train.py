"""`raygen train` as a job: texts, guidance by modality, records on the way, and what goes wrong."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from raygen.commands.registry import make
from raygen.commands.verify import verify_folder
from raygen.core.errors import ConfigError, InputError, RaygenError, StorageError
from raygen.models import checkpoint, checkpoint_folder
from raygen.models.ldm import LDM
from raygen.store import tensor_file
from raygen.store.run_store import open_input
from raygen.training.states import TENSORS
from tests.fakes import rewrite

SIZE = 32
TRAINING = {"steps": 4, "batch": 8, "warmup": 0, "log_every": 1, "save_every": 2, "seed": 1, "ema": 0.5}
STAGE = {"kind": "autoencoder", "image_size": SIZE, "patch": 2, "channels": [8, 8], "mid_attention": False}
MODEL = {"kind": "ldm", "channels": [8, 16], "attention": [False, True], "head_dim": 8, "token_width": 16}
TEXT = {"kind": "transformer", "length": 16, "layers": 1, "heads": 2, "head_dim": 8, "inner": 16}


def do(kind: str, out: Path, what: dict) -> dict:
    return dict(make({"kind": kind, **what, "out": str(out)}).run(lambda _: None).facts)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    data = {"kind": "procedural", "identities": 10, "pictures": 2, "size": SIZE, "seed": 1}
    do("ingest", root / "faces", {"data": data})
    planning = {"kind": "from_faces", "conditions": ["mask", "attributes", "text"]}
    do("plan", root / "conditions", {"faces": str(root / "faces"), "planning": planning})
    do("train", root / "stage", {"faces": str(root / "faces"), "model": STAGE, "training": TRAINING})
    return root


def ldm(world: Path, **fields: object) -> dict:
    return {
        "faces": str(world / "faces"),
        "first_stage": str(world / "stage"),
        "model": {**MODEL, **fields},
        "training": TRAINING,
    }


def test_text_mask_and_attributes_train_together_and_are_guided_apart(world: Path, tmp_path: Path) -> None:
    what = ldm(world, modalities=["text", "mask", "attributes"], mask_path="tokens", mask_side=8, text=TEXT)
    what["dropout"] = {"null": 0.1, "only": {"text": 0.2, "mask": 0.2, "attributes": 0.2}}
    what["training"] = {**TRAINING, "lr": 0.01}
    facts = do("train", tmp_path / "model", what)
    assert facts["left_out"] == "none"
    model = checkpoint.load(tmp_path / "model")
    assert isinstance(model, LDM)
    assert model.tokenizer is not None
    assert "forehead" in model.tokenizer.backend.get_vocab()
    made = {}
    for name, guidance in {"joint": 2.0, "apart": {"mask": 1.5, "text": 3.0}}.items():
        do(
            "generate",
            tmp_path / name,
            {
                "conditions": str(world / "conditions"),
                "checkpoint": str(tmp_path / "model"),
                "ignore": ["attributes"],
                "batch": 8,
                "sampler": {"steps": 2},
                "guidance": guidance,
            },
        )
        store, _ = open_input(str(tmp_path / name))
        made[name] = [row for table in store.tables("samples") for row in table.to_pylist()]
    assert len(made["apart"]) == 20
    assert all(row["error"] is None and row["text"] for row in made["apart"])
    assert {k: v for k, v in made["apart"][0]["guidance"].items() if v} == {"mask": 1.5, "text": 3.0}
    assert {r["image_sha256"] for r in made["joint"]} != {r["image_sha256"] for r in made["apart"]}


def test_training_can_begin_with_a_checkpoint(world: Path, tmp_path: Path) -> None:
    what = ldm(world, modalities=["text", "mask"], text=TEXT)
    do("train", tmp_path / "first", what)
    still = {**what, "init": str(tmp_path / "first"), "training": {**TRAINING, "lr": 1e-12, "seed": 9}}
    do("train", tmp_path / "second", still)
    first, second = (checkpoint.load(tmp_path / name) for name in ("first", "second"))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert second.tokenizer is not None
    assert second.tokenizer.same_as(first.tokenizer)  # type: ignore[arg-type]
    other = {**still, "model": {**still["model"], "channels": [16, 16]}}
    with pytest.raises(ConfigError, match=r"init .*size mismatch"):
        do("train", tmp_path / "third", other)
    do(
        "train",
        tmp_path / "stage",
        {"faces": str(world / "faces"), "model": STAGE, "training": {**TRAINING, "seed": 5}},
    )
    with pytest.raises(ConfigError, match="another first stage"):
        do("train", tmp_path / "fourth", {**still, "first_stage": str(tmp_path / "stage")})
    with pytest.raises(ConfigError, match="mask_aware and init are for a denoiser"):
        do(
            "train",
            tmp_path / "fifth",
            {
                "faces": str(world / "faces"),
                "model": STAGE,
                "training": TRAINING,
                "init": str(tmp_path / "first"),
            },
        )


def test_a_branch_trains_with_what_its_estimate_looks_like(world: Path, tmp_path: Path) -> None:
    """From a job to pictures: a base, a branch with the mask as its hint, terms from our classifier."""
    do("train", tmp_path / "base", ldm(world, modalities=["text"], text=TEXT))
    aware = {
        "below": 500,
        "perceptual": 0.2,
        "face": 0.3,
        "latent": 0.1,
        "network": {"kind": "small"},
        "embedder": {"kind": "small"},
        "crop": 16,
        "classes": {"l_eye": 4.0},
    }
    what = {
        "faces": str(world / "faces"),
        "first_stage": str(world / "stage"),
        "mask_aware": aware,
        "model": {"kind": "control", "base": str(tmp_path / "base"), "hint": "mask"},
        "training": TRAINING,
    }
    assert make({"kind": "train", **what, "out": str(tmp_path / "dry")}).estimate().rows == 20
    do("train", tmp_path / "branch", what)
    history = (tmp_path / "branch/training/history.jsonl").read_text().splitlines()
    assert any({"perceptual", "face", "latent"} <= set(json.loads(line)["losses"]) for line in history)
    do(
        "generate",
        tmp_path / "samples",
        {
            "conditions": str(world / "conditions"),
            "checkpoint": str(tmp_path / "branch"),
            "ignore": ["attributes", "text"],
            "batch": 8,
            "sampler": {"name": "dpmpp_2m", "steps": 3},
        },
    )
    store, _ = open_input(str(tmp_path / "samples"))
    assert sum(table.num_rows for table in store.tables("samples")) == 20
    do(
        "train",
        tmp_path / "other_base",
        {**ldm(world, modalities=["text"], text=TEXT), "caption": "overall", "training": {**TRAINING, "seed": 7}},
    )
    beside = {
        **what,
        "init": str(tmp_path / "branch"),
        "model": {**what["model"], "base": str(tmp_path / "other_base")},
    }
    with pytest.raises(ConfigError, match="stands beside other frozen networks"):
        do("train", tmp_path / "mixed", beside)
    (tmp_path / "branch/training/result.json").unlink()
    with pytest.raises(ConfigError, match="other settings or data"):
        do("train", tmp_path / "branch", {**what, "mask_aware": {**aware, "below": 400}})
    base, branch = checkpoint.load(tmp_path / "base"), checkpoint.load(tmp_path / "branch")
    assert torch.equal(base.unet.conv_in.weight, branch.base.unet.conv_in.weight)  # type: ignore[union-attr]


def test_another_recipe_of_texts_is_another_training(world: Path, tmp_path: Path) -> None:
    what = ldm(world, modalities=["text"], text=TEXT)
    one, other = (do("train", tmp_path / r, {**what, "caption": r})["checkpoint"] for r in ("overall", "Smiling"))
    assert one != other
    words = checkpoint.load(tmp_path / "Smiling").tokenizer.backend.get_vocab()  # type: ignore[union-attr]
    assert "forehead" not in words


def test_what_is_written_on_the_way(world: Path, tmp_path: Path) -> None:
    what = ldm(world, modalities=["mask"])
    what["training"] = {**TRAINING, "sheet_every": 2}
    do("train", tmp_path / "model", what)
    made = do(
        "generate",
        tmp_path / "samples",
        {
            "conditions": str(world / "conditions"),
            "checkpoint": str(tmp_path / "model"),
            "ignore": ["attributes", "text"],
            "sampler": {"steps": 1},
        },
    )
    assert made["note"] == "the pictures do not depend on attributes, text of the rows (`ignore`)"
    folder = tmp_path / "model/training"
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(line["losses"]["gradient"]) for line in lines)
    sheets = sorted((folder / "sheets").glob("*.png"))
    assert [s.stem for s in sheets] == ["step-000000002", "step-000000004"]
    with Image.open(sheets[0]) as picture:
        assert picture.width == 8 * (SIZE + 2)
    assert any((folder / "tensorboard").iterdir())


def test_sheets_change_nothing(world: Path, tmp_path: Path) -> None:
    what = ldm(world, modalities=["mask"])
    do("train", tmp_path / "plain", what)
    do("train", tmp_path / "sheets", {**what, "training": {**TRAINING, "sheet_every": 1}})
    a, b = (checkpoint.load(tmp_path / name).state_dict() for name in ("plain", "sheets"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_first_stage_says_how_well_pictures_come_back(world: Path, tmp_path: Path) -> None:
    what = {"faces": str(world / "faces"), "model": STAGE, "training": TRAINING, "validation_split": "test"}
    facts = do("train", tmp_path / "stage", what)
    assert set(facts["reconstruction"]) == {"psnr", "ssim"}  # two test pictures have no distance
    assert facts["scored"] == {"pictures": 2, "split": "test"}
    assert 5 < facts["reconstruction"]["psnr"] < 40
    assert "rfd:raygen-parser" in json.loads((world / "stage/training/result.json").read_text())["reconstruction"]


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_perceptual_weights_that_are_not_there(world: Path, tmp_path: Path) -> None:
    what = {
        "faces": str(world / "faces"),
        "model": STAGE,
        "training": TRAINING,
        "reconstruction": {"perceptual": {"weights": str(tmp_path / "vgg.pth")}},
    }
    with pytest.raises(ConfigError, match="perceptual=none"):
        do("train", tmp_path / "stage", what)


def test_a_corrupt_shard_is_named_and_nothing_is_lost(world: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(world / "faces", tmp_path / "faces")
    what = {**ldm(world, modalities=["mask"]), "faces": str(tmp_path / "faces")}
    do("train", tmp_path / "model", what)
    before = checkpoint_folder.digest(tmp_path / "model")
    (path,) = (tmp_path / "faces/attempt-00/data/faces").glob("*.parquet")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 0xFF
    path.write_bytes(damaged)
    do("train", tmp_path / "model", what)  # it has ended, so nothing is read
    (tmp_path / "model/training/result.json").unlink()  # as if it had not
    with pytest.raises(RaygenError, match="parquet"):
        do("train", tmp_path / "model", what)
    assert not list((tmp_path / "model/.data").glob("*"))
    assert checkpoint_folder.digest(tmp_path / "model") == before
    assert (tmp_path / "model/training/step-000000004/state.json").exists()


def test_a_first_stage_of_other_latents(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"latents \(3, 64, 64\).*makes \(4, 8, 8\)"):
        do("train", tmp_path / "model", ldm(world, latent=[3, 64, 64]))
    with pytest.raises(ConfigError, match="no checkpoint here"):
        do("train", tmp_path / "model", {**ldm(world), "first_stage": str(tmp_path)})


def test_a_state_of_another_architecture(world: Path, tmp_path: Path) -> None:
    do("train", tmp_path / "model", ldm(world))
    with pytest.raises(ConfigError, match="holds another training that has ended"):
        do("train", tmp_path / "model", ldm(world, channels=[16, 16]))
    (tmp_path / "model/training/result.json").unlink()  # as if it had not ended
    with pytest.raises(ConfigError, match="of another model"):
        do("train", tmp_path / "model", ldm(world, channels=[16, 16]))


def test_a_checkpoints_name_is_that_of_the_model_and_not_of_the_clock(world: Path, tmp_path: Path) -> None:
    one, two = (do("train", tmp_path / name, ldm(world, modalities=["mask"])) for name in ("one", "two"))
    assert one["checkpoint"] == two["checkpoint"]
    note = tmp_path / "two" / "raygen.json"
    document = json.loads(note.read_text())
    document["extra"]["result"]["trained_s"] = 1e6
    rewrite(note, extra=document["extra"])
    assert checkpoint_folder.digest(tmp_path / "two") == one["checkpoint"]
    document["model"]["mask_channels"] += 1
    rewrite(note, model=document["model"])
    assert checkpoint_folder.digest(tmp_path / "two") != one["checkpoint"]
    longer = {**ldm(world, modalities=["mask"]), "training": {**TRAINING, "steps": 6}}
    with pytest.raises(ConfigError, match="4 steps"):
        do("train", tmp_path / "one", longer)
    assert checkpoint_folder.digest(tmp_path / "one") == one["checkpoint"]


def test_a_finished_training_lists_its_files(world: Path, tmp_path: Path) -> None:
    do("train", tmp_path / "model", ldm(world, modalities=["mask"]))
    manifest = tmp_path / "model/training/MANIFEST.json"
    before = manifest.read_bytes()
    assert verify_folder(str(tmp_path / "model")).problems == []
    history = tmp_path / "model/training/history.jsonl"
    history.write_bytes(history.read_bytes() + b"\n")
    do("train", tmp_path / "model", ldm(world, modalities=["mask"]))
    assert manifest.read_bytes() == before, "a command that finds the training done does not sign what it finds"
    (problem,) = verify_folder(str(tmp_path / "model")).problems
    assert problem == "training/history.jsonl: sha256 differs from the one it was written with"
    manifest.unlink()
    assert "training/MANIFEST.json: missing" in verify_folder(str(tmp_path / "model")).problems[0]


def test_a_text_encoder_without_text_is_a_mistake(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="text is not among the modalities"):
        do("train", tmp_path / "model", ldm(world, text=TEXT))


def test_a_damaged_first_stage_is_a_sentence(world: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(world / "stage", tmp_path / "stage")
    path = tmp_path / "stage/vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="checkpoint"):
        do("train", tmp_path / "model", {**ldm(world), "first_stage": str(tmp_path / "stage")})


def test_a_full_disk_ends_it_with_a_sentence_and_more_room_ends_the_job(world: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({"kind": "train", **ldm(world), "out": str(tmp_path / "model")}))
    command = [sys.executable, "-m", "raygen", "train", str(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))

    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, preexec_fn=small_files
    )
    assert ended.returncode == 4, ended.stderr
    assert "the training state cannot be written" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list((tmp_path / "model/training").glob(".*"))
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert (tmp_path / "model/raygen.json").exists()


def test_a_checkpoint_that_cannot_be_written_is_written_by_the_next_command(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its steps are done then, and its result still has the loss of the last; nobody sees half a checkpoint."""
    what, out = ldm(world), tmp_path / "model"
    golden = do("train", tmp_path / "golden", what)

    save_file, replace = tensor_file.save_file, Path.replace

    def full(*given: Any, **named: Any) -> None:
        if given[1:] and Path(given[1]).name == TENSORS:
            return save_file(*given, **named)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for patched, name in ((tensor_file, "save_file"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(patched, name, full)
            with pytest.raises(StorageError, match=r"the checkpoint cannot be written.*No space left"):
                do("train", out, what)
        assert not list((out / "training").glob(".*"))
        assert not (out / "raygen.json").exists()
        assert not (out / "training/result.json").exists()
    moved: list[str] = []

    def recorded(path: Path, target: Path) -> Path:
        moved.append(path.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", recorded)
    facts = do("train", out, what)
    assert moved[-1] == "raygen.json"  # without it a folder is no checkpoint
    times = {"trained_s", "images_per_s", "seconds"}
    assert {name: facts[name] for name in golden.keys() - times} == {
        name: golden[name] for name in golden.keys() - times
    }
    assert facts["loss"] == golden["loss"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["golden", "model"]
