"""What a dry run refuses, the run refuses in the same words and writes nothing; finished runs stay as they are."""

from pathlib import Path

import numpy as np
import pytest

from raygen.commands.registry import make
from raygen.core.errors import RaygenError
from raygen.store.images import encode_image
from tests.commands.test_commands import do, generate, world

__all__ = ["world"]


def small(world: Path) -> dict[str, object]:
    parser = {"kind": "small", "folder": str(world / "parser")}
    return {"parser": parser, "features": parser, "classifier": None}


def jobs(world: Path) -> dict[str, tuple[dict[str, object], str]]:
    """Jobs that are wrong in one way each, and a part of what is said of it."""
    sampling = {
        "kind": "generate",
        "conditions": str(world / "conditions"),
        "checkpoint": str(world / "model"),
        "batch": 4,
        "shard_rows": 8,
        "sampler": {"name": "ddim", "steps": 2},
    }
    planning = {"kind": "plan", "faces": str(world / "faces"), "planning": {"kind": "from_faces"}}
    scoring = {"kind": "evaluate", "reference": str(world / "faces"), "score": small(world)}
    folder = {"kind": "folder", "root": str(world / "flat"), "size": 32, "identity": "folder"}
    export = {"kind": "export", "faces": str(world / "faces"), "format": {"kind": "folder"}}
    return {
        "guidance": ({**sampling, "guidance": {"text": 3}}, "guidance: text: the model takes attributes, mask"),
        "form": ({**sampling, "guidance": {"mask": 3}, "guidance_parametrization": "cfg_minus_one"}, "parametrization"),
        "negative": ({**sampling, "negative_keeps": ["text"]}, "negative_keeps: text"),
        "use": ({**sampling, "use_conditions": ["hint"]}, "use_conditions: hint"),
        "mixing": ({**sampling, "mixing": {"kind": "paper"}}, "nothing to mix"),
        "source": ({**sampling, "score": {**small(world), "similarity": True}}, "needs `references`"),
        "batch": ({**sampling, "batch": 16}, "shard_rows: 8 is less than one batch of 16"),
        "rows": ({**sampling, "conditions": str(world / "nowhere")}, "no complete run is here"),
        "table": ({**sampling, "conditions": str(world / "faces")}, "has no table CONDITIONS"),
        "model": ({**sampling, "checkpoint": str(world / "faces")}, "no checkpoint here"),
        "plan": ({**planning, "faces": str(world / "nowhere")}, "no complete run is here"),
        "split": (
            {**planning, "planning": {"kind": "from_faces", "splits": ["tset"]}},
            r"planning.splits: .* has no faces in tset; it has \w+ \(\d+\)",
        ),
        "names": (
            {
                **planning,
                "planning": {"kind": "identities", "names": str(world / "nobody.txt"), "identities": 2, "pictures": 2},
            },
            "nobody.txt",
        ),
        "edits": (
            {**planning, "planning": {"kind": "edits", "file": str(world / "none.jsonl"), "alphas": [1.0]}},
            "none.jsonl",
        ),
        "root": ({"kind": "ingest", "data": {**folder, "root": str(world / "nowhere")}}, "no such folder"),
        "flat": ({"kind": "ingest", "data": folder}, "identity: none"),
        "encode": (
            {"kind": "encode", "faces": str(world / "faces"), "checkpoint": str(world / "faces")},
            "no checkpoint here",
        ),
        "reference": ({**scoring, "samples": str(world / "nowhere")}, "no complete run is here"),
        "export": ({**export, "splits": ["tset"]}, "splits: .* has no faces in tset"),
        "scores": ({**export, "scores": str(world / "nowhere")}, "nowhere"),
        "text": ({**export, "text": "nix"}, "text: .*faces has no text 'nix'; it has .*overall"),
        "words": (
            {**planning, "planning": {"kind": "from_faces", "conditions": ["text"], "caption": "nix"}},
            "planning.caption: .*faces has no text 'nix'; it has .*overall",
        ),
        "hints": (
            {**planning, "planning": {"kind": "from_faces", "conditions": ["mask", "hint"]}},
            "planning.conditions: no face of .*faces has hint",
        ),
        "unused": ({**sampling, "use_conditions": [], "guidance": 3.0}, "guidance has no effect: use_conditions"),
        "scattered": ({**sampling, "conditions": str(world / "plain_rows"), "noise": "group"}, "no row has a group_id"),
        "unguided": ({**sampling, "conditions": str(world / "plain_rows"), "guidance": 3.0}, "no row has attributes"),
        "unguided part": (
            {**sampling, "conditions": str(world / "plain_rows"), "guidance": {"mask": 3.0}},
            "guidance: mask: no row has it",
        ),
    }


def later(world: Path, tmp_path: Path) -> dict[str, tuple[dict[str, object], str]]:
    """Jobs whose error was told late, by the run alone, or after something was written."""
    network, none = small(world)["parser"], {"parser": None, "features": None, "classifier": None}
    faces, samples, missing = str(world / "faces"), str(world / "samples"), {"kind": "bisenet", "weights": "no.pth"}
    sampling = {
        "kind": "generate",
        "conditions": str(world / "conditions"),
        "checkpoint": str(world / "model"),
        "batch": 4,
        "shard_rows": 8,
        "sampler": {"name": "ddim", "steps": 2},
    }
    scoring = {"kind": "evaluate", "samples": samples, "reference": faces, "score": small(world)}
    model = {"kind": "ldm", "modalities": ["mask"], "channels": [8, 16], "attention": [False, True], "head_dim": 8}
    training = {"kind": "train", "faces": faces, "training": {"steps": 1, "batch": 2}}
    denoising = {**training, "model": {**model, "mask_channels": 4}, "first_stage": str(world / "model")}
    reader = {**model, "modalities": ["text"], "text": {"kind": "transformer", "layers": 1}}
    choosing = {
        "kind": "select",
        "generate": {**sampling, "score": {**none, "parser": network}},
        "gates": [{"kind": "score", "min": 0.1}],
    }
    leak = {"kind": "leak", "faces": str(world / "nowhere"), "max": 0.5}
    sweep = {
        "kind": "sweep",
        "conditions": str(world / "conditions"),
        "reference": faces,
        "checkpoints": {"a": str(world / "model")},
        "samplers": [{"name": "ddim", "steps": [2]}],
        "score": small(world),
        "timing": None,
        "generate": {"batch": 4, "shard_rows": 8},
    }
    ablation = {"kind": "ablation", "stages": {"pictures": sampling}, "variants": {"a": [], "b": []}}
    data = {"kind": "procedural", "identities": 2, "pictures": 2, "size": 32}
    return {
        "parser": ({**sampling, "score": {**none, "parser": missing}}, r"^no\.pth: no weights of a network here"),
        "hub": (
            {**sampling, "score": {**none, "features": {"kind": "inception", "weights": "hub"}}},
            "no Inception weights here",
        ),
        "clip": ({**scoring, "score": {**none, "text": {"kind": "clip", "folder": "no"}}}, "^no: no weights of a"),
        "lpips": ({**scoring, "pairwise": {"diversity": True, "lpips": {"weights": "no.pth"}}}, "leave out `lpips`"),
        "other": ({**sampling, "out": samples, "seed": 7}, "holds another run .*different: .*seed"),
        "file": ({**sampling, "out": f"{samples}/attempt-00/plan.json"}, "cannot be a folder: .*plan.json is a file"),
        "ingest": ({"kind": "ingest", "data": data, "shard_rows": 8}, "shard_rows: 8 is less than one batch of 64"),
        "baseline": ({**scoring, "pairwise": {"baseline": str(world / "few")}}, "few has no sample 'p000"),
        "trained": ({**scoring, "memorization": {"faces": faces, "split": "nix"}}, "no rows of split 'nix'"),
        "split": (
            {**scoring, "reference_split": "train", "memorization": {"faces": faces, "split": "train"}},
            "nothing is held out",
        ),
        "validation": (
            {**training, "model": {"kind": "autoencoder", "image_size": 16}, "validation_split": "nix"},
            "empty: validation_split: .* has no faces in nix",
        ),
        "held": ({**scoring, "memorization": {"faces": faces, "split": None}}, "nothing is held out"),
        "train": ({**denoising, "split": "nix"}, r"split: .* has no faces in nix; it has \w+ \(\d+\)"),
        "caption": ({**denoising, "model": reader, "caption": "nix"}, "has no text 'nix'; it has .*overall"),
        "masks": ({**denoising, "faces": str(world / "plain")}, "model: no face of .*plain has mask"),
        "init": ({**denoising, "init": str(world / "model")}, "init .*model: Unexpected key"),
        "latents": ({**denoising, "latents": faces}, "has no table LATENTS"),
        "people": (
            {**training, "model": {"kind": "embedder", "image_size": 32}, "identity": {"identities": 3}},
            "identity.identities: .*faces has 6 people",
        ),
        "measure": ({**choosing, "gates": [{"kind": "score", "metric": "clip", "min": 0.1}]}, "does not measure what"),
        "leak": ({**choosing, "gates": [leak]}, "leak needs `score.identity`"),
        "tried": ({**choosing, "samples": str(world / "nowhere")}, "nowhere: no complete run is here"),
        "sweep": ({**sweep, "reference": str(world / "conditions")}, "holds no pictures to compare with"),
        "cells": ({**sweep, "generate": {"batch": 4, "shard_rows": 2}}, "shard_rows: 2 is less than one batch"),
        "ablation": (
            {**ablation, "variants": {"a": [], "b": ["pictures.guidance={text: 3}"]}},
            "^b/pictures: guidance",
        ),
        "stage": ({**ablation, "variants": {"a": ["pictures.checkpoint=nowhere"]}}, "^a/pictures: nowhere: no check"),
    }


@pytest.fixture(scope="module")
def more(world):
    """Samples, fewer samples, and photographs without masks."""
    generate(world, world / "samples")
    planning = {"kind": "from_faces", "splits": ["test"]}
    do("plan", world / "some", {"faces": str(world / "faces"), "planning": planning})
    generate(world, world / "few", conditions=str(world / "some"))
    (world / "photos").mkdir()
    for i in range(4):
        (world / f"photos/{i}.png").write_bytes(encode_image(np.full((32, 32, 3), 60 * i, np.uint8), "png"))
    do("ingest", world / "plain", {"data": {"kind": "folder", "root": str(world / "photos"), "size": 32}})
    return world


LATER = (
    "parser hub clip lpips other file ingest baseline trained split validation held train caption masks init latents "
    "people measure leak tried sweep cells ablation stage"
)


@pytest.mark.parametrize("name", LATER.split())
def test_what_was_told_late_is_told_by_both_before_anything_is_written(more, tmp_path, name, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    jobs = later(more, tmp_path)
    assert list(jobs) == LATER.split()
    document, message = jobs[name]
    job = make({"out": str(tmp_path / "out"), **document})
    before = snapshot(more / "samples")
    with pytest.raises(RaygenError, match=message) as dry:
        job.estimate()
    with pytest.raises(RaygenError) as real:
        job.start(lambda _: None)
    assert (type(dry.value), str(dry.value)) == (type(real.value), str(real.value))
    assert real.value.exit_code == 2
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert snapshot(more / "samples") == before


NAMES = [
    *("guidance", "form", "negative", "use", "mixing", "source", "batch", "rows", "table", "model", "plan", "split"),
    *("names", "edits", "root", "flat", "encode", "reference", "export", "scores", "text", "words", "hints", "unused"),
    *("scattered", "unguided", "unguided part"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_and_a_run_refuse_alike(world, tmp_path, name):
    if not (world / "plain_rows").exists():
        do("plan", world / "plain_rows", {"planning": {"kind": "unconditional", "count": 4}})
    flat = world / "flat"
    flat.mkdir(exist_ok=True)
    (flat / "a.png").write_bytes(encode_image(np.full((32, 32, 3), 90, np.uint8), "png"))
    assert list(jobs(world)) == NAMES
    document, message = jobs(world)[name]
    job = make({**document, "out": str(tmp_path / "out")})
    with pytest.raises(RaygenError, match=message) as dry:
        job.estimate()
    with pytest.raises(RaygenError) as real:
        job.run(lambda _: None)
    assert (type(dry.value), str(dry.value)) == (type(real.value), str(real.value))
    assert real.value.exit_code == 2
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert written == []


def test_conditions_that_the_model_does_not_read_are_refused_or_ignored_knowingly(world, tmp_path):
    planning = {"kind": "from_faces", "conditions": ["mask", "attributes", "text"]}
    do("plan", tmp_path / "rows", {"faces": str(world / "faces"), "planning": planning})
    rows = str(tmp_path / "rows")
    with pytest.raises(RaygenError, match=r"rows have text, and this model reads attributes, mask.*ignore=\[text\]"):
        generate(world, tmp_path / "out", conditions=rows)
    made = generate(world, tmp_path / "out", conditions=rows, ignore=["text"]).facts
    assert made["note"] == "the pictures do not depend on text of the rows (`ignore`)"
    assert "note" not in generate(world, tmp_path / "chosen", conditions=rows, use_conditions=["mask"]).facts


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("kind", ["ingest", "plan", "generate", "evaluate", "export"])
def test_a_finished_command_changes_nothing_when_it_is_repeated(world, tmp_path, kind):
    generate(world, tmp_path / "samples")
    documents = {
        "ingest": {
            "data": {"kind": "procedural", "identities": 2, "pictures": 2, "size": 32, "seed": 1},
            "batch": 4,
        },
        "plan": {"faces": str(world / "faces"), "planning": {"kind": "from_faces"}},
        "generate": {
            "conditions": str(world / "conditions"),
            "checkpoint": str(world / "model"),
            "batch": 4,
            "sampler": {"name": "ddim", "steps": 2},
        },
        "evaluate": {
            "samples": str(tmp_path / "samples"),
            "reference": str(world / "faces"),
            "score": small(world),
        },
        "export": {"samples": str(tmp_path / "samples"), "format": {"kind": "webdataset"}},
    }
    do(kind, tmp_path / "out", documents[kind])
    before = snapshot(tmp_path / "out")
    do(kind, tmp_path / "out", documents[kind])
    after = snapshot(tmp_path / "out")
    assert [name for name in {**before, **after} if before.get(name) != after.get(name)] == []
