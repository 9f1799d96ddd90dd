"""WebDataset: tar shards in which the members of a sample follow each other.

The key of a sample is the part of a member's name before the first dot. The tars depend only on their rows: they have
no times and no owners.

`datasets` takes the members and types of all samples from the first five: a member that starts later is dropped, and a
value that was null there ends the load. So every sample has `cls`, `txt` and `json`, and nothing in them is null.
"""

import io
import json
import tarfile
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from raygen.core.face_labels import ATTRIBUTES, attribute_list
from raygen.exports.base import Assembly, Export, ExportRow, PackedShard, RecordLocation
from raygen.exports.columns import FIELDS, INTEGERS, row_columns
from raygen.exports.croissant_nodes import (
    DataSetParts,
    file_object,
    file_set,
    record_set,
    source,
    typed_field,
)

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
        columns: dict[str, Any] = {
            name: (-1 if name in INTEGERS else "") if value is None else value
            for name, value in row_columns(row).items()
        }
        columns["attributes"] = dict(zip(ATTRIBUTES, attribute_list(row.row.get("attributes")), strict=True))
        members += [("cls", str(columns["label"]).encode()), ("txt", columns["text"].encode())]
        return [*members, ("json", json.dumps(columns, sort_keys=True).encode())]

    def hub_features(self, *, masks: bool) -> list[dict[str, Any]] | None:
        """See `Export.hub_features`: a sample without a mask has no such member, which only the card can say."""
        types = dict.fromkeys(FIELDS, "string") | dict.fromkeys(INTEGERS, "int64") | {"is_synthetic": "bool"}
        columns: list[dict[str, Any]] = [{"name": name, "dtype": types[name]} for name in FIELDS]
        columns.append({"name": "attributes", "struct": [{"name": name, "dtype": "int64"} for name in ATTRIBUTES]})
        return [
            {"name": self.extension, "dtype": "image"},
            *([{"name": "mask.png", "dtype": "image"}] if masks else []),
            {"name": "cls", "dtype": "int64"},
            {"name": "txt", "dtype": "string"},
            {"name": "json", "struct": columns},
            {"name": "__key__", "dtype": "string"},
            {"name": "__url__", "dtype": "string"},
        ]

    def describe(self, assembly: Assembly, *, masks: bool) -> DataSetParts:
        """See `Export.describe`. A record set a kind of member, each with the keys of samples.

        Members of different names cannot be joined by Croissant's terms, as it has no transform that changes the
        extension on both sides; and mlcroissant 1.1.1 takes no columns from JSON in an archive, only its text.
        """
        tars = [file_object(*file) for file in assembly.files()]
        # Patterns have no "but not": all names but those that end in .mask.png, where masks lie beside the pictures.
        ends = ["*[!k]", "*[!s]k", "*[!a]sk", "*[!m]ask", "*[!.]mask", "k", "sk", "ask", "mask"]
        pictures = ends if masks and self.extension == "png" else ["*"]
        members = {
            "pictures": ("image", "sc:ImageObject", [f"{end}.{self.extension}" for end in pictures]),
            "labels": ("label", "sc:Integer", ["*.cls"]),
            "columns": ("json", "sc:Text", ["*.json"]),
        }
        if masks:
            members["masks"] = ("mask", "sc:ImageObject", ["*.mask.png"])
        sets, records = [], []
        for name, (column, kind, patterns) in members.items():
            files = f"{name}-members"
            sets.append(file_set(files, patterns, inside=[tar["@id"] for tar in tars]))
            key = source(files, is_set=True, transform={"regex": r"([^.]*)\..*"}, fileProperty="filename")
            fields = [
                typed_field(name, "key", "sc:Text", "key of the sample", key),
                typed_field(name, column, kind, "", source(files, is_set=True, fileProperty="content")),
            ]
            records.append(record_set(name, f"`{column}` of each sample", fields, "key"))
        return DataSetParts([*tars, *sets], records)

    def usage(self) -> str:
        """See `Export.usage`."""
        return (
            f"`train-000000.tar` …: a sample is `<key>.{self.extension}`, `.mask.png` (class indices 0..18), "
            f"`.cls` (number of the "
            "identity), `.txt` (caption) and `.json` (the other columns). A sample without a mask has no `.mask.png`. "
            "Any other value that a row does not have is an empty text, or -1 for a number, or 0 for an attribute, and "
            "never null, because loaders take the types from the first samples. Keys are sample "
            "ids with underscores in place of dots.\n\n```python\nimport webdataset\n\n"
            'for sample in webdataset.WebDataset("train-{000000..000NNN}.tar").decode("rgb8"):  # NNN: the last shard\n'
            f'    sample["{self.extension}"], sample["json"]\n```\n\n'
            "With more than one rank, webdataset needs `nodesplitter=webdataset.split_by_node`, which gives a rank "
            "whole files. mlcroissant 1.1 keeps extracted archives by their names alone: set `CROISSANT_CACHE` to a "
            "folder of its own for each data set."
        )
