"""A model that was never trained makes noise, and every command that has its pictures in hand says so."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raygen import load_dataset
from raygen.cli import app
from raygen.commands.registry import make
from raygen.models import checkpoint
from raygen.models.autoencoder import FirstStage
from raygen.models.config.autoencoder import pixel_stage
from raygen.models.config.ldm import LDMConfig
from raygen.report.build import build_report

SAID = "12 images were looked at: 12 with the statistics of noise"


def do(kind: str, out: Path, **what: object) -> dict[str, object]:
    return dict(make({"kind": kind, **what, "out": str(out)}).run(lambda _: None).facts)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve drawn faces, and twelve pictures of an untrained model."""
    root = tmp_path_factory.mktemp("world")
    data = {"kind": "procedural", "identities": 6, "pictures": 2, "size": 32, "seed": 1}
    assert "warning" not in do("ingest", root / "faces", data=data), "drawings are pictures"
    do("plan", root / "conditions", faces=str(root / "faces"), planning={"kind": "from_faces"})
    stage = pixel_stage("pixels-32")
    assert stage is not None
    config = LDMConfig(modalities=(), channels=(8, 16), attention=(False, False), head_dim=8)
    checkpoint.save(checkpoint.build(config, FirstStage(stage), seed=0), root / "model")
    return root


def test_the_command_line_the_report_and_the_data_card_say_so(world: Path, tmp_path: Path) -> None:
    job = {
        "kind": "generate",
        "conditions": str(world / "conditions"),
        "checkpoint": str(world / "model"),
        "use_conditions": [],
        "sampler": {"name": "ddim", "steps": 2},
        "out": str(world / "samples"),
    }
    (world / "job.yaml").write_text(json.dumps(job))
    said = CliRunner().invoke(app, ["generate", str(world / "job.yaml")])
    assert said.exit_code == 0
    assert SAID in " ".join(said.output.split())
    samples = str(world / "samples")
    guided = {
        value for row in load_dataset(samples, columns=["guidance"]).to_pylist() for value in row["guidance"].values()
    }
    assert guided == {None}, "a model without conditions has no guidance"
    found = do("evaluate", world, samples=samples, reference=str(world / "faces"), score={"parser": None})
    assert SAID in str(found["warning"])
    assert "warning [reference]" not in found
    assert "12 images of noise" in Path(build_report(str(world))).read_text()
    exported = do("export", tmp_path / "out", samples=samples, format={"kind": "huggingface"})
    assert SAID in str(exported["warning"])
    assert f"> **Warning.** {SAID}" in (tmp_path / "out/dataset/README.md").read_text()
    drawn = do("export", tmp_path / "drawn", faces=str(world / "faces"), format={"kind": "huggingface"})
    assert "warning" not in drawn
    assert "Warning" not in (tmp_path / "drawn/dataset/README.md").read_text()
