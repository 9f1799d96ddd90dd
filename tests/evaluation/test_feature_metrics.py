"""KID, precision and recall, slices and memorisation as an evaluation gives them."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics
from torch_fidelity.utils import cache_lookup_one_recompute_on_miss

from raygen.commands.registry import make
from raygen.core.errors import ConfigError, InputError
from raygen.evaluation.aggregate import MetricRows, aggregate, features_of, gather_scores
from raygen.evaluation.config import FeatureMetricsConfig
from raygen.evaluation.external_stats import statistics_in
from raygen.evaluation.feature_metrics import Grouping, ReferenceCache, add_frechet, add_memorization
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.evaluation.slices import select_ids, slice_rows
from raygen.metrics.attributes import codes
from raygen.metrics.frechet import FactoredReference, Moments
from raygen.metrics.frechet_stats import frechet_infinity
from raygen.metrics.kid import kid
from raygen.metrics.prdc import prdc
from raygen.report.build import build_report
from raygen.store.run_store import open_input
from tests.fakes import rewrite

NAME = "features:raygen-parser"


def features(n: int, seed: int, shift: float = 0.0, width: int = 6) -> ScoreMatrix:
    vectors = np.random.default_rng(seed).normal(shift, 1, (n, width)).astype(np.float32)
    return ScoreMatrix(tuple(f"r{i:04}" for i in range(n)), vectors)


def table(made: ScoreMatrix, real: ScoreMatrix, **config: object) -> dict[str, dict]:
    found = aggregate(
        {"all": {NAME: made}, "reference": {NAME: real}},
        run_id="r",
        reference="x",
        protocols={"raygen-parser": {"a": 1}},
        frechet_name="fd:raygen-parser",
        compare=FeatureMetricsConfig(**config),
    )
    return {row["metric"]: row for row in found.to_pylist()}


def test_numbers_are_those_of_the_metrics_and_say_their_protocol() -> None:
    made, real = features(300, 1, 0.3), features(200, 2)
    rows = table(made, real, fid_infinity=True)
    assert set(rows) == {
        f"{m}:raygen-parser" for m in ("fd", "kid", "precision", "recall", "density", "coverage", "fd_infinity")
    }
    whole = kid(made.vectors, real.vectors)
    assert rows["kid:raygen-parser"]["value"] == whole.value
    assert (rows["kid:raygen-parser"]["ci_low"], rows["kid:raygen-parser"]["ci_high"]) == (whole.low, whole.high)
    assert rows["recall:raygen-parser"]["value"] == prdc(real.vectors, made.vectors).recall
    protocol = json.loads(rows["coverage:raygen-parser"]["protocol"])
    assert (protocol["k"], protocol["n_reference"], protocol["a"]) == (5, 200, 1)
    limit = frechet_infinity(made.vectors, FactoredReference.of(Moments.of(real.vectors)))
    assert rows["fd_infinity:raygen-parser"]["value"] == limit.value


def test_an_interval_takes_rows_of_one_person_together() -> None:
    """Copies of a row are no new rows: taken by themselves they make the interval too narrow."""
    one = features(100, 3)
    ids = tuple(f"{name}-{i}" for name in one.ids for i in range(4))
    made, real = ScoreMatrix(ids, np.repeat(one.vectors, 4, axis=0)), features(300, 2)
    found = {}
    for name, kin in {"rows": Grouping(), "people": Grouping(people={one: one[:5] for one in ids})}.items():
        (row,) = aggregate(
            {"all": {NAME: made}, "reference": {NAME: real}},
            run_id="r",
            reference="x",
            protocols={},
            frechet_name="fd",
            grouping=kin,
        ).to_pylist()
        found[name] = row["ci_high"] - row["ci_low"]
        assert ("kin" in row["protocol"]) == (name == "people")
    assert found["people"] > 1.5 * found["rows"]
    few = Grouping(people={one: one[-1] for one in ids})
    rows = MetricRows("r", "x")
    add_frechet(rows.add, "all", "fd", features_of(made), FactoredReference.of_features(real.vectors), {}, few)
    assert "(rows by a hash" in rows.rows[0]["protocol"], "four people are too few for blocks of people"


def test_blocks_do_not_follow_ids() -> None:
    """Ids that follow content: blocks of neighbours would differ by content, and the interval would hold that."""
    made = features(400, 1)
    sorted_ = ScoreMatrix(made.ids, made.vectors[np.argsort(made.vectors[:, 0])])
    widths = []
    for one in (made, sorted_):
        rows = MetricRows("r", "x")
        add_frechet(
            rows.add, "all", "fd", features_of(one), FactoredReference.of_features(features(300, 2).vectors), {}
        )
        widths.append(rows.rows[0]["ci_high"] - rows.rows[0]["ci_low"])
    assert widths[0] == pytest.approx(widths[1], rel=0.3)


def test_a_reference_is_factored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the distance, its interval and its limit, and for all cells that are compared with it."""
    calls = []
    whole = FactoredReference.of_features
    monkeypatch.setattr(FactoredReference, "of_features", lambda x: calls.append(len(x)) or whole(x))
    real, prepared = features(200, 2), ReferenceCache()
    finish = partial(
        aggregate,
        run_id="r",
        reference="x",
        protocols={},
        frechet_name="fd",
        compare=FeatureMetricsConfig(fid_infinity=True),
        cache=prepared,
    )
    for seed in (1, 3):
        finish({"all": {NAME: features(100, seed)}, "reference": {NAME: real}})
    assert calls == [200]
    finish({"all": {NAME: features(100, 1)}, "reference": {NAME: features(201, 4)}})
    assert calls == [200, 201], "another reference under the same name"


def test_too_few_rows_leave_a_number_out_and_flag_the_others() -> None:
    rows = table(features(4, 1), features(9, 2), fid_infinity=True, kid_subsets=True)
    assert set(rows) == {"fd:raygen-parser", "kid:raygen-parser"}
    protocol = json.loads(rows["fd:raygen-parser"]["protocol"])
    assert protocol["fewer_rows_than_values"]
    assert set(protocol["left_out"]) == {"precision", "infinity", "kid_subsets"}, "asked for, and why it is not there"
    assert protocol["low_n"]


def test_features_that_are_not_finite_are_named(tmp_path: Path) -> None:
    import pyarrow as pa

    from raygen.store.schemas import SCORES

    vectors = [[1.0, float("nan") if i == 3 else 2.0] for i in range(5)]
    rows = [
        {"sample_id": f"r{i}", "attempt": 0, "metric": NAME, "run_id": "x", "vector": vector}
        for i, vector in enumerate(vectors)
    ]
    with pytest.raises(InputError, match=r"not finite for 1 rows, first r3"):
        gather_scores([pa.Table.from_pylist(rows, SCORES)])


def test_parts_are_by_what_was_asked_for() -> None:
    random = np.random.default_rng(0)
    wanted = random.integers(-1, 2, (40, 40)).astype(np.int8)
    found = random.integers(0, 2, (40, 40)).astype(bool)
    ids = tuple(f"r{i:02}" for i in range(40))
    scores = {"attributes:x": ScoreMatrix(ids, codes(wanted, found).astype(np.float32))}
    parts = dict(slice_rows(["Male"], scores, {}))
    male = 20
    assert parts["Male: yes"] == {ids[i] for i in range(40) if wanted[i, male] == 1}
    assert parts["Male: no"] == {ids[i] for i in range(40) if wanted[i, male] == -1}
    counts = np.zeros((40, 3, 19), np.float32)
    counts[:10, 1, 14] = 5  # a hat was wanted
    counts[5:30, 2, 14] = 5  # and one was seen elsewhere
    hats = dict(slice_rows(["hat"], {"segmentation:x": ScoreMatrix(ids, counts.reshape(40, -1))}, {}))
    assert hats["hat: there"] == set(ids[:10])
    assert hats["hat: not there"] == set(ids[10:])
    people = dict(slice_rows(["identity"], scores, {"r00": "a", "r01": "b", "r02": "a"}))
    assert people == {"identity: a": {"r00", "r02"}, "identity: b": {"r01"}}
    assert select_ids(scores, parts["Male: yes"])["attributes:x"].ids == tuple(sorted(parts["Male: yes"]))


# --- whole evaluations --------------------------------------------------------------------------------------


def quiet(_: object) -> None:
    pass


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training faces, held-out faces, and samples of the bundled model."""
    root = tmp_path_factory.mktemp("comparing")
    for name, seed, people in (("training", 3, 24), ("held", 4, 120)):
        data = {"kind": "procedural", "identities": people, "pictures": 1, "size": 64, "seed": seed}
        make({"kind": "ingest", "data": data, "out": f"{root}/{name}"}).run(quiet)
    rows = {
        "kind": "plan",
        "faces": f"{root}/training",
        "planning": {"kind": "from_faces"},
        "out": f"{root}/rows",
    }
    make(rows).run(quiet)
    what = {"conditions": f"{root}/rows", "checkpoint": "bundled", "sampler": {"name": "ddim", "steps": 2}, "batch": 8}
    make({"kind": "generate", **what, "out": f"{root}/samples"}).run(quiet)
    return root


def evaluation(root: Path, out: str, **what: object) -> list[dict]:
    make({"kind": "evaluate", **what, "out": f"{root}/{out}"}).run(quiet)
    return json.loads((root / out / "metrics/metrics.json").read_text())


def test_a_model_that_hands_out_its_training_faces_is_found_out() -> None:
    training, held = features(300, 1), features(300, 2)
    honest = features(200, 3)
    copied = ScoreMatrix(honest.ids, training.vectors[:200] + 1e-3 * honest.vectors)
    found = {}
    for name, made in (("honest", honest), ("copied", copied)):
        rows = MetricRows("r", "x")
        pairs, _ = add_memorization(
            rows.add, "all", ":x", features_of(made), features_of(training), features_of(held), {}, 0.05
        )
        found[name] = {row["metric"]: row for row in rows.rows}
        if name == "copied":
            assert all(pair["sample_id"] == pair["face_id"] for pair in pairs), "copies lie next to their originals"
    assert found["copied"]["memorized:x"]["value"] == 1
    assert found["copied"]["training_distance:x"]["value"] < 0.01
    assert found["honest"]["memorized:x"]["ci_low"] <= 0.05 <= found["honest"]["memorized:x"]["ci_high"]
    few = features_of(features(5, 4))
    with pytest.raises(InputError, match="memorisation"):
        add_memorization(rows.add, "all", ":x", features_of(honest), features_of(training), few, {}, 0.05)


def test_an_evaluation_says_how_near_samples_are_to_training(world: Path) -> None:
    training = {"faces": f"{world}/training", "split": None}
    rows = evaluation(
        world,
        "copied",
        samples=f"{world}/samples",
        reference=f"{world}/held",
        memorization=training,
        score={"parser": None, "classifier": None},
    )
    own = {row["metric"]: row for row in rows}
    closest = json.loads((world / "copied/metrics/closest.json").read_text())
    assert closest
    assert {"sample_id", "face_id", "distance", "ratio"} == set(closest[0])
    twins = json.loads((world / "copied/metrics/duplicates.json").read_text())
    assert [pair["distance"] for pair in twins] == sorted(pair["distance"] for pair in twins)
    assert len({frozenset((pair["sample_id"], pair["other_id"])) for pair in twins}) == len(twins) > 1
    share = own["memorized:raygen-parser"]
    assert share["ci_low"] <= share["value"] <= share["ci_high"]
    assert (share["protocol"]["n_training"], share["protocol"]["n_held_out"]) == (24, 120)


def test_the_report_shows_the_closest_pairs_as_pictures(world: Path, tmp_path: Path) -> None:
    training = {"faces": f"{world}/training", "split": None}
    evaluation(
        world,
        "shown",
        samples=f"{world}/samples",
        reference=f"{world}/held",
        memorization=training,
        score={"parser": None, "classifier": None},
    )
    folder = world / "shown/metrics"
    page = Path(build_report(f"{world}/shown", f"{tmp_path}/page.html")).read_text()
    section = page[page.index('id="nearest-pairs"') : page.index("</section>", page.index('id="nearest-pairs"'))]
    pairs, twins = (json.loads((folder / name).read_text())[:12] for name in ("closest.json", "duplicates.json"))
    assert section.count('class="couple') - section.count('class="couples') == len(pairs) + len(twins) > 12
    faces = [f'alt="Training face {pair["face_id"]}"' for pair in pairs]
    assert all(alt in section for alt in faces)
    assert section.count('src="data:image/webp') == 2 * (len(pairs) + len(twins)), "both of each pair"
    found = {
        row["metric"]: row["protocol"]["threshold"]
        for row in json.loads((folder / "metrics.json").read_text())
        if row["metric"].startswith(("memorized", "duplicates"))
    }
    near = sum(pair["distance"] < found["memorized:raygen-parser"] for pair in pairs)
    near_twins = sum(pair["distance"] < found["duplicates:raygen-parser"] for pair in twins)
    assert section.count('class="couple near"') == near + near_twins
    for threshold in found.values():
        assert f"Below {threshold:.4g}" in section
    (folder / "pictures.json").unlink()  # then what the passes read is where the pictures are
    assert "<div>no image</div>" not in Path(build_report(f"{world}/shown", f"{tmp_path}/read.html")).read_text()
    (folder / "pictures.json").write_text(json.dumps({"samples": f"{world}/samples", "training": f"{world}/moved"}))
    store = world / "shown/scores/training/attempt-00"
    files = json.loads((store / "plan.json").read_text())["files"]
    rewrite(store / "plan.json", files=[name.replace("/training/", "/moved/") for name in files])
    bare = Path(build_report(f"{world}/shown", f"{tmp_path}/bare.html")).read_text()
    assert bare.count("<div>no image</div>") == len(pairs), "faces that were moved are left out, their pairs are not"
    again = Path(build_report(f"{world}/shown", f"{tmp_path}/given.html", faces=f"{world}/training")).read_text()
    assert "<div>no image</div>" not in again


def test_slices_give_every_number_again(world: Path) -> None:
    rows = evaluation(
        world,
        "sliced",
        samples=f"{world}/samples",
        reference=f"{world}/held",
        slices=["Male", "eye_g", "identity"],
    )
    n = {row["slice"]: row["n"] for row in rows if row["metric"] == "miou:raygen-parser"}
    assert n["all"] == n["Male: yes"] + n["Male: no"] == n["eye_g: there"] + n["eye_g: not there"] == 24
    assert sum(name.startswith("identity: ") and "/" not in name for name in n) == 24
    distances = {row["slice"]: row for row in rows if row["metric"] == "fd:raygen-parser"}
    assert set(distances) >= {"all", "Male: yes", "Male: no"}
    assert distances["Male: yes"]["protocol"]["n_reference"] < 120
    names = [(row["metric"], row["slice"]) for row in rows]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"slices": ["Mael"]}, "did you mean 'Male'"),
        ({"slices": ["hatt"]}, "did you mean 'hat'"),
        ({"memorization": {"faces": "x"}, "reference": None}, "a `reference` of held-out faces"),
    ],
)
def test_what_cannot_be_compared_is_said_first(tmp_path: Path, what: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make({"kind": "evaluate", "samples": "s", "reference": "f", **what, "out": str(tmp_path)})


def test_the_training_set_holds_out_its_other_splits(world: Path) -> None:
    with pytest.raises(ConfigError, match=r"all of .*training was trained on"):
        evaluation(
            world,
            "none-left",
            samples=f"{world}/samples",
            reference=f"{world}/training",
            memorization={"faces": f"{world}/training", "split": None},
            score={"parser": None, "classifier": None},
        )
    with pytest.raises(ConfigError, match="no rows of split 'trane'"):
        evaluation(
            world,
            "no-split",
            samples=f"{world}/samples",
            reference=f"{world}/held",
            memorization={"faces": f"{world}/training", "split": "trane"},
            score={"parser": None, "classifier": None},
        )


def test_statistics_of_another_tool_are_a_reference(world: Path, tmp_path: Path) -> None:
    score = {"parser": None, "classifier": None}
    direct = evaluation(world, "direct", samples=f"{world}/samples", reference=f"{world}/held", score=score)
    store, _ = open_input(f"{world}/direct/scores/reference")
    real = gather_scores(store.tables("scores"))[NAME].vectors.astype(np.float64)
    np.savez(tmp_path / "held.npz", mu=real.mean(axis=0), sigma=np.cov(real, rowvar=False))
    rows = evaluation(
        world, "beside", samples=f"{world}/samples", score=score, reference_stats=str(tmp_path / "held.npz")
    )
    (row,) = [row for row in rows if row["slice"] == "all/statistics"]
    whole = next(row for row in direct if row["metric"] == "fd:raygen-parser")
    assert row["metric"] == "fd:raygen-parser"
    assert row["value"] == pytest.approx(whole["value"], rel=1e-6), "fewer rows than values: not from moments"
    said = row["protocol"]
    assert (said["n_reference"], said["low_n"], said["fewer_rows_than_values"]) == ("unknown", True, True)
    assert "reference is held fixed" in said["interval"]
    assert row["ci_high"] - row["ci_low"] == pytest.approx(whole["ci_high"] - whole["ci_low"], rel=1e-4)
    np.savez(tmp_path / "narrow.npz", mu=np.zeros(3), sigma=np.eye(3))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (
            {"mu": np.zeros(3), "sigma": np.eye(3)},
            r"narrow\.npz has statistics of 3 values; raygen-parser .* computes 192\.",
        ),
        ({"mu": np.zeros(3)}, "has no sigma"),
    ],
)
@pytest.mark.parametrize("way", ["run", "estimate"])
def test_statistics_that_do_not_fit_are_refused_before_anything_is_scored(
    world: Path, tmp_path: Path, arrays: dict[str, np.ndarray], reason: str, way: str
) -> None:
    np.savez(tmp_path / "narrow.npz", **arrays)
    job = make(
        {
            "kind": "evaluate",
            "samples": f"{world}/samples",
            "score": {"parser": None, "classifier": None},
            "reference_stats": str(tmp_path / "narrow.npz"),
            "out": str(tmp_path / "out"),
        }
    )
    with pytest.raises(ConfigError, match=reason):
        job.run(lambda _: None) if way == "run" else job.estimate()
    assert not (tmp_path / "out").exists()


def saved(path: Path, old: bool = False, **arrays: object) -> str:
    torch.save(arrays, path, _use_new_zipfile_serialization=not old)
    return str(path)


def statistics(width: int = 6) -> dict[str, object]:
    return fid_features_to_statistics(torch.from_numpy(features(50, 9, width=width).vectors))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("tensors", [False, True])
def test_statistics_that_torch_saved_are_read_as_data(tmp_path: Path, old: bool, tensors: bool) -> None:
    made = statistics()
    found = statistics_in(
        saved(tmp_path / "a.pt", old, **{n: torch.from_numpy(x) if tensors else x for n, x in made.items()})
    )
    assert found.n is None
    assert (found.mean == made["mu"]).all()
    assert (found.covariance == made["sigma"]).all()


def test_the_cache_of_torch_fidelity_is_a_reference(tmp_path: Path) -> None:
    """As its own code writes it."""
    made = cache_lookup_one_recompute_on_miss("held-stat-fid", statistics, cache_root=str(tmp_path), verbose=False)
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert (statistics_in(path).covariance == made["sigma"]).all()


class Trap:
    """Unpickling it is noticed."""

    sprung = False

    def __reduce__(self) -> tuple[object, ...]:
        return (setattr, (Trap, "sprung", True))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trap": Trap()}, "by name"),
        ({"mu": None}, "has no mu"),
        ({"mu": np.zeros(5)}, "beside mu"),
        ({"mu": np.zeros((6, 1))}, "not of statistics"),
        ({"mu": np.zeros(6, np.int64)}, "not of statistics"),
        ({"sigma": np.full((6, 6), np.nan)}, "finite"),
        ({"sigma": -np.eye(6)}, "negative"),
    ],
)
def test_what_torch_saved_and_is_no_statistics_is_refused(tmp_path: Path, old: bool, change: dict, said: str) -> None:
    path = saved(tmp_path / "a.pt", old, **{**statistics(), **change})
    with pytest.raises(ValueError, match=said) as error:
        statistics_in(path)
    assert "a.pt" in str(error.value)
    assert not Trap.sprung


def test_a_damaged_file_of_torch_is_refused(tmp_path: Path) -> None:
    whole = Path(saved(tmp_path / "a.pt", **statistics())).read_bytes()
    for data in (whole[:-40], whole[:200], b"\x80\x02.", b""):
        (tmp_path / "b.pt").write_bytes(data)
        with pytest.raises(ValueError, match=r"b\.pt"):
            statistics_in(tmp_path / "b.pt")
