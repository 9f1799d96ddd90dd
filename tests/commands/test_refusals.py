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
    }


NAMES = (
    "guidance form negative use mixing source batch rows table model plan split names edits root flat encode reference "
    "export scores"
)


@pytest.mark.parametrize("name", NAMES.split())
def test_a_dry_run_and_a_run_refuse_alike(world, tmp_path, name):
    flat = world / "flat"
    flat.mkdir(exist_ok=True)
    (flat / "a.png").write_bytes(encode_image(np.full((32, 32, 3), 90, np.uint8), "png"))
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
