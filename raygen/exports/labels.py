"""Labels without pictures: one CSV for whoever has the pictures already.

Knows nothing but its one file.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from raygen.exports.base import Assembly, Export, Packed, Place, Ready
from raygen.exports.rows import csv_head, csv_lines

__all__ = ["CsvExport"]

LABELS = "labels.csv"


class CsvExport(Export):
    """`labels.csv`: a line a row; `path` is the row's name in a folder export where identities are known."""

    pictures: ClassVar[bool] = False

    kind: Literal["csv"] = "csv"

    def pack(self, part: int, parts: int, rows: Sequence[Ready]) -> Packed:
        """This shard's lines."""
        lines = csv_lines([(row, row.stem) for row in rows])
        places, at = [], 0
        for line in lines:
            places.append(Place(LABELS, at, len(line)))
            at += len(line)
        return Packed(places, piece=b"".join(lines))

    def assemble(self, assembly: Assembly) -> None:
        """All lines as one file."""
        assembly.joined(LABELS, csv_head())

    def reading(self) -> str:
        """See `Export.reading`."""
        return "`labels.csv`: one line a picture, UTF-8, RFC 4180 quotes, line feeds. No pictures."
