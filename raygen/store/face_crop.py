"""Crops of pictures and masks to a face, by its landmarks."""

import numpy as np
from PIL import Image

from raygen.core.landmarks import similarity
from raygen.core.types import Float64Array, UInt8Array

__all__ = ["crop"]


def crop(
    pixels: UInt8Array, points: Float64Array, template: Float64Array, size: int, *, mask: bool = False
) -> UInt8Array:
    """uint8 [H, W, ...] -> [size, size, ...], turned, scaled and moved so that `points` lie nearest to `template`.

    Both are fractions of the sides [n, 2]. Pictures are made smaller by Lanczos and then sampled bicubically, masks by
    nearest neighbour. What lies outside the picture is black, and background in a mask, as `cv2.warpAffine` leaves it.
    """
    height, width = pixels.shape[:2]
    target = template * size
    matrix = similarity(points * [width, height], target)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    image = Image.fromarray(pixels)
    if scale < 1 and not mask:  # an affine transform alone would leave out pixels
        width, height = max(round(width * scale), 1), max(round(height * scale), 1)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        matrix = similarity(points * [width, height], target)
    turn = np.linalg.inv(matrix[:, :2])
    back = np.hstack([turn, (-turn @ matrix[:, 2])[:, None]])
    resampling = Image.Resampling.NEAREST if mask else Image.Resampling.BICUBIC
    return np.asarray(image.transform((size, size), Image.Transform.AFFINE, tuple(back.ravel()), resampling))
