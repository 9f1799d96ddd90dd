"""Which pictures a study compares, in which order and on which side."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from raygen.core.errors import ConfigError

__all__ = ["LEAST_GAP", "Form", "Layout", "Trial", "design", "random_of", "token"]


Layout = Literal["pairs", "rows"]
#: Trials between one and its repetition, at least, where the form is long enough.
LEAST_GAP: Final = 5


class Trial(NamedTuple):
    """One choice: its id, its row of SAMPLES, the method at each place, and the id of the trial that it repeats."""

    id: str
    sample_id: str
    sides: tuple[str, ...]
    repeats: str | None = None

    def document(self) -> Mapping[str, Any]:
        """As plain values."""
        return self._asdict()


class Form(NamedTuple):
    """The trials of one page in their order."""

    number: int
    trials: Sequence[Trial]


def random_of(seed: int, content: str, number: int) -> np.random.Generator:
    """The generator of form `number`, or of the names of files (0).

    `content` is a digest of the SAMPLES. It enters because seeds are guessed: everyone who reads this file could
    compute from a seed alone which method is on which side.
    """
    return np.random.default_rng(list(hashlib.sha256(f"{seed} {content} {number}".encode()).digest()))


def token(random: np.random.Generator) -> str:
    """A name that says nothing: 16 hexadecimal digits."""
    return random.bytes(8).hex()


def design(
    methods: Sequence[str],
    sample_ids: Sequence[str],
    *,
    layout: Layout,
    trials: int,
    checks: int,
    forms: int,
    shared: bool,
    seed: int,
    content: str,
) -> list[Form]:
    """The trials of `forms` pages: `trials` different ones on each, and `checks` of them once more.

    `pairs`: each trial shows two methods, and all pairs of methods take turns over the same rows. `rows`: a trial shows
    all methods. In a form each method of a pair or row is at each place equally often, to within one; in a check no
    method is where it was. With `shared` all forms have the same trials, in an order and with sides of their own; else
    each form has rows of its own. All follows from `seed` and `content`, see `random_of`. `ConfigError` where there are
    too few rows, or fewer trials than checks.
    """
    groups = list(combinations(methods, 2)) if layout == "pairs" else [tuple(methods)]
    needed = -(-trials // len(groups))
    total = needed if shared else needed * forms
    if total > len(sample_ids):
        most = len(sample_ids) // (1 if shared else forms) * len(groups)
        raise ConfigError(
            f"trials: {trials} trials on {forms} {'forms' if forms > 1 else 'form'} need {total} rows, and "
            f"{len(sample_ids)} are in all methods; set trials to at most {most}"
        )
    if checks > trials:
        raise ConfigError(f"checks: {checks} is more than the {trials} trials that they repeat")
    random = random_of(seed, content, 0)
    rows = [sample_ids[i] for i in random.permutation(len(sample_ids))[:total]]
    made = []
    for number in range(forms):
        own = rows if shared else rows[number * needed : (number + 1) * needed]
        items = [(own[i // len(groups)], groups[i % len(groups)]) for i in range(trials)]
        made.append(_form(number + 1, items, checks, random_of(seed, content, number + 1)))
    return made


def _form(number: int, items: Sequence[tuple[str, tuple[str, ...]]], checks: int, random: np.random.Generator) -> Form:
    """One page of `items` (row, methods)."""
    turns: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    trials = []
    for place in random.permutation(len(items)):
        row, group = items[int(place)]
        if not turns.get(group):
            mixed = tuple(group[i] for i in random.permutation(len(group)))
            turns[group] = [_turned(mixed, by) for by in range(len(mixed))]
        trials.append(Trial(token(random), row, turns[group].pop()))
    random.shuffle(trials)  # sides do not alternate
    repeated = [trials[i] for i in sorted(random.permutation(len(trials))[:checks].tolist())]
    for trial in repeated:
        place = next(i for i, other in enumerate(trials) if other.id == trial.id)
        low = min(place + 1 + LEAST_GAP, len(trials))
        again = Trial(token(random), trial.sample_id, _turned(trial.sides, 1), trial.id)
        trials.insert(int(random.integers(low, len(trials) + 1)), again)
    return Form(number, trials)


def _turned(sides: tuple[str, ...], by: int) -> tuple[str, ...]:
    """Every method `by` places further on. Mirrored, the middle one of three would stay where it is."""
    return sides[by:] + sides[:by]
