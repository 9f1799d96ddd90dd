"""The shape of a head: its outline, the heights of its features, its relief and where its ears are.

Knows geometry only; nothing is painted here.
"""

import numpy as np

from raygen.datasets.painting.canvas import Box, Canvas
from raygen.datasets.painting.fields import Field, bump, clip, ramp
from raygen.datasets.painting.scene import Person, Scene

__all__ = ["EYES", "MOUTH", "NOSE", "ear_place", "face_cover", "outline", "relief"]

#: Heights of the features.
EYES, NOSE, MOUTH = -0.06, 0.155, 0.325
_MIDDLE = -0.02  # where the face is widest


def outline(canvas: Canvas, x: Field, y: Field) -> tuple[Field, Field, Field]:
    """Distance to the edge of the face, and the two coordinates in which it is about a unit disk."""
    p = canvas.person
    t = y - _MIDDLE
    t = t * np.where(t < 0, np.float32(1 / 0.60), np.float32(1 / (p.chin - _MIDDLE)))
    low = clip(t, 0, 1.15)
    low = low * low
    across = (x - 0.16 * canvas.turn * low) / (p.width * (1 - p.jaw * low))
    r2 = across * across + t * t
    r4 = np.sqrt(r2 * r2 - 2 * (across * t) ** 2)
    r = np.sqrt(r2 + (r4 - r2) * p.square)
    return (r - 1) * (p.width * 0.92), across, t


def face_cover(canvas: Canvas, box: Box, wider: float = 0.0) -> Field:
    """Coverage 0..1 of the face, or of a face so much wider."""
    return canvas.cover(outline(canvas, *canvas.head(box))[0] - wider)


def relief(p: Person, s: Scene, u: Field, v: Field) -> Field:
    """Height of the features over the ellipsoid of the head."""
    tip = NOSE + p.nose_drop
    h = 0.040 * bump(u, v - EYES + 0.155, 0.30, 0.07)  # brow ridge
    au = np.abs(u)
    h -= 0.036 * bump(au - p.eye_gap * 0.9, v - EYES, 0.13, 0.085)  # sockets
    cheek = 0.040 + 0.030 * max(s.smile, 0) + (0.035 if p.cheekbones else 0)
    cheek_height = 0.155 if p.cheekbones else 0.19 - 0.02 * s.smile
    cheek_radius = 0.13 if p.cheekbones else 0.16 + (0.02 if p.chubby else 0)
    h += cheek * bump(au - 0.27, v - cheek_height, cheek_radius, 0.105)
    h += 0.045 * bump(u, v - MOUTH, 0.20, 0.13) + 0.045 * bump(u, v - p.chin * 0.90, 0.12, 0.075)
    # The nose: its ridge, tip and wings.
    down = clip((v - EYES + 0.05) * (1 / (tip - EYES + 0.05)), 0, 1)
    end = ramp(tip + 0.060, tip - 0.005, v)
    spread = 1 / (0.040 + 0.030 * down * (1.15 - 0.45 * p.nose_sharp) * (p.nose_width / 0.1))
    ridge = np.maximum(1 - 0.25 * (u * spread) ** 2, 0) ** 3
    h += (0.012 * ramp(EYES - 0.12, EYES, v) + 0.085 * down * down) * ridge * end
    h += 0.030 * bump(u, v - tip + 0.005, 0.048 - 0.012 * p.nose_sharp, 0.045)
    wing = p.nose_width * 0.78
    h += 0.034 * bump(au - wing, v - tip - 0.012, 0.034, 0.034)
    return h


def ear_place(canvas: Canvas, side: int) -> tuple[float, float, float]:
    """Centre, and how wide the ear is seen; side -1 is the person's right, 1 the left."""
    x = side * (canvas.person.width * float(np.cos(canvas.scene.yaw)) + 0.012) - 0.05 * canvas.turn
    return x, 0.015 + 0.20 * canvas.nod * -0.5, float(clip(1 - 1.6 * side * canvas.turn, 0.45, 1.35))
