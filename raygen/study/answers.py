"""Answers of a study, put together with its key."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any, Final, NamedTuple

from raygen.core.errors import ConfigError

__all__ = ["SKIPPED", "TIE", "Answer", "answer_files", "read_answers"]


#: Choices that are no place.
TIE: Final = "tie"
SKIPPED: Final = "skipped"


#: A day: what claims to have taken longer has no time.
LONGEST_MS: Final = 86_400_000


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
        found = [file for file in found if file.is_file()]
        if not found:
            raise ConfigError(f"{place}: no file of answers is here; raters download one, answers-….jsonl, at the end")
        files += [file for file in found if file not in files]
    return files


def read_answers(key: Mapping[str, Any], files: Sequence[Path]) -> tuple[list[Answer], list[str]]:
    """The answers in `files`, and a sentence for each line that is none.

    Where a rater answered a trial twice, the answer with the later time counts; a sentence says so where it is in
    another file and another answer, as those of two people with one name are.
    """
    trials = {trial["id"]: trial for form in key["forms"] for trial in form["trials"]}
    newest: dict[tuple[str, str], tuple[str, Answer, Path]] = {}
    problems = []
    doubled: Counter[tuple[str, Path, Path]] = Counter()
    for file in files:
        # Not `splitlines`: names may have other characters that end lines.
        for number, line in enumerate(file.read_bytes().decode("utf-8-sig", "replace").split("\n"), 1):
            if not line.strip():
                continue
            try:
                at, answer = _answer(key["study"], trials, line)
            except ValueError as error:
                problems.append(f"{file.name}, line {number}: {error}")
                continue
            if answer is not None:
                place = (answer.rater, answer.trial)
                before = newest.get(place)
                if before is not None and before[2] != file and before[:2] != (at, answer):
                    doubled[answer.rater, before[2], file] += 1
                if before is None or before[0] <= at:
                    newest[place] = (at, answer, file)
    problems += [
        f"{second.name}: {rater} has other answers to {count} trials in {first.name}, and the later ones count; if "
        "these are two people, give them two names"
        for (rater, first, second), count in doubled.items()
    ]
    return [answer for _, answer, _ in newest.values()], problems


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
    rater = "".join(c if c.isprintable() else " " for c in str(row.get("rater") or ""))
    rater, choice, at = " ".join(rater.split()), row.get("choice"), str(row.get("at") or "")
    if not rater:
        raise ValueError("has no rater")
    if choice == SKIPPED:
        return at, None
    sides = tuple(trial["sides"])
    if choice != TIE and (not isinstance(choice, int) or isinstance(choice, bool) or not 0 <= choice < len(sides)):
        raise ValueError(f"choice {str(choice)[:20]!r} is not a place from 0 to {len(sides) - 1}, or {TIE!r}")
    ms = row.get("ms")
    spent = float(ms) if isinstance(ms, int | float) and 0 <= ms < LONGEST_MS else float("nan")
    place = None if choice == TIE else int(choice)
    return at, Answer(rater, trial["id"], trial["sample_id"], sides, place, spent, trial["repeats"])
