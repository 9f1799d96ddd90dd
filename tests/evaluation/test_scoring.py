"""Pictures to rows of scores to a table of metrics, with a random small parser in the place of a trained one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import ATTRIBUTES, CAPTIONED, CLASSES
from raygen.evaluation.aggregate import aggregate, gather_scores
from raygen.evaluation.config import ScoreConfig
from raygen.evaluation.protocols import protocols_of
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.evaluation.scoring import Scorer, ScoreWorker
from raygen.extractors.bundled import BundledClassifier, BundledParser, save_bundled
from raygen.extractors.config import BundledClassifierConfig, BundledNetworkConfig, BundledParserConfig
from raygen.extractors.digests import bundled_digest
from raygen.metrics.frechet import frechet_of_features
from raygen.metrics.registry import REGISTRY, family
from raygen.metrics.segmentation import Counts, confusion
from raygen.store.images import encode_image, encode_mask, picture
from raygen.store.schemas import FACES, METRICS, SAMPLES, SCORES

UInt8Array = npt.NDArray[np.uint8]
FEATURES, SEGMENTATION, FD = "features:raygen-parser", "segmentation:raygen-parser", "fd:raygen-parser"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("parser")
    save_bundled(BundledParser(BundledParserConfig(image_size=16, channels=(8, 16))), path, weights="float32", extra={})
    return path


@pytest.fixture(scope="module")
def config(folder: Path) -> ScoreConfig:
    return ScoreConfig(
        parser=BundledNetworkConfig(folder=str(folder)),
        features=BundledNetworkConfig(folder=str(folder)),
        classifier=None,
    )


def pictures(n: int, side: int = 24, seed: int = 0) -> tuple[UInt8Array, UInt8Array]:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    return images, random.integers(0, len(CLASSES), (n, side, side), dtype=np.uint8)


def samples(images: Sequence[UInt8Array | None], masks: Sequence[UInt8Array | None], first: int = 0) -> pa.Table:
    rows = [
        {
            "sample_id": f"s{first + i:03}",
            "attempt": 0,
            "run_id": "r",
            "error": None if image is not None else "oom",
            "image": None if image is None else picture(encode_image(image)),
            "mask": None if mask is None else picture(encode_mask(mask)),
        }
        for i, (image, mask) in enumerate(zip(images, masks, strict=True))
    ]
    return pa.Table.from_pylist(rows, SAMPLES)


def faces(images: UInt8Array, masks: UInt8Array) -> pa.Table:
    rows = [
        {"face_id": f"f{i:03}", "split": "test", "image": picture(encode_image(a)), "mask": picture(encode_mask(b))}
        for i, (a, b) in enumerate(zip(images, masks, strict=True))
    ]
    return pa.Table.from_pylist(rows, FACES).select(["face_id", "image", "mask"])


def rows_of(table: pa.Table, metric: str) -> pa.Table:
    return table.filter(pa.array([name == metric for name in table["metric"].to_pylist()]))


def score(config: ScoreConfig, table: pa.Table) -> pa.Table:
    return ScoreWorker(config, run_id="run", threads=1).start(table)()["scores"]


def test_observer_writes_features_of_all_and_counts_where_a_mask_was_wanted(config: ScoreConfig) -> None:
    images, masks = pictures(3)
    observer = Scorer(config, run_id="run", attempt=2)
    table = observer(images, samples(images, [masks[0], None, masks[2]]))
    assert table.schema.equals(SCORES)
    assert rows_of(table, FEATURES)["sample_id"].to_pylist() == ["s000", "s001", "s002"]
    found = rows_of(table, SEGMENTATION)
    assert found["sample_id"].to_pylist() == ["s000", "s002"]
    assert set(table["attempt"].to_pylist()) == {2}
    assert observer.parser is not None
    labels = observer.parser.parse(torch.from_numpy(images[2:])).numpy()[0]
    assert found["vector"].to_pylist()[1] == Counts.of(confusion(masks[2], labels)).vector()
    assert sum(found["vector"].to_pylist()[1][19:38]) == masks[2].size


def test_small_parts_and_faces_have_numbers_of_their_own(config: ScoreConfig) -> None:
    images, masks = pictures(6)
    masks[:] = 0
    masks[:, 4:20, 6:18] = CLASSES.index("skin")
    masks[:, 8:10, 8:10] = CLASSES.index("l_eye")
    masks[:, 15:17, 10:14] = CLASSES.index("u_lip")
    masks[5] = CLASSES.index("hair")  # nobody's face
    real, real_masks = pictures(5, seed=3)
    faced = config.model_copy(update={"face_features": True})
    found = score(faced, samples(images, masks))
    faces_ = rows_of(found, f"{FEATURES}@face")
    assert faces_["sample_id"].to_pylist() == [f"s{i:03}" for i in range(5)]
    cut = torch.from_numpy(images[:1, 4:20, 6:18].copy()).movedim(-1, 1).float()
    large = torch.nn.functional.interpolate(cut, (24, 24), mode="bilinear", antialias=True).round().to(torch.uint8)
    wanted = Scorer(config, run_id="r").features.features(large.movedim(1, -1)).numpy()[0]  # type: ignore[union-attr]
    np.testing.assert_allclose(faces_["vector"].to_pylist()[0], wanted, rtol=1e-5, atol=1e-6)
    sets = {"all": gather_scores([found]), "reference": gather_scores([score(faced, faces(real, real_masks))])}
    values = metrics(sets, {})
    assert values[f"{FD}@face", "all"]["n"] == 5
    assert "bounding box" in values[f"{FD}@face", "all"]["protocol"]
    miou = "miou:raygen-parser"
    each = [
        values["iou:raygen-parser", f"all/{name}"]["value"]
        for name in ("l_eye", "r_eye", "l_brow", "r_brow", "mouth", "u_lip", "l_lip")
        if ("iou:raygen-parser", f"all/{name}") in values
    ]
    assert values[miou, "all/small parts"]["value"] == pytest.approx(np.mean(each))
    assert values[miou, "all"]["value"] != values[miou, "all/small parts"]["value"]


def test_a_measurement_can_be_left_out(config: ScoreConfig) -> None:
    images, masks = pictures(2)
    only = Scorer(config.model_copy(update={"parser": None}), run_id="run")(images, samples(images, masks))
    assert set(only["metric"].to_pylist()) == {FEATURES}
    only = Scorer(config.model_copy(update={"features": None}), run_id="run")(images, samples(images, masks))
    assert set(only["metric"].to_pylist()) == {SEGMENTATION}
    nothing = Scorer(config, run_id="run")(images[:0], samples([], []))
    assert nothing.num_rows == 0


def test_attributes_are_scored_where_they_were_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(1)
    shape = BundledClassifierConfig(image_size=16, channels=(8, 8))
    save_bundled(BundledClassifier(shape), tmp_path, weights="float32", extra={})
    only = ScoreConfig(parser=None, features=None, classifier=BundledNetworkConfig(folder=str(tmp_path)))
    images, masks = pictures(3)
    table = samples(images, masks)
    wanted = [(1,) * 40, None, (*[-1] * 20, *[0] * 20)]
    table = table.set_column(
        table.schema.get_field_index("attributes"), "attributes", pa.array(wanted, SAMPLES.field("attributes").type)
    )
    found = score(only, table)
    assert found["sample_id"].to_pylist() == ["s000", "s002"]
    assert set(found["metric"].to_pylist()) == {"attributes:raygen-attributes"}
    one, other = found["vector"].to_pylist()
    assert set(one) <= {3, 4}
    assert set(other[:20]) <= {1, 2}
    assert set(other[20:]) == {0}
    metrics = aggregate({"all": gather_scores([found])}, run_id="r", reference=None, protocols={}, frechet_name="")
    values = {(r["metric"], r["slice"]): r["value"] for r in metrics.to_pylist()}
    right = [(4 in (a,)) + (1 in (b,)) for a, b in zip(one, other, strict=True)]
    shares = [right[i] / (2 if i < 20 else 1) for i in range(40)]
    assert values["attribute_accuracy:raygen-attributes", "all"] == pytest.approx(np.mean(shares))
    slices = {s.split("/")[1] for _, s in values if "/" in s}
    assert slices <= {*ATTRIBUTES[:20], "captions"}
    said = [values["attribute_balanced:raygen-attributes", f"all/{n}"] for n in (*CAPTIONED, "Male") if n in slices]
    assert values["attribute_balanced:raygen-attributes", "all/captions"] == pytest.approx(np.mean(said))


def test_a_network_of_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="holds a parser"):
        Scorer(ScoreConfig(parser=None, features=None, classifier=BundledNetworkConfig(folder=str(folder))), run_id="r")


def test_a_mask_of_another_size_is_repeated_and_never_mixed(config: ScoreConfig) -> None:
    images, _ = pictures(1, side=24)
    small = np.arange(9, dtype=np.uint8).reshape(3, 3) * 2
    large = np.kron(small, np.ones((8, 8), dtype=np.uint8))
    observe = Scorer(config, run_id="run")
    one, other = observe(images, samples(images, [small])), observe(images, samples(images, [large]))
    assert rows_of(one, SEGMENTATION).equals(rows_of(other, SEGMENTATION))


def test_worker_scores_samples_and_skips_rows_without_a_picture(config: ScoreConfig) -> None:
    images, masks = pictures(4)
    table = samples([images[0], None, *images[2:]], masks)
    found = score(config, table)
    assert sorted(set(found["sample_id"].to_pylist())) == ["s000", "s002", "s003"]
    assert found.num_rows == 6
    assert score(config, samples([None], [masks[0]])).num_rows == 0


def test_worker_scores_faces_of_several_sizes_as_one_by_one(config: ScoreConfig) -> None:
    (small, small_masks), (large, large_masks) = pictures(2, 16), pictures(2, 32, seed=1)
    mixed = pa.concat_tables([faces(small, small_masks), faces(large, large_masks).slice(1)])
    mixed = mixed.set_column(0, mixed.schema.field("face_id"), pa.array(["a", "b", "c"]))
    whole = gather_scores([score(config, mixed)])
    single = gather_scores([score(config, mixed.slice(i, 1)) for i in (2, 0, 1)])
    assert whole[FEATURES].ids == single[FEATURES].ids == ("a", "b", "c")
    np.testing.assert_array_equal(whole[SEGMENTATION].vectors, single[SEGMENTATION].vectors)
    np.testing.assert_allclose(whole[FEATURES].vectors, single[FEATURES].vectors, atol=1e-5)


def test_worker_measures_what_comes_through(config: ScoreConfig) -> None:
    images, masks = pictures(2)
    through = ScoreWorker(config, run_id="run", threads=1, through=lambda batch: np.zeros_like(batch))
    found = gather_scores([through.start(faces(images, masks))()["scores"]])
    black = gather_scores([score(config, faces(np.zeros_like(images), masks))])
    np.testing.assert_array_equal(found[FEATURES].vectors, black[FEATURES].vectors)


def test_a_damaged_picture_is_an_error(config: ScoreConfig) -> None:
    images, masks = pictures(1)
    table = samples(images, masks)
    broken = pa.array([picture(b"\x89PNG damaged")], table.schema.field("image").type)
    with pytest.raises(InputError):
        score(config, table.set_column(2, table.schema.field("image"), broken))


def test_gather_sorts_by_id_and_refuses_a_row_that_is_there_twice(config: ScoreConfig) -> None:
    images, masks = pictures(6)
    shards = [score(config, samples(images[i : i + 2], masks[i : i + 2], first=i)) for i in (0, 2, 4)]
    one, other = gather_scores(shards), gather_scores(shards[::-1])
    assert one.keys() == other.keys() == {FEATURES, SEGMENTATION}
    for name in one:
        assert one[name].ids == other[name].ids == tuple(sorted(one[name].ids))
        assert one[name].vectors.tobytes() == other[name].vectors.tobytes()
    assert gather_scores([]) == {}
    with pytest.raises(InputError) as caught:
        gather_scores([*shards, shards[0]])
    assert caught.value.reason == "duplicate"


@pytest.fixture(scope="module")
def sets(config: ScoreConfig) -> dict[str, dict[str, ScoreMatrix]]:
    images, masks = pictures(5)
    real, real_masks = pictures(4, seed=1)
    return {
        "all": gather_scores([score(config, samples(images, masks))]),
        "reference": gather_scores([score(config, faces(real, real_masks))]),
        "roundtrip": gather_scores([score(config, faces(real // 2, real_masks))]),
    }


def metrics(
    sets: Mapping[str, Mapping[str, ScoreMatrix]], protocols: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str], dict[str, Any]]:
    table = aggregate(sets, run_id="run", reference="ref", protocols=protocols, frechet_name=FD)
    assert table.schema.equals(METRICS)
    rows: list[dict[str, Any]] = table.to_pylist()
    assert len({(row["metric"], row["slice"]) for row in rows}) == len(rows)
    return {(row["metric"], row["slice"]): row for row in rows}


def test_every_set_is_measured_and_says_how(
    sets: dict[str, dict[str, ScoreMatrix]], config: ScoreConfig, folder: Path
) -> None:
    found = metrics(sets, Scorer(config, run_id="run").protocols())
    assert {slice_ for metric, slice_ in found if metric == FD} == {"all", "roundtrip"}
    assert {slice_ for metric, slice_ in found if metric == "miou:raygen-parser"} == {
        f"{name}{part}" for name in ("all", "reference", "roundtrip") for part in ("", "/small parts")
    }
    assert {slice_ for metric, slice_ in found if metric.startswith("iou:")} >= {"all/skin", "reference/hair"}
    assert {metric.partition(":")[0] for metric, _ in found} == {
        "fd",
        "miou",
        "iou",
        "pixel_accuracy",
        "class_accuracy",
        "frequency_iou",
    }
    assert {family(metric) for metric, _ in found} < REGISTRY.keys()
    for (metric, slice_), row in found.items():
        protocol = json.loads(row["protocol"])
        assert protocol["network"] == "raygen-parser", (metric, slice_)
        assert protocol["sha256"] == bundled_digest(folder)
        assert row["reference"] == "ref"
        assert row["n"] == (5 if slice_.startswith("all") else 4)
    distance = found[FD, "all"]
    truth = frechet_of_features(sets["all"][FEATURES].vectors, sets["reference"][FEATURES].vectors).value
    assert distance["value"] == truth
    assert json.loads(distance["protocol"])["low_n"] is True
    assert json.loads(distance["protocol"])["n_reference"] == 4
    assert distance["ci_low"] is None
    assert found["miou:raygen-parser", "all"]["ci_low"] <= found["miou:raygen-parser", "all"]["value"]


def test_nothing_depends_on_the_order_of_shards(config: ScoreConfig) -> None:
    images, masks = pictures(6)
    real = gather_scores([score(config, faces(*pictures(6, seed=2)))])
    shards = [score(config, samples(images[i : i + 3], masks[i : i + 3], first=i)) for i in (0, 3)]
    values = [
        {k: (row["value"], row["ci_low"], row["protocol"]) for k, row in metrics(s, {}).items()}
        for s in ({"all": gather_scores(order), "reference": real} for order in (shards, shards[::-1]))
    ]
    assert values[0] == values[1]


def test_without_a_reference_there_is_no_distance(sets: dict[str, dict[str, ScoreMatrix]]) -> None:
    found = metrics({"all": sets["all"]}, {})
    assert ("miou:raygen-parser", "all") in found
    assert not any(metric == FD for metric, _ in found)


def test_one_picture_has_no_distance(sets: dict[str, dict[str, ScoreMatrix]]) -> None:
    whole = sets["all"][FEATURES]
    one = {FEATURES: ScoreMatrix(whole.ids[:1], whole.vectors[:1])}
    assert metrics({"all": one, "reference": sets["reference"]}, {}).keys().isdisjoint({(FD, "all")})


def test_a_large_set_has_an_interval_and_loses_its_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)

    def scored(n: int) -> dict[str, ScoreMatrix]:
        vectors = random.normal(size=(n, 4)).astype(np.float32)
        return {FEATURES: ScoreMatrix(tuple(f"{i:04}" for i in range(n)), vectors)}

    monkeypatch.setitem(REGISTRY, "fd", replace(REGISTRY["fd"], min_n=100))
    row = metrics({"all": scored(200), "reference": scored(150)}, {})[FD, "all"]
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert json.loads(row["protocol"])["low_n"] is False
    row = metrics({"all": scored(200), "reference": scored(50)}, {})[FD, "all"]
    assert json.loads(row["protocol"])["low_n"] is True


def test_protocols_of_bundled_networks_are_those_of_the_loaded_ones(folder, tmp_path) -> None:
    """They are read from the folders, because loading the networks takes longer than the metrics."""
    own = BundledNetworkConfig(folder=str(folder))
    for config in (ScoreConfig(), ScoreConfig(parser=own, features=own), ScoreConfig(features=None, classifier=None)):
        protocols, features = protocols_of(config)
        scorer = Scorer(config, run_id="")
        assert protocols == scorer.protocols()
        loaded = scorer.features
        assert (features and (features.name, features.metric)) == (loaded and (loaded.name, loaded.metric))
    with pytest.raises(ConfigError, match="no trained network"):
        protocols_of(ScoreConfig(parser=BundledNetworkConfig(folder=str(tmp_path / "nothing"))))
