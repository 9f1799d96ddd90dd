"""Results of a preference study: win rates with intervals, agreement, side bias and checks of the raters.

Repeated trials are checks only: they enter no win rate and no agreement.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from raygen.core.types import Float64Array
from raygen.metrics.proportion import wilson
from raygen.store.filesystem import FileStore
from raygen.store.parquet import to_parquet
from raygen.study.agreement import fleiss_kappa, krippendorff_alpha
from raygen.study.answers import Answer

__all__ = ["RESULTS", "Rater", "StudyMeasure", "evaluate_answers", "markdown", "rate_raters", "write_results"]


BOOTSTRAPS: Final = 2000
#: Problems that results.md lists; results.json has all.
LISTED: Final = 50
RESULTS: Final = pa.schema(
    [
        ("measure", pa.string()),
        ("method", pa.string()),
        ("against", pa.string()),
        ("value", pa.float64()),
        ("n", pa.int64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("low_raters", pa.float64()),
        ("high_raters", pa.float64()),
        ("chance", pa.float64()),
    ]
)


class StudyMeasure(NamedTuple):
    """A number over `n` answers or items, or None; `low` and `high` are Wilson's interval, the others the bootstrap's.

    `chance`: the value of raters who do not look.
    """

    measure: str
    method: str
    against: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    low_raters: float | None = None
    high_raters: float | None = None
    chance: float | None = None


class Rater(NamedTuple):
    """A rater: answers without checks, checks and those that failed, share of the first place, median seconds."""

    name: str
    answers: int
    checks: int
    failed: int
    first: float | None
    seconds: float | None
    left_out: bool


def rate_raters(answers: Sequence[Answer], max_failed: float) -> list[Rater]:
    """Each rater by name; those who failed more than the share `max_failed` of their checks are left out.

    A check fails where another method is chosen than in the trial that it repeats, a tie being neither.
    """
    by_rater: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_rater[answer.rater].append(answer)
    raters = []
    for name, own in sorted(by_rater.items()):
        methods = {answer.trial: answer.method for answer in own if answer.repeats is None}
        checks = [answer for answer in own if answer.repeats in methods]
        failed = sum(answer.method != methods[str(answer.repeats)] for answer in checks)
        chosen = [answer.choice for answer in own if answer.choice is not None]
        times = [answer.ms / 1000 for answer in own if np.isfinite(answer.ms)]
        raters.append(
            Rater(
                name,
                len(methods),
                len(checks),
                failed,
                chosen.count(0) / len(chosen) if chosen else None,
                median(times) if times else None,
                bool(checks) and failed / len(checks) > max_failed,
            )
        )
    return raters


def evaluate_answers(answers: Sequence[Answer], methods: Sequence[str], *, seed: int = 0) -> list[StudyMeasure]:
    """Measures of the answers of all raters that count.

    `win rate` of a method against another: wins and half of the ties, over their trials. `first choice`: share of
    choices among all methods at once. Their intervals are Wilson's, over answers as if they were independent, and 95 %
    of a bootstrap over raters, whose answers are not; the latter is None for one rater.
    """
    trials = [answer for answer in answers if answer.repeats is None]
    raters = sorted({answer.rater for answer in trials})
    measures = []
    for first, second in combinations(methods, 2):
        pair = [answer for answer in trials if set(answer.sides) == {first, second} and len(answer.sides) == 2]
        if pair:
            points = [0.5 if a.method is None else float(a.method == first) for a in pair]
            rate = _share("win rate", first, second, pair, points, raters, seed, 0.5)
            measures += [rate, _mirrored(rate)]
    whole = [answer for answer in trials if len(answer.sides) > 2]
    for method in methods if whole else ():
        points = [1 / len(a.sides) if a.method is None else float(a.method == method) for a in whole]
        chance = 1 / len(whole[0].sides)
        measures.append(_share("first choice", method, "all others", whole, points, raters, seed, chance))
    if trials:
        ties = [float(answer.choice is None) for answer in trials]
        measures.append(_share("ties", "", "", trials, ties, raters, seed, None))
    chosen = [answer for answer in answers if answer.choice is not None]
    if chosen:
        places = len(chosen[0].sides)
        left = [float(answer.choice == 0) for answer in chosen]
        measures.append(_share("first place chosen", "", "", chosen, left, raters, seed, 1 / places))
    return [*measures, *_checks(answers, raters, seed), *_agreement(trials)]


def _share(
    measure: str,
    method: str,
    against: str,
    answers: Sequence[Answer],
    points: Sequence[float],
    raters: Sequence[str],
    seed: int,
    chance: float | None,
) -> StudyMeasure:
    """The mean of `points`, one an answer, with both intervals."""
    total, n = sum(points), len(points)
    index = {name: i for i, name in enumerate(raters)}
    sums, counts = np.zeros(len(raters)), np.zeros(len(raters))
    for answer, value in zip(answers, points, strict=True):
        place = index.get(answer.rater)
        if place is not None:
            sums[place] += value
            counts[place] += 1
    low, high = _bootstrap(sums, counts, seed)
    return StudyMeasure(measure, method, against, total / n, n, *wilson(total, n), low, high, chance)


def _bootstrap(sums: Float64Array, counts: Float64Array, seed: int) -> tuple[float | None, float | None]:
    """95 % interval of sum over count when raters are drawn with replacement; None for fewer than two raters."""
    if (counts > 0).sum() < 2:
        return None, None
    drawn = np.random.default_rng(seed).integers(0, len(sums), (BOOTSTRAPS, len(sums)))
    totals = counts[drawn].sum(axis=1)
    shares = sums[drawn].sum(axis=1)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)


def _mirrored(rate: StudyMeasure) -> StudyMeasure:
    """A win rate seen from the other method."""
    other: Callable[[float | None], float | None] = lambda value: None if value is None else 1 - value  # noqa: E731
    return StudyMeasure(
        rate.measure,
        rate.against,
        rate.method,
        other(rate.value),
        rate.n,
        other(rate.high),
        other(rate.low),
        other(rate.high_raters),
        other(rate.low_raters),
        rate.chance,
    )


def _checks(answers: Sequence[Answer], raters: Sequence[str], seed: int) -> list[StudyMeasure]:
    """Share of the repeated trials in which another method was chosen."""
    methods = {(a.rater, a.trial): a.method for a in answers if a.repeats is None}
    checks = [a for a in answers if (a.rater, a.repeats) in methods]
    if not checks:
        return []
    failed = [float(a.method != methods[a.rater, str(a.repeats)]) for a in checks]
    # Of raters who do not look but say "no difference" as often as these.
    tie = sum(a.choice is None for a in answers) / len(answers)
    chance = 1 - (tie**2 + (1 - tie) ** 2 / len(checks[0].sides))
    return [_share("checks failed", "", "", checks, failed, raters, seed, chance)]


def _agreement(trials: Sequence[Answer]) -> list[StudyMeasure]:
    """Agreement of different raters on the same row and methods, a tie being a category of its own."""
    items: dict[tuple[str, frozenset[str]], dict[str, str]] = defaultdict(dict)
    for answer in trials:  # one rater may have answered two forms: only the first answer counts
        items[answer.sample_id, frozenset(answer.sides)].setdefault(answer.rater, answer.method or "")
    ratings = [list(chosen.values()) for chosen in items.values()]
    names = sorted({method for chosen in ratings for method in chosen})
    counts = np.array([[chosen.count(name) for name in names] for chosen in ratings], np.float64)
    if not len(counts):
        return []
    several = int((counts.sum(axis=1) >= 2).sum())
    return [
        StudyMeasure("Krippendorff's alpha", "", "", krippendorff_alpha(counts), several, chance=0.0),
        StudyMeasure("Fleiss' kappa", "", "", fleiss_kappa(counts), several, chance=0.0),
    ]


def write_results(
    out: str, measures: Sequence[StudyMeasure], raters: Sequence[Rater], key: Mapping[str, Any], problems: Sequence[str]
) -> str:
    """Write results.parquet, results.json and results.md into `out`; the text of the last one."""
    text = markdown(measures, raters, key, problems)
    document = {
        "study": key["study"],
        "question": key["question"],
        "measures": [measure._asdict() for measure in measures],
        "raters": [rater._asdict() for rater in raters],
        "problems": list(problems),
    }
    storage = FileStore(out)
    storage.put("results.parquet", to_parquet(pa.Table.from_pylist([m._asdict() for m in measures], RESULTS)))
    storage.put("results.json", json.dumps(document, indent=1).encode())
    storage.put("results.md", text.encode())
    return text


def markdown(
    measures: Sequence[StudyMeasure], raters: Sequence[Rater], key: Mapping[str, Any], problems: Sequence[str]
) -> str:
    """The results as Markdown tables."""
    counted = [rater for rater in raters if not rater.left_out]
    lines = [
        f"# {_cell(key['question'])}",
        "",
        f"Study {key['study']}, {len(counted)} of {len(raters)} raters counted.",
        "",
    ]
    lines += [
        "| measure | method | against | value | 95 % (Wilson) | 95 % (raters) | chance | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for m in measures:
        between = [_between(m.low, m.high), _between(m.low_raters, m.high_raters)]
        cells = [m.measure, m.method, m.against, _number(m.value), *between, _number(m.chance), str(m.n)]
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    lines += ["", "| rater | answers | checks failed | first place | median s | counted |", "|---|---|---|---|---|---|"]
    for r in raters:
        cells = [r.name, str(r.answers), f"{r.failed} of {r.checks}", _number(r.first), _number(r.seconds)]
        lines.append(f"| {' | '.join(map(_cell, [*cells, 'no' if r.left_out else 'yes']))} |")
    if problems:
        more = [f"- and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        lines += ["", f"Problems with the answers: {len(problems)}", ""]
        lines += [*(f"- {_cell(text)}" for text in problems[:LISTED]), *more]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _cell(text: str) -> str:
    """Text of a user that stays within its cell."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
