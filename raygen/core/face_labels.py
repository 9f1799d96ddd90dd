"""Labels of face data: classes, palette, mirrored pairs, attributes, splits, and the class order of other parsers.

Sources: CelebAMask-HQ `g_mask.py` (class order), its attribute file (attribute order), the palette of its mode-P masks,
face-parsing.PyTorch (the other class order), the CelebA partition file (split limits).
"""

from collections.abc import Mapping
from typing import Final, Literal, get_args

import numpy as np

from raygen.core.types import UInt8Array

__all__ = [
    "ATTRIBUTES",
    "ATTRIBUTE_INDEX",
    "CAPTIONED",
    "CLASSES",
    "CLASS_INDEX",
    "FACE_PARSING_CLASSES",
    "FACE_PARSING_TO_OFFICIAL",
    "LEFT_RIGHT",
    "OFFICIAL_TO_FACE_PARSING",
    "PALETTE",
    "SPLITS",
    "AttributeName",
    "ClassName",
    "Split",
    "SplitName",
    "attribute_list",
    "colorize",
    "flip_mask",
    "from_palette",
    "split_of",
]


ClassName = Literal[
    "background",
    "skin",
    "nose",
    "eye_g",
    "l_eye",
    "r_eye",
    "l_brow",
    "r_brow",
    "l_ear",
    "r_ear",
    "mouth",
    "u_lip",
    "l_lip",
    "hair",
    "hat",
    "ear_r",
    "neck_l",
    "neck",
    "cloth",
]
#: The 19 semantic classes; a mask holds their indices. Left and right are the person's own sides.
CLASSES: Final[tuple[ClassName, ...]] = get_args(ClassName)
CLASS_INDEX: Final[Mapping[str, int]] = {name: index for index, name in enumerate(CLASSES)}

#: Official colour of each class, uint8 [19, 3].
PALETTE: Final[UInt8Array] = np.array(
    [
        (0, 0, 0),
        (204, 0, 0),
        (76, 153, 0),
        (204, 204, 0),
        (51, 51, 255),
        (204, 0, 204),
        (0, 255, 255),
        (255, 204, 204),
        (102, 51, 0),
        (255, 0, 0),
        (102, 204, 0),
        (255, 255, 0),
        (0, 0, 153),
        (0, 0, 204),
        (255, 51, 153),
        (0, 204, 204),
        (0, 51, 0),
        (255, 153, 51),
        (0, 204, 0),
    ],
    dtype=np.uint8,
)

#: Pairs that a horizontal flip must exchange: eyes, brows, ears.
LEFT_RIGHT: Final = ((4, 5), (6, 7), (8, 9))

#: Class order of face-parsing.PyTorch (BiSeNet): another order for the same 19 classes.
FACE_PARSING_CLASSES: Final = (
    "background",
    "skin",
    "l_brow",
    "r_brow",
    "l_eye",
    "r_eye",
    "eye_g",
    "l_ear",
    "r_ear",
    "ear_r",
    "nose",
    "mouth",
    "u_lip",
    "l_lip",
    "neck",
    "neck_l",
    "cloth",
    "hair",
    "hat",
)
#: `FACE_PARSING_TO_OFFICIAL[i]` is the official index of face-parsing label `i`, uint8 [19].
FACE_PARSING_TO_OFFICIAL: Final[UInt8Array] = np.array(
    [CLASS_INDEX[name] for name in FACE_PARSING_CLASSES], dtype=np.uint8
)
#: The inverse: `OFFICIAL_TO_FACE_PARSING[i]` is the face-parsing label of official class `i`, uint8 [19].
OFFICIAL_TO_FACE_PARSING: Final[UInt8Array] = np.argsort(FACE_PARSING_TO_OFFICIAL).astype(np.uint8)

#: The 40 CelebA attributes in the order of the published annotation file; values are -1, 1, or 0 (unknown).
AttributeName = Literal[
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
]
ATTRIBUTES: Final[tuple[AttributeName, ...]] = get_args(AttributeName)
ATTRIBUTE_INDEX: Final[Mapping[str, int]] = {name: index for index, name in enumerate(ATTRIBUTES)}


def attribute_list(named: Mapping[str, int | None] | None) -> list[int]:
    """Attributes by name -> their 40 values in the order of `ATTRIBUTES`; 0 where one is null, or there are none."""
    return [0] * len(ATTRIBUTES) if named is None else [named.get(name) or 0 for name in ATTRIBUTES]


#: Attributes that captions describe, in the order of their sentences.
CAPTIONED: Final = ("Young", "Bangs", "Eyeglasses", "No_Beard", "Smiling")

Split = Literal["train", "val", "test"]
SplitName = Literal["codiff", "sca", "taming", "official"]
SPLITS: Final[tuple[SplitName, ...]] = ("codiff", "sca", "taming", "official")

_FLIP: Final[UInt8Array] = np.arange(256, dtype=np.uint8)
for _left, _right in LEFT_RIGHT:
    _FLIP[[_left, _right]] = _FLIP[[_right, _left]]


def flip_mask(mask: UInt8Array) -> UInt8Array:
    """Mirror a class mask [..., H, W] and exchange the left and right classes."""
    flipped: UInt8Array = _FLIP[mask[..., ::-1]]
    return flipped


def colorize(mask: UInt8Array) -> UInt8Array:
    """Class indices [..., H, W] -> official colours uint8 [..., H, W, 3]; `IndexError` above 18."""
    colours: UInt8Array = PALETTE[mask]
    return colours


def from_palette(pixels: UInt8Array) -> UInt8Array:
    """Official colours uint8 [H, W, 3] -> class indices [H, W].

    `ValueError` names the first colour that is not in the palette: a resized or JPEG-compressed colour mask has mixed
    colours at its edges and cannot be inverted.
    """
    code = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)  # [H, W]
    known = PALETTE.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)  # [19]
    order = np.argsort(known)
    position = np.searchsorted(known[order], code).clip(max=len(known) - 1)
    classes = order[position]
    wrong = known[classes] != code
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        raise ValueError(f"colour {tuple(int(v) for v in pixels[y, x])} at ({y}, {x}) is not in the 19-class palette")
    labels: UInt8Array = classes.astype(np.uint8)
    return labels


def split_of(
    name: SplitName,
    index: int,
    *,
    total: int = 30_000,
    celeba_index: int | None = None,
    validation: frozenset[int] | None = None,
) -> Split:
    """The part of picture `index` (0-based CelebA-HQ number) in a published split.

    `codiff`: the last 3,000 are the test set. `sca`: the last 2,000. `taming`: 25,000 train and 5,000
    validation by the published list, which the caller passes as `validation`. `official`: the CelebA
    partition, by the original CelebA number of the mapping file. `ValueError` where the split needs a
    list or a mapping that was not given.
    """
    if name == "codiff":
        return "test" if index >= total - 3_000 else "train"
    if name == "sca":
        return "test" if index >= total - 2_000 else "train"
    if name == "taming":
        if validation is None:
            raise ValueError("split 'taming' needs its list of validation pictures (celebahqvalidation.txt)")
        return "val" if index in validation else "train"
    if celeba_index is None:
        raise ValueError("split 'official' needs CelebA-HQ-to-CelebA-mapping.txt")
    # 1-based file numbers 1..162770 train, ..182637 val: the published readers compare the 0-based index.
    return "train" if celeba_index < 162_771 else "val" if celeba_index < 182_638 else "test"
