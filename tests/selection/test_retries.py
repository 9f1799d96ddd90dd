"""Gates and rounds: what is refused, what is tried again, and that what counts is a run like any other."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from raygen.commands.registry import make
from raygen.commands.verify import verify
from raygen.core.config import parse
from raygen.core.errors import ConfigError
from raygen.core.face_labels import ATTRIBUTES, CLASS_INDEX
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.metrics.mask_rarity import SIDE, Frequencies, small
from raygen.report.build import build_report
from raygen.selection.gates import ScoreGate, ScorePool
from raygen.selection.retries import RetryState, accepted_rows
from raygen.store.parquet import from_parquet
from raygen.store.run_store import RunStore, open_input
from tests.drawn import drawn, quiet


def scored(values: dict[str, float], kind: str = "ssim:x") -> ScorePool:
    ids = tuple(values)
    return ScorePool({kind: ScoreMatrix(ids, np.array([[values[one]] for one in ids], np.float32))})


def gate(**what: object) -> ScoreGate:
    return parse(ScoreGate, {"kind": "score", "metric": "ssim", **what}, "gate")


# --- gates --------------------------------------------------------------------------------------------------


def test_the_worst_share_is_that_of_the_first_attempt() -> None:
    first = scored({f"s{i:02d}": i / 20 for i in range(20)})
    rule = gate(reject_fraction=0.25)
    limits = rule.limits(first)
    assert sorted(rule.judge(first, ScorePool(), limits)) == ["s00", "s01", "s02", "s03", "s04"]
    later = scored({"a": 0.24, "b": 0.25, "c": 0.9})
    assert list(rule.judge(later, ScorePool(), limits)) == ["a"], (
        "as bad as the worst of the first attempt, and no other"
    )
    assert rule.judge(first, ScorePool(), gate(reject_fraction=0.01).limits(first)) == {}, (
        "a share that is no picture refuses none"
    )


def test_a_picture_without_the_number_is_not_refused_for_it() -> None:
    vectors = np.zeros((2, 57), np.float32)
    hair = CLASS_INDEX["hair"]
    vectors[0, [hair, 19 + hair, 38 + hair]] = 5, 10, 5  # IoU 0.5
    pool = ScorePool({"segmentation:p": ScoreMatrix(("has", "none"), vectors)})
    rule = gate(metric="miou", classes=["hair"], min=0.6)
    assert rule.judge(pool, ScorePool(), rule.limits(pool)) == {"has": "miou of hair 0.500 < 0.600"}


def test_attributes_count_what_was_asked_for() -> None:
    codes = np.zeros((1, 40), np.float32)
    codes[0, [ATTRIBUTES.index(n) for n in ("Male", "Smiling", "Eyeglasses")]] = 4, 2, 1  # right, wrong, right
    pool = ScorePool({"attributes:c": ScoreMatrix(("one",), codes)})
    assert gate(metric="attributes", min=0.5).values(pool) == {"one": pytest.approx(2 / 3)}
    assert gate(metric="attributes", min=0.5, classes=["Smiling"]).values(pool) == {"one": 0.0}
    assert gate(metric="attributes", min=0.5, classes=["Bald"]).values(pool) == {}


def test_wrong_gates_say_what_is_right() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hair'"):
        gate(metric="miou", classes=["hairs"], min=0.5)
    with pytest.raises(ConfigError, match="either `min` or `reject_fraction`"):
        gate(min=0.5, reject_fraction=0.1)


def test_a_mask_unlike_the_others_is_rare() -> None:
    masks = np.ones((50, SIDE, SIDE), np.uint8)
    masks[7, :, : SIDE // 2] = 13
    counts = Frequencies()
    for part in np.array_split(masks, 3):
        counts.add(part)
    rarity = counts.rarity(masks)
    assert rarity.argmax() == 7
    assert (rarity >= 0).all()
    # By hand: 49 (or 1) of 50 and the prior of 0.5 for each of 19 classes.
    common, rare = -np.log(49.5 / 59.5), -np.log(1.5 / 59.5)
    assert rarity[7] == pytest.approx((rare - np.log(50.5 / 59.5)) / 2)
    assert rarity[0] == pytest.approx((common - np.log(50.5 / 59.5)) / 2)
    assert small(np.kron(masks[7], np.ones((4, 4), np.uint8))).tolist() == masks[7].tolist()


# --- rounds -------------------------------------------------------------------------------------------------


def test_rounds_try_again_only_what_was_refused_and_the_best_may_count() -> None:
    rounds = RetryState([gate(min=0.5)], "best")
    assert rounds.judge(0, ["a", "b", "c", "d"], scored({"a": 0.9, "b": 0.4, "c": 0.1}), {"d": "mask: bad"}) == [
        "b",
        "c",
        "d",
    ]
    assert rounds.judge(1, ["b", "c", "d"], scored({"b": 0.6, "c": 0.3}), {"d": "mask: bad"}) == ["c", "d"]
    assert rounds.judge(2, ["c", "d"], scored({"c": 0.2}), {"d": "mask: bad"}) == ["c", "d"]
    rounds.settle()
    chosen = {one: accepted_rows(tries) for one, tries in rounds.tries.items()}
    assert (chosen["a"].attempt, chosen["b"].attempt, chosen["c"].attempt) == (0, 1, 1)
    assert chosen["c"].reason == "best of 3: ssim 0.300 < 0.500"
    assert chosen["d"] is None, "it never had a picture"
    assert sum(t.accepted for tries in rounds.tries.values() for t in tries) == 3
    assert rounds.refused == {"no picture": 3, "ssim": 4}


# --- the whole ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The conditions of 24 drawn faces."""
    return drawn(tmp_path_factory.mktemp("selection"), 24)


def document(root: Path, out: str, **what: object) -> dict:
    return {
        "kind": "select",
        "generate": {
            "conditions": f"{root}/rows",
            "checkpoint": "bundled",
            "sampler": {"name": "unipc", "steps": 2},
            "batch": 4,
            "shard_rows": 8,
            "seed": 5,
            "score": {"classifier": None},
        },
        "gates": [{"kind": "score", "metric": "miou", "reject_fraction": 0.25}],
        "max_retries": 2,
        **what,
        "out": f"{root}/{out}",
    }


@pytest.fixture(scope="module")
def chosen(world: Path) -> Path:
    facts = make(document(world, "chosen")).run(quiet).facts
    assert facts["rows"] == 24
    assert facts["passed at once"] == 18
    return world / "chosen"


def tables(folder: Path, table: str) -> pa.Table:
    return pa.concat_tables(open_input(str(folder))[0].tables(table))


def test_what_counts_is_a_run_with_every_planned_row_once(world: Path, chosen: Path) -> None:
    assert verify(RunStore(f"{chosen}/selected")).ok
    rows, first = tables(chosen / "selected", "samples"), tables(chosen / "samples", "samples")
    assert rows["sample_id"].to_pylist() == first["sample_id"].to_pylist()
    tries = tables(chosen / "selected", "selection").to_pylist()
    of = {row["sample_id"]: row for row in tries if row["accepted"]}
    shas = dict(zip(first["sample_id"].to_pylist(), first["image_sha256"].to_pylist(), strict=True))
    for row in rows.select(["sample_id", "attempt", "image_sha256", "error"]).to_pylist():
        one = row["sample_id"]
        if one not in of:
            assert row["image_sha256"] is None
            assert row["error"].startswith("refused: miou ")
            continue
        assert (row["attempt"], row["error"]) == (of[one]["attempt"], None)
        assert (row["image_sha256"] == shas[one]) == (row["attempt"] == 0), "another try has other noise"
    again = pa.concat_tables(RunStore(f"{chosen}/rerolls", 1).tables("samples"))
    assert sorted(again["sample_id"].to_pylist()) == sorted(
        r["sample_id"] for r in tries if not r["attempt"] and not r["accepted"]
    )
    assert all(row["reason"] for row in tries if not row["accepted"])
    assert len({(row["sample_id"], row["attempt"]) for row in tries}) == len(tries)


def test_the_selection_says_how_its_pictures_were_made_and_planned(world: Path, chosen: Path) -> None:
    what = RunStore(f"{chosen}/selected").plan().settings
    first = RunStore(f"{chosen}/samples").plan().settings
    assert what["generate"]["seed"] == 5
    assert what["generate"]["sampler"]["steps"] == 2
    assert what["generate"]["checkpoint"] == first["checkpoint"]
    assert what["planning"]["kind"] == "from_faces"
    assert what["limits"][0]["min"] > 0, "what the worst quarter came to"
    assert str(world) not in json.dumps(what)
    form = {"samples": f"{chosen}/selected", "format": {"kind": "folder"}}
    make({"kind": "export", **form, "out": f"{chosen}/folder"}).run(quiet)
    path = next((chosen / "folder/dataset/images").rglob("*.png"))
    with Image.open(path) as image:
        said = json.loads(image.info["raygen"])
    assert said["noise_seed"] == 5
    row = next(r for r in tables(chosen / "selected", "samples").to_pylist() if r["sample_id"] == said["sample_id"])
    assert said["seed"] == row["seed"]
    card = (chosen / "folder/dataset/README.md").read_text()
    assert "| noise_seed | `5` |" in card
    assert "| planned as | `{" in card
    assert "the 0.25 quantile of the first attempt, were refused. |" in card
    assert str(world) not in card


def test_scores_go_with_the_pictures_that_count(chosen: Path) -> None:
    rows, scores = tables(chosen / "selected", "samples"), tables(chosen / "selected", "scores")
    there = rows.filter(rows["image_sha256"].is_valid())
    accepted_rows = dict(zip(there["sample_id"].to_pylist(), there["attempt"].to_pylist(), strict=True))
    parsed = scores.filter(pc.starts_with(scores["metric"], "segmentation:"))
    assert dict(zip(parsed["sample_id"].to_pylist(), parsed["attempt"].to_pylist(), strict=True)) == accepted_rows


def test_kinds_of_failure_are_in_the_table_and_in_the_report(chosen: Path) -> None:
    rows = from_parquet((chosen / "metrics/selection.parquet").read_bytes()).to_pylist()
    by = {(row["metric"], row["slice"]): row for row in rows}
    first, passed = by["picture:miou", "refused/first try"], by["picture:miou", "passed at once/first try"]
    assert (first["n"], passed["n"]) == (6, 18)
    assert first["value"] < passed["value"]
    assert by["picture:miou", "refused/second try"]["n"] == 6
    kinds = [by[key]["n"] for key in by if key[1] in ("refused, rare mask/first try", "refused, usual mask/first try")]
    assert sum(kinds) == 6
    assert 0 <= by["mended", "refused"]["value"] <= 1
    page = Path(build_report(str(chosen), f"{chosen}/page.html")).read_text()
    assert "18 of 24 images passed at the first try" in page
    assert page.count('alt="First try of ') == 6


def test_an_evaluation_takes_it_as_it_is(world: Path, chosen: Path) -> None:
    what = {"samples": f"{chosen}/selected", "reference": f"{world}/faces", "score": {"classifier": None}}
    make({"kind": "evaluate", **what, "out": f"{world}/judged"}).run(quiet)
    rows = {(r["metric"], r["slice"]): r for r in json.loads((world / "judged/metrics/metrics.json").read_text())}
    made = tables(chosen / "selected", "samples")["image_sha256"].drop_null().length()
    found = next(row for (metric, where), row in rows.items() if metric.startswith("fd:") and where == "all")
    assert found["n"] == made
    assert not (world / "judged/scores/samples").exists(), "what was measured while it was made is not measured again"


def test_the_same_command_changes_nothing_and_best_keeps_every_row(world: Path, chosen: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in chosen.rglob("commits/*.json")}
    make(document(world, "chosen")).run(quiet)
    assert {p: p.stat().st_mtime_ns for p in chosen.rglob("commits/*.json")} == before
    samples = {"samples": f"{chosen}/samples", "on_exhausted": "best", "max_retries": 1}
    facts = make(document(world, "best", **samples)).run(quiet).facts
    assert facts["left out"] == 0
    assert not (world / "best/samples").exists(), "a finished first attempt is used where it lies"
    assert tables(world / "best/selected", "samples")["image_sha256"].null_count == 0


def test_a_killed_selection_ends_as_an_undisturbed_one(world: Path, chosen: Path) -> None:
    job, root = document(world, "killed"), Path(__file__).parents[2]
    code = f"from raygen.commands.registry import make; make({job!r}).run(lambda _: None)"
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(root)}, cwd=root)
    try:
        until = time.time() + 300
        while not list((world / "killed").glob("rerolls/attempt-01/plan.json")):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.time() < until
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    make(job).run(quiet)
    one, other = (RunStore(f"{world}/{name}/selected").manifest()["set_digest"] for name in ("killed", "chosen"))
    assert one == other


def test_a_gate_that_nothing_was_measured_for_is_an_error(world: Path) -> None:
    job = document(world, "blind", gates=[{"kind": "score", "metric": "clip", "min": 0.1}])
    with pytest.raises(ConfigError, match=r"generate.score does not measure what clip needs"):
        make(job).run(quiet)
    job["generate"]["score"] = None
    with pytest.raises(ConfigError, match="gates need measurements"):
        make(job)
