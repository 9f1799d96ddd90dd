"""Reading of picture and mask files, and the base of data sets that consist of them.

A picture that needs no change keeps the bytes of its file, and `image.path` names that file. A picture that was turned
upright, cropped, resized or converted to RGB is encoded again without loss, and `image.path` is null. Every picture is
decoded in full either way. Masks are stored as 8-bit class indices.
"""

import io
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field

from raygen.core.errors import InputError
from raygen.core.location import Location
from raygen.core.types import BoolArray, UInt8Array
from raygen.datasets.base import DataSet, load_rows
from raygen.datasets.files import MAX_FILE_BYTES, Files, Noticed, base_name, join, read
from raygen.store.class_ids import LabelOrder
from raygen.store.images import (
    FORMATS,
    MAX_PIXELS,
    decode_mask,
    decode_part,
    encode_image,
    encode_mask,
    largest_value,
    open_image,
    picture,
    to_rgb,
)

__all__ = [
    "FORMAT_OF",
    "LABELS",
    "PictureFile",
    "PictureFiles",
    "file_addresses",
    "is_picture",
    "most_pixels",
    "read_mask",
    "read_part",
    "read_picture",
]


#: Image format by extension.
FORMAT_OF: Final[Mapping[str, str]] = {
    "png": "PNG",
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "jpe": "JPEG",
    "jfif": "JPEG",
    "webp": "WEBP",
    "pgm": "PPM",
    "ppm": "PPM",
    "bmp": "BMP",
    "tif": "TIFF",
    "tiff": "TIFF",
}
#: Formats that viewers of Parquet tables show; pictures in other formats are encoded again.
_KEPT: Final = ("JPEG", "PNG", "WEBP")
_JPEG_START: Final = b"\xff\xd8\xff"
#: Compressions of TIFF, as Pillow names them, that change values.
_LOSSY_TIFF: Final[Mapping[str, str]] = {
    "jpeg": "TIFF with JPEG inside",
    "tiff_jpeg": "TIFF with JPEG inside",
    "webp": "TIFF with WebP inside",
}
_WEBP_SIDE: Final = 16_383
#: Pixels of the largest photographs that are read where `size` makes them small: 201 megapixels, 0.8 GB decoded.
MAX_READ_PIXELS: Final = 16_384 * 12_288
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
_SIDES_STAY: Final = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180)
_FILTERS: Final = {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}

Background = Literal["white", "grey", "black"]
#: Declared by data sets that read masks.
LABELS: Final = (
    "what the numbers of masks mean: the classes of CelebAMask-HQ, or those of face-parsing.PyTorch (BiSeNet)"
)


def is_picture(name: str) -> bool:
    """Whether a file name ends like that of a picture in `FORMAT_OF`."""
    return PurePosixPath(name).suffix.lstrip(".").lower() in FORMAT_OF


# --- one file -----------------------------------------------------------------------------------------------


class PictureFile(NamedTuple):
    """Upright RGB pixels uint8 [H, W, 3], the bytes of the file if they can be stored unchanged, and its own sides.

    The pixels of a very large picture are fewer than `width` x `height` of the file: it is reduced while it is read.
    """

    pixels: UInt8Array
    data: bytes | None
    width: int
    height: int


@contextmanager
def _naming(address: str) -> Iterator[None]:
    """Adds the address of the file to an `InputError`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{address}: {error.args[0]}", reason=error.reason) from error


def read_picture(
    address: str,
    *,
    size: int | None = None,
    background: Background | None = None,
    max_bytes: int = MAX_FILE_BYTES,
) -> PictureFile:
    """Read a picture; one that will be resized to `size` may have up to 201 megapixels.

    `InputError`: as `read` of `raygen.datasets.files`; as `open_image`; `extension` where the content has another
    format than the name says; `mode` for values whose range is not known, of 32-bit and float pictures and of dark
    ones with 16 bits; `transparent` without a `background` to lay it on.
    """
    with _naming(address):
        data = read(address, max_bytes)
        side = None if size is None else 2 * size
        try:
            most = most_pixels(size)
            image, (width, height) = open_image(data, max_pixels=most, least_side=side)
        except InputError as error:
            if error.reason != "bomb" or size is not None:
                raise
            raise InputError(f"{error.args[0]}; set `size`, with which larger ones are read", reason="bomb") from error
        _check_format(image, address)
        try:
            turn = _UPRIGHT.get(int(image.getexif().get(_EXIF_ORIENTATION, 1)))
        except Exception:  # damaged EXIF of a good picture raises many exception types
            turn = None
        clear = image.has_transparency_data
        same_size = image.size == (width, height)
        plain = image.mode == "RGB" and not clear and image.format in _KEPT and getattr(image, "n_frames", 1) == 1
        rgb = _opaque(image, background) if clear else to_rgb(image)
        if largest_value(image, data) == 65_535 and (top := int(np.asarray(rgb).max(initial=0))) <= 16:
            text = f"16-bit values below a sixteenth of their range ({top} of 255): they may have 8 or 12 bits"
            raise InputError(f"{text}, and would be black; save it with 8 bits", reason="mode")
    if turn is not None:
        rgb = rgb.transpose(turn)
        if turn not in _SIDES_STAY:
            width, height = height, width
    return PictureFile(np.asarray(rgb), data if plain and same_size and turn is None else None, width, height)


def _opaque(image: Image.Image, background: Background | None) -> Image.Image:
    """RGB of a picture with an alpha channel or a transparent colour, laid on the background."""
    if image.mode.startswith("I"):  # Pillow converts no 16-bit grey with a transparent value
        layer = to_rgb(image).convert("RGBA")
        visible = np.asarray(image) != image.info.get("transparency")
        layer.putalpha(Image.fromarray(np.where(visible, 255, 0).astype(np.uint8)))
    else:
        layer = image.convert("RGBA")
    if layer.getchannel("A").getextrema()[0] == 255:
        return layer.convert("RGB")
    if background is None:
        text = "has transparent pixels, which have no colour; choose `background: white`, `grey` or `black`"
        raise InputError(text, reason="transparent")
    return Image.alpha_composite(Image.new("RGBA", layer.size, background), layer).convert("RGB")


def _check_format(header: Image.Image, address: str) -> None:
    suffix = PurePosixPath(base_name(address)).suffix.lstrip(".").lower()
    actual = "JPEG" if header.format == "MPO" else header.format  # MPO: a JPEG followed by a second view
    if FORMAT_OF.get(suffix) != actual:
        raise InputError(f"{actual} content in a .{suffix} file; rename it", reason="extension")


def _read_lossless(address: str, max_bytes: int) -> bytes:
    """The bytes of a mask file; `InputError` as `read`, and `lossy` for JPEG, also in TIFF, and lossy WebP."""
    data = read(address, max_bytes)
    kind = "JPEG" if data.startswith(_JPEG_START) else "lossy WebP" if _lossy_webp(data) else None
    if data.startswith((b"II", b"MM")):
        image, _ = open_image(data, max_pixels=MAX_READ_PIXELS)
        kind = _LOSSY_TIFF.get(str(image.info.get("compression")))
    if kind is not None:
        raise InputError(f"{kind} changes classes at every edge; store masks as PNG", reason="lossy")
    return data


def _lossy_webp(data: bytes) -> bool:
    """Whether one of the chunks of a WebP file is a lossy bitstream (RFC 9649, section 2.5)."""
    if not (data.startswith(b"RIFF") and data[8:12] == b"WEBP"):
        return False
    at = 12
    while at + 8 <= len(data):
        if data[at : at + 4] == b"VP8 ":
            return True
        at += 8 + (int.from_bytes(data[at + 4 : at + 8], "little") + 1) // 2 * 2
    return False


def read_mask(
    address: str,
    labels: LabelOrder = "celebamask",
    max_bytes: int = MAX_FILE_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> UInt8Array:
    """Class indices uint8 [H, W] of a mask file; one of more than `MAX_PIXELS` pixels is thinned out.

    `InputError` as `read` of `raygen.datasets.files`, as `decode_mask`, `lossy` for JPEG and lossy WebP, or
    `extension`.
    """
    with _naming(address):
        data = _read_lossless(address, max_bytes)
        mask = decode_mask(data, label_order=labels, max_pixels=max_pixels)
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            _check_format(header, address)
    return mask


def read_part(address: str, max_bytes: int = MAX_FILE_BYTES, max_pixels: int = MAX_PIXELS) -> BoolArray:
    """Where the mask of one class is set, bool [H, W]; `InputError` as `read_mask`, but as `decode_part`."""
    with _naming(address):
        return decode_part(_read_lossless(address, max_bytes), max_pixels=max_pixels)


def most_pixels(size: int | None) -> int:
    """How many pixels a file may have that is stored with this side."""
    return MAX_PIXELS if size is None else MAX_READ_PIXELS


# --- data sets of files -------------------------------------------------------------------------------------


class PictureFiles(DataSet):
    """Base of data sets of picture files: where the files are, and how pictures are cropped and resized."""

    root: Location = Field(min_length=1, description="folder or fsspec URL")
    size: int | None = Field(None, ge=8, le=4096, description="side of the stored square pictures and masks, pixels")
    crop: Literal["none", "center"] = Field("none", description="cut the largest centred square out first")
    resample: Literal["lanczos", "box"] = Field(
        "lanczos", description="filter for resizing pictures; masks are resized with nearest"
    )
    background: Background | None = Field(
        None, description="colour below transparent pictures; default: pictures with transparent pixels are failed rows"
    )
    limit: int | None = Field(None, ge=1, description="read only this many faces; default: all")
    max_file_bytes: int = Field(
        MAX_FILE_BYTES,
        ge=1,
        le=1 << 40,
        description="bytes of the largest file that is read; larger ones, pipes and devices are failed rows",
    )
    changes: Noticed = Field(
        "time",
        description="how a changed file is noticed when a run is continued: by size and modification time (ETag on an "
        "object store), or by the hash of its content, which reads all files once more",
    )

    @abstractmethod
    def row(self, listed: Mapping[str, Any]) -> Mapping[str, Any]:
        """The FACES row of one listing row; `InputError` where it cannot be made."""

    def load(self, listing: pa.Table) -> pa.Table:
        """`FACES_OR_ERROR` rows for `listing`, one each and in its order."""
        return load_rows(listing, self.row)

    def listing_table(
        self, files: Files, rows: Sequence[Mapping[str, Any]], schema: pa.Schema, note: str = ""
    ) -> pa.Table:
        """Listing rows as a table, with a column `versions` of the row's files, so that a changed file is noticed.

        `note`: a remark for the user.
        """
        versions = files.versions([file_addresses(row) for row in rows], self.changes)
        table = pa.Table.from_pylist(
            [{**row, "versions": version} for row, version in zip(rows, versions, strict=True)],
            schema.append(pa.field("versions", pa.list_(pa.string()))),
        )
        return table.replace_schema_metadata({"note": note} if note else None)

    def fitted(self, address: str, mask: UInt8Array | None) -> dict[str, Any]:
        """`image` and `mask` of a row: checked, cropped and resized.

        A mask may have another size than its picture, but not another aspect ratio: `InputError` (`size`).
        """
        return self.fit(self.read(address), address, mask)

    def read(self, address: str) -> PictureFile:
        """`read_picture` with the settings of this data set."""
        return read_picture(address, size=self.size, background=self.background, max_bytes=self.max_file_bytes)

    def fit(self, file: PictureFile, address: str, mask: UInt8Array | None) -> dict[str, Any]:
        """See `fitted`, for a picture that is read already."""
        if mask is not None:
            mask_height, mask_width = mask.shape
            # a mask pixel or more
            if abs(mask_width * file.height - file.width * mask_height) >= max(file.height, file.width):
                text = f"mask {mask_width}x{mask_height} on a picture {file.width}x{file.height}"
                raise InputError(text, reason="size")
        fit = self._fit(file.pixels, _FILTERS[self.resample])
        if file.data is None or fit.shape != file.pixels.shape:
            codec: Literal["webp", "png"] = "png" if max(fit.shape) > _WEBP_SIDE else "webp"
            image = picture(encode_image(fit, codec))
        else:
            image = {"bytes": file.data, "path": base_name(address)}
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


def file_addresses(row: Mapping[str, Any]) -> list[str]:
    """The addresses of all files of a listing row: picture, mask or parts, hint."""
    masks = [row.get("mask")] if not row.get("parts") else [join(row["mask"], part) for part in row["parts"]]
    return [address for address in (row.get("image"), *masks, row.get("hint")) if address is not None]
