"""Pictures beside their own real picture and their own condition, and what an evaluation says of odd input."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torchvision

from raygen.commands.registry import make
from raygen.core.errors import ConfigError, InputError
from raygen.core.pixels import to_pixels
from raygen.evaluation.aggregate import aggregate, gather_scores
from raygen.evaluation.config import FeatureMetricsConfig, ScoreConfig
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.evaluation.scoring import Scorer
from raygen.extractors.config import LPIPSConfig
from raygen.extractors.lpips import load_lpips
from raygen.metrics.image_similarity import bootstrap_mean, psnr, ssim
from raygen.metrics.registry import better, family
from raygen.store.images import decode_image, decode_mask, encode_image, encode_mask, fit_mask, picture
from raygen.store.parquet import RANGE, Slice
from raygen.store.run_store import Plan, RunStore, make_shards, open_input
from raygen.store.schemas import SAMPLES, SCORES

N = 12
NONE = {"parser": None, "features": None, "classifier": None}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces, and samples that are those faces with noise; some without a mask, one without a picture."""
    root = tmp_path_factory.mktemp("to_real")
    data = {"kind": "procedural", "identities": N, "pictures": 1, "size": 64, "seed": 3}
    make({"kind": "ingest", "data": data, "out": f"{root}/faces"}).run(lambda _: None)
    rows = pa.concat_tables(open_input(f"{root}/faces")[0].tables("faces")).to_pylist()
    whole = [sample(i, row) for i, row in enumerate(rows)]
    write(root / "samples", whole)
    odd = [dict(row) for row in whole]
    odd[2]["mask"] = odd[5]["mask"] = None
    odd[7] |= {"image": None, "error": "decode: no picture"}
    write(root / "odd", odd)
    write(root / "bare", [{**row, "mask": None} for row in whole])
    return root


def sample(i: int, face: dict[str, Any]) -> dict[str, Any]:
    noise = np.random.default_rng(i).normal(0, 5 + 3 * i, (64, 64, 3))
    pixels = (decode_image(face["image"]["bytes"]) + noise).clip(0, 255).astype(np.uint8)
    return {
        "sample_id": f"s{i:03}",
        "attempt": 0,
        "image": picture(encode_image(pixels)),
        "error": None,
        "run_id": "r",
        "source": face["face_id"],
        "mask": face["mask"],
        "image_sha256": "0" * 64,
    }


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    store = RunStore(str(folder))
    plan = Plan("generate", "0123456789abcdef", {"seed": 0}, 4, make_shards([Slice(RANGE, 0, len(rows))], len(rows)))
    store.create(plan)
    tables = {"samples": pa.Table.from_pylist(rows, SAMPLES)}
    store.commit(0, 1, tables, timings={}, environment={}, reasons={"decode": sum(r["image"] is None for r in rows)})
    store.finish(plan)


def evaluate(root: Path, out: str, **what: Any) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, Any]]:
    given = {"samples": f"{root}/samples", "reference": f"{root}/faces", "batch": 4, **what}
    result = make({"kind": "evaluate", **given, "out": f"{root}/{out}"}).run(lambda _: None)
    rows = json.loads((root / out / "metrics/metrics.json").read_text())
    return {(row["metric"], row["slice"]): row for row in rows}, dict(result.facts)


def images(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of the samples, and of the faces that they name."""
    samples = pa.concat_tables(open_input(f"{root}/samples")[0].tables("samples")).to_pylist()
    faces = pa.concat_tables(open_input(f"{root}/faces")[0].tables("faces")).to_pylist()
    real = {row["face_id"]: decode_image(row["image"]["bytes"]) for row in faces}
    made = [decode_image(row["image"]["bytes"]) for row in samples]
    return np.stack(made), np.stack([real[row["source"]] for row in samples])


@pytest.fixture(scope="module")
def alex(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random weights in the layout of torchvision's AlexNet: its own may not be passed on."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = torchvision.models.alexnet()
    state = {n: 0.05 * torch.randn(t.shape) for n, t in network.state_dict().items() if "features" in n}
    path = tmp_path_factory.mktemp("alex") / "alexnet.pth"
    torch.save(state, path)
    return {"weights": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "network": "alex"}


def test_reconstruction_is_measured_with_intervals_and_protocol(world: Path, alex: dict[str, str]) -> None:
    score = {**NONE, "reconstruction": True, "lpips": alex}
    found, _ = evaluate(world, "reconstruction", score=score, round_trip="bundled")
    made, real = images(world)
    truth = {"ssim": ssim(made, real), "psnr": psnr(made, real)}
    network = load_lpips(LPIPSConfig(**alex))
    with torch.inference_mode():
        pairs = (to_pixels(torch.from_numpy(part)) for part in (made, real))
        truth["lpips:alex"] = network(*pairs).double().numpy()
    for name, values in truth.items():
        row = found[name, "all"]
        assert row["value"] == pytest.approx(values.mean(), rel=1e-5)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(bootstrap_mean(values), rel=1e-4)
        assert row["ci_low"] < row["value"] < row["ci_high"]
        assert row["n"] == N
        assert "`source`" in row["protocol"]["against"]
        assert better(name) == ("lower" if name == "lpips:alex" else "higher")
    assert found["ssim", "all"]["protocol"]["window"] == "gaussian 11 x 11, sigma 1.5"
    assert found["ssim", "all"]["protocol"]["range"] == found["psnr", "all"]["protocol"]["range"] == "0..255"
    assert found["lpips:alex", "all"]["protocol"]["sha256"] == alex["sha256"]
    (stored,) = open_input(f"{world}/reconstruction/scores/samples")[0].tables("scores")
    each = gather_scores([stored])["psnr:source"]
    np.testing.assert_allclose(each.vectors[:, 0], psnr(made, real), rtol=1e-6)
    round_trip = found["psnr", "roundtrip"]
    assert "what went into" in round_trip["protocol"]["against"], "what the first stage alone loses"
    assert round_trip["n"] == N
    assert {slice_ for _, slice_ in found} == {"all", "roundtrip"}


def test_similarity_is_the_ssim_of_reconstruction(world: Path) -> None:
    one, _ = evaluate(world, "alike", score={**NONE, "similarity": True})
    other, _ = evaluate(world, "rebuilt", score={**NONE, "reconstruction": True})
    assert {name for name, _ in one} == {"ssim"}
    assert {name for name, _ in other} == {"ssim", "psnr"}
    assert one["ssim", "all"]["value"] == other["ssim", "all"]["value"]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ({"lpips": {}}, "`lpips` is for `reconstruction: true`"),
        ({"parser": None, "condition_size": 32}, "`condition_size` needs a `parser`"),
    ],
)
def test_keys_that_say_nothing_are_refused(score: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make({"kind": "evaluate", "samples": "s", "score": score, "out": "x"})


def test_reconstruction_names_its_own_key_where_faces_are_missing(world: Path) -> None:
    with pytest.raises(ConfigError, match=r"score\.reconstruction: needs `reference`"):
        evaluate(world, "none", reference=None, score={**NONE, "reconstruction": True})


def test_mask_accuracy_is_that_of_the_condition(world: Path) -> None:
    """Counted by hand: nearest neighbour of both maps at 32 px, all pixels of all pictures alike."""
    found, _ = evaluate(world, "condition", score={"features": None, "classifier": None, "condition_size": 32})
    observer = Scorer(ScoreConfig(features=None, classifier=None), run_id="r")
    assert observer.parser is not None
    rows = pa.concat_tables(open_input(f"{world}/samples")[0].tables("samples")).to_pylist()
    labels = observer.parser.parse(torch.from_numpy(images(world)[0])).numpy()
    wanted = [fit_mask(decode_mask(row["mask"]["bytes"]), 32) for row in rows]
    right = np.array([(fit_mask(label, 32) == mask).mean() for label, mask in zip(labels, wanted, strict=True)])
    row = found["mask_accuracy@32:raygen-parser", "all"]
    assert row["value"] == pytest.approx(right.mean(), abs=1e-9)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(bootstrap_mean(right))
    assert row["value"] != found["pixel_accuracy:raygen-parser", "all"]["value"]
    assert row["protocol"]["compare"].startswith("32 x 32")
    assert row["protocol"]["network"] == "raygen-parser"
    assert (family(row["metric"]), better(row["metric"])) == ("mask_accuracy", "higher")
    assert ("mask_accuracy@32:raygen-parser", "reference") in found, "the ceiling, by the same parser"


# --- odd input ----------------------------------------------------------------------------------------------


def test_pictures_without_masks_and_masks_without_pictures_are_counted_and_listed(world: Path) -> None:
    score = {"features": None, "classifier": None}
    found, facts = evaluate(world, "odd_ones", samples=f"{world}/odd", score=score)
    assert facts["pictures without a mask [all]"] == f"2 of {N} rows"
    assert facts["masks without a picture [all]"] == f"1 of {N} rows"
    listed = json.loads(Path(str(facts["listed in"])).read_text())
    assert listed == {"samples": {"without_mask": ["s002", "s005"], "without_picture": ["s007"]}}
    row = found["miou:raygen-parser", "all"]
    assert row["n"] == N - 3
    assert row["protocol"]["not_compared"] == {"pictures without a mask": 2, "masks without a picture": 1}
    assert "not_compared" not in found["miou:raygen-parser", "reference"]["protocol"]
    found, facts = evaluate(world, "odd_ones", score=score)
    assert "listed in" not in facts
    assert not (world / "odd_ones/metrics/unpaired.json").exists(), "an older list is not left lying"
    assert "not_compared" not in found["miou:raygen-parser", "all"]["protocol"]
    _, facts = evaluate(world, "bare_ones", samples=f"{world}/bare", score=score)
    assert "listed in" not in facts, "a model without masks was asked for none"


def constant(n: int, value: float = 0.5, width: int = 4) -> ScoreMatrix:
    return ScoreMatrix(tuple(f"r{i:03}" for i in range(n)), np.full((n, width), value, np.float32))


def varied(n: int, width: int = 4) -> ScoreMatrix:
    return ScoreMatrix(
        tuple(f"r{i:03}" for i in range(n)), np.random.default_rng(n).normal(size=(n, width)).astype("f4")
    )


@pytest.mark.parametrize("made", [constant(60), constant(3), varied(60)], ids=["constant", "few", "varied"])
@pytest.mark.parametrize("real", [constant(60), constant(50, -2.0), varied(50)], ids=["same", "other", "varied"])
def test_pictures_that_are_all_alike_give_numbers_or_a_sentence(made: ScoreMatrix, real: ScoreMatrix) -> None:
    table = aggregate(
        {"all": {"features:x": made}, "reference": {"features:x": real}},
        run_id="r",
        reference="x",
        protocols={},
        frechet_name="fd:x",
        compare=FeatureMetricsConfig(knn=3, fid_infinity=True),
    )
    rows = {row["metric"]: row for row in table.to_pylist()}
    assert all(np.isfinite(row["value"]) for row in rows.values())
    assert all(np.isfinite(row["ci_low"]) for row in rows.values() if row["ci_low"] is not None)
    left_out = json.loads(rows["fd:x"]["protocol"]).get("left_out", {})
    assert ("precision:x" in rows) != ("precision" in left_out)
    if len(set(made.vectors[:, 0])) == len(set(real.vectors[:, 0])) == 1:
        gap = 4 * float(made.vectors[0, 0] - real.vectors[0, 0]) ** 2
        assert rows["fd:x"]["value"] == pytest.approx(gap, abs=1e-9)
    if len(made.ids) == 60 and made.vectors.std() == 0:
        assert "its balls are points" in left_out["precision"]


def test_pictures_that_are_all_alike_go_through_a_whole_evaluation(world: Path) -> None:
    """Grey pictures, twice: of themselves, and against faces."""
    grey = np.full((64, 64, 3), 128, np.uint8)
    mask = encode_mask(np.zeros((64, 64), np.uint8))
    rows = pa.concat_tables(open_input(f"{world}/samples")[0].tables("samples")).to_pylist()
    write(world / "grey", [{**row, "image": picture(encode_image(grey)), "mask": picture(mask)} for row in rows])
    found, _ = evaluate(world, "all_grey", samples=f"{world}/grey", compare={"knn": 3}, score={"reconstruction": True})
    assert {name.partition(":")[0] for name, where in found if where == "all"} >= {"fd", "kid", "miou", "ssim", "psnr"}
    assert all(np.isfinite(row["value"]) for row in found.values())
    assert "points" in found["fd:raygen-parser", "all"]["protocol"]["left_out"]["precision"]
    assert ssim(grey[None], grey[None])[0] == 1
    assert psnr(grey[None], grey[None])[0] == 100


@pytest.mark.parametrize("name", ["features:x", "psnr:source", "lpips:source:vgg", "clip:x"])
def test_values_that_are_not_numbers_are_named(name: str, rows: Callable[[str, float], pa.Table]) -> None:
    with pytest.raises(InputError, match=r"not finite for 1 rows, first r1"):
        gather_scores([rows(name, float("nan"))])
    with pytest.raises(InputError, match="not finite"):
        gather_scores([rows(name, float("inf"))])
    assert len(gather_scores([rows(name, 1.0)])[name].ids) == 3


@pytest.fixture
def rows() -> Callable[[str, float], pa.Table]:
    def table(name: str, value: float) -> pa.Table:
        found = [
            {"sample_id": f"r{i}", "attempt": 0, "metric": name, "run_id": "x", "vector": [value if i == 1 else 0.5]}
            for i in range(3)
        ]
        return pa.Table.from_pylist(found, SCORES)

    return table
