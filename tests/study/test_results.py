"""The design of a study, and what follows from answers."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from raygen.core.errors import ConfigError
from raygen.store.parquet import from_parquet
from raygen.study.agreement import fleiss_kappa, krippendorff_alpha
from raygen.study.answers import answer_files, read_answers
from raygen.study.design import LEAST_GAP, Form, design
from raygen.study.results import StudyMeasure, evaluate_answers, rate_raters, write_results

IDS = [f"s{i:03d}" for i in range(40)]


def forms_of(methods: Sequence[str] = ("ours", "theirs"), **changes: object) -> list[Form]:
    settings = {
        "layout": "pairs",
        "trials": 24,
        "checks": 6,
        "forms": 2,
        "shared": True,
        "seed": 3,
        "content": "ab",
    } | changes
    return design(methods, IDS, **settings)  # type: ignore[arg-type]


def key_of(forms: Sequence[Form], methods: Sequence[str] = ("ours", "theirs")) -> dict:
    documents = [{"form": form.number, "trials": [dict(trial.document()) for trial in form.trials]} for form in forms]
    return {"study": "abc", "question": "Which?", "methods": dict.fromkeys(methods), "forms": documents}


def answered(folder: Path, form: Form, rater: str, choose: Callable[[tuple[str, ...], int], object]) -> Path:
    """A file of answers; `choose` gets the methods by place and the number of the trial."""
    lines = [
        {
            "study": "abc",
            "trial": trial.id,
            "rater": rater,
            "choice": choose(trial.sides, i),
            "ms": 2000,
            "at": f"{i:04d}",
        }
        for i, trial in enumerate(form.trials)
    ]
    path = folder / f"{rater}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# --- design --------------------------------------------------------------------------------------------------------


def test_a_form_follows_from_the_seed_and_its_sides_are_balanced() -> None:
    forms = forms_of(trials=25)
    assert forms == forms_of(trials=25)
    assert forms != forms_of(trials=25, seed=4)
    for form in forms:
        own = [trial for trial in form.trials if trial.repeats is None]
        assert len({trial.sample_id for trial in own}) == 25
        assert sorted(Counter(trial.sides[0] for trial in own).values()) == [12, 13]
    first, second = ([t.sample_id for t in form.trials if t.repeats is None] for form in forms)
    assert sorted(first) == sorted(second)
    assert first != second
    assert len({trial.id for form in forms for trial in form.trials}) == 2 * 31


def test_checks_repeat_a_trial_later_with_its_sides_mirrored() -> None:
    for form in forms_of():
        place = {trial.id: i for i, trial in enumerate(form.trials)}
        checks = [trial for trial in form.trials if trial.repeats is not None]
        assert len(checks) == len({trial.repeats for trial in checks}) == 6
        for trial in checks:
            original = form.trials[place[trial.repeats]]
            assert (trial.sample_id, trial.sides) == (original.sample_id, original.sides[::-1])
            far = place[trial.id] - place[original.id]
            assert far > LEAST_GAP or place[trial.id] > len(form.trials) - 7


def test_pairs_of_three_methods_take_turns_over_the_same_rows() -> None:
    (form,) = forms_of("abc", forms=1, checks=0)
    pairs = Counter((trial.sample_id, frozenset(trial.sides)) for trial in form.trials)
    assert len(pairs) == 24
    assert {pair for _, pair in pairs} == {frozenset(pair) for pair in combinations("abc", 2)}
    assert len({row for row, _ in pairs}) == 8


def test_rows_have_each_method_at_each_place_equally_often_and_checks_move_them_all() -> None:
    """Mirrored, the middle one of three would stay: who always chooses the middle would fail no check."""
    (whole,) = forms_of("abc", forms=1, layout="rows", trials=25)
    assert all(sorted(trial.sides) == ["a", "b", "c"] for trial in whole.trials)
    own = {trial.id: trial.sides for trial in whole.trials if trial.repeats is None}
    for place in range(3):
        assert sorted(Counter(sides[place] for sides in own.values()).values()) == [8, 8, 9]
    assert len(set(own.values())) > 3
    checks = [(trial.sides, own[trial.repeats]) for trial in whole.trials if trial.repeats is not None]
    assert len(checks) == 6
    assert all(a != b for again, sides in checks for a, b in zip(again, sides, strict=True))


def test_sides_cannot_be_computed_from_the_seed_alone() -> None:
    """Another digest of the SAMPLES gives other rows, sides and ids: pages with the usual seed 0 tell nothing."""
    one, other = (forms_of(seed=0, content=content)[0].trials for content in ("ab", "cd"))
    assert not {trial.id for trial in one} & {trial.id for trial in other}
    sides = [{t.sample_id: t.sides[0] for t in trials if t.repeats is None} for trials in (one, other)]
    both = sides[0].keys() & sides[1].keys()
    assert 0 < sum(sides[0][row] == sides[1][row] for row in both) < len(both)


def test_forms_that_share_nothing_have_rows_of_their_own_and_enough_of_them() -> None:
    forms = forms_of(shared=False, trials=20)
    first, second = ({trial.sample_id for trial in form.trials} for form in forms)
    assert not first & second
    with pytest.raises(ConfigError, match=r"24 trials on 2 forms need 48 rows, and 40 are in .* at most 20"):
        forms_of(shared=False)
    with pytest.raises(ConfigError, match="checks: 30 is more than the 24 trials"):
        forms_of(checks=30)


# --- agreement -----------------------------------------------------------------------------------------------------


def test_kappa_is_that_of_the_usual_example() -> None:
    """14 raters, 10 items, 5 categories (from the article on Fleiss' kappa in Wikipedia): 0.210."""
    rows = "0 0 0 0 14 0 2 6 4 2 0 0 3 5 6 0 3 9 2 0 2 2 8 1 1 7 7 0 0 0 3 2 6 3 0 2 5 3 2 2 6 5 2 1 0 0 2 2 3 7"
    counts = np.array(rows.split(), float).reshape(10, 5)
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)
    counts[0, 0] = 1
    assert fleiss_kappa(counts) is None, "items with different numbers of ratings"


def test_alpha_is_that_of_krippendorffs_example() -> None:
    """Four observers, 12 units, some values missing (Krippendorff 2011, section C): 0.743 for nominal data."""
    observers = ("12332141 2...", "12332241 25.3", ".33323422 51.", "12332441 251.")
    units = list(zip(*(line.replace(" ", "") for line in observers), strict=True))
    counts = np.array([[unit.count(value) for value in "12345"] for unit in units], float)
    assert krippendorff_alpha(counts) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(np.array([[1.0, 0.0], [0.0, 1.0]])) is None
    assert krippendorff_alpha(np.array([[2.0, 0.0], [3.0, 0.0]])) is None


# --- results -------------------------------------------------------------------------------------------------------


def measures_of(key: dict, files: Sequence[Path]) -> dict[tuple[str, str], StudyMeasure]:
    answers, problems = read_answers(key, files)
    assert problems == []
    return {(m.measure, m.method): m for m in evaluate_answers(answers, list(key["methods"]))}


def test_win_rates_side_bias_and_checks_are_those_of_the_answers(tmp_path: Path) -> None:
    forms = forms_of()
    files = [
        answered(tmp_path, forms[0], "careful", lambda sides, i: sides.index("ours")),
        answered(tmp_path, forms[1], "lazy", lambda sides, i: 0),
    ]
    key = key_of(forms)
    measures = measures_of(key, files)
    rate, other = measures["win rate", "ours"], measures["win rate", "theirs"]
    assert (rate.value, rate.n) == (36 / 48, 48)
    assert other.value == pytest.approx(12 / 48)
    assert (rate.low, rate.high) == pytest.approx((0.6122, 0.8508), abs=5e-4)
    assert other.low == pytest.approx(1 - rate.high)
    assert (rate.low_raters, rate.high_raters) == (0.5, 1.0), "two raters that differ: all that lies between them"
    assert measures["checks failed", ""].value == 0.5
    assert measures["first place chosen", ""].value > 0.7
    raters = rate_raters(read_answers(key, files)[0], 0.5)
    assert [(r.name, r.failed, r.checks, r.left_out) for r in raters] == [
        ("careful", 0, 6, False),
        ("lazy", 6, 6, True),
    ]


def test_agreement_is_over_rows_and_not_over_sides(tmp_path: Path) -> None:
    forms = forms_of()
    same = [answered(tmp_path, f, f"r{f.number}", lambda s, i: s.index(min(s, key=len))) for f in forms]
    measures = measures_of(key_of(forms), same)
    assert measures["Krippendorff's alpha", ""].value is None, "everyone always chose the same method"
    flip = {row: i % 2 for i, row in enumerate(IDS)}
    for form in forms:
        rows = [trial.sample_id for trial in form.trials]
        answered(tmp_path, form, f"r{form.number}", lambda s, i, rows=rows: s.index(sorted(s)[flip[rows[i]]]))
    measures = measures_of(key_of(forms), same)
    assert measures["Krippendorff's alpha", ""].value == 1.0
    assert measures["Fleiss' kappa", ""].value == 1.0


def test_ties_are_half_a_win_and_first_choices_are_shares(tmp_path: Path) -> None:
    forms = forms_of(forms=1)
    path = answered(tmp_path, forms[0], "r", lambda sides, i: "tie" if i % 2 else sides.index("ours"))
    measures = measures_of(key_of(forms), [path])
    ties = measures["ties", ""].value
    assert measures["win rate", "ours"].value == pytest.approx(1 - ties / 2)
    assert measures["win rate", "ours"].low_raters is None, "a single rater says nothing about others"
    rows = forms_of("abc", forms=1, layout="rows")
    path = answered(tmp_path, rows[0], "r", lambda sides, i: sides.index("b"))
    measures = measures_of(key_of(rows, "abc"), [path])
    assert [measures["first choice", name].value for name in "abc"] == [0, 1, 0]
    assert measures["first choice", "b"].chance == 1 / 3


def test_checks_that_fail_by_chance_are_more_where_there_are_ties(tmp_path: Path) -> None:
    forms = forms_of(forms=1)
    number = iter(range(1000))
    path = answered(tmp_path, forms[0], "r", lambda sides, i: "tie" if next(number) % 3 == 0 else 0)
    measures = measures_of(key_of(forms), [path])
    assert measures["checks failed", ""].chance == pytest.approx(1 - (1 / 9 + (4 / 9) / 2))


def test_a_rater_of_two_forms_does_not_agree_with_herself(tmp_path: Path) -> None:
    """Of two shared forms; the pairs of different raters count, and win rates have all answers."""
    forms = forms_of(checks=0)
    flip = {row: i % 2 for i, row in enumerate(IDS)}
    for form in forms:
        rows = [trial.sample_id for trial in form.trials]
        path = answered(tmp_path, form, "anna", lambda s, i, rows=rows: s.index(sorted(s)[flip[rows[i]]]))
        path.rename(tmp_path / f"{form.number}.jsonl")
    files = answer_files([str(tmp_path)])
    measures = measures_of(key_of(forms), files)
    assert measures["win rate", "ours"].n == 48
    assert (measures["Krippendorff's alpha", ""].value, measures["Krippendorff's alpha", ""].n) == (None, 0)
    other = answered(tmp_path, forms[0], "bert", lambda s, i: 0)
    measures = measures_of(key_of(forms), [*files, other])
    assert measures["Krippendorff's alpha", ""].n == 24
    assert measures["Krippendorff's alpha", ""].value < 0.7, "bert always chose the left"


def test_two_people_with_one_name_are_noticed_and_a_file_that_came_twice_is_not(tmp_path: Path) -> None:
    (form,) = forms_of(forms=1)
    first = answered(tmp_path, form, "anna", lambda sides, i: 0)
    first.rename(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert read_answers(key_of([form]), answer_files([str(tmp_path)]))[1] == []
    answered(tmp_path, form, "anna", lambda sides, i: 1).rename(tmp_path / "c.jsonl")
    answers, (problem,) = read_answers(key_of([form]), answer_files([str(tmp_path)]))
    assert problem.startswith("c.jsonl: anna has other answers to 30 trials in b.jsonl")
    assert {answer.choice for answer in answers} == {1}


def test_hostile_lines_are_problems_or_answers_and_never_exceptions(tmp_path: Path) -> None:
    (form,) = forms_of(forms=1)
    trials = [trial.id for trial in form.trials]
    line = {"study": "abc", "rater": "r", "choice": 0, "ms": 5, "at": "1"}
    rows = [
        json.dumps({**line, "trial": trials[0], "ms": 10**400}),
        json.dumps({**line, "trial": trials[1], "rater": "\ud800\x1b[31m\u202e evil | x"}),
        json.dumps({**line, "trial": trials[2], "rater": "a\u2028b"}, ensure_ascii=False),
        json.dumps({**line, "trial": [trials[3]], "rater": {"x": 1}}),
        '{"a":' * 100_000,
        "NaN",
        "9" * 5000,
    ]
    (tmp_path / "x.jsonl").write_text("\r\n".join(rows), encoding="utf-8")
    (tmp_path / "folder.jsonl").mkdir()
    key = key_of([form])
    answers, problems = read_answers(key, answer_files([str(tmp_path)]))
    assert [answer.rater for answer in answers] == ["r", "[31m evil | x", "a b"]
    assert not np.isfinite(answers[0].ms)
    assert [text.partition(":")[0] for text in problems] == [f"x.jsonl, line {i}" for i in (4, 5, 6, 7)]
    write_results(
        str(tmp_path / "out"), evaluate_answers(answers, ["ours", "theirs"]), rate_raters(answers, 1), key, []
    )
    with pytest.raises(ConfigError, match="no file of answers"):
        answer_files([str(tmp_path / "folder.jsonl")])


def test_lines_that_are_no_answers_are_named_and_the_newest_answer_counts(tmp_path: Path) -> None:
    forms = forms_of(forms=1)
    path = answered(tmp_path, forms[0], "r", lambda sides, i: sides.index("ours"))
    trial = forms[0].trials[0]
    line = {"study": "abc", "trial": trial.id, "rater": "r", "choice": trial.sides.index("theirs"), "at": "9999"}
    (again := tmp_path / "zz.jsonl").write_text(json.dumps({**line, "at": "0"}))
    bad = [
        {**line, "study": "other"},
        {**line, "trial": "zz"},
        {**line, "choice": 2},
        {**line, "choice": True},
        {**line, "rater": " "},
        [1],
    ]
    (tmp_path / "more.jsonl").write_text("\n".join(["{", *map(json.dumps, bad), "", json.dumps(line)]))
    answers, problems = read_answers(key_of(forms), answer_files([str(tmp_path)]))
    assert len(answers) == len(forms[0].trials)
    assert next(answer.method for answer in answers if answer.trial == trial.id) == "theirs"
    assert [text.split(": ")[0] for text in problems[:7]] == [f"more.jsonl, line {i}" for i in range(1, 8)]
    assert [text.split(" has")[0] for text in problems[7:]] == ["r.jsonl: r", "zz.jsonl: r"]
    again.unlink()
    assert "choice '2' is not a place from 0 to 1" in problems[3]
    with pytest.raises(ConfigError, match="no file of answers"):
        answer_files([str(path / "nothing")])


def test_results_are_written_as_tables(tmp_path: Path) -> None:
    forms = forms_of(("ours|x", "theirs"))
    key = key_of(forms, ("ours|x", "theirs"))
    files = [answered(tmp_path, form, f"r{form.number}", lambda s, i: s.index("ours|x")) for form in forms]
    answers, _ = read_answers(key, files)
    measures = evaluate_answers(answers, list(key["methods"]))
    text = write_results(str(tmp_path / "out"), measures, rate_raters(answers, 1.0), key, ["x.jsonl, line 1: bad"])
    assert "| win rate | ours\\|x | theirs | 1.000 | 0.926 to 1.000 | 1.000 to 1.000 | 0.500 | 48 |" in text
    table = from_parquet((tmp_path / "out/results.parquet").read_bytes())
    assert table["value"].to_pylist() == [m.value for m in measures]
    assert json.loads((tmp_path / "out/results.json").read_text())["problems"] == ["x.jsonl, line 1: bad"]
    assert (tmp_path / "out/results.md").read_text() == text
