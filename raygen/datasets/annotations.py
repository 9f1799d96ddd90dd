"""The text files beside pictures: lines by picture number, the 40 attributes in their dialects, and JSON."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import ATTRIBUTES

__all__ = [
    "RepeatedKey",
    "attribute_lines",
    "attribute_note",
    "attribute_values",
    "lines_by_number",
    "number_of",
    "parse_json",
]


#: Spellings of the attribute values.
_VALUES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("-1", "-1.0", "-1."), -1),
    **dict.fromkeys(("0", "0.0", "-0", "-0.0", "+0", "0."), 0),
    **dict.fromkeys(("1", "+1", "1.0", "+1.0", "1."), 1),
}


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
    """Lines `12.jpg a b` -> {12: [a, b]}; `ConfigError` for a line without a picture, or a picture listed twice."""
    rows: dict[int, list[str]] = {}
    for line_number, line in lines:
        first, *rest = line.split() or [""]
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
    used = {_VALUES.get(word) for line in lines.values() for word in line.split()}
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
    for name, word in zip(ATTRIBUTES, words, strict=True):
        if word not in _VALUES:
            raise InputError(f"{name} is {word[:20]!r}, allowed are -1, 0 and 1", reason="attributes")
    return [_VALUES[word] for word in words]
