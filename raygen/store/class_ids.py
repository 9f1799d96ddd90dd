"""Class indices from the ways in which masks are stored: grey values, palette indices, official colours."""

from typing import Final, Literal

import numpy as np
from PIL import Image

from raygen.core.errors import InputError
from raygen.core.face_labels import CLASSES, FACE_PARSING_TO_OFFICIAL, PALETTE, from_palette
from raygen.core.types import AnyArray, Int64Array, UInt8Array

__all__ = ["LabelOrder", "class_ids"]


#: What the numbers of a mask mean: the classes of CelebAMask-HQ, or those of face-parsing.PyTorch.
LabelOrder = Literal["celebamask", "face_parsing"]

#: Colours are taken for changed official ones up to this difference in a channel.
_NEAR: Final = 24
_WAY_OUT: Final = "save the mask as 8-bit grey PNG whose values are class ids"


def class_ids(image: Image.Image, label_order: LabelOrder = "celebamask") -> UInt8Array:
    """A decoded mask -> official class indices uint8 [H, W].

    Grey values of 8 or 16 bits, also as three equal channels, are indices. Of a palette picture the colours decide
    where all used ones are official, because optimisers and quantisers number them anew; else the indices, where the
    palette also has colours that the picture does not use, so that no optimiser numbered it. An RGB picture has
    official colours. `label_order` is the meaning of indices; colours mean the same in every order.

    `InputError`: `palette` for unknown or ambiguous colours, `label` for an index above 18, `transparent` where a
    transparent pixel hides a class, `mode` for anything else.
    """
    values, by_colour = _ids(image)
    if int(values.max(initial=0)) >= len(CLASSES):
        raise InputError(f"label {int(values.max())} is above {len(CLASSES) - 1}", reason="label")
    ids: UInt8Array = values.astype(np.uint8)
    if image.has_transparency_data:
        hidden = np.asarray(image.convert("RGBA").getchannel("A")) < 255
        if (hidden & (ids != 0)).any():
            raise InputError(f"transparent pixels hide classes; {_WAY_OUT}", reason="transparent")
    mapped: UInt8Array = ids if by_colour or label_order == "celebamask" else FACE_PARSING_TO_OFFICIAL[ids]
    return mapped


def _ids(image: Image.Image) -> tuple[AnyArray, bool]:
    """Indices [H, W], and whether they come from official colours."""
    if image.mode == "P":
        return _palette_ids(image)
    if image.mode == "L" or (image.mode.startswith("I") and not image.has_transparency_data):
        return np.asarray(image), False
    if image.mode == "LA":
        return np.asarray(image.getchannel("L")), False
    if image.mode not in ("RGB", "RGBA"):
        raise InputError(f"mode {image.mode} cannot hold class indices; {_WAY_OUT}", reason="mode")
    pixels = np.asarray(image.convert("RGB"))
    if (pixels == pixels[..., :1]).all():  # no official colour but black is grey
        return pixels[..., 0], False
    return _from_colours(pixels), True


def _from_colours(pixels: UInt8Array) -> UInt8Array:
    """`from_palette` with `InputError` (`palette`), which names red and blue that were exchanged."""
    try:
        return from_palette(pixels)
    except ValueError as error:
        text = str(error)
    try:
        from_palette(pixels[..., ::-1])
    except ValueError:
        raise InputError(text, reason="palette") from None
    raise InputError(f"{text}; with red and blue exchanged all are: save it as RGB, not BGR", reason="palette")


def _palette_ids(image: Image.Image) -> tuple[UInt8Array, bool]:
    """Indices [H, W] of a palette picture, and whether they come from its colours; `InputError` where both may hold."""
    index = np.asarray(image)
    palette = np.array(image.getpalette("RGB"), np.int64).reshape(-1, 3)
    used = np.flatnonzero(np.bincount(index.ravel(), minlength=1))
    if used.size == 0 or used[-1] >= len(palette):
        return index, False  # without a colour: an index above 18, which the caller refuses, or no pixels at all
    colours = palette[used]
    if not palette.any():
        return index, False  # all black: the palette says nothing
    by_colour = _classes(colours, palette)
    if np.array_equal(by_colour, used):
        return index, bool((colours.max(axis=1) != colours.min(axis=1)).any())
    if (by_colour >= 0).all() and len(set(by_colour.tolist())) == len(by_colour):
        table = np.zeros(256, np.uint8)
        table[used] = by_colour
        return table[index], not _is_grey_mask(palette)
    for i, k in zip(used.tolist(), by_colour.tolist(), strict=True):
        if k >= 0 and k != i:
            text = f"palette index {i} has the official colour of class {k}, and not all colours are official"
            raise InputError(f"{text}; {_WAY_OUT}", reason="palette")
    near = _nearest(colours)
    coloured = colours.max(axis=1) > _NEAR
    if coloured.any() and (near[coloured] >= 0).all() and (near != used)[coloured].any():
        raise InputError(
            f"palette colours are nearly the official ones, in another order; {_WAY_OUT}", reason="palette"
        )
    stored = palette[: np.flatnonzero(palette.any(axis=1))[-1] + 1]  # TIFF fills its palette up with black
    if len(used) == len(stored) < len(CLASSES) and len(np.unique(stored, axis=0)) == len(stored):
        raise InputError(
            f"the palette has only the {len(used)} colours in use, none of them twice and not all official: it looks "
            f"as if an image optimiser had numbered the classes anew; {_WAY_OUT}",
            reason="palette",
        )
    return index, False


def _classes(colours: Int64Array, palette: Int64Array) -> Int64Array:
    """Class of each colour [n, 3], or -1."""
    if _is_grey_mask(palette):
        return colours[:, 0]
    equal = (colours[:, None] == PALETTE[None].astype(np.int64)).all(axis=2)  # [n, 19]
    return np.where(equal.any(axis=1), equal.argmax(axis=1), -1)


def _is_grey_mask(palette: Int64Array) -> bool:
    """Whether it has nothing but greys up to 18, as a grey mask has that an optimiser stored with a palette."""
    return bool((palette == palette[:, :1]).all() and palette.max() < len(CLASSES))


def _nearest(colours: Int64Array) -> Int64Array:
    """The coloured class within `_NEAR` of each colour [n, 3], or -1."""
    difference = np.abs(colours[:, None] - PALETTE[None].astype(np.int64)).max(axis=2)  # [n, 19]
    difference[:, 0] = 255
    return np.where(difference.min(axis=1) <= _NEAR, difference.argmin(axis=1), -1)
