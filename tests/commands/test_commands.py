"""The verbs end to end on tiny models: what a user's job files do."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from raygen import load_dataset
from raygen.commands.registry import load, make
from raygen.commands.verify import verify
from raygen.core.errors import ConfigError, InputError
from raygen.core.hashing import digest
from raygen.core.landmarks import from_mask
from raygen.extractors.bundled import BundledParser, save_bundled
from raygen.extractors.config import BundledParserConfig
from raygen.models import checkpoint, checkpoint_folder
from raygen.models.autoencoder import FirstStage
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.ldm import LDMConfig
from raygen.store.images import decode_mask, encode_mask
from raygen.store.parquet import from_parquet, to_parquet
from raygen.store.run_store import RunStore, open_input
from tests.fakes import rewrite

SIZE = 32


def quiet(_):
    pass


def do(kind, out, what, **resources):
    return make({"kind": kind, **what, "resources": resources, "out": str(out)}).run(quiet)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Faces, conditions, and random models small enough for a second of work."""
    root = tmp_path_factory.mktemp("world")
    data = {"kind": "procedural", "identities": 6, "pictures": 4, "size": SIZE, "seed": 1}
    do("ingest", root / "faces", {"data": data, "shard_rows": 8, "batch": 4})
    do("plan", root / "conditions", {"faces": str(root / "faces"), "planning": {"kind": "from_faces"}, "shard_rows": 8})
    torch.manual_seed(0)
    stage = FirstStage(
        AutoencoderConfig(image_size=SIZE, patch=2, channels=(8, 8), latent_channels=4, mid_attention=False)
    )
    config = LDMConfig(
        modalities=("mask", "attributes"), channels=(8, 16), attention=(False, True), head_dim=8, mask_channels=4
    )
    checkpoint.save(checkpoint.build(config, stage, seed=0), root / "model")
    save_bundled(
        BundledParser(BundledParserConfig(image_size=SIZE, channels=(8, 16))),
        root / "parser",
        weights="float32",
        extra={},
    )
    return root


def generate(world, out, *, resources=None, **more):
    small = {"kind": "small", "folder": str(world / "parser")}
    what = {
        "conditions": str(world / "conditions"),
        "checkpoint": str(world / "model"),
        "batch": 4,
        "shard_rows": 8,
        "sampler": {"name": "dpmpp_2m", "steps": 3},
        "score": {"parser": small, "features": small, "classifier": None},
        **more,
    }
    return do("generate", out, what, **(resources or {}))


def rows_of(folder, table="samples"):
    store, _ = open_input(str(folder))
    return [row for t in store.tables(table) for row in t.to_pylist()]


def test_ingest_keeps_every_face(world):
    rows = rows_of(world / "faces", "faces")
    assert len(rows) == 24
    assert len({r["identity_id"] for r in rows}) == 6
    assert all(r["mask"] and len(r["attributes"]) == 40 and r["texts"] for r in rows)
    metadata = pq.read_schema(next((world / "faces/attempt-00/data/faces").glob("*.parquet"))).metadata
    assert json.loads(metadata[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}


def test_a_plan_repeats_conditions_with_names_of_their_own(world, tmp_path):
    planning = {"kind": "from_faces", "per_face": 3, "conditions": ["mask", "text"], "caption": "beard_and_age"}
    do("plan", tmp_path / "c", {"faces": str(world / "faces"), "planning": planning})
    rows = rows_of(tmp_path / "c", "conditions")
    assert len(rows) == 72
    assert len({r["sample_id"] for r in rows}) == 72
    assert {r["variant"] for r in rows} == {0, 1, 2}
    assert all(r["attributes"] is None and r["text"] and r["mask"] for r in rows)


def test_a_plan_without_faces_counts(tmp_path):
    do("plan", tmp_path / "c", {"planning": {"kind": "unconditional", "count": 2500}, "shard_rows": 1000})
    rows = rows_of(tmp_path / "c", "conditions")
    assert [r["sample_id"] for r in rows] == [f"s{i:09d}" for i in range(2500)]


def test_generate_then_evaluate(world, tmp_path):
    result = generate(world, tmp_path / "samples")
    assert result.facts["rows"] == {"samples": 24, "scores": 48}
    rows = rows_of(tmp_path / "samples")
    assert all(r["image"] and r["error"] is None and r["image_sha256"] for r in rows)
    assert {r["source"] for r in rows} == {r["face_id"] for r in rows_of(world / "faces", "faces")}
    assert verify(RunStore(str(tmp_path / "samples"))).ok
    small = {"kind": "small", "folder": str(world / "parser")}
    what = {
        "samples": str(tmp_path / "samples"),
        "reference": str(world / "faces"),
        "round_trip": str(world / "model"),
        "score": {"parser": small, "features": small, "classifier": None},
        "batch": 8,
    }
    do("evaluate", tmp_path, what)
    metrics = from_parquet((tmp_path / "metrics/metrics.parquet").read_bytes()).to_pylist()
    found = {(m["metric"], m["slice"]) for m in metrics}
    for slice_ in ("all", "reference", "roundtrip"):
        assert ("miou:raygen-parser", slice_) in found
    assert ("fd:raygen-parser", "all") in found
    assert not any(m["metric"].startswith("fid") for m in metrics)
    distance = next(m for m in metrics if m["metric"] == "fd:raygen-parser" and m["slice"] == "all")
    assert json.loads(distance["protocol"])["low_n"] is True
    assert distance["n"] == 24
    assert not (tmp_path / "scores/samples").exists()  # scored while they were made
    # Scoring the stored pictures again gives the same counts: what was scored is what was stored.
    score = {"parser": small, "features": None, "classifier": None}
    again = {k: v for k, v in what.items() if k != "round_trip"} | {"score": score}
    do("evaluate", tmp_path / "again", again)
    later = {
        (m["metric"], m["slice"]): m["value"]
        for m in from_parquet((tmp_path / "again/metrics/metrics.parquet").read_bytes()).to_pylist()
    }
    first = {(m["metric"], m["slice"]): m["value"] for m in metrics}
    assert later[("miou:raygen-parser", "all")] == first[("miou:raygen-parser", "all")]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_same_picture_bytes_for_the_loop_and_for_1_and_3_actors(world, tmp_path):
    golden = generate(world, tmp_path / "local").facts["set_digest"]
    pictures = {r["sample_id"]: r["image_sha256"] for r in rows_of(tmp_path / "local")}
    assert len(set(pictures.values())) == 24
    for workers in (1, 3):
        resources = {"runner": "ray", "workers": workers}
        result = generate(world, tmp_path / f"ray-{workers}", resources=resources)
        assert result.facts["set_digest"] == golden
        assert {r["sample_id"]: r["image_sha256"] for r in rows_of(tmp_path / f"ray-{workers}")} == pictures


def test_another_seed_or_attempt_gives_other_pictures(world, tmp_path):
    hashes = []
    for name, more in (("a", {}), ("b", {"seed": 1}), ("c", {"attempt": 1})):
        generate(world, tmp_path / name, **more)
        hashes.append({r["image_sha256"] for r in rows_of(tmp_path / name)})
    assert not (hashes[0] & hashes[1])
    assert not (hashes[0] & hashes[2])
    assert (tmp_path / "c/attempt-01/_SUCCESS").exists()


def test_bad_conditions_are_rows_with_reasons_and_the_good_ones_finish(world, tmp_path):
    """Bytes that are no picture, truncated, a label above 18, an attribute out of range, a bomb, a missing mask."""
    store, _ = open_input(str(world / "conditions"))
    table = next(store.tables("conditions"))
    rows = table.to_pylist()
    good = rows[0]["mask"]["bytes"]
    label = np.zeros((SIZE, SIZE), np.uint8)
    label[3, 3] = 19
    rows[1]["mask"] = {"bytes": good[: len(good) // 2], "path": None}
    rows[2]["mask"] = {"bytes": b"not a picture", "path": None}
    rows[3]["mask"] = {"bytes": encode_mask(label), "path": None}
    rows[4]["attributes"]["Male"] = 2
    rows[5]["mask"] = {"bytes": _bomb(), "path": None}
    bad = type(table).from_pylist(rows, table.schema)
    root = tmp_path / "conditions/attempt-00"
    _copy_run(world / "conditions/attempt-00", root)
    _replace(root, to_parquet(bad))
    result = generate(world, tmp_path / "samples", conditions=str(tmp_path / "conditions"), max_error_fraction=0.5)
    assert sum(result.facts["quarantined"].values()) == 5
    found = {r["sample_id"]: (r["error"] or "").split(":")[0] for r in rows_of(tmp_path / "samples")}
    names = [r["sample_id"] for r in rows]
    assert [found[n] for n in names[:6]] == ["", "corrupt", "not_an_image", "label", "attributes", "bomb"] or [
        found[n] for n in names[:6]
    ] == ["", "truncated", "not_an_image", "label", "attributes", "bomb"]
    assert sum(1 for e in found.values() if not e) == 19
    # The good rows are those of a run without bad ones: a bad neighbour changes nothing.
    generate(world, tmp_path / "clean")
    clean = {r["sample_id"]: r["image_sha256"] for r in rows_of(tmp_path / "clean")}
    for row in rows_of(tmp_path / "samples"):
        if row["error"] is None:
            assert row["image_sha256"] == clean[row["sample_id"]]


def _bomb() -> bytes:
    """A PNG header that promises 30,000 x 30,000 pixels."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _copy_run(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target)


def _replace(root: Path, data: bytes) -> None:
    """Put another file in place of that of the first shard. The manifest still names the run."""
    path = sorted((root / "data/conditions").glob("*.parquet"))[0]
    path.unlink()
    other = path.with_name(f"{path.stem[:-12]}{digest(data)[:12]}.parquet")
    other.write_bytes(data)
    commit = root / "commits/shard-00000.json"
    (entry,) = json.loads(commit.read_bytes())["files"]
    rewrite(commit, files=[{**entry, "path": f"data/conditions/{other.name}", "sha256": digest(data)}])


def test_training_and_encoding_make_what_generate_reads(world, tmp_path):
    faces = str(world / "faces")
    training = {"steps": 4, "batch": 8, "warmup": 0, "log_every": 2, "save_every": 2, "seed": 1}
    stage = {"kind": "autoencoder", "image_size": SIZE, "patch": 2, "channels": [8, 8], "mid_attention": False}
    first = do("train", tmp_path / "stage", {"model": stage, "faces": faces, "training": training})
    assert first.facts["steps"] == 4
    do("encode", tmp_path / "latents", {"faces": faces, "checkpoint": str(tmp_path / "stage"), "batch": 8})
    assert len(rows_of(tmp_path / "latents", "latents")) == 48  # every picture and its mirror image
    model = {
        "kind": "ldm",
        "modalities": ["mask", "attributes"],
        "channels": [8, 16],
        "attention": [False, True],
        "head_dim": 8,
    }
    what = {
        "model": model,
        "faces": faces,
        "first_stage": str(tmp_path / "stage"),
        "latents": str(tmp_path / "latents"),
        "training": training,
    }
    do("train", tmp_path / "model", what)
    do(
        "train",
        tmp_path / "parser",
        {"model": {"kind": "parser", "image_size": SIZE, "channels": [8, 16]}, "faces": faces, "training": training},
    )
    small = {"kind": "small", "folder": str(tmp_path / "parser")}
    score = {"parser": small, "features": None, "classifier": None}
    generate(world, tmp_path / "samples", checkpoint=str(tmp_path / "model"), score=score)
    assert len(rows_of(tmp_path / "samples")) == 24
    # A finished training that is asked for again does nothing more and ends in the same checkpoint.
    before = checkpoint_folder.digest(tmp_path / "model")
    do("train", tmp_path / "model", what)
    with pytest.raises(ConfigError, match="holds another training that has ended"):
        do("train", tmp_path / "model", {**what, "training": {**training, "lr": 0.5}})
    assert (tmp_path / "model/unet/config.json").exists()
    assert before


# --- jobs as files --------------------------------------------------------------------------------------------

JOBS = sorted(set(Path("jobs").rglob("*.yaml")) - set(Path("jobs/kubernetes").iterdir()))  # for Kubernetes itself


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_every_job_file_is_valid(path):
    assert load(str(path)).kind == yaml.safe_load(path.read_text())["kind"]


@pytest.mark.parametrize(
    "path", [p for p in JOBS if yaml.safe_load(p.read_text())["kind"] in ("ingest", "plan")], ids=lambda p: p.name
)
def test_dry_runs_write_nothing(path, world, tmp_path, monkeypatch):
    document = yaml.safe_load(path.read_text())
    # The faces of this test are not those that a file of edits names.
    overrides = [f"out={tmp_path / 'out'}", "max_error_fraction=1"]
    data = document.get("data", {})
    if data.get("kind", "procedural") != "procedural":
        pytest.skip("needs a data set on this disk; its own tests make one")
    if document.get("faces"):
        overrides.append(f"faces={world / 'faces'}")
    if document.get("planning", {}).get("kind") == "identities":  # the faces of this test are few
        overrides += ["planning.identities=2", "planning.balance=[]"]
    estimate = load(str(path), overrides).estimate()
    assert estimate.rows > 0
    assert estimate.shards > 0
    assert estimate.seconds > 0
    assert not (tmp_path / "out").exists()


def test_dry_run_of_generate_times_a_batch(world, tmp_path):
    what = {
        "conditions": str(world / "conditions"),
        "checkpoint": str(world / "model"),
        "batch": 4,
        "sampler": {"steps": 2},
    }
    estimate = make({"kind": "generate", **what, "out": str(tmp_path / "out")}).estimate()
    assert (estimate.rows, estimate.shards, estimate.done_shards) == (24, 1, 0)
    assert estimate.bytes > 24 * 100
    assert not (tmp_path / "out").exists()


def test_generated_pictures_have_landmarks_where_they_are_asked_for(world, tmp_path):
    what = {"conditions": str(world / "conditions"), "checkpoint": str(world / "model"), "sampler": {"steps": 1}}
    job = make({"kind": "generate", **what, "landmarks": {"kind": "mask"}, "out": str(tmp_path / "out")})
    plain = make({"kind": "generate", **what, "out": str(tmp_path / "out")})
    assert job.prepare(write=False).plan.run_id != plain.prepare(write=False).plan.run_id
    job.run(lambda _: None)
    for row in load_dataset(str(tmp_path / "out")).to_pylist():
        assert row["landmarks"]["source"] == "mask"
        mask = decode_mask(row["mask"]["bytes"])
        if row["landmarks"]["points"] is None:
            with pytest.raises(InputError) as error:
                from_mask(mask)
            assert row["landmarks"]["error"] == str(error.value)
        else:
            assert np.allclose(row["landmarks"]["points"], from_mask(mask), atol=1e-6)


def test_run_ids_depend_on_settings_and_inputs_not_on_resources(world, tmp_path):
    def name(**more):
        settings = {"conditions": str(world / "conditions"), "checkpoint": str(world / "model"), "batch": 4}
        job = make({"kind": "generate", **settings, "out": str(tmp_path), **more})
        return job.prepare(write=False).plan.run_id

    assert name() == name(resources={"runner": "ray", "workers": 7}) == name(out=str(tmp_path / "elsewhere"))
    assert len({name(), name(seed=1), name(batch=2), name(guidance=2.0)}) == 4


def test_errors_say_what_is_wrong(world, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'guidance'"):
        make({"kind": "generate", "conditions": "x", "checkpoint": "y", "guidence": 2, "out": "z"})
    with pytest.raises(ConfigError, match="no complete run"):
        do("generate", tmp_path / "o", {"conditions": str(tmp_path / "none"), "checkpoint": str(world / "model")})
    with pytest.raises(ConfigError, match="is the result of `raygen ingest` and has no table CONDITIONS"):
        do("generate", tmp_path / "o", {"conditions": str(world / "faces"), "checkpoint": str(world / "model")})
    with pytest.raises(ConfigError, match=r"holds no run .* there are runs in conditions, faces"):
        verify(RunStore(str(world)))
    with pytest.raises(ConfigError, match=r"raygen\.json is missing"):
        do("generate", tmp_path / "o", {"conditions": str(world / "conditions"), "checkpoint": str(tmp_path)})
    with pytest.raises(ConfigError, match="needs `faces`, the folder of an ingest run"):
        do("plan", tmp_path / "o", {"planning": {"kind": "from_faces"}})
    job = tmp_path / "job.yaml"
    job.write_text("kind: plan\nplanning: {kind: unconditional, count: 3}\nout: x\n")
    with pytest.raises(ConfigError, match="a job for `raygen plan`, not `raygen generate`"):
        load(str(job), command="generate")
    with pytest.raises(ConfigError, match="kind: must be one of"):
        load(str(job), ["kind=dance"])


def test_a_corrupt_checkpoint_is_a_sentence(world, tmp_path):
    import shutil

    shutil.copytree(world / "model", tmp_path / "model")
    path = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises((InputError, ConfigError)):
        generate(world, tmp_path / "o", checkpoint=str(tmp_path / "model"))
