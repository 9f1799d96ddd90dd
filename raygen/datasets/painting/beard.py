"""Hair of the face: stubble, moustache, goatee, full beard and sideburns.

Knows where it grows. A beard is skin in the mask, as it is in that of photographs.
"""

import numpy as np

from raygen.datasets.painting.canvas import Canvas
from raygen.datasets.painting.fields import Field, ellipse, mixed, ramp, scaled
from raygen.datasets.painting.head import MOUTH
from raygen.datasets.painting.skin import Face

__all__ = ["beard"]


def beard(canvas: Canvas, face: Face) -> None:
    """Paints whatever grows; the lips are painted after it."""
    p = canvas.person
    if p.beard == "none" and not p.sideburns:
        return
    box = canvas.face_box
    u, v = canvas.face(box)
    if p.beard == "stubble":
        alpha = _stubble(canvas, u, v)
        colour = canvas.lit(mixed(scaled(p.hair, 0.7), (0.20, 0.20, 0.23), 0.4), face.tone)
    else:
        alpha = np.zeros_like(u) if p.beard == "none" else _whiskers(canvas, u, v)
        strands = 1 + 0.09 * np.sin(u * 62 + 5 * np.sin(v * 14))
        colour = canvas.lit(scaled(p.hair, 0.86), face.tone * 0.85 + 0.05) * strands
    if p.sideburns and p.beard != "full":
        side = p.width * (0.80 + 0.55 * np.maximum(v - 0.02, 0)) - np.abs(u)
        side = np.maximum(side, np.abs(v - 0.03) - 0.17)
        alpha = np.maximum(alpha, 0.95 * canvas.cover(side, 3.0))
    alpha = alpha * canvas.cover(face.distance - (0.022 if p.beard == "full" else 0.0))
    canvas.fill(box, alpha, colour)
    if p.beard == "full":  # it stands out over the edge of the face
        canvas.mark(box, (alpha > 0.5) & ~canvas.shows(box, "nose"), "skin")


def _stubble(canvas: Canvas, u: Field, v: Field) -> Field:
    """How dark it is, 0..1."""
    grown = np.maximum(ramp(0.05, -0.05, _jaw(u, v)), 0.9 * ramp(0.025, -0.02, _moustache(canvas, u, v)))
    darkness: Field = 0.48 * (grown * (1 - ramp(0.02, -0.005, _lips(canvas, u, v))))
    return darkness


def _whiskers(canvas: Canvas, u: Field, v: Field) -> Field:
    """Coverage of a moustache or beard, 0..1."""
    kind = canvas.person.beard
    if kind == "chin":
        shape = _chin(u, v)
    elif kind == "full":
        shape = np.minimum(_jaw(u, v), _moustache(canvas, u, v))
    else:
        shape = _moustache(canvas, u, v)
        if kind == "goatee":
            ring = np.abs(ellipse(u, v - MOUTH - 0.05, canvas.person.lip_width + 0.035, 0.15)) - 0.034
            shape = np.minimum(np.minimum(shape, _chin(u, v)), np.maximum(ring, -(v - MOUTH) - 0.06))
    return 0.95 * canvas.cover(np.maximum(shape, -_lips(canvas, u, v) - 0.01), 4.0)


# Distances to the parts of the face on which it grows.


def _moustache(canvas: Canvas, u: Field, v: Field) -> Field:
    y = v - MOUTH
    below_nose = ellipse(u, y - _smile(canvas, u) + 0.082, canvas.person.lip_width + 0.045, 0.050)
    return np.maximum(below_nose, -ellipse(u, y + 0.155, 0.045, 0.050))


def _lips(canvas: Canvas, u: Field, v: Field) -> Field:
    gape = canvas.scene.gape
    y = v - MOUTH - _smile(canvas, u) * 0.4 - 0.012 - 0.035 * gape
    return ellipse(u, y, canvas.person.lip_width * 0.98, 0.075 + 0.05 * gape)


def _smile(canvas: Canvas, u: Field) -> Field:
    """How far a smile lifts the corners of the mouth."""
    lifted: Field = -0.05 * max(canvas.scene.smile, 0) * (u * (1 / canvas.person.lip_width)) ** 2
    return lifted


def _chin(u: Field, v: Field) -> Field:
    return ellipse(u, v - MOUTH - 0.215, 0.135, 0.125)


def _jaw(u: Field, v: Field) -> Field:
    """Below a line from ear to ear under the cheeks, and the chin."""
    au = np.abs(u)
    line = 0.115 + 0.55 * np.maximum(0.40 - au, 0) - 0.95 * np.maximum(au - 0.34, 0) * 3
    return np.minimum(np.maximum((line - v) * 0.7, -(v + 0.02)), _chin(u, v))
