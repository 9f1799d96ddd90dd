"""Pictures as files: `images/<identity>/<variant>.png`, masks in a second tree, labels as CSV.

`torchvision.datasets.ImageFolder` and `python -m mxnet.tools.im2rec` read a folder a class.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from raygen.exports.base import Assembly, Export, ExportRow, IdentityRule, PackedShard, RecordLocation
from raygen.exports.columns import csv_head, csv_lines

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
