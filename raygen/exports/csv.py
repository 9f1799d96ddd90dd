"""Labels without pictures, as one CSV file."""

from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar, Literal

from raygen.exports.base import Assembly, Export, ExportRow, PackedShard, RecordLocation
from raygen.exports.columns import FIELDS, csv_head, csv_lines
from raygen.exports.croissant_nodes import DataSetParts, attribute_fields, file_object, record_set, row_fields

__all__ = ["CsvExport"]


LABELS = "labels.csv"


class CsvExport(Export):
    """`labels.csv`: a line a row; `path` is that of the picture in a `folder` export with the same `codec`."""

    identity_folders: ClassVar[bool] = True
    pictures: ClassVar[bool] = False
    hub_files: ClassVar[str | None] = "labels.csv"

    kind: Literal["csv"] = "csv"

    def pack(self, part: int, parts: int, rows: Sequence[ExportRow]) -> PackedShard:
        """The lines of this shard."""
        lines = csv_lines([(row, f"images/{row.stem}.{self.extension}") for row in rows])
        ends = list(accumulate(map(len, lines)))
        locations = [RecordLocation(LABELS, end - len(line), len(line)) for line, end in zip(lines, ends, strict=True)]
        return PackedShard(locations, piece=b"".join(lines))

    def assemble(self, assembly: Assembly) -> None:
        """All lines as one file."""
        assembly.join_pieces(LABELS, csv_head())

    def describe(self, assembly: Assembly, *, masks: bool) -> DataSetParts:
        """See `Export.describe`."""
        fields = row_fields("labels", LABELS, ("path", *FIELDS), is_set=False)
        fields += attribute_fields("labels", LABELS, is_set=False)
        rows = record_set("labels", "a row a picture", fields, "path")
        return DataSetParts([file_object(*file) for file in assembly.files()], [rows])

    def usage(self) -> str:
        """See `Export.usage`."""
        return (
            "`labels.csv`: one line a picture, UTF-8, RFC 4180 quotes, line feeds. No pictures: `path` is the path of "
            f"the picture in an export as `folder` with codec {self.codec}."
        )
