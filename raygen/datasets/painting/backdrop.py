"""What lies behind the person.

Knows no person: it fills the whole picture before anything else is painted.
"""

import numpy as np

from raygen.datasets.painting.canvas import Canvas
from raygen.datasets.painting.fields import clip, planes, ramp, rounded

__all__ = ["backdrop"]


def backdrop(canvas: Canvas) -> None:
    """Fills the picture with what the scene names."""
    s, x, y = canvas.scene, canvas.x, canvas.y
    c, d = float(np.cos(s.tilt)), float(np.sin(s.tilt))
    along = x * d + y * c
    first, second, third = (planes(colour) for colour in s.back)
    if s.backdrop == "spot":
        t = ramp(0.2, 1.6, np.sqrt((x - d * 0.5) ** 2 + (y + 0.2) ** 2))
    elif s.backdrop == "stripes":
        t = 0.5 + 0.5 * clip(1.5 * np.sin(along * 7.5 + c), -1, 1)
    else:
        t = ramp(-1.1, 1.1, along)
    canvas.rgb[:] = first + t * (second - first)
    if s.backdrop == "room":
        floor = x * c * 0.2 + y - 0.15
        canvas.rgb += ramp(-0.05, 0.05, floor) * (third - canvas.rgb)
        window = rounded(x - 0.75 * np.sign(d), y + 0.45, 0.42, 0.40, 0.05)
        canvas.rgb += 0.8 * ramp(0.03, -0.03, window) * (second * 0.6 + 0.35 - canvas.rgb)
    elif s.backdrop == "blobs":
        _blobs(canvas)


def _blobs(canvas: Canvas) -> None:
    """Lights out of focus."""
    for x, y, radius, which in canvas.scene.blobs:
        box = _span(canvas.n, y, radius * 1.3), _span(canvas.n, x, radius * 1.3)
        away = np.sqrt((canvas.x[:, box[1]] - x) ** 2 + (canvas.y[box[0]] - y) ** 2) * (1 / radius)
        canvas.fill(box, 0.7 * ramp(1.25, 0.75, away), canvas.scene.back[which])


def _span(n: int, centre: float, reach: float) -> slice:
    """The samples of a row of n within reach of a place in -1..1."""
    first = max(int((centre - reach + 1) / 2 * n), 0)
    return slice(first, max(int((centre + reach + 1) / 2 * n), 0) + 1)
