"""Pictures as files: `images/<identity>/<variant>.png`, masks in a second tree, labels as CSV.

`torchvision.datasets.ImageFolder` and `python -m mxnet.tools.im2rec` read a folder a class.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from raygen.exports.base import Assembly, Export, ExportRow, IdentityRule, PackedShard, RecordLocation
from raygen.exports.columns import FIELDS, csv_head, csv_lines
from raygen.exports.croissant_nodes import (
    DataSetParts,
    attribute_fields,
    file_object,
    file_set,
    record_set,
    row_fields,
    source,
    typed_field,
)

__all__ = ["FolderExport"]


LABELS = "labels.csv"


class FolderExport(Export):
    """A file a picture. Rows without identities are in one flat folder, named by `sample_id`."""

    identities: ClassVar[IdentityRule] = "all_or_none"
    identity_folders: ClassVar[bool] = True
    # Masks are pictures too: without a pattern `datasets` takes them for more pictures of the same people.
    hub_files: ClassVar[str | None] = "images/**"

    kind: Literal["folder"] = "folder"
    masks: bool = Field(True, description="also write the masks, as PNG files of class indices")

    def pack(self, part: int, parts: int, rows: Sequence[ExportRow]) -> PackedShard:
        """Every picture and mask, and the lines of the labels."""
        files: dict[str, bytes] = {}
        paths = [f"images/{row.stem}.{self.extension}" for row in rows]
        for row, path in zip(rows, paths, strict=True):
            files[path] = row.image
            if row.mask is not None:
                files[f"masks/{row.stem}.png"] = row.mask
        locations = [RecordLocation(path, 0, len(row.image)) for row, path in zip(rows, paths, strict=True)]
        return PackedShard(locations, files, b"".join(csv_lines(list(zip(rows, paths, strict=True)))))

    def assemble(self, assembly: Assembly) -> None:
        """The labels of all shards as one file."""
        assembly.join_pieces(LABELS, csv_head())

    def describe(self, assembly: Assembly, *, masks: bool) -> DataSetParts:
        """See `Export.describe`. Rows of `labels.csv` are joined with the pictures by `path`."""
        name, extension = "pictures", self.extension
        files = [file_set("images", [f"images/*.{extension}"])]
        if masks:
            files.append(file_set("masks", ["masks/*.png"]))
        path = source("images", is_set=True, transform={"regex": "(.*)"}, fileProperty="fullpath")
        labels = {"fileObject": {"@id": LABELS}, "extract": {"column": "path"}}
        image = source("images", is_set=True, fileProperty="content")
        fields = [
            typed_field(name, "path", "sc:Text", "path of the picture", path, references=labels),
            typed_field(name, "image", "sc:ImageObject", "", image),
            *row_fields(name, LABELS, FIELDS, is_set=False),
            *attribute_fields(name, LABELS, is_set=False),
        ]
        size, sha256 = assembly.written[LABELS]
        rows = record_set(name, "a row a picture", fields, "path")
        return DataSetParts([file_object(LABELS, size, sha256), *files], [rows])

    def usage(self) -> str:
        """See `Export.usage`."""
        return (
            f"`images/<identity>/<variant>.{self.extension}` (`images/<sample_id>.{self.extension}` where rows have "
            "no identity), "
            "`masks/` with the same names where rows have masks (PNG of class indices 0..18), `labels.csv` with "
            "one line a "
            "picture.\n\n```python\nfrom torchvision.datasets import ImageFolder\n\n"
            'ImageFolder("images")  # classes in the order of their names, which is the order of `label`\n```\n\n'
            "Name the folder `images`: one level higher, `images` and `masks` would be the classes. "
            "`datasets.load_dataset` of the whole folder reads the pictures alone, because this card names them."
        )
