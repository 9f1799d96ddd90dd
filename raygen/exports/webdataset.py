"""WebDataset: tar shards in which the members of a sample follow each other.

The key of a sample is the part of a member's name before the first dot. The tars depend only on their rows: they have
no times and no owners.
"""

import io
import json
import tarfile
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from raygen.exports.base import Export, ExportRow, PackedShard, RecordLocation
from raygen.exports.columns import row_columns

__all__ = ["WebDatasetExport"]


class WebDatasetExport(Export):
    """`train-000000.tar` …, one a shard; members `png`, `mask.png`, `cls`, `txt`, `json`."""

    no_dots: ClassVar[bool] = True
    hub_files: ClassVar[str | None] = "train-*.tar"

    kind: Literal["webdataset"] = "webdataset"
    masks: bool = Field(True, description="also write the masks, as PNG files of class indices")

    def pack(self, part: int, parts: int, rows: Sequence[ExportRow]) -> PackedShard:
        """One tar."""
        buffer, locations, path = io.BytesIO(), [], f"train-{part:06d}.tar"
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for row in rows:
                for extension, data in self._members(row):
                    member = tarfile.TarInfo(f"{row.stem}.{extension}")
                    member.size, member.mode = len(data), 0o644
                    tar.addfile(member, io.BytesIO(data))
                    if extension == self.extension:
                        # Counted from the end: GNU tar writes extra blocks before a name of more than 100 characters.
                        start = buffer.tell() - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                        locations.append(RecordLocation(path, start, len(data)))
        return PackedShard(locations, {path: buffer.getvalue()})

    def _members(self, row: ExportRow) -> list[tuple[str, bytes]]:
        """Extension and bytes of each member of a sample, the picture first."""
        members = [(self.extension, row.image)]
        if row.mask is not None:
            members.append(("mask.png", row.mask))
        if row.label >= 0:
            members.append(("cls", str(row.label).encode()))
        if row.row.get("text"):
            members.append(("txt", str(row.row["text"]).encode()))
        columns = {**row_columns(row), "attributes": row.row.get("attributes")}
        return [*members, ("json", json.dumps(columns, sort_keys=True).encode())]

    def usage(self) -> str:
        """See `Export.usage`."""
        return (
            f"`train-000000.tar` …: a sample is `<key>.{self.extension}`, `.mask.png` (class indices 0..18), "
            f"`.cls` (number of the "
            "identity), `.txt` (caption) and `.json` (the other columns), each where the row has it. Keys are sample "
            "ids with underscores in place of dots.\n\n```python\nimport webdataset\n\n"
            'for sample in webdataset.WebDataset("train-{000000..000NNN}.tar").decode("rgb8"):  # NNN: the last shard\n'
            f'    sample["{self.extension}"], sample["json"]\n```'
        )
