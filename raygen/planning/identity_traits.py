"""What the pictures of an identity share, and what each of them varies."""

from typing import Annotated, Final

from pydantic import BeforeValidator, Field

from raygen.core.config import Config
from raygen.core.face_labels import ATTRIBUTES, AttributeName, ClassName

__all__ = ["IN_MASK", "Attribute", "KeptTraits", "VariedTraits"]

#: An attribute in any case.
_BY_CASEFOLD: Final = {name.casefold(): name for name in ATTRIBUTES}

Attribute = Annotated[
    AttributeName,
    BeforeValidator(lambda name: _BY_CASEFOLD.get(name.casefold(), name) if isinstance(name, str) else name),
]
#: Attributes that are visible in a mask: rows with the same mask agree in them, rows with different masks may not.
IN_MASK: Final = frozenset(
    (
        "Bald",
        "Bangs",
        "Eyeglasses",
        "Mouth_Slightly_Open",
        "Receding_Hairline",
        "Smiling",
        "Wearing_Earrings",
        "Wearing_Hat",
        "Wearing_Necklace",
    )
)


_HAIR: Final = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair", "Straight_Hair", "Wavy_Hair")
_VARIED: Final = tuple(n for n in ATTRIBUTES if n in IN_MASK or n in _HAIR or n in ("Blurry", "Wearing_Necktie"))
_KEPT: Final = tuple(n for n in ATTRIBUTES if n not in _VARIED)


class KeptTraits(Config):
    """What all pictures of an identity have in common."""

    styles: tuple[ClassName, ...] = Field(
        ("skin", "nose", "l_eye", "r_eye", "l_brow", "r_brow", "u_lip", "l_lip"),
        description="classes with the style of the reference face, which must show them; a class in "
        "neither list has it where the reference shows it",
    )
    attributes: tuple[Attribute, ...] = Field(
        _KEPT, description="attributes with the values of the reference face; an attribute in neither list is unknown"
    )


class VariedTraits(Config):
    """What each picture takes from its donor."""

    styles: tuple[ClassName, ...] = Field(
        ("hair", "hat", "eye_g", "ear_r", "neck_l", "cloth", "background"),
        description="classes with the style of the donor",
    )
    attributes: tuple[Attribute, ...] = Field(_VARIED, description="attributes with the values of the donor")
