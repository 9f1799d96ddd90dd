"""FFHQ: 70,000 numbered faces without masks, attributes and names."""

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import pyarrow as pa
from pydantic import Field

from raygen.core.errors import ConfigError
from raygen.core.location import RelativeLocation
from raygen.datasets.files import Files, left_out, refuse_collisions
from raygen.datasets.pictures import PictureFiles

__all__ = ["FFHQ"]


IMAGE_FOLDERS: Final = ("images1024x1024", "thumbnails128x128", "")
#: The first pictures are for training.
TRAINING: Final = 60_000

_IMAGE: Final = re.compile(r"(?:[0-9]+/)?(?:img)?([0-9]+)\.(?:png|jpe?g|jpe|jfif|webp)", re.IGNORECASE)
_LISTING: Final = pa.schema([("face_id", pa.string()), ("split", pa.string()), ("image", pa.string())])


class FFHQ(PictureFiles):
    """Flickr-Faces-HQ: `00000/00000.png` to `69000/69999.png`, also below `images1024x1024/`, also flat.

    StyleGAN's data set tool writes the same pictures as `00000/img00000000.png`.
    """

    kind: Literal["ffhq"] = "ffhq"
    images: RelativeLocation | None = Field(
        None, description="folder of the pictures; default: found by its published names"
    )
    split: Literal["published", "none"] = Field(
        "published", description="published: 60,000 faces for train, 10,000 for val; none: all for train"
    )

    def listing(self) -> pa.Table:
        """face_id (the five-digit number), split, image; in the order of the numbers."""
        files = Files(self.root, self.max_file_bytes)
        for folder in IMAGE_FOLDERS if self.images is None else (self.images,):
            names = files.names(folder, depth=2)
            matches = [(match, name) for name in names if (match := _IMAGE.fullmatch(name))]
            if matches:
                break
        else:
            raise ConfigError(
                f"{self.root}: holds no pictures named by number (00000/00000.png, 00000/img00000000.png or flat)"
                f"{files.examples()}"
            )
        images = [(int(match[1]), f"{folder}/{name}" if folder else name) for match, name in matches]
        refuse_collisions((f"{number:05d}", name) for number, name in images)
        rows = [
            {
                "face_id": f"{number:05d}",
                "split": "val" if self.split == "published" and number >= TRAINING else "train",
                "image": files.address(name),
            }
            for number, name in sorted(images)[: self.limit]
        ]
        return self.listing_table(files, rows, _LISTING, left_out(n for n in names if not _IMAGE.fullmatch(n)))

    def row(self, listed: Mapping[str, Any]) -> Mapping[str, Any]:
        """The FACES row of one listing row."""
        return {"split": listed["split"], **self.fitted(listed["image"], None)}
