"""Influence and edits from rows to the page."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raygen.commands.registry import load
from raygen.core.errors import ConfigError
from raygen.models import checkpoint
from raygen.report import edits, influence
from raygen.report.build import build_report
from raygen.report.run_folder import RunFolder
from raygen.sampling.config import SampleConfig
from raygen.sampling.influence import InfluenceRecorder
from raygen.sampling.worker import SampleWorker
from raygen.store.images import decode_image
from raygen.store.run_store import open_input
from tests.models.test_collaborative import together


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces, and two runs over them: pictures with influence, and edits."""
    root = tmp_path_factory.mktemp("strips")
    checkpoint.save(together("mask", "text", nulls=("mask", "text")), root / "model")
    sampler = {"name": "ddim", "steps": 4}
    faces = {"kind": "ingest", "data": {"kind": "procedural", "identities": 12, "pictures": 1, "size": 32}}
    one, two = root / "one", root / "two"
    jobs = {
        "one/faces": faces,
        "two/faces": faces,
        "one/conditions": {
            "kind": "plan",
            "faces": str(one / "faces"),
            "planning": {"kind": "from_faces", "conditions": ["mask", "text"]},
        },
        "one/samples": {
            "kind": "generate",
            "conditions": str(one / "conditions"),
            "checkpoint": str(root / "model"),
            "sampler": sampler,
            "batch": 4,
            "shard_rows": 4,
            "influence_steps": 3,
            "score": {},
        },
        "one": {
            "kind": "evaluate",
            "samples": str(one / "samples"),
            "score": {},  # its pictures are smaller than the faces
        },
        "two/conditions": {
            "kind": "plan",
            "faces": str(two / "faces"),
            "planning": {"kind": "edit_pairs", "change": "Smiling", "parts": ["hair"], "alphas": [0.0, 1.0, 1.5]},
        },
        "two/samples": {
            "kind": "edit",
            "conditions": str(two / "conditions"),
            "faces": str(two / "faces"),
            "checkpoint": str(root / "model"),
            "ignore": ["attributes"],
            "imagic": {"embedding_steps": 1, "tuning_steps": 1},
            "sampler": sampler,
            "shard_rows": 6,
        },
    }
    for name, document in jobs.items():
        path = root / "job.yaml"
        path.write_text(json.dumps({**document, "out": str(root / name)}))
        load(str(path)).run(lambda _: None)
    return root


def test_maps_are_the_shares_of_the_scores(world: Path) -> None:
    store, _ = open_input(str(world / "one/samples"))
    maps = pa.concat_tables(store.tables("influence"))
    scores = [r for r in pa.concat_tables(store.tables("scores")).to_pylist() if r["metric"].startswith("influence:")]
    assert maps.num_rows == 12 * 3 * 3, "a row for each picture, kept step, and expert or estimate"
    assert len(scores) == 12 * 2
    vectors = {(r["sample_id"], r["metric"].partition(":")[2]): r["vector"] for r in scores}
    steps = sorted(set(maps["step"].to_pylist()))
    assert steps == [0, 2, 3], "evenly spaced ones of four, counted from noise"
    assert dict(zip(maps["step"].to_pylist(), maps["timestep"].to_pylist(), strict=True)) == {0: 999, 2: 499, 3: 249}
    held = {(r["sample_id"], r["step"], r["name"]): r["map"]["bytes"] for r in maps.to_pylist()}
    for row_id, step in {(row_id, step) for row_id, step, _ in held}:
        shares = {name: decode_image(held[row_id, step, name])[..., 0].astype(float) / 255 for name in ("mask", "text")}
        np.testing.assert_allclose(shares["mask"] + shares["text"], 1, atol=1.01 / 255)
        if step in (steps[0], steps[-1]):  # the first and the last step are kept
            place = 0 if step == steps[0] else 3
            assert shares["mask"].mean() == pytest.approx(vectors[row_id, "mask"][place], abs=1 / 255)
    last = {row_id: data for (row_id, step, name), data in held.items() if (step, name) == (steps[-1], "x0")}
    assert decode_image(last[maps["sample_id"][0].as_py()]).shape == (16, 16, 3)


def test_maps_are_kept_by_step_also_where_two_steps_have_one_timestep() -> None:
    recorder = InfluenceRecorder(rows=1, keep=3)
    recorder.begin([999, 999, 0], lambda z: z)
    for share in (0.2, 0.4, 0.6):
        recorder.record |= {"influence/mask": torch.full((1, 1, 2, 2), share), "x0": torch.zeros(1, 3, 2, 2)}
        recorder.step()
    rows = [row for row in recorder.maps(["a"], [0], "png").to_pylist() if row["name"] == "mask"]
    assert [(row["step"], row["timestep"]) for row in rows] == [(0, 999), (1, 999), (2, 0)]
    assert [int(decode_image(row["map"]["bytes"])[0, 0, 0]) for row in rows] == [51, 102, 153]


def test_metrics_say_what_each_expert_counted(world: Path) -> None:
    rows = json.loads((world / "one/metrics/metrics.json").read_text())
    found = {(r["metric"], r["slice"]): r["value"] for r in rows}
    assert found["influence:mask", "all"] + found["influence:text", "all"] == pytest.approx(1, abs=1e-5)
    thirds = [found["influence:mask", f"all/{t} third"] for t in ("first", "second", "last")]
    assert min(thirds) <= found["influence:mask", "all"] <= max(thirds)


def test_the_report_draws_both(world: Path) -> None:
    page = Path(build_report(str(world / "one"))).read_text()
    assert 'id="influence"' in page
    assert 'id="edits"' not in page
    assert page.count('class="maps"') == 3, "a sample of every file"
    assert "Influence of mask over the steps" in page
    page = Path(build_report(str(world / "two"))).read_text()
    assert 'id="edits"' in page
    shown = re.findall(r"The input of ([^\"]+)", page)
    assert len(shown) == len(set(shown)), "no edit twice"
    assert page.count('class="chosen"') == page.count('<figure class="edit">') > 0
    assert page.count("The input of") == page.count('<figure class="edit">')
    assert "alpha 1.5" in page


def test_curves_over_alpha(world: Path, tmp_path: Path) -> None:
    store, _ = open_input(str(world / "two/samples"))
    found = edits.edit_scores(store.slices("scores"))
    assert found is not None
    assert [round(point.alpha, 3) for point in found.by_alpha] == [0.0, 1.0, 1.5]
    assert sum(point.chosen for point in found.by_alpha) == pytest.approx(1)
    assert found.n == sum(sum(t["accepted"].to_pylist()) for t in store.tables("selection"))
    assert edits.edit_scores([]) is None
    (tmp_path / "faces").symlink_to(world / "two/faces")
    assert edits.section(RunFolder.open(str(tmp_path))) is None
    assert influence.section(RunFolder.open(str(tmp_path))) is None


def test_metrics_of_edits_and_of_pictures_scored_later(world: Path, tmp_path: Path) -> None:
    """An evaluation that looks again keeps what only the making could know."""
    for name, metric in (("two", "edit_fidelity"), ("one", "influence:mask")):
        what = {"samples": str(world / f"{name}/samples"), "score": {"parser": None, "classifier": None}}
        (tmp_path / "job.yaml").write_text(json.dumps({"kind": "evaluate", **what, "out": str(tmp_path / name)}))
        load(str(tmp_path / "job.yaml")).run(lambda _: None)
        rows = json.loads((tmp_path / name / "metrics/metrics.json").read_text())
        assert [row for row in rows if row["metric"] == metric and row["slice"] == "all"]
        if name == "two":
            alphas = {row["slice"] for row in rows if row["metric"] == "edit_similarity:ssim"}
            assert alphas == {"all", "all/alpha 0", "all/alpha 1", "all/alpha 1.5"}
            judges = next(row for row in rows if row["metric"] == metric)["protocol"]["judges"]
            assert {len(judges["parser"]), len(judges["classifier"])} == {64}


def test_a_wrong_mixing_is_a_sentence_before_anything_starts(world: Path, tmp_path: Path) -> None:
    document = {
        "kind": "generate",
        "out": str(tmp_path / "samples"),
        "conditions": str(world / "one/conditions"),
        "checkpoint": str(world / "model"),
        "mixing": {"kind": "constant", "weights": {"sketch": 1}},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"no expert \['sketch'\]"):
        load(str(tmp_path / "job.yaml")).run(lambda _: None)
    with pytest.raises(ConfigError, match="holds one denoiser"):
        load(str(tmp_path / "job.yaml"), ["checkpoint=bundled"]).run(lambda _: None)
    assert not (tmp_path / "samples").exists()


# --- rows that lack what an expert needs ---


@pytest.mark.parametrize(
    ("missing", "nulls", "bad"),
    [
        ("quarantine", ("mask", "text"), True),
        ("null", ("mask", "text"), False),
        ("null", ("mask",), True),
    ],
)
def test_a_row_without_a_condition(
    world: Path, tmp_path: Path, missing: str, nulls: tuple[str, ...], bad: bool
) -> None:
    """As the job says: refused, or what its expert was trained for; refused anyway where it was not."""
    checkpoint.save(together("mask", "text", nulls=nulls), tmp_path / "model")
    store, _ = open_input(str(world / "one/conditions"))
    rows = pa.concat_tables(store.tables("conditions")).slice(0, 4)
    texts = rows["text"].to_pylist()
    rows = rows.set_column(rows.schema.get_field_index("text"), "text", pa.array([None, *texts[1:]], pa.string()))
    config = SampleConfig(
        checkpoint=str(tmp_path / "model"), batch=4, missing=missing, sampler={"name": "ddim", "steps": 2}
    )
    errors = SampleWorker(config, threads=1)(rows)["samples"]["error"].to_pylist()
    assert errors[1:] == [None] * 3
    assert (errors[0] == "missing: the model needs 'text'") if bad else errors[0] is None


# --- actors ---


@pytest.mark.ray
def test_edits_on_actors_are_the_edits_of_the_loop(world: Path, tmp_path: Path, ray_session: None) -> None:
    document = {
        "kind": "edit",
        **open_input(str(world / "two/samples"))[0].plan().settings,
        "resources": {"runner": "ray", "workers": 2},
        "out": str(tmp_path / "samples"),
    }
    paths = {"conditions": str(world / "two/conditions"), "faces": str(world / "two/faces")}
    what = {**document, **paths, "checkpoint": str(world / "model"), "shard_rows": 6}
    del what["judges"]  # what the job found, not what it was told
    (tmp_path / "job.yaml").write_text(json.dumps(what))
    result = load(str(tmp_path / "job.yaml")).run(lambda _: None)
    assert (
        result.facts["set_digest"]
        == json.loads((world / "two/samples/attempt-00/MANIFEST.json").read_text())["set_digest"]
    )
