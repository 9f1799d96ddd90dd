"""The text files beside pictures: lines by picture number, the 40 attributes in their dialects, and JSON."""

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import ATTRIBUTES

__all__ = [
    "CELEBA_HQ",
    "RepeatedKey",
    "attribute_lines",
    "attribute_note",
    "attribute_values",
    "lines_by_number",
    "number_of",
    "parse_json",
    "refuse_celeba_numbers",
]


#: How many pictures CelebA-HQ has, numbered from 0. CelebA has 202,599, numbered from 1.
CELEBA_HQ: Final = 30_000
#: Words for attribute values, as tools for tables write them; numbers may be written in any way.
_VALUES: Final[Mapping[str, int]] = {"true": 1, "false": -1, "\u22121": -1}
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,9}(?:\.[0-9]{0,20})?(?:[eE][+-]?[0-9]{1,2})?")


def number_of(name: str) -> int | None:
    """The CelebA-HQ number in `12.jpg`, `00012`, `imgHQ00012.npy`; None where there is none."""
    match = re.fullmatch(r"[^0-9]*([0-9]{1,9})(?:\.\w+)?", name)
    return int(match[1]) if match else None


class RepeatedKey(dict[str, Any]):
    """A JSON object in which `key` is there twice, so that its value is not clear."""

    key: str


def parse_json(text: str) -> Any:
    """A JSON document; `ValueError` for another text and too deep nesting.

    An object with a key twice becomes a `RepeatedKey`. A whole number of 400 digits or more, which no column can hold,
    becomes infinity. The caller refuses both where they are, so that one bad value does not cost the file.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=lambda s: int(s) if len(s) < 400 else float(s))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) == len(pairs):
        return entries
    repeated, keys = RepeatedKey(entries), [key for key, _ in pairs]
    repeated.key = next(key for key in keys if keys.count(key) > 1)
    return repeated


def lines_by_number(source: str, lines: Iterable[tuple[int, str]]) -> dict[int, list[str]]:
    """Lines `12.jpg a b` -> {12: [a, b]}, words apart by spaces, tabs, commas or semicolons.

    `ConfigError` for a line without a picture, or a picture listed twice.
    """
    rows: dict[int, list[str]] = {}
    for line_number, line in lines:
        first, *rest = re.sub(r"[,;]", " ", line).split() or [""]
        number = number_of(first)
        if first and (number is None or number in rows):
            fault = f"{first[:40]!r} names no picture" if number is None else f"names picture {number} a second time"
            raise ConfigError(f"{source}, line {line_number}: {fault}")
        if number is not None:
            rows[number] = rest
    return rows


def attribute_lines(source: str, text: str) -> dict[int, str]:
    """Picture -> values in the order of `ATTRIBUTES`, as text, so that a bad line fails one row and not the run.

    The published form has a line with the number of pictures, a line of names, and lines `0.jpg -1 1 ...`. The number
    may be missing, the names may begin with one for the pictures, and commas, semicolons or tabs may separate.
    """
    lines = [re.sub(r"[,;\t]", " ", line).replace('"', "") for line in text.splitlines()]
    start = next((i for i, line in enumerate(lines) if line.strip()), 0)
    if start + 1 < len(lines) and lines[start].strip().isdigit():
        start += 1
    header = lines[start].split() if lines else []
    names = header[1:] if len(header) == len(ATTRIBUTES) + 1 else header
    if sorted(names) != sorted(ATTRIBUTES):
        raise ConfigError(_wrong_header(source, start + 1, header))
    order = [names.index(name) for name in ATTRIBUTES]
    rows = lines_by_number(source, enumerate(lines[start + 1 :], start=start + 2))
    return {
        number: " ".join([words[i] for i in order] if len(words) == len(order) else words)
        for number, words in rows.items()
    }


def attribute_note(lines: Mapping[int, str]) -> str:
    """A remark on a file whose values are 0 and 1, which may mean no and yes; else empty."""
    used = {_value(word) for word in {word for line in lines.values() for word in line.split()}}
    if 0 not in used or -1 in used:
        return ""
    return "attributes: all values are 0 (not known) or 1 (yes); write -1 where 0 means no"


def _wrong_header(source: str, line: int, header: list[str]) -> str:
    missing = [name for name in ATTRIBUTES if name not in header]
    unknown = [word for word in header if word not in ATTRIBUTES]
    return (
        f"{source}, line {line}: expected are the names of the {len(ATTRIBUTES)} attributes "
        f"({ATTRIBUTES[0]} {ATTRIBUTES[1]} ...), found {len(header)} words"
        + (f"; missing: {', '.join(missing[:3])}" if 0 < len(missing) < len(ATTRIBUTES) else "")
        + (f"; unknown: {', '.join(word[:40] for word in unknown[:3])}" if unknown else "")
    )


def attribute_values(text: str) -> list[int]:
    """40 words -> 40 values of -1, 0 or 1; `InputError` (`attributes`) for anything else."""
    words = text.split()
    if len(words) != len(ATTRIBUTES):
        raise InputError(f"{len(words)} values, {len(ATTRIBUTES)} expected", reason="attributes")
    values = [_value(word) for word in words]
    for name, word, value in zip(ATTRIBUTES, words, values, strict=True):
        if value is None:
            raise InputError(f"{name} is {word[:20]!r}, allowed are -1, 0 and 1", reason="attributes")
    return [value for value in values if value is not None]


@lru_cache(maxsize=1024)
def _value(word: str) -> int | None:
    """-1, 0 or 1; None for another word."""
    if word.lower() in _VALUES:
        return _VALUES[word.lower()]
    value = float(word) if _NUMBER.fullmatch(word) else None
    return int(value) if value in (-1, 0, 1) else None


def refuse_celeba_numbers(source: str, numbers: Iterable[int], pictures: Iterable[int]) -> None:
    """`ConfigError` where a file is about more pictures than CelebA-HQ has, and the pictures are those of CelebA-HQ.

    Files of CelebA (`list_attr_celeba`, `identity_CelebA`) have the same form and other numbers, so each picture would
    get the labels of another person.
    """
    last, last_picture = max(numbers, default=0), max(pictures, default=0)
    if last >= CELEBA_HQ > last_picture:
        raise ConfigError(
            f"{source}: has a line for picture {last}, and CelebA-HQ ends at {CELEBA_HQ - 1}; a file with the numbers "
            "of CelebA says nothing about the pictures of CelebA-HQ. Use the file that came with CelebA-HQ, or "
            "translate the numbers by CelebA-HQ-to-CelebA-mapping.txt"
        )
