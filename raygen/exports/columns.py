"""Names of exported rows, and their columns in tables and CSV files."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from raygen.core.face_labels import ATTRIBUTES, attribute_list
from raygen.exports.base import ExportRow
from raygen.store.filenames import safe_name

__all__ = ["FIELDS", "INTEGERS", "NamingScheme", "csv_head", "csv_lines", "row_columns"]


@dataclass(frozen=True)
class NamingScheme:
    """How rows are named.

    `key`: column of their ids. `identity_folders`: as `identity/row`. `by_variant`: in such a folder by the number of
    the variant in place of the id. `no_dots`: dots become underscores.
    """

    key: str
    identity_folders: bool = False
    by_variant: bool = False
    no_dots: bool = False

    def stem(self, row: Mapping[str, Any]) -> str:
        """Path of a row without its extension; `InputError` (`bad_id`) where an id is no safe file name."""
        name = safe_name(row[self.key])
        if self.no_dots:
            name = name.replace(".", "_")
        if not self.identity_folders or row["identity_id"] is None:
            return name
        identity = safe_name(row["identity_id"])
        return f"{identity}/{row['variant']:03d}" if self.by_variant else f"{identity}/{name}"


#: Columns of `FIELDS` that hold whole numbers.
INTEGERS: Final = ("label", "variant", "attempt", "seed", "steps")
#: Columns of an exported row, in this order.
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


def row_columns(row: ExportRow) -> dict[str, Any]:
    """All `FIELDS` of a row; None where a value is missing."""
    columns = {name: row.row.get(name) for name in FIELDS}
    columns["label"] = row.label if row.label >= 0 else None
    if columns["guidance"] is not None:
        columns["guidance"] = json.dumps(columns["guidance"], sort_keys=True)
    return columns


def csv_head() -> bytes:
    """The first line: path, fields, and the 40 attributes by name."""
    return _csv_line(["path", *FIELDS, *ATTRIBUTES])


def csv_lines(rows: Sequence[tuple[ExportRow, str]]) -> list[bytes]:
    """A line for each row and its path, UTF-8, LF. Attributes are -1, 1, or empty where unknown."""
    lines = []
    for row, path in rows:
        columns = row_columns(row)
        values = ["" if columns[name] is None else columns[name] for name in FIELDS]
        attributes = attribute_list(row.row.get("attributes"))
        lines.append(_csv_line([path, *values, *(value or "" for value in attributes)]))
    return lines


def _csv_line(values: Sequence[object]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue().encode()
