"""FFHQ: 70,000 numbered faces, a thousand to a folder, or all in one.

Knows the published folders and the published cut (the first 60,000 are for training). FFHQ has no masks, no
attributes and no names; nothing of the kind is made up here.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import pyarrow as pa
from pydantic import Field

from raygen.core.errors import ConfigError
from raygen.datasets.folder import Files, PictureFiles, refuse_collisions

__all__ = ["FFHQ"]


IMAGE_FOLDERS: Final = ("images1024x1024", "thumbnails128x128", "")
TRAINING: Final = 60_000

_IMAGE: Final = re.compile(r"(?:\d+/)?(\d+)\.(?:png|jpg|jpeg|webp)", re.IGNORECASE)
_LISTING: Final = pa.schema([("face_id", pa.string()), ("split", pa.string()), ("image", pa.string())])


class FFHQ(PictureFiles):
    """Flickr-Faces-HQ: `00000/00000.png` to `69000/69999.png`, also below `images1024x1024/`, also flat."""

    kind: Literal["ffhq"] = "ffhq"
    images: str | None = Field(None, description="folder of the pictures; none looks for the published names")
    split: Literal["published", "none"] = Field(
        "published", description="published: 60,000 train, 10,000 val; none: all train"
    )

    def listing(self) -> pa.Table:
        """face_id (the five-digit number), split, image; in order of the numbers."""
        files = Files(self.root)
        found = self._images(files)
        refuse_collisions((f"{number:05d}", name) for number, name in found)
        rows = [
            {"face_id": f"{number:05d}", "split": self._part(number), "image": files.address(name)}
            for number, name in sorted(found)[: self.limit]
        ]
        return pa.Table.from_pylist(rows, _LISTING)

    def _images(self, files: Files) -> list[tuple[int, str]]:
        for folder in IMAGE_FOLDERS if self.images is None else (self.images,):
            names = [(match, name) for name in files.names(folder, depth=2) if (match := _IMAGE.fullmatch(name))]
            if names:
                return [(int(match[1]), f"{folder}/{name}" if folder else name) for match, name in names]
        raise ConfigError(f"{self.root}: holds no pictures named by number (00000/00000.png or flat)")

    def _part(self, number: int) -> str:
        return "val" if self.split == "published" and number >= TRAINING else "train"

    def row(self, listed: Mapping[str, Any]) -> Mapping[str, Any]:
        """The FACES row of one listing row."""
        return {"split": listed["split"], **self.fitted(listed["image"], None)}
