"""The true landmarks of a drawn face."""

import numpy as np

from raygen.core.types import Float64Array
from raygen.datasets.procedural.canvas import Canvas
from raygen.datasets.procedural.scene import Person, Scene
from raygen.datasets.procedural.skin import EYES, MOUTH, NOSE

__all__ = ["landmarks"]


def landmarks(person: Person, scene: Scene) -> Float64Array:
    """Eye centres, tip of the nose, corners of the mouth, float64 [5, 2], as in `raygen.core.landmarks`.

    They are where `eye`, `mouth` and the relief of the skin have them, also where hair or glasses hide them.
    """
    canvas = Canvas(person, scene, 32)  # places do not depend on the size
    half = person.lip_width * (1 + 0.20 * max(scene.smile, 0) - 0.10 * scene.gape * (scene.smile < 0.2))
    corner = MOUTH - 0.050 * (scene.smile + 0.16)
    return np.array(
        [
            canvas.place(-person.eye_gap, EYES),
            canvas.place(person.eye_gap, EYES),
            canvas.place(0.13 * canvas.turn, NOSE + person.nose_drop + 0.11 * canvas.nod),
            canvas.place(0.035 * canvas.turn - half, corner),
            canvas.place(0.035 * canvas.turn + half, corner),
        ]
    )
