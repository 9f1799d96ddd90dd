"""What is said of a picture beside its pixels: the columns that formats share, as CSV lines and as plain values.

Knows the names. Knows no format.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from raygen.exports.base import Ready
from raygen.faces import ATTRIBUTES

__all__ = ["FIELDS", "csv_head", "csv_lines", "facts_of_row"]

#: Columns of a picture, in this order; `is_synthetic` is always said.
FIELDS: Final = (
    "sample_id", "identity_id", "label", "variant", "split", "is_synthetic", "digital_source_type", "source", "text",
    "plan", "run_id", "attempt", "seed", "checkpoint", "sampler", "steps", "guidance", "image_sha256",
)  # fmt: skip


def facts_of_row(ready: Ready) -> dict[str, Any]:
    """All `FIELDS` of a row; None where it does not say. `label` is the number of its identity."""
    row = ready.row
    guidance = row.get("guidance")
    said = {name: row.get(name) for name in FIELDS}
    said["label"] = ready.label if ready.label >= 0 else None
    said["guidance"] = None if guidance is None else json.dumps(dict(guidance), sort_keys=True)
    return said


def csv_head() -> bytes:
    """The first line: path, fields, and the 40 attributes by name."""
    return _line(["path", *FIELDS, *ATTRIBUTES])


def csv_lines(rows: Sequence[tuple[Ready, str]]) -> list[bytes]:
    """A line a row and its path, UTF-8, LF. Attributes are -1, 1, or empty where nobody knows."""
    return [_line([path, *_texts(ready)]) for ready, path in rows]


def _texts(ready: Ready) -> list[object]:
    said: Mapping[str, Any] = facts_of_row(ready)
    attributes = ready.row.get("attributes") or [0] * len(ATTRIBUTES)
    values = ["" if said[name] is None else said[name] for name in FIELDS]
    return [*values, *(value or "" for value in attributes)]


def _line(values: Sequence[object]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue().encode()
