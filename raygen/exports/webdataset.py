"""WebDataset: tar shards whose members of one sample lie next to each other.

Knows the convention (the key is what stands before the first dot of a member's name) and writes tars that depend on
their rows alone: no times, no owners.
"""

import io
import json
import tarfile
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from raygen.exports.base import Export, Packed, Ready, RecordLocation
from raygen.exports.columns import facts_of_row

__all__ = ["WebDatasetExport"]


class WebDatasetExport(Export):
    """`train-000000.tar` …, one a shard; members `png`, `mask.png`, `cls`, `txt`, `json`."""

    dotless: ClassVar[bool] = True
    hub_files: ClassVar[str | None] = "train-*.tar"

    kind: Literal["webdataset"] = "webdataset"
    masks: bool = Field(True, description="also write masks, as PNG of class indices")

    def pack(self, part: int, parts: int, rows: Sequence[Ready]) -> Packed:
        """One tar; needs no assembly."""
        buffer, places, path = io.BytesIO(), [], f"train-{part:06d}.tar"
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for row in rows:
                for ending, data in self._members(row):
                    member = tarfile.TarInfo(f"{row.stem}.{ending}")
                    member.size, member.mode = len(data), 0o644
                    tar.addfile(member, io.BytesIO(data))
                    if ending == self.ending:
                        # What GNU tar puts before a name of more than 100 characters counts to the header.
                        start = buffer.tell() - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                        places.append(RecordLocation(path, start, len(data)))
        return Packed(places, {path: buffer.getvalue()})

    def _members(self, ready: Ready) -> list[tuple[str, bytes]]:
        """Endings and bytes of a sample, the picture first."""
        facts = facts_of_row(ready)
        facts["attributes"] = ready.row.get("attributes")
        members = [(self.ending, ready.image)]
        if ready.mask is not None:
            members.append(("mask.png", ready.mask))
        if ready.label >= 0:
            members.append(("cls", str(ready.label).encode()))
        if ready.row.get("text"):
            members.append(("txt", str(ready.row["text"]).encode()))
        return [*members, ("json", json.dumps(facts, sort_keys=True).encode())]

    def reading(self) -> str:
        """See `Export.reading`."""
        return (
            f"`train-000000.tar` …: a sample is `<key>.{self.ending}`, `.mask.png` (class indices 0..18), "
            f"`.cls` (number of the "
            "identity), `.txt` (caption) and `.json` (everything else), each where the row has it. Keys are "
            "sample ids, "
            "their dots written as underscores.\n\n```python\nimport webdataset\n\n"
            'for sample in webdataset.WebDataset("train-{000000..000NNN}.tar").decode("rgb8"):  # NNN: the last shard\n'
            f'    sample["{self.ending}"], sample["json"]\n```'
        )
