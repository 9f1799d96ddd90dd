"""Five facial landmarks from a mask, and the similarity transform onto the template that recognition networks expect.

The landmarks are, in this order, the centres of the two eyes, the tip of the nose and the two corners of the mouth; the
left ones of the picture come first. Coordinates are fractions of the sides of the picture, from its upper left corner.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from raygen.core.errors import InputError
from raygen.core.face_labels import CLASS_INDEX
from raygen.core.types import Float64Array, UInt8Array

__all__ = ["ARCFACE_TEMPLATE", "LANDMARKS", "REASON", "from_mask", "frontal", "misfit", "similarity", "stored_points"]


LANDMARKS: Final = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
#: First word of the error of a face whose landmarks cannot be told.
REASON: Final = "landmarks"
#: Where ArcFace and the networks after it expect the landmarks, float64 [5, 2]. InsightFace gives them in pixels of a
#: picture of 112 x 112 whose upper left pixel has its centre at (0, 0).
ARCFACE_TEMPLATE: Final[Float64Array] = (
    np.array([(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]) + 0.5
) / 112
#: A part of a face with fewer pixels than this has no place.
FEWEST: Final = 3
#: Place of the tip between the upper and the lower end of the nose, and where its sides are looked for.
TIP: Final = 0.76
#: Share of the width of a mouth that belongs to its corners.
CORNER: Final = 0.06
#: Largest `misfit` of a face that can be aligned; faces from the side have more.
LARGEST_MISFIT: Final = 0.25


def from_mask(mask: UInt8Array) -> Float64Array:
    """Class ids uint8 [H, W] -> landmarks float64 [5, 2]; `InputError` (`landmarks`) where a part is missing.

    Eyes are the middles of their pixels. Behind glasses without eyes they lie at a quarter of the width of the
    glasses. The nose's tip and the mouth's corners are looked for along and across the line of the eyes.
    """
    eyes = np.array(sorted(_eyes(mask), key=lambda point: float(point[0])))
    across = eyes[1] - eyes[0]
    distance = float(np.hypot(*across))
    if distance < FEWEST:
        raise InputError("the eyes are at the same place", reason=REASON)
    across = across / distance
    down = np.array([-across[1], across[0]])
    nose = _pixels(mask, "nose")
    height = nose @ down
    low, high = float(height.min()), float(height.max())
    side = nose[height >= low + 0.5 * (high - low)] @ across
    tip = (low + TIP * (high - low)) * down + float((side.min() + side.max()) / 2) * across
    mouth = _pixels(mask, "mouth", "u_lip", "l_lip")
    width = mouth @ across
    reach = max(CORNER * float(width.max() - width.min()), 0.5)
    corners = [
        mouth[width <= width.min() + reach].mean(axis=0),
        mouth[width >= width.max() - reach].mean(axis=0),
    ]
    sides = [mask.shape[1], mask.shape[0]]
    return frontal((np.array([*eyes, tip, *corners]) + 0.5) / sides, sides)


def frontal(points: Float64Array, sides: Sequence[int]) -> Float64Array:
    """`points` [5, 2] of a picture with these sides (width, height); `InputError` (`landmarks`) of a turned face."""
    if (found := misfit(points * sides)) > LARGEST_MISFIT:
        raise InputError(f"seen from the side: the landmarks are {found:.2f} from a frontal face", reason=REASON)
    return points


def stored_points(value: Mapping[str, Any]) -> Float64Array:
    """A value of the column `landmarks` -> float64 [5, 2]; `InputError` (`landmarks`) with its error without points."""
    if value["points"] is None:
        text = (value["error"] or "none are stored").removeprefix(f"{REASON}: ")
        raise InputError(text, reason=REASON)
    points = np.array(value["points"], np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all() or np.ptp(points, axis=0).max() == 0:
        raise InputError("the stored ones are not five places", reason=REASON)
    return points


def _pixels(mask: UInt8Array, *names: str) -> Float64Array:
    """x, y of the pixels of some classes, float64 [n, 2]; `InputError` where there are too few."""
    rows, columns = np.nonzero(np.isin(mask, [CLASS_INDEX[name] for name in names]))
    if len(rows) < FEWEST:
        raise InputError(f"the mask has no {names[0]}", reason=REASON)
    return np.stack([columns, rows], axis=1).astype(np.float64)


def _eyes(mask: UInt8Array) -> Sequence[Float64Array]:
    """The middles of the eyes, in any order."""
    try:
        return [_pixels(mask, name).mean(axis=0) for name in ("l_eye", "r_eye")]
    except InputError:
        if not (mask == CLASS_INDEX["eye_g"]).any():
            raise
    glasses = _pixels(mask, "eye_g")
    middle = glasses.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov((glasses - middle).T))
    along = (glasses - middle) @ axes[:, 1]
    return [middle + share * (along.max() - along.min()) * axes[:, 1] for share in (-0.25, 0.25)]


def similarity(source: Float64Array, target: Float64Array) -> Float64Array:
    """The rotation, scale and shift [2, 3] that move `source` [n, 2] nearest to `target` [n, 2] in squared distance.

    Without reflection (Umeyama 1991, equations 40 to 42). `ValueError` where the source is a single place.
    """
    middle, aim = source.mean(axis=0), target.mean(axis=0)
    a, b = source - middle, target - aim
    spread = float((a**2).sum())
    if spread == 0:
        raise ValueError("the points are all at one place")
    # In the plane, a rotation with scale is a complex number, and least squares has one unknown.
    real, imaginary = float((a * b).sum()) / spread, float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / spread
    turn = np.array([[real, -imaginary], [imaginary, real]])
    return np.hstack([turn, (aim - turn @ middle)[:, None]])


def misfit(points: Float64Array, template: Float64Array = ARCFACE_TEMPLATE) -> float:
    """Root mean square distance of aligned landmarks [5, 2] to the template, as a share of the distance of its eyes."""
    matrix = similarity(points, template)
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    eyes = float(np.hypot(*(template[1] - template[0])))
    return float(np.sqrt(((moved - template) ** 2).sum(axis=1).mean()) / eyes)
