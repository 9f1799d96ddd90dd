"""Answers of a study, put together with its key."""

import json
from collections.abc import Iterable, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any, Final, NamedTuple

from raygen.core.errors import ConfigError

__all__ = ["SKIPPED", "TIE", "Answer", "answer_files", "read_answers"]


#: Choices that are no place.
TIE: Final = "tie"
SKIPPED: Final = "skipped"


class Answer(NamedTuple):
    """A choice of a rater: the trial's row and methods by place, and the place that was chosen (None for a tie).

    `repeats`: id of the trial that this one repeats, as a check.
    """

    rater: str
    trial: str
    sample_id: str
    sides: tuple[str, ...]
    choice: int | None
    ms: float
    repeats: str | None

    @property
    def method(self) -> str | None:
        """The method that was chosen; None for a tie."""
        return None if self.choice is None else self.sides[self.choice]


def answer_files(places: Iterable[str]) -> list[Path]:
    """Files of answers: files, folders with *.jsonl, and patterns; `ConfigError` for a place without any."""
    files: list[Path] = []
    for place in places:
        path = Path(place)
        found = sorted(path.rglob("*.jsonl")) if path.is_dir() else sorted(map(Path, glob(place)))
        if not found:
            raise ConfigError(f"{place}: no file of answers is here")
        files += [file for file in found if file not in files]
    return files


def read_answers(key: Mapping[str, Any], files: Sequence[Path]) -> tuple[list[Answer], list[str]]:
    """The answers in `files`, and a sentence for each line that is none.

    Where a rater answered a trial twice, the answer with the later time counts.
    """
    trials = {trial["id"]: trial for form in key["forms"] for trial in form["trials"]}
    newest: dict[tuple[str, str], tuple[str, Answer]] = {}
    problems = []
    for file in files:
        for number, line in enumerate(file.read_bytes().decode("utf-8-sig", "replace").splitlines(), 1):
            if not line.strip():
                continue
            try:
                at, answer = _answer(key["study"], trials, line)
            except (ValueError, KeyError, TypeError) as error:
                problems.append(f"{file.name}, line {number}: {error}")
                continue
            if answer is not None:
                place = (answer.rater, answer.trial)
                if place not in newest or newest[place][0] <= at:
                    newest[place] = (at, answer)
    return [answer for _, answer in newest.values()], problems


def _answer(study: str, trials: Mapping[str, Mapping[str, Any]], line: str) -> tuple[str, Answer | None]:
    """Time and answer of a line, None for a trial that was skipped; `ValueError` says what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(row, dict):
        raise ValueError("is not an object")
    if row.get("study") != study:
        raise ValueError(f"is an answer to the study {str(row.get('study'))[:20]!r}, and the key is of {study!r}")
    trial = trials.get(str(row.get("trial")))
    if trial is None:
        raise ValueError(f"the study has no trial {str(row.get('trial'))[:20]!r}")
    rater, choice, at = str(row.get("rater") or "").strip(), row.get("choice"), str(row.get("at") or "")
    if not rater:
        raise ValueError("has no rater")
    if choice == SKIPPED:
        return at, None
    sides = tuple(trial["sides"])
    if choice != TIE and (not isinstance(choice, int) or isinstance(choice, bool) or not 0 <= choice < len(sides)):
        raise ValueError(f"choice {str(choice)[:20]!r} is not a place from 0 to {len(sides) - 1}, or {TIE!r}")
    ms = row.get("ms")
    spent = float(ms) if isinstance(ms, int | float) else float("nan")
    place = None if choice == TIE else int(choice)
    return at, Answer(rater, trial["id"], trial["sample_id"], sides, place, spent, trial["repeats"])
