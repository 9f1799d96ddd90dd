"""A stored picture as the file that a data set holds: size, codec, and the marks that say where it comes from.

Knows PNG, JPEG and WebP and what each can carry beside its pixels. Knows no format of data sets.

Marks, on by default for what a model made: an XMP packet with IPTC's `DigitalSourceType` (Extension schema 1.5,
controlled vocabulary `cv.iptc.org/newscodes/digitalsourcetype`) and the recipe as JSON; a PNG also has the recipe as a
text chunk named `raygen`. Pillow writes XMP for JPEG and WebP itself; in a PNG it is the iTXt chunk
`XML:com.adobe.xmp`, not compressed (XMP specification, part 3).
"""

import io
import json
from collections.abc import Mapping
from typing import Any, Final, Literal
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from raygen.core.errors import InputError

__all__ = ["SOURCE_TYPES", "PictureCodec", "encode_picture", "fit", "recipe", "xmp_packet"]


UInt8Array = npt.NDArray[np.uint8]
PictureCodec = Literal["png", "jpeg", "webp"]
VOCABULARY: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/"
#: Made by a trained model; drawn by a program that learnt from no picture. Photographs are not marked.
SOURCE_TYPES: Final[Mapping[str, str]] = {
    "model": f"{VOCABULARY}trainedAlgorithmicMedia",
    "program": f"{VOCABULARY}algorithmicMedia",
}
#: What a picture's recipe holds.
RECIPE: Final = (
    "sample_id",
    "plan",
    "run_id",
    "attempt",
    "seed",
    "noise_seed",
    "checkpoint",
    "sampler",
    "steps",
    "guidance",
)
_PACKET: Final = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:raygen="urn:raygen:recipe:1" '
    'xmp:CreatorTool="raygen" Iptc4xmpExt:DigitalSourceType={source} raygen:recipe={recipe}/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


def recipe(row: Mapping[str, Any]) -> str:
    """What made a picture, as JSON in ASCII; what is not known is left out."""
    found = {name: row[name] for name in RECIPE if row.get(name) is not None}
    return json.dumps({"generator": "raygen", **found}, sort_keys=True)


def xmp_packet(source: str, said: str) -> str:
    """An XMP packet: the IPTC digital source type `source`, and the recipe."""
    return _PACKET.format(source=quoteattr(source), recipe=quoteattr(said))


def fit(pixels: UInt8Array, size: int | None, *, mask: bool = False) -> UInt8Array:
    """uint8 [H, W, ...] at `size` a side, Lanczos with antialiasing, masks by the nearest place.

    `InputError` (`shape`) for what is not square: nobody said what to cut off.
    """
    height, width = pixels.shape[:2]
    if size is None or (height, width) == (size, size):
        return pixels
    if height != width:
        raise InputError(f"{width} x {height} px is not square, so it has no form at {size} px", reason="shape")
    how = Image.Resampling.NEAREST if mask else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((size, size), how))


def encode_picture(
    pixels: UInt8Array, codec: PictureCodec, *, quality: int = 95, source: str | None = None, said: str = "{}"
) -> bytes:
    """uint8 [H, W, 3] -> bytes; with `source`, a digital source type, it carries that and the recipe `said`.

    PNG and WebP are lossless. JPEG keeps the full resolution of colours (4:4:4): at 112 px half of it is lips and eyes
    of a few pixels.
    """
    buffer, image = io.BytesIO(), Image.fromarray(np.ascontiguousarray(pixels))
    packet = "" if source is None else xmp_packet(source, said)
    if codec == "png":
        notes = PngInfo()
        if packet:
            notes.add_itxt("XML:com.adobe.xmp", packet)
            notes.add_text("raygen", said)
        image.save(buffer, "PNG", compress_level=1, pnginfo=notes)
    elif codec == "jpeg":
        image.save(buffer, "JPEG", quality=quality, subsampling=0, xmp=packet.encode())
    else:
        image.save(buffer, "WEBP", lossless=True, method=0, quality=0, exact=True, xmp=packet.encode())
    return buffer.getvalue()
