"""The 19 classes in plain words."""

from typing import Final

from raygen.core.face_labels import CLASSES

__all__ = ["LABELS"]


#: Words by class; left and right are the person's own.
LABELS: Final = dict(
    zip(
        CLASSES,
        (
            "background",
            "skin",
            "nose",
            "eyeglasses",
            "left eye",
            "right eye",
            "left brow",
            "right brow",
            "left ear",
            "right ear",
            "mouth",
            "upper lip",
            "lower lip",
            "hair",
            "hat",
            "earring",
            "necklace",
            "neck",
            "clothes",
        ),
        strict=True,
    )
)
