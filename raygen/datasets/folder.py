"""Any folder of pictures as a data set."""

import unicodedata
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import Split
from raygen.core.location import RelativeLocation
from raygen.core.types import UInt8Array
from raygen.datasets.files import Files, left_out, refuse_collisions, safe_id, system_file
from raygen.datasets.pictures import FORMAT_OF, LABELS, PictureFiles, is_picture, most_pixels, read_mask
from raygen.store.class_ids import LabelOrder

__all__ = ["Folder"]


class Folder(PictureFiles):
    """Pictures anywhere below a folder. Identities are taken from folder names, or are unknown."""

    kind: Literal["folder"] = "folder"
    identity: Literal["folder", "none"] = Field(
        "none", description="folder: each folder has the pictures of one person; none: persons are not known"
    )
    level: int | None = Field(
        None,
        ge=1,
        description="how many folders below root name the person: 1 for person/video/frame.png, 2 for "
        "set/person/video/frame.png; default: all, so that each folder is another person",
    )
    masks: RelativeLocation | None = Field(
        None, description="folder of masks with the same relative names as the pictures; default: no masks"
    )
    labels: LabelOrder = Field("celebamask", description=LABELS)
    split: Split = Field("train", description="split that all pictures belong to")

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.level is not None and self.identity == "none":
            raise ValueError("level: needs `identity: folder`")
        if self.labels != "celebamask" and self.masks is None:
            raise ValueError("labels: needs `masks`, the folder of the masks")
        return self

    def listing(self) -> pa.Table:
        """face_id, split, image, mask?, identity_id?; sorted by the pictures' relative names."""
        files = Files(self.root, self.max_file_bytes)
        masks = self._masks(files)
        mask_addresses = set(masks.values())
        everything = [name for name in files.names() if not system_file(name)]
        names = [name for name in everything if is_picture(name) and files.address(name) not in mask_addresses]
        note = left_out(name for name in everything if not is_picture(name))
        if not names:
            raise ConfigError(f"{self.root}: holds no pictures ({', '.join(sorted(FORMAT_OF))}); {note}".rstrip("; "))
        refuse_collisions((safe_id(_stem(name)), name) for name in names)
        persons = {name: self._person(name) for name in names}
        if self.identity == "folder":
            refuse_collisions((safe_id(folder), folder) for folder in sorted({p for p in persons.values() if p}))
            if not any(persons.values()):
                raise ConfigError(self._no_person(names))
        if masks and not any(_stem(name) in masks for name in names):
            raise ConfigError(
                f"{self.masks}: no mask has the relative name of a picture; a mask is {next(iter(masks))!r}, a picture "
                f"{_stem(names[0])!r} (without extensions)"
            )
        rows = [
            {
                "face_id": safe_id(_stem(name)),
                "split": self.split,
                "image": files.address(name),
                "mask": masks.get(_stem(name)),
                "identity_id": safe_id(person) if (person := persons[name]) else None,
            }
            for name in names[: self.limit]
        ]
        return self.listing_table(files, rows, _LISTING, note)

    def _person(self, name: str) -> str:
        """The folders that name the person in a picture; empty where there is none."""
        folders = name.split("/")[:-1]
        if self.identity == "none" or (self.level is not None and len(folders) < self.level):
            return ""
        return "/".join(folders[: self.level])

    def _no_person(self, names: list[str]) -> str:
        place = "directly in root" if self.level is None else f"less than {self.level} folders deep"
        return (
            f"{self.root}: `identity: folder` takes the person from the folder, and all {len(names):,} pictures lie "
            f"{place} (such as {names[0]!r}); set `identity: none`, or make a folder for each person"
        )

    def _masks(self, files: Files) -> dict[str, str]:
        """Relative name without extension -> address of its mask."""
        if self.masks is None:
            return {}
        folder = Files(files.address(self.masks))
        names = [name for name in folder.names() if is_picture(name) and not system_file(name)]
        if not names:
            raise ConfigError(f"{folder.url}: holds no masks")
        refuse_collisions((_stem(name), name) for name in names)
        return {_stem(name): folder.address(name) for name in names}

    def row(self, listed: Mapping[str, Any]) -> Mapping[str, Any]:
        """The FACES row of one listing row; `InputError` where the mask or identity that was asked for is missing."""
        if self.masks is not None and listed["mask"] is None:
            raise InputError(f"no file in {self.masks} has the relative name of this picture", reason="no_mask")
        if self.identity == "folder" and listed["identity_id"] is None:
            raise InputError("the picture lies in no person's folder; `identity: none` reads it", reason="identity")
        mask: UInt8Array | None = None
        if listed["mask"] is not None:
            mask = read_mask(listed["mask"], self.labels, self.max_file_bytes, most_pixels(self.size))
        fitted = self.fitted(listed["image"], mask)
        return {"split": listed["split"], "identity_id": listed["identity_id"], **fitted}


_LISTING: Final = pa.schema([(n, pa.string()) for n in ("face_id", "split", "image", "mask", "identity_id")])


def _stem(name: str) -> str:
    """Relative name without extension, in one Unicode form, so that names of pictures and masks match."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name).with_suffix("")))
