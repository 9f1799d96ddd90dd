"""What only two pictures together say: change against a baseline, leakage, diversity of a group."""

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torchvision

from raygen.commands.registry import make
from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import CLASS_INDEX
from raygen.evaluation.config import PairwiseConfig
from raygen.evaluation.pairwise import PairwiseWorker, protocols
from raygen.extractors.config import LPIPSConfig
from raygen.metrics.image_similarity import ssim
from raygen.metrics.leakage import bootstrap_leakage, change, group_distances, mean_change, region
from raygen.metrics.pair_similarity import Similarity
from raygen.models import checkpoint
from raygen.store.images import decode_image, decode_mask
from raygen.store.lookup import StoredRows
from raygen.store.run_store import open_input
from tests.models.test_scadm import make as model

HAIR = CLASS_INDEX["hair"]


def run(root: Path, kind: str, name: str, what: dict[str, object]) -> None:
    make({"kind": kind, **what, "out": str(root / name)}).run(lambda _: None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two experiments with the same rows, and three a mask."""
    root = tmp_path_factory.mktemp("relations")
    checkpoint.save(model(), root / "model")
    run(root, "ingest", "faces", {"data": {"kind": "procedural", "identities": 5, "pictures": 1, "size": 32}})
    for name, planning in {
        "reconstruction": {},
        "partial": {"parts": ["hair"]},
        "noise": {"per_face": 3},
    }.items():
        planning = {"kind": "styles", "experiment": name, **planning}
        run(root, "plan", f"{name}/conditions", {"faces": str(root / "faces"), "planning": planning})
        run(
            root,
            "generate",
            f"{name}/samples",
            {
                "conditions": str(root / f"{name}/conditions"),
                "checkpoint": str(root / "model"),
                "ignore": ["attributes"],
                "batch": 4,
                "shard_rows": 4,
                "references": str(root / "faces"),
                "sampler": {"name": "ddim", "steps": 3},
            },
        )
    return root


def rows(root: Path, name: str) -> list[dict]:
    return pa.concat_tables(open_input(str(root / f"{name}/samples"))[0].tables("samples")).to_pylist()


def images(root: Path, name: str) -> np.ndarray:
    return np.stack([decode_image(row["image"]["bytes"]) for row in rows(root, name)])


def metrics(root: Path, name: str) -> dict[tuple[str, str], dict]:
    found = json.loads((root / name / "metrics/metrics.json").read_text())
    return {(row["metric"], row["slice"]): row for row in found}


NOTHING = {"parser": None, "features": None, "classifier": None}


def test_leakage_is_change_outside_over_change_inside(world: Path) -> None:
    """Against the definition, written out over all pixels; and pictures of the baseline against themselves."""
    base = str(world / "reconstruction/samples")
    for margin in (0, 2):
        run(
            world,
            "evaluate",
            f"leak-{margin}",
            {
                "samples": str(world / "partial/samples"),
                "score": NOTHING,
                "batch": 2,
                "shard_rows": 2,
                "pairwise": {"baseline": base, "margin": margin},
            },
        )
        found = metrics(world, f"leak-{margin}")
        masks = np.stack([decode_mask(row["mask"]["bytes"]) for row in rows(world, "partial")])
        difference = np.abs(images(world, "partial").astype(float) - images(world, "reconstruction")).mean(axis=-1)
        here = masks == HAIR
        outside = ~here
        if margin:
            grown = np.stack([region(mask, (HAIR,), margin) for mask in masks])
            here, outside = grown[:, 0], grown[:, 1]
            assert here.sum() < (masks == HAIR).sum()
            assert (here | outside).sum() < masks.size
        inside, outside = difference[here].mean() / 255, difference[outside].mean() / 255
        assert found["change", "all/inside"]["value"] == pytest.approx(inside, rel=1e-5)
        assert found["change", "all/outside"]["value"] == pytest.approx(outside, rel=1e-5)
        leak = found["leakage", "all"]
        assert leak["value"] == pytest.approx(outside / inside, rel=1e-5)
        assert leak["ci_low"] <= leak["value"] <= leak["ci_high"]
        assert json.loads(json.dumps(leak["protocol"]))["margin"] == margin
    run(world, "evaluate", "same", {"samples": base, "score": NOTHING, "pairwise": {"baseline": base}})
    same = metrics(world, "same")
    assert same["change", "all/inside"]["value"] == 0
    assert ("leakage", "all") not in same, "nothing lies outside of all parts"


def test_diversity_is_the_mean_over_groups_of_the_mean_over_pairs(world: Path) -> None:
    """Groups of three lie across shards of two rows here."""
    what = {"samples": str(world / "noise/samples"), "score": NOTHING, "pairwise": {"diversity": True}}
    run(world, "evaluate", "diverse", {**what, "batch": 2, "shard_rows": 2})
    found = metrics(world, "diverse")["diversity:ssim", "all"]
    made = images(world, "noise").reshape(5, 3, 32, 32, 3)
    pairs = [(group[i], group[j]) for group in made for i, j in itertools.combinations(range(3), 2)]
    one, other = (np.stack(side) for side in zip(*pairs, strict=True))
    said = found["protocol"]
    assert (found["n"], said["groups"], said["pairs"], said["pictures_a_group"]) == (5, 5, len(pairs), "3")
    assert said["window"].startswith("gaussian 11")
    assert found["ci_low"] < found["value"] < found["ci_high"]
    assert found["value"] == pytest.approx(float((1 - ssim(one, other)).mean()), rel=1e-5)
    assert found["value"] > 0
    assert said["distance"] == "1 - ssim"


def test_a_large_group_counts_as_much_as_a_small_one() -> None:
    """Two pairs of which one row tells, and one pair; groups lie in any order."""
    found = group_distances(np.array([[0.2, 1], [9.0, 1], [0.4, 2]]), ["a", "b", "a"])
    assert found.means.tolist() == pytest.approx([0.2, 9.0])
    assert (found.pairs, found.pictures) == (4, "2 to 3")


def test_diversity_names_its_network(alex: LPIPSConfig) -> None:
    said = protocols(PairwiseConfig(diversity=True, lpips=alex))["diversity:lpips-alex"]
    assert (said["network"], said["sha256"], said["version"]) == ("alex", alex.sha256, "0.1")


@pytest.fixture(scope="module")
def alex(tmp_path_factory: pytest.TempPathFactory) -> LPIPSConfig:
    """LPIPS over an AlexNet with random weights."""
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in torchvision.models.alexnet().state_dict().items() if "features" in n}
    generator = torch.Generator().manual_seed(1)
    state = {n: torch.randn(s, generator=generator) * (2 / max(1, s[1:].numel())) ** 0.5 for n, s in shapes.items()}
    path = tmp_path_factory.mktemp("alex") / "alex.pth"
    torch.save(state, path)
    return LPIPSConfig(network="alex", weights=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def pairs_by_themselves(likeness: Similarity, made: np.ndarray, per_group: int) -> list[float]:
    """Of each row that has one before it in its group: the sum of its distances, each pair measured alone."""
    found = []
    for start in range(0, len(made), per_group):
        group = made[start : start + per_group]
        for i in range(1, per_group):
            found.append(sum(float(1 - likeness(group[i : i + 1], group[j : j + 1])[0]) for j in range(i)))
    return found


@pytest.mark.parametrize("network", ["ssim", "lpips-alex"])
@pytest.mark.parametrize("cut", [(15,), (1,) * 15, (2, 5, 4, 4)])
def test_each_pair_is_measured_once_however_rows_are_cut(
    world: Path, alex: LPIPSConfig, network: str, cut: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in an order that mixes the groups, in batches of several sizes."""
    table = pa.concat_tables(open_input(str(world / "noise/samples"))[0].tables("samples"))
    names = table["sample_id"].to_pylist()
    order = [*range(0, 15, 2), *range(1, 15, 2)]
    config = PairwiseConfig(diversity=True, lpips=alex if network == "lpips-alex" else None)
    worker = PairwiseWorker(config, str(world / "noise/samples"), run_id="r", threads=1)
    assert worker.similarity is not None
    truth = pairs_by_themselves(worker.similarity, images(world, "noise"), 3)
    monkeypatch.setattr("raygen.metrics.pair_similarity.CHUNK", 2)  # pictures outside of the batch come in parts
    found, start = [], 0
    for size in cut:
        batch = table.take(order[start : start + size])
        scores = worker.start(batch)()["scores"].to_pylist()
        came = [name for name in batch["sample_id"].to_pylist() if names.index(name) % 3]
        assert [row["sample_id"] for row in scores] == came
        found += scores
        start += size
    vectors = {row["sample_id"]: row["vector"] for row in found}
    assert {row["metric"] for row in found} == {f"diversity:{network}"}
    expected = dict(zip([name for i, name in enumerate(names) if i % 3], truth, strict=True))
    assert {name: vector[1] for name, vector in vectors.items()} == {n: float(names.index(n) % 3) for n in expected}
    assert {name: vector[0] for name, vector in vectors.items()} == pytest.approx(expected, abs=1e-6)
    assert min(expected.values()) > 1e-4


def test_a_picture_passes_the_network_once_a_batch(world: Path, alex: LPIPSConfig) -> None:
    table = pa.concat_tables(open_input(str(world / "noise/samples"))[0].tables("samples"))
    config = PairwiseConfig(diversity=True, lpips=alex)
    worker = PairwiseWorker(config, str(world / "noise/samples"), run_id="r", threads=1)
    assert worker.similarity is not None
    passed = []
    network = worker.similarity._lpips.network.net.slice1
    network.register_forward_pre_hook(lambda _, given: passed.append(len(given[0])))
    worker.start(table)
    assert sum(passed) == 15
    worker.start(table.slice(2, 1))
    assert sum(passed) == 18, "the last of a group, and the two before it that lie elsewhere"


def test_a_row_that_the_baseline_lacks_is_named(world: Path) -> None:
    config = PairwiseConfig(baseline=str(world / "noise/samples"))
    worker = PairwiseWorker(config, str(world / "partial/samples"), run_id="r", threads=1)
    table = pa.concat_tables(open_input(str(world / "partial/samples"))[0].tables("samples"))
    rest = table.set_column(0, "sample_id", pa.array([f"other{i}" for i in range(table.num_rows)]))
    with pytest.raises(InputError, match="has no sample 'other0'"):
        worker.start(rest)
    with pytest.raises(ConfigError, match="name a `baseline`"):
        make({"kind": "evaluate", "samples": "x", "pairwise": {}, "out": "y"})


def test_rows_without_a_picture_have_no_partner(world: Path) -> None:
    table = pa.concat_tables(open_input(str(world / "noise/samples"))[0].tables("samples"))
    broken = table.to_pylist()
    broken[0]["image"] = None
    worker = PairwiseWorker(PairwiseConfig(diversity=True), str(world / "noise/samples"), run_id="r", threads=1)
    found = worker.start(pa.Table.from_pylist(broken, table.schema))()["scores"].to_pylist()
    assert broken[0]["sample_id"] not in {row["sample_id"] for row in found}


def test_nothing_outside_and_nothing_changed() -> None:
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    everywhere = np.ones((8, 8), bool)
    whole = np.array([change(black, white, everywhere, ~everywhere)])
    assert mean_change(whole).inside == 1
    assert np.isnan(mean_change(whole).outside)
    assert bootstrap_leakage(whole) == (None, None)
    still = np.array([change(black, black, everywhere, everywhere)])
    assert np.isnan(mean_change(still).leakage)


def test_rows_are_found_by_their_id_in_any_order(world: Path) -> None:
    """Fifteen rows over four files; neighbours are read at once."""
    stored = StoredRows(str(world / "noise/samples"), ("image",), table="samples")
    expected = {row["sample_id"]: row["image"] for row in rows(world, "noise")}
    for wanted in (list(expected), list(expected)[::-2], list(expected)[3:9:5], [*list(expected)[:2]] * 2, []):
        found = stored(wanted)
        assert list(found) == list(dict.fromkeys(wanted))
        assert all(found[name] == {"sample_id": name, "image": expected[name]} for name in wanted)
    with pytest.raises(InputError, match="has no sample 'nobody'"):
        stored([*expected, "nobody"])
