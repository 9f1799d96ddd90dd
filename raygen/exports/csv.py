"""Labels without pictures: one CSV for whoever has the pictures already.

Knows its one file, and what a folder export of the same rows and codec calls its pictures.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from raygen.exports.base import Assembly, Export, Packed, Ready, RecordLocation
from raygen.exports.columns import csv_head, csv_lines

__all__ = ["CsvExport"]


LABELS = "labels.csv"


class CsvExport(Export):
    """`labels.csv`: a line a row; `path` is where a folder export with the same `codec` has the row's picture."""

    people: ClassVar[bool] = True
    pictures: ClassVar[bool] = False

    kind: Literal["csv"] = "csv"

    def pack(self, part: int, parts: int, rows: Sequence[Ready]) -> Packed:
        """This shard's lines."""
        lines = csv_lines([(row, f"images/{row.stem}.{self.ending}") for row in rows])
        places, at = [], 0
        for line in lines:
            places.append(RecordLocation(LABELS, at, len(line)))
            at += len(line)
        return Packed(places, piece=b"".join(lines))

    def assemble(self, assembly: Assembly) -> None:
        """All lines as one file."""
        assembly.joined(LABELS, csv_head())

    def reading(self) -> str:
        """See `Export.reading`."""
        return (
            "`labels.csv`: one line a picture, UTF-8, RFC 4180 quotes, line feeds. No pictures: `path` is where an "
            f"export as `folder` with codec {self.codec} has them."
        )
