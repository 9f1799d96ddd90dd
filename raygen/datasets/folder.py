"""Any folder of pictures as a data set, and the reading of picture files that all data sets of files share.

A picture that needs no change keeps the bytes of its file, and `image.path` names that file. A picture that was turned
upright, cropped, resized or converted to RGB is encoded again without loss, and `image.path` is null. Every picture is
decoded in full either way. Masks are stored as 8-bit class indices.
"""

import hashlib
import io
import os
import re
import unicodedata
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import fsspec
import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from pydantic import Field

from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import Split
from raygen.core.location import Location
from raygen.core.types import UInt8Array
from raygen.datasets.base import DataSet, load_rows
from raygen.store.images import FORMATS, decode_image, decode_mask, encode_image, encode_mask, picture
from raygen.store.schemas import check_id

__all__ = [
    "FORMAT_OF",
    "Files",
    "Folder",
    "PictureFiles",
    "read",
    "read_mask",
    "read_picture",
    "refuse_collisions",
    "safe_id",
]


#: Image format by extension.
FORMAT_OF: Final[Mapping[str, str]] = {
    "png": "PNG",
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "webp": "WEBP",
    "pgm": "PPM",
    "ppm": "PPM",
    "bmp": "BMP",
}
#: Formats that viewers of Parquet tables show; pictures in other formats are encoded again.
_KEPT: Final = ("JPEG", "PNG", "WEBP")
_JPEG_START: Final = b"\xff\xd8\xff"
_WEBP_SIDE: Final = 16_383
_EXIF_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FILTERS: Final = {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}


# --- files by URL -------------------------------------------------------------------------------------------


class Files:
    """The files below a folder, by URL. Errors of the storage are raised as `ConfigError`."""

    def __init__(self, url: str) -> None:
        self.url = url
        with self._explained():
            self._fs, root = fsspec.core.url_to_fs(url)
            self._root = str(root).rstrip("/")
            self.local = isinstance(self._fs, LocalFileSystem)
            if not self._fs.exists(root):
                raise ConfigError(f"{url}: no such folder or bucket")
            if not self._fs.isdir(root):
                raise ConfigError(f"{url}: not a folder")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # each storage back end has its own exception classes
            raise ConfigError(f"{self.url}: cannot be read ({type(error).__name__}: {str(error)[:200]})") from error

    def address(self, name: str) -> str:
        """The address of `name` (relative to the folder, or an address already) for other processes."""
        if "://" in name or name.startswith("/"):
            return name
        if self.local:
            return f"{self._root}/{name}"
        head, chain, rest = self.url.partition("::")
        return f"{head if head.endswith('/') else head + '/'}{name}{chain}{rest}"

    def names(self, folder: str = "", *, depth: int | None = None) -> list[str]:
        """Sorted names, relative to `folder`, of the files below it; empty where there is no such folder."""
        top = f"{self._root}/{folder}" if folder else self._root
        with self._explained():
            if not self._fs.isdir(top):
                return []
            paths = list(_walk(top, depth)) if self.local else self._fs.find(top, maxdepth=depth)
        names = [str(path)[len(top) :].lstrip("/") for path in paths]
        for name in names:
            try:
                name.encode()
            except UnicodeEncodeError:
                raise ConfigError(f"file name {name!r} is not valid UTF-8; rename it") from None
        return sorted(names)

    def first(self, candidates: Sequence[str]) -> str | None:
        """The first of `candidates` that exists."""
        with self._explained():
            return next((name for name in candidates if self._fs.exists(f"{self._root}/{name}")), None)

    def text(self, name: str) -> str:
        """Content of a small text file; `ConfigError` where it is missing or not UTF-8."""
        address = self.address(name)
        try:
            return read(address).decode("utf-8-sig")
        except FileNotFoundError:
            raise ConfigError(f"{address}: no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{address}: cannot be read ({error})") from error

    def optional_text(self, chosen: str | None, usual: Sequence[str]) -> tuple[str, str] | None:
        """Name and content of the file `chosen`, which must exist, or of the first of `usual` that exists."""
        name = chosen or self.first(usual)
        return None if name is None else (name, self.text(name))


def _walk(top: str, depth: int | None) -> Iterator[str]:
    """Files below a local folder; follows links. fsspec's `find` would silently skip folders that it cannot read."""
    for entry in os.scandir(top or "/"):
        if not entry.is_dir():
            yield entry.path
        elif depth is None or depth > 1:
            yield from _walk(entry.path, None if depth is None else depth - 1)


def read(address: str) -> bytes:
    """The content of one file."""
    if "://" not in address:
        return Path(address).read_bytes()
    fs, path = fsspec.core.url_to_fs(address)
    return bytes(fs.cat_file(path))


# --- names --------------------------------------------------------------------------------------------------


def safe_id(name: str) -> str:
    """A row id for a relative file name, at most 96 characters long, so that plans can append to it.

    Folders are joined by `-`; characters that ids cannot have are replaced. Different names may give the same id:
    see `refuse_collisions`.
    """
    composed = unicodedata.normalize("NFC", name).replace("/", "-")
    spelled = re.sub(r"[^A-Za-z0-9._-]", lambda m: "_" if m[0].isascii() else f"u{ord(m[0]):x}", composed)
    tidy = re.sub(r"\.{2,}", ".", spelled)
    tidy = tidy if tidy[:1].isalnum() else f"x{tidy}"
    if len(tidy) > 96:
        tidy = f"{tidy[:83]}-{hashlib.blake2b(composed.encode(), digest_size=6).hexdigest()}"
    return check_id(tidy)


def refuse_collisions(ids: Iterable[tuple[str, str]]) -> None:
    """`ConfigError` where two different names have ids that are equal apart from case.

    Ids become file names, also on disks that ignore case.
    """
    seen: dict[str, str] = {}
    for face_id, name in ids:
        other = seen.setdefault(face_id.casefold(), name)
        if other != name:
            raise ConfigError(f"{other!r} and {name!r} would both be {face_id!r}; rename or remove one")


# --- pictures -----------------------------------------------------------------------------------------------


def read_picture(address: str) -> tuple[UInt8Array, bytes | None]:
    """Upright RGB pixels uint8 [H, W, 3] of a file, and its bytes if they can be stored unchanged.

    `InputError`: as `decode_image`, `extension` where the content has another format than the name says, `mode` for
    16-bit and float pictures, whose value range is unknown.
    """
    data = read(address)
    pixels = decode_image(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as header:
        _check_format(header, address)
        if header.mode.startswith(("I", "F")):
            raise InputError(f"mode {header.mode} is not 8-bit", reason="mode")
        try:
            turn = _UPRIGHT.get(int(header.getexif().get(_EXIF_ORIENTATION, 1)))
        except Exception:  # damaged EXIF of a good picture raises many exception types
            turn = None
        plain = header.mode == "RGB" and header.format in _KEPT and getattr(header, "n_frames", 1) == 1
    if turn is not None:
        return np.asarray(Image.fromarray(pixels).transpose(turn)), None
    return pixels, data if plain else None


def _check_format(header: Image.Image, address: str) -> None:
    suffix = PurePosixPath(address.partition("::")[0]).suffix.lstrip(".").lower()
    actual = "JPEG" if header.format == "MPO" else header.format  # MPO: a JPEG followed by a second view
    if FORMAT_OF.get(suffix) != actual:
        raise InputError(f"{actual} content in a .{suffix} file", reason="extension")


def read_mask(address: str) -> UInt8Array:
    """Class indices uint8 [H, W] of a mask file; `InputError` as `decode_mask`, or `lossy` for a JPEG."""
    data = read(address)
    if data.startswith(_JPEG_START):
        raise InputError("JPEG changes class indices at every edge", reason="lossy")
    mask = decode_mask(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as header:
        _check_format(header, address)
    return mask


class PictureFiles(DataSet):
    """Base of data sets of picture files: where the files are, and how pictures are cropped and resized."""

    root: Location = Field(min_length=1, description="folder or fsspec URL")
    size: int | None = Field(None, ge=8, le=4096, description="side of the stored square pictures and masks, pixels")
    crop: Literal["none", "center"] = Field("none", description="cut the largest centred square out first")
    resample: Literal["lanczos", "box"] = Field(
        "lanczos", description="filter for resizing pictures; masks are resized with nearest"
    )
    limit: int | None = Field(None, ge=1, description="read only this many faces; default: all")

    @abstractmethod
    def row(self, listed: Mapping[str, Any]) -> Mapping[str, Any]:
        """The FACES row of one listing row; `InputError` where it cannot be made."""

    def load(self, listing: pa.Table) -> pa.Table:
        """`FACES_OR_ERROR` rows for `listing`, one each and in its order."""
        return load_rows(listing, self.row)

    def fitted(self, address: str, mask: UInt8Array | None) -> dict[str, Any]:
        """`image` and `mask` of a row: checked, cropped and resized.

        A mask may have another size than its picture, but not another aspect ratio: `InputError` (`size`).
        """
        pixels, data = read_picture(address)
        if mask is not None:
            (height, width), (mask_height, mask_width) = pixels.shape[:2], mask.shape
            if abs(mask_width * height - width * mask_height) >= height:  # a mask pixel or more
                raise InputError(f"mask {mask_width}x{mask_height} on a picture {width}x{height}", reason="size")
        fit = self._fit(pixels, _FILTERS[self.resample])
        if data is None or fit.shape != pixels.shape:
            codec: Literal["webp", "png"] = "png" if max(fit.shape) > _WEBP_SIDE else "webp"
            image = picture(encode_image(fit, codec))
        else:
            image = {"bytes": data, "path": PurePosixPath(address.partition("::")[0]).name}
        small = None if mask is None else encode_mask(self._fit(mask, Image.Resampling.NEAREST))
        return {"image": image, "mask": picture(small)}

    def _fit(self, array: UInt8Array, resample: Image.Resampling) -> UInt8Array:
        height, width = array.shape[:2]
        if self.crop == "center":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            array = array[top : top + side, left : left + side]
            height = width = side
        if self.size is None or height == width == self.size:
            return array
        if height != width:
            raise InputError(f"{width}x{height} is not square; `crop: center` makes it so", reason="size")
        return np.asarray(Image.fromarray(array).resize((self.size, self.size), resample))


# --- the data set -------------------------------------------------------------------------------------------


class Folder(PictureFiles):
    """Pictures anywhere below a folder. Identities are taken from folder names, or are unknown."""

    kind: Literal["folder"] = "folder"
    identity: Literal["folder", "none"] = Field(
        "none", description="folder: each folder has the pictures of one person; none: persons are not known"
    )
    masks: str | None = Field(
        None, description="folder of masks with the same relative names as the pictures; default: no masks"
    )
    split: Split = Field("train", description="split that all pictures belong to")

    def listing(self) -> pa.Table:
        """face_id, split, image, mask?, identity_id?; sorted by the pictures' relative names."""
        files = Files(self.root)
        masks = self._masks(files)
        mask_addresses = set(masks.values())
        names = [name for name in files.names() if _is_picture(name) and files.address(name) not in mask_addresses]
        if not names:
            raise ConfigError(f"{self.root}: holds no pictures ({', '.join(sorted(FORMAT_OF))})")
        refuse_collisions((safe_id(_stem(name)), name) for name in names)
        if self.identity == "folder":
            folders = sorted({str(PurePosixPath(name).parent) for name in names})
            refuse_collisions((safe_id(folder), folder) for folder in folders)
        rows = []
        for name in names[: self.limit]:
            folder = str(PurePosixPath(name).parent)
            known = self.identity == "folder" and folder != "."
            rows.append(
                {
                    "face_id": safe_id(_stem(name)),
                    "split": self.split,
                    "image": files.address(name),
                    "mask": masks.get(_stem(name)),
                    "identity_id": safe_id(folder) if known else None,
                }
            )
        return pa.Table.from_pylist(rows, _LISTING)

    def _masks(self, files: Files) -> dict[str, str]:
        """Relative name without extension -> address of its mask."""
        if self.masks is None:
            return {}
        folder = Files(files.address(self.masks))
        names = [name for name in folder.names() if _is_picture(name)]
        if not names:
            raise ConfigError(f"{folder.url}: holds no masks")
        refuse_collisions((_stem(name), name) for name in names)
        return {_stem(name): folder.address(name) for name in names}

    def row(self, listed: Mapping[str, Any]) -> Mapping[str, Any]:
        """The FACES row of one listing row; `InputError` where the mask or identity that was asked for is missing."""
        if self.masks is not None and listed["mask"] is None:
            raise InputError("no mask has the name of this picture", reason="no_mask")
        if self.identity == "folder" and listed["identity_id"] is None:
            raise InputError("the picture lies in no person's folder", reason="identity")
        mask = None if listed["mask"] is None else read_mask(listed["mask"])
        fitted = self.fitted(listed["image"], mask)
        return {"split": listed["split"], "identity_id": listed["identity_id"], **fitted}


_LISTING: Final = pa.schema([(n, pa.string()) for n in ("face_id", "split", "image", "mask", "identity_id")])


def _is_picture(name: str) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
    return not hidden and PurePosixPath(name).suffix.lstrip(".").lower() in FORMAT_OF


def _stem(name: str) -> str:
    """Relative name without extension, in one Unicode form, so that names of pictures and masks match."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name).with_suffix("")))
