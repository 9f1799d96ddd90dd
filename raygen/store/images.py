"""Encoding, safe decoding and resizing of pictures and masks."""

import io
import math
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Annotated, Any, Final, Literal

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError
from pydantic import AfterValidator

from raygen.core.errors import ConfigError, InputError
from raygen.core.types import BoolArray, UInt8Array
from raygen.store.class_ids import LabelOrder, class_ids
from raygen.store.schemas import IMAGE, reason_of

__all__ = [
    "CODECS",
    "FORMATS",
    "MAX_PIXELS",
    "Codec",
    "decode_image",
    "decode_mask",
    "decode_part",
    "encode_image",
    "encode_mask",
    "fit_image",
    "fit_mask",
    "images_from_rows",
    "largest_value",
    "open_image",
    "picture",
    "picture_column",
    "to_rgb",
]


def fit_mask(mask: UInt8Array, size: int) -> UInt8Array:
    """Class indices [H, W] -> [size, size] by nearest neighbour; `InputError` (`size`) if it is not square."""
    if mask.shape[0] != mask.shape[1]:
        raise InputError(f"mask is {mask.shape[1]}x{mask.shape[0]}, the model's pictures are square", reason="size")
    if mask.shape[0] == size:
        return mask
    index = ((np.arange(size) + 0.5) * mask.shape[0] / size).astype(np.int64)
    fitted: UInt8Array = mask[np.ix_(index, index)]
    return fitted


def fit_image(image: UInt8Array, size: int) -> UInt8Array:
    """RGB [H, W, 3] -> [size, size, 3] (Lanczos); `InputError` (`size`) if it is not square."""
    if image.shape[0] != image.shape[1]:
        raise InputError(f"picture is {image.shape[1]}x{image.shape[0]}, not square", reason="size")
    if image.shape[0] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def images_from_rows(rows: pa.Table, size: int) -> tuple[UInt8Array, list[str | None]]:
    """The pictures of FACES or SAMPLES rows, uint8 [n, size, size, 3], and an error or None for each.

    A bad picture is black.
    """
    images = np.zeros((rows.num_rows, size, size, 3), dtype=np.uint8)
    errors: list[str | None] = [None] * rows.num_rows
    for i, value in enumerate(rows.column("image").to_pylist()):
        try:
            images[i] = fit_image(decode_image(None if value is None else value["bytes"]), size)
        except InputError as error:
            errors[i] = reason_of(error)
    return images, errors


def _installed(codec: str) -> str:
    if codec == "png_fast" and find_spec("fpng_py") is None:
        raise ValueError(f"{codec} needs the package fpng-py: pip install 'raygen[fast]'; or use png or webp")
    return codec


CODECS: Final = (
    "file format of the stored pictures, all lossless: webp is small, png_fast is encoded ten times faster and needs "
    "`raygen[fast]`, png is for other tools"
)
#: Lossless formats of stored pictures.
Codec = Annotated[Literal["webp", "png", "png_fast"], AfterValidator(_installed)]

#: Larger pictures are refused before they are decoded: 100 KB can decompress to gigabytes.
MAX_PIXELS: Final = 4096 * 4096
FORMATS: Final = ("PNG", "JPEG", "WEBP", "PPM", "BMP", "TIFF")


# --- pictures -----------------------------------------------------------------------------------------------


def picture(data: bytes | None) -> dict[str, Any] | None:
    """A value of a picture column; None for None."""
    return None if data is None else {"bytes": data, "path": None}


def picture_column(values: Sequence[bytes | None]) -> pa.Array:
    """A picture column from encoded bytes; None stays null."""
    return pa.array([picture(value) for value in values], IMAGE)


def encode_image(pixels: UInt8Array, codec: Codec = "webp") -> bytes:
    """uint8 [H, W, 3] or [H, W] -> lossless bytes.

    `webp` at method 0 is several times faster than PNG at Pillow's default and about 15 % smaller. `png` is for tools
    that read no WebP. `png_fast` is fpng: ten times faster than `webp`, files 17 % larger, always RGB. `ConfigError`
    where its package is missing.
    """
    if codec == "png_fast":
        rgb = np.ascontiguousarray(
            np.broadcast_to(pixels[..., None], (*pixels.shape, 3)) if pixels.ndim == 2 else pixels
        )
        return _fpng()(rgb.tobytes(), rgb.shape[1], rgb.shape[0])
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if codec == "webp":
        image.convert("RGB").save(buffer, "WEBP", lossless=True, method=0, quality=0, exact=True)
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@cache
def _fpng() -> Callable[[bytes, int, int], bytes]:
    """fpng's encoder of RGB pictures: bytes, width, height -> PNG."""
    try:
        from fpng_py import CompressionFlags, fpng_encode_image_to_memory
    except ImportError as error:  # of a worker on another machine
        raise ConfigError("codec png_fast needs the package fpng-py: pip install 'raygen[fast]'") from error

    def encode(data: bytes, width: int, height: int) -> bytes:
        return bytes(fpng_encode_image_to_memory(data, width, height, 3, CompressionFlags.NONE))

    return encode


def encode_mask(mask: UInt8Array) -> bytes:
    """Class indices uint8 [H, W] -> PNG of mode L whose grey values are the indices."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def open_image(
    data: bytes | None, *, max_pixels: int = MAX_PIXELS, least_side: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """A decoded picture, and the width and height that its file has.

    `least_side`: a picture of more than `MAX_PIXELS` pixels is made smaller by a whole factor while it is decoded, as
    long as no side gets shorter than this. `InputError`: empty, truncated, corrupt, bomb, not_an_image.
    """
    if not data:
        raise InputError("no bytes", reason="empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _header(data, FORMATS)
            size = image.size
            if size[0] * size[1] > max_pixels:
                raise InputError(f"{size[0]}x{size[1]} pixels, {max_pixels} allowed", reason="bomb")
            side = None if size[0] * size[1] <= MAX_PIXELS else least_side
            if side is not None and image.format in ("JPEG", "MPO"):
                image.draft(None, (side, side))
            image.load()
            if image.format == "PNG":  # load() ignores checksums; a flipped bit would be another class
                _header(data, ("PNG",)).verify()
            if side is not None and (factor := min(image.size) // side) > 1:
                image = _reduced(image, factor)
        return image, size
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError("not a picture in a known format", reason="not_an_image") from error
    except Exception as error:  # damaged files raise many exception types in the decoders
        reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise InputError(str(error)[:200] or type(error).__name__, reason=reason) from error


_PILLOW_LIMIT: Final = threading.Lock()


def _header(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """A picture whose pixels are not decoded yet. Pillow's own limit of pixels is lower than what cameras make."""
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """The means of `factor` x `factor` pixels; formats and remarks about the file are kept."""
    kept, info = image.format, image.info
    if image.has_transparency_data:
        image = image.convert("RGBA")
    else:
        image = image.convert("L") if image.mode in ("1", "L") else to_rgb(image)
    small = image.reduce(factor)
    small.format, small.info = kept, {key: value for key, value in info.items() if key != "transparency"}
    return small


#: 16-bit values to 8 bits, rounded: uint8 [65536].
_EIGHT_BITS: Final[UInt8Array] = ((np.arange(1 << 16) + 128) // 257).astype(np.uint8)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB; transparency is dropped.

    16-bit grey is scaled, where Pillow would clip it at 255. `InputError` (`mode`) for values without a known range.
    """
    if _is_16_bit(image):
        return Image.fromarray(_EIGHT_BITS[np.asarray(image)]).convert("RGB")
    if image.mode.startswith(("I", "F")):
        raise InputError(f"mode {image.mode}: the range of the values is not known", reason="mode")
    return image.convert("RGB")


def _is_16_bit(image: Image.Image) -> bool:
    """Whether grey values go up to 65,535. Pillow opens a 16-bit PGM, which it scales to that range, as mode I."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG"))


def decode_image(data: bytes | None, *, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Encoded picture -> RGB uint8 [H, W, 3]; `InputError` with reason empty, truncated, corrupt, bomb …"""
    return np.asarray(to_rgb(open_image(data, max_pixels=max_pixels)[0]))


# --- masks --------------------------------------------------------------------------------------------------


def decode_mask(
    data: bytes | None, *, label_order: LabelOrder = "celebamask", max_pixels: int = MAX_PIXELS
) -> UInt8Array:
    """Encoded mask -> class indices uint8 [H, W]: see `class_ids`. `InputError` as for pictures too.

    Of a mask of more than `MAX_PIXELS` pixels each second, third … row and column is taken.
    """
    image = _opened_mask(data, max_pixels)
    largest = 255 if image.mode in ("1", "P") else largest_value(image, data or b"")
    if largest < 65_535 and largest != 255 and np.asarray(image).any():
        text = f"its values go up to {largest}, and decoders multiply them to fill 8 or 16 bits"
        raise InputError(f"{text}; save the mask with 8 bits, class ids as grey values", reason="mode")
    image = _thinned(image)
    return class_ids(image, label_order)


def _opened_mask(data: bytes | None, max_pixels: int) -> Image.Image:
    """`open_image` for masks; `InputError` (`mode`) where small values of 16 bits a channel are lost.

    Pillow keeps the upper 8 bits of pictures with several channels, so class ids would all be 0.
    """
    image, _ = open_image(data, max_pixels=max_pixels)
    deep = image.mode in ("RGB", "RGBA", "LA") and largest_value(image, data or b"") == 65_535
    if deep and not np.asarray(image.convert("RGB")).any():
        raise InputError("16 bits in each of several channels: save the mask as 8-bit grey", reason="mode")
    return image


#: Kind, width, height and largest value of a PGM or PPM, with comments between them.
_PNM: Final = re.compile(rb"P[2356](?:(?:\s|#[^\r\n]*[\r\n])+([0-9]+)){3}")


def largest_value(image: Image.Image, data: bytes) -> int:
    """The value that stands for white in a file of grey or RGB values."""
    if image.format == "PNG":
        return int((1 << data[24]) - 1)
    if image.format == "PPM":
        header = _PNM.match(data)
        return 255 if header is None else int(header[1])
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(258, 8)  # BitsPerSample
        return int((1 << (min(bits) if isinstance(bits, tuple) else int(bits))) - 1)
    return 255


def _thinned(image: Image.Image) -> Image.Image:
    """`image`, or where it has more than `MAX_PIXELS` pixels, those at equal distances; its format stays."""
    factor = math.ceil((image.width * image.height / MAX_PIXELS) ** 0.5)
    if factor <= 1:
        return image
    small = image.resize((image.width // factor, image.height // factor), Image.Resampling.NEAREST)
    small.format = image.format
    return small


def decode_part(data: bytes | None, *, max_pixels: int = MAX_PIXELS) -> BoolArray:
    """Encoded mask of one class -> where it is not black, bool [H, W]; large ones as `decode_mask`.

    Where its edges are soft, as smooth resizing and the noise of a JPEG leave them, the edge is at half of white.
    `InputError` (`part`) where the shape is not in the values: in the alpha channel, in indices whose colours differ
    from it, or on a background that is not black.
    """
    image = _thinned(_opened_mask(data, max_pixels))
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] != 255:
        raise InputError(
            "is transparent, so its shape may be in the alpha channel; save it white on black", reason="part"
        )
    values = np.asarray(image if image.mode[0] in "I1" else to_rgb(image))
    strength = values if values.ndim == 2 else np.maximum.reduce([values[..., i] for i in range(values.shape[2])])
    inside: BoolArray = strength != 0
    if image.mode == "P" and ((np.asarray(image) != 0) != inside).any():
        raise InputError(
            "its palette indices and their colours show different shapes; save it white on black", reason="part"
        )
    if inside.all() and values.dtype != np.bool_ and values.min() < 255:
        raise InputError("its background is not 0; save it white on black", reason="part")
    top = int(strength.max(initial=0))
    if top < 128 or (strength[inside] == top).all():
        return inside
    bright: BoolArray = strength >= (top + 1) // 2
    # Numbers of persons or parts, which a mask may have instead, are few, and the largest is not the most.
    soft = len(np.unique(strength[inside])) > 4 and 2 * (strength >= top - top // 16).sum() > bright.sum()
    return bright if soft else inside
