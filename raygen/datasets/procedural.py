"""Drawn faces: the data set that needs no data.

Knows how one picture of one invented person is asked for, and what comes with it: mask, attributes, captions,
identity. How a person is chosen stands in `_person`, how a scene becomes pixels in `_paint`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raygen.datasets._paint import paint
from raygen.datasets._person import attributes_of, captions_of, person_of, scene_of

__all__ = ["SIZES", "Face", "draw"]

#: Smallest and largest picture.
SIZES = (32, 512)


@dataclass(frozen=True)
class Face:
    """One drawn picture and everything that is known of it."""

    pixels: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    attributes: npt.NDArray[np.int8]
    texts: Mapping[str, str]
    identity_id: str


def draw(seed: int, identity: int, variant: int, size: int) -> Face:
    """Picture `variant` of person `identity`.

    `pixels` RGB uint8 [size, size, 3]; `mask` class ids uint8 [size, size]; `attributes` int8 [40] of -1 and 1;
    `texts` a caption a recipe. The same four numbers give the same face, and another size the same scene.
    `ValueError` for a size outside 32..512.
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size {size} is not in {SIZES[0]}..{SIZES[1]}")
    person = person_of(seed, identity)
    scene = scene_of(seed, identity, variant, person)
    pixels, mask = paint(person, scene, size)
    return Face(pixels, mask, attributes_of(person, scene), captions_of(person, scene), f"p{identity:06d}")
