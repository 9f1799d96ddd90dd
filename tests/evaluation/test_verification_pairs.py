"""Pairs of pictures: each exists, no two folds share a person, and what the pairs are worth."""

import csv
import io
import tracemalloc
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from raygen.core.errors import InputError
from raygen.evaluation.aggregate import MetricRows
from raygen.evaluation.config import VerificationConfig
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.evaluation.verification import as_csv, as_lfw, draw_pairs, identities_of, pairs_of
from raygen.metrics.verification import fold_accuracy
from raygen.store.run_store import RunStore
from raygen.store.schemas import REFUSED
from tests.exports.export_runs import export, sample, store_rows


def somebody(n: int = 20, each: int = 4) -> dict[str, str]:
    return {f"p{i:03d}-{j}": f"p{i:03d}" for i in range(n) for j in range(each)}


def test_pairs_read_as_lfw_lists_them() -> None:
    people = somebody()
    pairs = draw_pairs(people, None, pairs=80, folds=4, seed=0)
    text = as_lfw(pairs)
    again = draw_pairs(dict(reversed(people.items())), None, pairs=80, folds=4, seed=0)
    assert text == as_lfw(again), "the order of rows is not the order of pairs"
    assert text != as_lfw(draw_pairs(people, None, pairs=80, folds=4, seed=1))
    head, *lines = text.splitlines()
    folds, each = map(int, head.split("\t"))
    assert (folds, each, len(lines)) == (4, 10, 80)
    seen, of_fold = set(), []
    for fold in range(folds):
        part = [line.split("\t") for line in lines[fold * 2 * each : (fold + 1) * 2 * each]]
        assert [len(words) for words in part] == [3] * each + [4] * each
        names = set()
        for words in part:
            a, i, b, j = words if len(words) == 4 else (words[0], words[1], words[0], words[2])
            assert (a == b) == (len(words) == 3)
            assert (a, i) != (b, j)
            assert 1 <= int(i) <= 4
            assert 1 <= int(j) <= 4
            names |= {a, b}
            seen.add(frozenset([(a, i), (b, j)]))
        of_fold.append(names)
    assert len(seen) == 80, "no pair twice"
    assert all(not a & b for a, b in combinations(of_fold, 2)), "nobody is in two folds"


def test_every_pair_there_is_can_be_drawn_once() -> None:
    """Two people with 3 pictures, one with 2, one with 5, in one fold: the arithmetic reaches each pair."""
    people = {f"{who}{i}": who for who, n in (("a", 3), ("b", 3), ("c", 2), ("d", 5)) for i in range(n)}
    pairs = draw_pairs(people, None, pairs=34, folds=1, seed=3)
    found = {frozenset((pairs.ids[i], pairs.ids[j])) for i, j in zip(pairs.first, pairs.second, strict=True)}
    assert len(found) == 34
    genuine = {frozenset(pair) for pair in combinations(people, 2) if people[pair[0]] == people[pair[1]]}
    assert {pair for pair in found if len({people[one] for one in pair}) == 1} == genuine  # all 17 of them
    few = draw_pairs(people, None, pairs=2, folds=1, seed=0)
    assert few.same.tolist() == [True, False]
    with pytest.raises(InputError, match="17 genuine pairs of 4 people are there; 18 in 1 folds"):
        draw_pairs(people, None, pairs=36, folds=1, seed=0)
    with pytest.raises(InputError, match="a fold has 4 genuine pairs, 8 are asked for"):
        draw_pairs(people, None, pairs=32, folds=2, seed=0)
    with pytest.raises(InputError, match="of 4 people are there; 3 in 3 folds"):
        draw_pairs(people, None, pairs=6, folds=3, seed=0)


def test_every_pair_is_as_likely_as_any_other() -> None:
    people = {f"{who}{i}": who for who, n in (("a", 2), ("b", 3), ("c", 4)) for i in range(n)}
    drawings = (draw_pairs(people, None, pairs=2, folds=1, seed=seed) for seed in range(2000))
    met = Counter(frozenset((p.ids[p.first[k]], p.ids[p.second[k]])) for p in drawings for k in (0, 1))
    for same, there in ((True, 10), (False, 26)):
        counts = [n for pair, n in met.items() if (len({people[one] for one in pair}) == 1) == same]
        assert len(counts) == there
        assert sum((n - 2000 / there) ** 2 for n in counts) / (2000 / there) < 2 * there, "chi square"


def test_pairs_are_drawn_without_listing_all_of_them() -> None:
    """500 people x 50 pictures have 612,500 genuine pairs, which took 45 MB as tuples."""
    people = somebody(500, 50)
    tracemalloc.start()
    pairs = draw_pairs(people, None, pairs=6000, folds=10, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pairs.first) == 6000
    assert peak < 20e6


@pytest.mark.parametrize("form", ["folder", "csv"])
def test_pairs_name_pictures_that_an_export_has(tmp_path: Path, form: str) -> None:
    """Rows that a selection refused, or that failed, keep their identity and are in no pair."""
    rows = [sample(i, 4) for i in range(40)]
    for i in (0, 4, 8, 13, 30):
        rows[i] |= {"image": None, "image_sha256": None, "error": f"{REFUSED}miou" if i % 2 else "nonfinite: all"}
    url = store_rows(tmp_path / "run", rows)
    people, variants = identities_of(RunStore(url), "samples", "sample_id")
    assert len(people) == 35
    pairs = draw_pairs(people, variants, pairs=40, folds=2, seed=0)
    export(url, tmp_path / "out", form)
    with (tmp_path / "out/dataset/labels.csv").open(newline="") as file:
        labels = {row["sample_id"]: row for row in csv.DictReader(file)}
    paths = {row["path"] for row in labels.values()}
    numbers = [line.split("\t") for line in as_lfw(pairs).splitlines()[1:]]
    listed = list(csv.DictReader(io.StringIO(as_csv(pairs))))
    assert len(listed) == len(numbers) == 40
    for words, row in zip(numbers, listed, strict=True):
        a, i, b, j = words if len(words) == 4 else (words[0], words[1], words[0], words[2])
        for side, who, n in (("1", a, i), ("2", b, j)):
            joined = labels[row[f"sample_id_{side}"]]
            assert joined["identity_id"] == row[f"identity_id_{side}"] == who
            assert joined["variant"] == n
            assert joined["path"].endswith(f"{who}/{int(n):03d}.png")
            assert joined["path"] in paths
        assert row["same"] == str(int(a == b))


def test_without_variants_rows_count_from_one() -> None:
    people = {"a-x": "a", "a-y": "a", "a-z": "a", "b-x": "b", "b-y": "b"}
    for variants in (None, {}, dict.fromkeys(people, 0)):
        assert draw_pairs(people, variants, pairs=2, folds=1, seed=0).number == (1, 2, 3, 1, 2)
    numbered = draw_pairs(people, {one: 7 - i for i, one in enumerate(people)}, pairs=2, folds=1, seed=0)
    assert numbered.number == (7, 6, 5, 4, 3)


def scored(people: dict[str, str], spread: float) -> ScoreMatrix:
    random = np.random.default_rng(2)
    centres = {who: random.normal(size=8) for who in sorted(set(people.values()))}
    vectors = [centres[people[one]] + spread * random.normal(size=8) for one in sorted(people)]
    return ScoreMatrix(tuple(sorted(people)), np.array(vectors, np.float32))


@pytest.mark.parametrize(("spread", "low", "high"), [(0.01, 100, 100), (0.6, 75, 99), (100, 40, 60)])
def test_accuracy_is_what_the_pairs_say(spread: float, low: float, high: float) -> None:
    people = somebody()
    given = {**people, "p000-9": "p000"}  # a row without an embedding
    rows = MetricRows("run", None)
    config = VerificationConfig(pairs=200, folds=5)
    pairs = pairs_of(config, "all", "identity:x", scored(people, spread), given, None, {"network": "x"}, rows)
    assert "p000-9" not in pairs.ids
    (row,) = rows.rows
    assert row["metric"] == "verification_accuracy:x"
    assert row["n"] == 200
    assert low <= row["value"] <= high
    assert row["ci_low"] <= row["value"] <= row["ci_high"] <= 100
    one = MetricRows("run", None)
    pairs_of(VerificationConfig(pairs=20, folds=1), "all", "identity:x", scored(people, spread), people, None, {}, one)
    assert one.rows == []


def test_a_threshold_comes_from_the_other_folds() -> None:
    """By hand: the last fold's cosines lie lower, and the others' threshold refuses its genuine pairs."""
    cosines = np.array([0.9, 0.35, 0.8, 0.2, 0.4, 0.1])
    same = np.array([True, False] * 3)
    fold = np.array([0, 0, 1, 1, 2, 2])
    # Thresholds: .3 of fold 0, from .8 .2 .4 .1, accepts its .35; .375 of fold 1; .575 of fold 2 refuses its .4.
    mean, error = fold_accuracy(cosines, same, fold)
    each = [50.0, 100.0, 50.0]
    assert mean == pytest.approx(np.mean(each))
    assert error == pytest.approx(np.std(each, ddof=1) / np.sqrt(3))
    tied = fold_accuracy(np.array([0.5] * 4), np.array([True, False] * 2), np.array([0, 0, 1, 1]))
    assert tied == (50.0, 0.0), "equal cosines cannot be told apart"
