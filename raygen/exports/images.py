"""Encoding of exported pictures: size, codec, and the provenance marks of synthetic pictures.

Marks, by default for synthetic pictures: an XMP packet with IPTC's `DigitalSourceType` (Extension schema 1.5,
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
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from raygen.core.errors import InputError
from raygen.core.types import UInt8Array

__all__ = ["SOURCE_TYPES", "PictureCodec", "encode_picture", "fit", "recipe", "xmp_packet"]


PictureCodec = Literal["png", "jpeg", "webp"]
VOCABULARY: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/"
#: By the origin of pictures: a trained model, or a program that draws. Photographs are not marked.
SOURCE_TYPES: Final[Mapping[str, str]] = {
    "model": f"{VOCABULARY}trainedAlgorithmicMedia",
    "program": f"{VOCABULARY}algorithmicMedia",
}
#: Columns in the recipe of a picture.
RECIPE: Final = (
    "sample_id",
    "method",
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
    """How a picture was made, as JSON in ASCII; unknown values are left out."""
    known = {name: row[name] for name in RECIPE if row.get(name) is not None}
    return json.dumps({"generator": row.get("method") or "raygen", **known}, sort_keys=True)


def xmp_packet(source: str, recipe_json: str) -> str:
    """An XMP packet with the IPTC digital source type `source` and the recipe."""
    return _PACKET.format(source=quoteattr(source), recipe=quoteattr(recipe_json))


def fit(pixels: UInt8Array, size: int | None, *, mask: bool = False) -> UInt8Array:
    """uint8 [H, W, ...] -> [size, size, ...]; pictures by Lanczos with antialiasing, masks by nearest neighbour.

    `InputError` (`shape`) where the picture is not square: an export does not crop.
    """
    height, width = pixels.shape[:2]
    if size is None or (height, width) == (size, size):
        return pixels
    if height != width:
        raise InputError(f"{width} x {height} px is not square, so it cannot be resized to {size} px", reason="shape")
    resampling = Image.Resampling.NEAREST if mask else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((size, size), resampling))


def encode_picture(
    pixels: UInt8Array, codec: PictureCodec, *, quality: int = 95, source: str | None = None, recipe_json: str = "{}"
) -> bytes:
    """uint8 [H, W, 3] -> bytes; with `source`, a digital source type, marked with it and the recipe.

    PNG and WebP are lossless. JPEG keeps the full chroma resolution (4:4:4), because eyes and lips are a few pixels
    wide at 112 px.
    """
    buffer, image = io.BytesIO(), Image.fromarray(np.ascontiguousarray(pixels))
    packet = "" if source is None else xmp_packet(source, recipe_json)
    if codec == "png":
        chunks = PngInfo()
        if packet:
            chunks.add_itxt("XML:com.adobe.xmp", packet)
            chunks.add_text("raygen", recipe_json)
        image.save(buffer, "PNG", compress_level=1, pnginfo=chunks)
    elif codec == "jpeg":
        image.save(buffer, "JPEG", quality=quality, subsampling=0, xmp=packet.encode())
    else:
        image.save(buffer, "WEBP", lossless=True, method=0, quality=0, exact=True, xmp=packet.encode())
    return buffer.getvalue()
