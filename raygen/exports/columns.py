"""Which names the rows of an exported data set get.

Knows identities, variants and ids. Knows no format and no picture.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from raygen.core.face_labels import ATTRIBUTES
from raygen.exports.base import Ready
from raygen.store.filenames import safe_name

__all__ = ["FIELDS", "Naming", "csv_head", "csv_lines", "facts_of_row"]


@dataclass(frozen=True)
class Naming:
    """How rows are called. `people`: a folder an identity; `by_variant`: numbers in it instead of row ids.

    `dotless` replaces dots: readers of tar shards take what follows the first dot for the kind of a member.
    """

    key: str
    people: bool = False
    by_variant: bool = False
    dotless: bool = False

    def stem(self, row: Mapping[str, Any]) -> str:
        """Path of a row without its ending; `InputError` (`bad_id`) where an id is no safe name."""
        name = safe_name(row[self.key])
        if self.dotless:
            name = name.replace(".", "_")
        if not self.people or row["identity_id"] is None:
            return name
        person = safe_name(row["identity_id"])
        return f"{person}/{row['variant']:03d}" if self.by_variant else f"{person}/{name}"


#: Columns of a picture, in this order; `is_synthetic` is always said.
FIELDS: Final = (
    "sample_id",
    "identity_id",
    "label",
    "variant",
    "split",
    "is_synthetic",
    "digital_source_type",
    "source",
    "text",
    "plan",
    "run_id",
    "attempt",
    "seed",
    "checkpoint",
    "sampler",
    "steps",
    "guidance",
    "image_sha256",
)


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
