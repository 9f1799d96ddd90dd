"""Gates over who a picture shows, and verification as an evaluation reports it."""

import csv
import json
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raygen.commands.registry import make
from raygen.commands.verify import verify
from raygen.core.config import parse
from raygen.core.errors import ConfigError, InputError
from raygen.evaluation.aggregate import MetricRows
from raygen.evaluation.config import VerificationConfig
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.evaluation.verification import histogram, verification_metrics
from raygen.extractors.bundled import BundledEmbedder, save_bundled
from raygen.extractors.config import BundledEmbedderConfig
from raygen.report.build import build_report
from raygen.report.identities import identities
from raygen.selection import centroids
from raygen.selection.gates import ScoreGate, ScorePool
from raygen.selection.identity_gates import IdentityGate, LeakGate
from raygen.selection.retries import RetryState, accepted_rows
from raygen.store.run_store import RunStore, open_input
from tests.drawn import drawn, quiet
from tests.selection.test_retries import document


def pool(vectors: dict[str, list[float]], people: dict[str, str] | None = None, real: dict | None = None) -> ScorePool:
    """Embeddings by id; who somebody is stands before the dash unless it is said."""
    ids = tuple(sorted(vectors))
    found = ScoreMatrix(ids, np.array([vectors[one] for one in ids], np.float32))
    who = {one: one.partition("-")[0] for one in ids} if people is None else people
    return ScorePool({"identity:x": found}, who, real or {})


def gate(**what: float) -> IdentityGate:
    return parse(IdentityGate, {"kind": "identity", **what}, "gate")


THREE = {"a-1": [1.0, 0.05, 0], "a-2": [1.0, 0.0, 0.1], "a-3": [1.0, 0.1, 0.0]}


def test_a_picture_unlike_the_persons_others_is_refused() -> None:
    found = gate(min=0.8).judge(pool({**THREE, "a-4": [0.0, 0.2, 1.0]}), ScorePool(), {})
    assert list(found) == ["a-4"]
    x = np.array([THREE[k] for k in THREE])
    centre = (x / np.linalg.norm(x, axis=1, keepdims=True)).sum(axis=0)
    own = np.array([0, 0.2, 1]) / np.linalg.norm([0, 0.2, 1]) @ centre / np.linalg.norm(centre)
    assert found["a-4"] == f"identity: {own:.3f} < 0.8 to the person's other pictures"
    assert gate(min=0.8).judge(pool({"a-1": [1, 0, 0]}), ScorePool(), {}) == {}, "one picture is like itself"


def test_who_was_accepted_stays_and_counts() -> None:
    accepted = pool(THREE)
    later = pool({"a-5": [0.0, 1.0, 0.0], "a-6": [1.0, 0.0, 0.0]})
    assert list(gate(min=0.8).judge(later, accepted, {})) == ["a-5"]
    assert gate(min=0.8).values(pool(THREE))["a-1"] > 0.99


def test_of_twins_the_later_is_refused_and_a_refused_one_has_no_twin() -> None:
    same = {"a-1": [1.0, 0.0, 0.0], "a-2": [1.0, 0.001, 0.0], "a-3": [1.0, 0.5, 0.0], "b-1": [1.0, 0.0, 0.0]}
    assert list(gate(max_duplicate_similarity=0.99).judge(pool(same), ScorePool(), {})) == ["a-2"], (
        "another person's picture is no twin"
    )
    chain = {"a-1": [1.0, 0, 0], "a-2": [1.0, 0.1, 0], "a-3": [1.0, 0.2, 0]}
    assert list(gate(max_duplicate_similarity=0.99).judge(pool(chain), ScorePool(), {})) == ["a-2"], (
        "a-3 is like a-2 alone, which is gone"
    )
    again = gate(max_duplicate_similarity=0.99).judge(
        pool({"a-9": [1.0, 0.0, 0.0]}), pool({"a-1": [1.0, 0.0, 0.0]}), {}
    )
    assert list(again) == ["a-9"]


def test_of_two_people_who_are_one_the_later_is_refused() -> None:
    one = {"a-1": [1.0, 0, 0], "a-2": [1, 0.1, 0], "b-1": [1, 0, 0.1]}
    found = gate(max_other_similarity=0.9).judge(pool(one), ScorePool(), {})
    assert list(found) == ["b-1"]
    assert found["b-1"].endswith("to a")
    assert gate(max_other_similarity=0.9).judge(pool({"a-1": [1.0, 0, 0], "b-1": [0, 1.0, 0]}), ScorePool(), {}) == {}
    more = {**one, "b-2": [1.0, 0.1, 0.1], "c-1": [1.0, 0, 0.5], "d-1": [1.0, 0, 0.9]}
    assert sorted(gate(max_other_similarity=0.95).judge(pool(more), ScorePool(), {})) == ["b-1", "b-2", "d-1"]
    found = gate(max_other_similarity=0.87).judge(pool(more), ScorePool(), {})
    assert sorted(found) == ["b-1", "b-2", "c-1"], "c is refused for a, and so d, who is like c and unlike a, stays"


def test_a_picture_of_somebody_who_comes_later_is_refused() -> None:
    two = {"a-1": [1.0, 0, 0], "a-2": [1, 0.1, 0], "b-1": [0, 1.0, 0], "b-2": [0, 1, 0.1]}
    found = gate(max_other_similarity=0.9).judge(pool({**two, "a-3": [0, 1.0, 0]}), ScorePool(), {})
    assert list(found) == ["a-3"]
    assert found["a-3"].endswith("to b")
    assert list(gate(max_other_similarity=0.9).judge(pool({"a-9": [0, 1.0, 0]}), pool(two), {})) == ["a-9"], (
        "tried again"
    )
    ring = {"a-1": [1.0, 0, 0], "b-1": [1.0, 0.6, 0], "b-2": [1, -0.6, 0], "b-3": [1, 0, 0.6], "b-4": [1, 0, -0.6]}
    assert gate(max_other_similarity=0.9).judge(pool(ring), ScorePool(), {}) == {}, (
        "whole people who are one: the earlier name stays"
    )


def test_whose_pictures_were_accepted_stays_whatever_the_name() -> None:
    accepted = pool({"b-1": [0, 1.0, 0], "b-2": [0, 1, 0.1], "c-1": [0, 0, 1.0]})
    later = pool({"a-1": [0, 1.0, 0.02], "a-2": [0, 1.0, 0.05], "b-3": [0, 1.0, 0.2], "c-2": [0, 1.0, 0.1]})
    found = gate(max_other_similarity=0.9).judge(later, accepted, {})
    assert sorted(found) == ["a-1", "a-2", "c-2"]
    assert all(reason.endswith("to b") for reason in found.values())
    later = pool({"a-1": [0, 1.0, 0.02], "b-1": [1.0, 0, 0], "z-2": [0, 1.0, 0.05]})
    assert list(gate(max_other_similarity=0.9).judge(later, pool({"z-1": [0, 1.0, 0]}), {})) == ["a-1"]


def test_the_order_of_rows_changes_nothing() -> None:
    random = np.random.default_rng(3)
    ids = [f"p{i // 6:02d}-{i % 6}" for i in range(240)]
    middles = np.repeat(random.normal(size=(40, 4)), 6, axis=0)
    x = (middles + 0.5 * random.normal(size=(240, 4))).astype(np.float32)
    rule = gate(min=0.2, max_other_similarity=0.8, max_duplicate_similarity=0.995)
    who = dict(zip(ids, [one[:3] for one in ids], strict=True))

    def judged(order: np.ndarray, n: int) -> dict[str, str]:
        parts = [ScoreMatrix(tuple(ids[i] for i in some), x[some]) for some in (order[:n], order[n:])]
        before, fresh = (ScorePool({"identity:x": part}, {one: who[one] for one in part.ids}) for part in parts)
        return rule.judge(fresh, before, {})

    straight = judged(np.arange(240), 0)
    kinds = ("other pictures", "the same picture", "to p")
    assert all(any(kind in reason for reason in straight.values()) for kind in kinds)
    assert straight == judged(random.permutation(240), 0)
    assert judged(np.arange(240), 60) == judged(np.append(np.arange(60), 60 + random.permutation(180)), 60)


def by_hand(people: dict[str, list[np.ndarray]], limit: float) -> set[str]:
    """Whom `max_other_similarity` refuses, a cosine at a time."""

    def middle(rows: list[np.ndarray]) -> np.ndarray:
        return sum(rows) / np.linalg.norm(sum(rows))

    middles: dict[str, np.ndarray] = {}
    left = {}
    for name in sorted(people):
        left[name] = {i: x for i, x in enumerate(people[name]) if all(x @ c <= limit for c in middles.values())}
        if left[name]:
            middles[name] = middle(list(left[name].values()))
    found = {f"{name}-{i}" for name in people for i in range(len(people[name])) if i not in left[name]}
    for name in middles:
        later = [c for other, c in middles.items() if other > name and middles[name] @ c <= limit]
        found |= {f"{name}-{i}" for i, x in left[name].items() if any(x @ c > limit for c in later)}
    return found


def test_people_are_compared_as_one_would_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    units = [x / np.linalg.norm(x) for x in random.normal(size=(150, 4))]
    people = {f"p{i:02d}": units[3 * i : 3 * i + 3] for i in range(50)}
    made = pool({f"{name}-{i}": list(x) for name, rows in people.items() for i, x in enumerate(rows)})
    for limit in (0.7, 0.9, 0.97):
        assert gate(max_other_similarity=limit).judge(made, ScorePool(), {}).keys() == by_hand(people, limit)
    with monkeypatch.context() as small:
        small.setattr(centroids, "CELLS", 60)
        assert gate(max_other_similarity=0.9).judge(made, ScorePool(), {}).keys() == by_hand(people, 0.9), (
            "a row at a time"
        )


def test_how_many_are_like_a_stranger_by_chance_does_not_grow_with_the_people() -> None:
    random = np.random.default_rng(5)
    faces = [one / np.linalg.norm(one) for one in random.normal(size=(1200, 8))]
    real = {("faces", None): pool({f"r{i}-1": list(x) for i, x in enumerate(faces[:600])})}
    rule = parse(IdentityGate, {"kind": "identity", "max_false_rate": 0.1, "faces": "faces"}, "gate")
    shares, most = [], []
    for n in (50, 200, 600):
        made = pool({f"p{i:03d}-1": list(x) for i, x in enumerate(faces[600 : 600 + n])}, real=real)
        limits = rule.limits(made)
        most.append(limits["max_other_similarity"])
        # Each picture is its person's centre, so of two who are alike the later is refused: half of `far`.
        shares.append(len(rule.judge(made, ScorePool(), limits)) / n)
    x = np.array(faces[:600])
    pairs = (x @ x.T)[np.triu_indices(600, 1)]
    assert [np.mean(pairs > m) for m in most] == pytest.approx([0.1 / 49, 0.1 / 199, 0.1 / 599], rel=0.25)
    assert most == sorted(most)
    assert all(0.01 < share <= 0.1 for share in shares)
    fixed = gate(max_other_similarity=most[0]).judge(made, ScorePool(), {})
    assert len(fixed) / 600 > 0.25, "one limit for all numbers of people refuses more of more"
    nobody = pool({"a-1": [1.0] * 8}, real={("faces", None): pool({"r-1": [1.0] * 8})})
    with pytest.raises(ConfigError, match="two labelled identities"):
        rule.limits(nobody)


@pytest.mark.parametrize(
    "what",
    [
        {"max_false_rate": 0.1},
        {"faces": "x"},
        {"faces": "x", "min": 0.1},
        {"max_false_rate": 0.1, "faces": "x", "max_other_similarity": 0.9},
        {"split": "train", "max_duplicate_similarity": 0.9},
    ],
)
def test_far_belongs_to_faces(what: dict) -> None:
    with pytest.raises(ConfigError):
        gate(**what)


def test_rows_without_a_name_are_not_judged() -> None:
    assert (
        gate(min=0.9, max_duplicate_similarity=0.9).judge(
            pool({"a-1": [1.0, 0, 0], "a-2": [1.0, 0, 0]}, people={}), ScorePool(), {}
        )
        == {}
    )


def test_a_real_face_is_not_shown() -> None:
    real = {("faces", None): pool({"r-1": [1.0, 0, 0], "r-2": [0.9, 0.5, 0], "s-1": [0, 0, 1.0]})}
    made = pool({"a-1": [0.99, 0.01, 0], "b-1": [0, 1.0, 0]}, real=real)
    rule = parse(LeakGate, {"kind": "leak", "faces": "faces", "max": 0.9}, "gate")
    found = rule.judge(made, ScorePool(), rule.limits(made))
    assert list(found) == ["a-1"]
    assert "to the real r-1" in found["a-1"]
    assert rule.values(made)["b-1"] == pytest.approx(-0.5 / np.hypot(0.9, 0.5))


def test_gates_over_two_parts_of_the_same_faces_are_two_gates() -> None:
    train, test = pool({"r-1": [1.0, 0, 0]}), pool({"s-1": [0, 1.0, 0]})
    made = pool({"a-1": [1.0, 0, 0], "b-1": [0, 1.0, 0]}, real={("faces", "train"): train, ("faces", "test"): test})
    for split, refused in (("train", "a-1"), ("test", "b-1")):
        rule = parse(LeakGate, {"kind": "leak", "faces": "faces", "split": split, "max": 0.9}, "gate")
        assert list(rule.judge(made, ScorePool(), rule.limits(made))) == [refused]


def test_the_limit_can_be_how_alike_real_people_are() -> None:
    random = np.random.default_rng(0)
    real = {("faces", None): pool({f"p{i}-1": list(random.normal(size=8)) for i in range(60)})}
    made = pool({"a-1": [1.0] * 8}, real=real)
    rule = parse(LeakGate, {"kind": "leak", "faces": "faces", "max_false_rate": 0.01}, "gate")
    most = rule.limits(made)["max"]
    x = real["faces", None].of("identity:").vectors
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = (x @ x.T)[np.triu_indices(60, 1)]
    assert np.mean(cosines >= most) <= 0.01 < np.mean(cosines >= most - 0.05)
    nobody = pool({"a-1": [1.0] * 8}, real={("faces", None): pool({"r-1": [1.0] * 8})})
    with pytest.raises(ConfigError, match="two labelled identities"):
        rule.limits(nobody)


@pytest.mark.parametrize("what", [{}, {"min": 2}])
def test_a_gate_without_a_rule_is_an_error(what: dict) -> None:
    with pytest.raises(ConfigError):
        gate(**what)


# --- several gates and rounds -------------------------------------------------------------------------------


def with_ssim(vectors: dict[str, list[float]], ssim: dict[str, float], real: dict | None = None) -> ScorePool:
    """Embeddings, and a number of each picture."""
    found = pool(vectors, real=real)
    ids = tuple(sorted(ssim))
    found.scores["ssim:x"] = ScoreMatrix(ids, np.array([[ssim[one]] for one in ids], np.float32))
    found.people.update({one: one.partition("-")[0] for one in ids})
    return found


SSIM = parse(ScoreGate, {"kind": "score", "metric": "ssim", "min": 0.5}, "gate")
REAL = {("faces", None): pool({"r-1": [0, 0, 1.0]})}
LEAK = parse(LeakGate, {"kind": "leak", "faces": "faces", "max": 0.9}, "gate")


def reasons(rounds: RetryState) -> dict[str, list[str | None]]:
    return {one: [t.reason for t in tries] for one, tries in rounds.tries.items()}


def chosen(rounds: RetryState) -> list[str]:
    return [one for one, tries in rounds.tries.items() if accepted_rows(tries) is not None]


def test_the_best_is_nobody_real_and_nobody_else_and_no_twin() -> None:
    rounds = RetryState([SSIM, gate(max_other_similarity=0.9, max_duplicate_similarity=0.99), LEAK], "best")
    made = {
        "a-1": [1.0, 0, 0],
        "a-2": [1.0, 0.01, 0],
        "a-3": [0, 0.01, 1.0],
        "a-4": [0.8, 0.6, 0],
        "b-1": [0, 1.0, 0],
        "b-2": [0.99, 0.1, 0],
    }
    good = dict.fromkeys(made, 0.9) | {"a-4": 0.4}
    assert rounds.judge(0, sorted(made), with_ssim(made, good, REAL), {}) == ["a-2", "a-3", "a-4", "b-2"]
    rounds.settle()
    assert chosen(rounds) == ["a-1", "a-4", "b-1"], "only what is not good enough may be the best"
    said = {one: texts[0] for one, texts in reasons(rounds).items()}
    assert said["a-3"] == "leak: 1.000 > 0.900 to the real r-1"
    assert said["a-2"] == "identity: 1.000 > 0.99, the same picture as a-1"
    assert said["b-2"].endswith("> 0.9 to a")
    assert said["a-4"] == "best of 1: ssim 0.400 < 0.500"


def test_the_best_is_compared_with_others_before_it_counts() -> None:
    rounds = RetryState([SSIM, gate(max_duplicate_similarity=0.99), LEAK], "best")
    first = {"a-1": [1.0, 0, 0], "a-2": [1.0, 0.01, 0], "a-3": [0, 0, 1.0]}
    assert rounds.judge(0, sorted(first), with_ssim(first, {"a-1": 0.9, "a-2": 0.4, "a-3": 0.4}, REAL), {})
    again = {"a-2": [0.5, 1.0, 0], "a-3": [0, 0, 1.0]}
    rounds.judge(1, sorted(again), with_ssim(again, {"a-2": 0.3, "a-3": 0.9}, REAL), {})
    rounds.settle()
    tries = rounds.tries["a-2"]
    assert [t.accepted for t in tries] == [False, True], "the better one is a-1 again"
    assert tries[0].reason == "ssim 0.400 < 0.500; identity: 1.000 > 0.99, the same picture as a-1"
    assert tries[1].reason == "best of 2: ssim 0.300 < 0.500"
    assert chosen(rounds) == ["a-1", "a-2"], "both tries of a-3 show somebody real"


def test_of_two_that_might_be_the_best_one_is_enough() -> None:
    rounds = RetryState([SSIM, gate(max_duplicate_similarity=0.99)], "best")
    made = {"a-1": [1.0, 0, 0], "a-2": [1.0, 0, 0]}
    rounds.judge(0, sorted(made), with_ssim(made, {"a-1": 0.1, "a-2": 0.4}), {})
    rounds.settle()
    assert chosen(rounds) == ["a-1"]


@pytest.mark.parametrize("otherwise", ["leave_out", "best"])
def test_what_was_not_measured_does_not_pass(otherwise: str) -> None:
    made = {"a-1": [1.0, 0, 0], "a-3": [1.0, 0.2, 0]}
    ssim = {"a-1": 0.9, "a-2": 0.9}
    for rules, of in (([SSIM, LEAK], "leak"), ([SSIM, gate(max_duplicate_similarity=0.99)], "identity")):
        rounds = RetryState(rules, otherwise)
        found = rounds.judge(0, ["a-1", "a-2", "a-3", "a-4"], with_ssim(made, ssim, REAL), {"a-4": "no mask"})
        assert found == ["a-2", "a-3", "a-4"]
        said = {"a-1": [None], "a-2": [f"not measured: {of}"], "a-3": ["not measured: ssim"], "a-4": ["no mask"]}
        assert reasons(rounds) == said
        assert rounds.refused == {"no picture": 1, "ssim": 1, of: 1}
        rounds.settle()
        assert chosen(rounds) == ["a-1"]


def test_who_is_refused_spoils_nobody() -> None:
    rounds = RetryState([gate(max_duplicate_similarity=0.99), SSIM])
    twins = {"a-1": [1.0, 0, 0], "a-2": [1.0, 0.01, 0]}
    assert rounds.judge(0, sorted(twins), with_ssim(twins, {"a-1": 0.1, "a-2": 0.9}), {}) == ["a-1"]
    assert reasons(rounds)["a-2"] == [None], "its twin is gone"
    rounds = RetryState([gate(min=0.9), SSIM])
    made = {"a-1": [1.0, 0, 0], "a-2": [1.0, 0.05, 0], "a-3": [0, 0, 1.0]}
    assert rounds.judge(0, sorted(made), with_ssim(made, {"a-1": 0.9, "a-2": 0.9, "a-3": 0.1}), {}) == ["a-3"]
    assert "min" not in str(reasons(rounds)), "what is refused is not in the middle of the others"
    far = {"a-1": [1.0, 0, 0], "a-2": [1.0, 0.1, 0], "a-3": [1.0, -0.1, 0], "a-4": [-1.0, 3.0, 0], "b-1": [0.7, 0.7, 0]}
    assert list(gate(min=0.3, max_other_similarity=0.9).judge(pool(far), ScorePool(), {})) == ["a-4"], (
        "nor in the centre for others"
    )


# --- verification -------------------------------------------------------------------------------------------


def faces(n: int = 20, each: int = 4) -> tuple[ScoreMatrix, dict[str, str]]:
    random = np.random.default_rng(2)
    centers = random.normal(size=(n, 8))
    ids = [f"p{i:03d}-{j}" for i in range(n) for j in range(each)]
    vectors = np.repeat(centers, each, axis=0) + 0.6 * random.normal(size=(n * each, 8))
    return ScoreMatrix(tuple(ids), vectors.astype(np.float32)), {one: one[:4] for one in ids}


def test_numbers_of_verification_carry_how_they_were_made() -> None:
    scored, people = faces()
    rows = MetricRows("run", None)
    found = verification_metrics(
        VerificationConfig(far=(0.01,)), "all", "identity:x", scored, people, {"network": "x"}, rows
    )
    by = {row["metric"]: row for row in rows.rows}
    assert by.keys() == {"eer:x", "tar@0.01:x", "cosine_genuine:x", "cosine_impostor:x"}
    assert by["cosine_genuine:x"]["value"] > by["cosine_impostor:x"]["value"]
    said = json.loads(by["tar@0.01:x"]["protocol"])
    assert (said["people"], said["genuine_pairs"], said["impostor_pairs"]) == (20, 120, 3040)
    assert said["low_n"] is False
    drawn = histogram(found)
    assert sum(drawn["genuine"]) == pytest.approx(1, abs=1e-4)
    part = MetricRows("run", None)
    verification_metrics(VerificationConfig(most=20), "all", "identity:x", scored, people, {}, part)
    assert json.loads(part.rows[0]["protocol"])["people"] == 5, "whole people, at even distances"
    with pytest.raises(InputError, match="two people"):
        verification_metrics(
            VerificationConfig(), "all", "identity:x", scored, {one: one for one in scored.ids}, {}, rows
        )


# --- through the jobs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network with random weights: it tells nobody apart, and that is enough here."""
    folder = tmp_path_factory.mktemp("embedder")
    save_bundled(BundledEmbedder(BundledEmbedderConfig(channels=(8, 8), width=16)), folder, weights="float32", extra={})
    return str(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn people with three pictures each."""
    return drawn(tmp_path_factory.mktemp("people"), 6, 3)


def test_an_evaluation_of_faces_says_how_well_people_are_told_apart(world: Path, embedder: str) -> None:
    identity = {"network": {"kind": "small", "folder": embedder}}
    what = {
        "reference": f"{world}/faces",
        "score": {"parser": None, "features": None, "classifier": None, "identity": identity},
        "verification": {"far": [0.1], "pairs": 8, "folds": 2},
    }
    make({"kind": "evaluate", **what, "out": f"{world}/judged"}).run(quiet)
    rows = {(r["metric"], r["slice"]): r for r in json.loads((world / "judged/metrics/metrics.json").read_text())}
    found = rows["eer:raygen-identity", "reference"]
    assert 0 <= found["ci_low"] <= found["value"] <= found["ci_high"] <= 1
    assert found["protocol"]["compared by"] == "cosine"
    assert len(found["protocol"]["sha256"]) == 64
    assert found["protocol"]["people"] == 6
    assert json.loads((world / "judged/metrics/verification.json").read_text()).keys() == {"reference"}
    assert (world / "judged/metrics/pairs.txt").read_text().startswith("2\t2\n")
    accuracy = rows["verification_accuracy:raygen-identity", "reference"]
    assert accuracy["n"] == 8
    assert 0 <= accuracy["ci_low"] <= accuracy["value"] <= accuracy["ci_high"] <= 100
    ids = set(RunStore(f"{world}/faces").tables("faces").__next__()["face_id"].to_pylist())
    with (world / "judged/metrics/pairs.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert {row[name] for row in listed for name in ("sample_id_1", "sample_id_2")} <= ids
    with (world / "judged/metrics/roc.csv").open(newline="") as file:
        roc = list(csv.DictReader(file))
    assert {row["set"] for row in roc} == {"reference"}
    tar = rows["tar@0.1:raygen-identity", "reference"]
    at = next(row for row in roc if float(row["far"]) <= 0.1)
    assert float(at["tar"]) == pytest.approx(tar["value"])
    assert float(at["threshold"]) == pytest.approx(tar["protocol"]["threshold"])


def test_a_selection_refuses_real_people_and_says_who(world: Path, embedder: str) -> None:
    gates = [{"kind": "leak", "faces": f"{world}/faces", "max": -1.0}]
    job = document(world, "leaks", gates=gates, max_retries=1)
    job["generate"]["score"]["identity"] = {"network": {"kind": "small", "folder": embedder}}
    facts = make(job).run(quiet).facts
    assert facts["left out"] == facts["rows"] == 18
    assert facts["refusals"] == "leak 36"
    assert facts["pictures of an identity"].startswith(
        "at least 0, median 0; 6 of 6 identities have fewer than planned, 6"
    )
    blind = document(world, "blind", gates=gates)
    with pytest.raises(ConfigError, match=r"leak needs `score.identity`"):
        make(blind).run(quiet)


def test_verification_without_an_embedder_is_an_error(world: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs `score.identity`"):
        make({"kind": "evaluate", "reference": "x", "verification": {}, "out": f"{world}/x"})


def test_a_report_shows_people_with_their_pictures(world: Path) -> None:
    shown = identities(RunStore(f"{world}/faces").slices("faces"), "face_id")
    assert len(shown) == len({name for name, _ in shown}) == 6
    assert all(len(pairs) == 3 and all(pair.id.startswith(name) for pair in pairs) for name, pairs in shown)
    page = Path(build_report(str(world), f"{world}/page.html", faces=f"{world}/faces")).read_text()
    assert 'id="identities"' in page


# --- faces that are there already ---------------------------------------------------------------------------


def of_faces(world: Path, embedder: str, out: str, *gates: dict, **what: object) -> dict:
    identity = {"network": {"kind": "small", "folder": embedder}}
    score = {"parser": None, "features": None, "classifier": None, "identity": identity}
    said = {"faces": f"{world}/faces", "score": score, "gates": list(gates), **what}
    return {"kind": "select", **said, "out": f"{world}/{out}"}


def test_faces_that_pass_are_kept_and_the_others_say_why(world: Path, embedder: str) -> None:
    make(of_faces(world, embedder, "gated", {"kind": "identity", "min": -1})).run(quiet)
    [scores] = [RunStore(str(p)) for p in (world / "gated/real").glob("*/scores/reference")]
    found = {r["sample_id"]: np.array(r["vector"]) for t in scores.tables("scores") for r in t.to_pylist()}
    units = {one: x / np.linalg.norm(x) for one, x in found.items()}
    rows = pa.concat_tables(open_input(f"{world}/faces")[0].tables("faces")).to_pylist()
    pairs = [
        float(units[a["face_id"]] @ units[b["face_id"]])
        for a, b in combinations(rows, 2)
        if a["identity_id"] == b["identity_id"]
    ]
    middle = np.sort(pairs)[3:-3]
    widest = int(np.diff(middle).argmax())
    twins = float(middle[widest : widest + 2].mean())
    shutil.rmtree(world / "gated/selected")
    facts = (
        make(of_faces(world, embedder, "gated", {"kind": "identity", "max_duplicate_similarity": twins}))
        .run(quiet)
        .facts
    )
    assert len(list((world / "gated/real").glob("*"))) == 1, "measured once"
    store, _ = open_input(f"{world}/gated/selected")
    assert verify(store).ok
    kept = pa.concat_tables(store.tables("faces")).to_pylist()
    # By hand: of each person the pictures that are not like an earlier one that stays.
    stay: dict[str, list[np.ndarray]] = {}
    expected = []
    for row in sorted(rows, key=lambda row: row["face_id"]):
        mine = stay.setdefault(row["identity_id"], [])
        if all(float(units[row["face_id"]] @ y) <= twins for y in mine):
            mine.append(units[row["face_id"]])
            expected.append(row)
    assert 0 < len(expected) < len(rows), "the limit divides them"
    assert sorted(kept, key=lambda row: row["face_id"]) == expected, "whole rows, bytes and all"
    assert (facts["rows"], facts["passed at once"]) == (len(rows), len(expected))
    have = [len(stay[who]) for who in stay]
    few = sum(n < 3 for n in have)
    text = (
        f"at least {min(have)}, median {np.median(have):g}; {few} of 6 identities have fewer than planned, 0 have none"
    )
    assert facts["pictures of an identity"] == text
    said = pa.concat_tables(store.tables("selection")).to_pylist()
    assert {r["sample_id"] for r in said if r["accepted"]} == {row["face_id"] for row in expected}
    assert all("the same picture as" in r["reason"] for r in said if not r["accepted"])
    assert len(said) == len(rows)
    page = Path(build_report(f"{world}/gated", f"{world}/gated.html")).read_text()
    assert f"<h1>{len(expected)} faces</h1>" in page
    assert "synthetic faces" not in page
    assert f"{len(rows)} faces were judged and {len(expected)} are kept" in page
    form = {"kind": "export", "faces": f"{world}/gated/selected", "format": {"kind": "csv"}}
    told = make({**form, "out": f"{world}/listed"}).run(quiet).facts
    assert told["left out"] == f"{len(rows) - len(expected)} not selected"
    card = (world / "listed/dataset/README.md").read_text()
    assert "all were made by a drawing program" in card, "a selection of drawn faces is drawn"
    assert "| raygen-identity | selected them |" in card
    sentence = (
        f"Images with a face similarity (cosine) above {twins:g} to another image of their identity were refused."
    )
    assert f"| gate | {sentence} |" in card


def test_how_alike_strangers_are_is_measured_on_the_faces_that_a_gate_names(world: Path, embedder: str) -> None:
    rule = {"kind": "identity", "max_false_rate": 0.5, "faces": f"{world}/faces"}
    facts = make(of_faces(world, embedder, "chance", rule)).run(quiet).facts
    [scores] = [RunStore(str(p)) for p in (world / "chance/real").glob("*/scores/reference")]
    found = {r["sample_id"]: r["vector"] for t in scores.tables("scores") for r in t.to_pylist()}
    rows = pa.concat_tables(open_input(f"{world}/faces")[0].tables("faces")).to_pylist()
    who = {row["face_id"]: row["identity_id"] for row in rows}
    vectors = np.array([found[one] for one in who], np.float32)
    limit = centroids.chance_limit(vectors, list(who.values()), 0.5, 6)
    said = pa.concat_tables(open_input(f"{world}/chance/selected")[0].tables("selection")).to_pylist()
    assert all(f"> {limit:g} to " in row["reason"] for row in said if not row["accepted"])
    assert 0 < facts["left out"] == sum(not row["accepted"] for row in said)
    blind = document(world, "blind-too", gates=[rule])
    with pytest.raises(ConfigError, match=r"identity needs `score.identity`"):
        make(blind).run(quiet)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"generate": {}}, "either `generate` or `faces`"),
        ({"score": None}, "`faces` needs `score`"),
        ({"samples": "runs/x"}, "cannot be used with `samples`"),
        ({"on_exhausted": "best"}, "tried once; remove on_exhausted"),
        ({"max_retries": 3}, "tried once; remove max_retries"),
    ],
)
def test_faces_are_not_made(world: Path, embedder: str, what: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(of_faces(world, embedder, "wrong", {"kind": "identity", "max_duplicate_similarity": 0.9}, **what))


def test_faces_are_like_themselves(world: Path, embedder: str) -> None:
    job = make(of_faces(world, embedder, "own", {"kind": "leak", "faces": f"{world}/faces/", "max": 0.5}))
    with pytest.raises(ConfigError, match="all are like themselves"):
        job.run(quiet)
