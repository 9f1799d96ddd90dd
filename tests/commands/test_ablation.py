"""Variants of one setting: the same jobs, one table, and nothing done twice."""

import json
from pathlib import Path

import pytest

from raygen.commands.registry import make
from raygen.core.errors import ConfigError
from raygen.evaluation.comparison import grid
from raygen.store.parquet import from_parquet
from raygen.store.schemas import METRICS


def document(out: Path) -> dict:
    faces = {"kind": "procedural", "identities": 6, "pictures": 2, "size": 32, "seed": 1}
    stage = {"kind": "autoencoder", "image_size": 32, "patch": 2, "channels": [8, 8], "mid_attention": False}
    model = {"kind": "ldm", "channels": [8], "attention": [False], "head_dim": 8}
    training = {"steps": 2, "batch": 4, "warmup": 0, "log_every": 1, "sheet_every": 2, "ema": 0.5}
    score = {"parser": None, "features": {"kind": "small"}, "classifier": None}
    return {
        "kind": "ablation",
        "shared": {
            "faces": {"kind": "ingest", "data": faces},
            "first": {"kind": "train", "faces": "{shared}/faces", "model": stage, "training": training},
            "rows": {"kind": "plan", "planning": {"kind": "unconditional", "count": 6}},
        },
        "stages": {
            "model": {
                "kind": "train",
                "faces": "{shared}/faces",
                "first_stage": "{shared}/first",
                "model": model,
                "loss": {"kind": "p2", "gamma": 0.0},
                "training": training,
            },
            "samples": {
                "kind": "generate",
                "conditions": "{shared}/rows",
                "checkpoint": "{variant}/model",
                "batch": 4,
                "sampler": {"steps": 2},
            },
            "scores": {
                "kind": "evaluate",
                "samples": "{variant}/samples",
                "reference": "{shared}/faces",
                "score": score,
            },
        },
        "variants": {"gamma-0": [], "gamma-1": ["model.loss.gamma=1"]},
        "out": str(out),
    }


def test_every_variant_is_made_and_tabled_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = make(document(out))
    facts = job.run(lambda _: None).facts
    assert set(facts) == {"gamma-0", "gamma-1", "seconds"}
    table = from_parquet((out / "metrics/metrics.parquet").read_bytes())
    assert table.schema.equals(METRICS)
    rows = table.to_pylist()
    values = {(json.loads(r["protocol"])["variant"], r["metric"]): r["value"] for r in rows}
    assert {m for v, m in values if v == "gamma-0"} == {m for v, m in values if v == "gamma-1"}
    assert values["gamma-0", "loss"] > values["gamma-1", "loss"]  # p2 only takes away
    assert values["gamma-0", "fd:raygen-parser"] != values["gamma-1", "fd:raygen-parser"]
    assert (out / "metrics/table.md").read_text().count("| gamma-") == 2
    assert len(list((out / "gamma-1/model/training/sheets").glob("*.png"))) == 1
    commits = sorted(out.rglob("commits/*.json"))
    before = [c.stat().st_mtime_ns for c in commits]
    assert make(document(out)).run(lambda _: None).facts["gamma-1"] == facts["gamma-1"]
    assert [c.stat().st_mtime_ns for c in commits] == before


def test_a_dry_run_names_what_waits(tmp_path: Path) -> None:
    estimate = make(document(tmp_path / "out")).estimate()
    assert "gamma-1/samples: waits for earlier jobs" in estimate.notes
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": {"a": ["modle.loss.gamma=1"]}}, "changes none of the stages"),
        ({"variants": {"a/b": []}}, "cannot be the name of a folder"),
        ({"variants": {"faces": []}}, "names of shared jobs and of variants"),
        ({"variants": {"a": ["model.loss.gama=1"]}}, "a/model: .*did you mean 'gamma'"),
        ({"stages": {"model": {"kind": "dance"}}, "variants": {"a": []}}, "kind: must be one of"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_runs(tmp_path: Path, change: dict, message: str) -> None:
    wrong = document(tmp_path)
    wrong |= change
    with pytest.raises(ConfigError, match=message):
        make(wrong)


def test_the_reference_counts_where_the_judge_varies() -> None:
    rows = [
        {"metric": metric, "slice": where, "value": value, "protocol": json.dumps({"variant": variant})}
        for variant, value in (("a", 0.1), ("b", 0.2))
        for metric, where in (("eer:x", "reference"), ("miou:p", "reference"), ("tar@0.001:x", "reference"))
    ]
    found = grid(rows)
    assert found.columns == ["eer:x", "tar@0.001:x"]
    assert found.values == {"a": {"eer:x": 0.1, "tar@0.001:x": 0.1}, "b": {"eer:x": 0.2, "tar@0.001:x": 0.2}}
