"""The background, and clothes with collars, patterns and the necktie."""

from dataclasses import dataclass

import numpy as np

from raygen.datasets.procedural.canvas import Canvas
from raygen.datasets.procedural.fields import Field, clip, ellipse, planes, ramp, rounded, scaled

__all__ = ["backdrop", "clothes"]


@dataclass(frozen=True)
class _Cut:
    """A garment as fields over the canvas's `chest_box`, x [1, w] and y [h, 1]."""

    x: Field
    y: Field
    away: Field  # from the middle
    body: Field  # distance to the garment
    neckline: Field  # distance to the opening at the neck
    tone: Field  # light on it
    colour: Field  # [3, h, w]


def clothes(canvas: Canvas) -> None:
    """Paint the garment of the scene, over the neck."""
    cut = _cut(canvas)
    if canvas.scene.collar in ("shirt", "suit"):
        _open_collar(canvas, cut)
    else:
        _pullover(canvas, cut)


def _cut(canvas: Canvas) -> _Cut:
    s = canvas.scene
    x, y = canvas.body(canvas.chest_box)
    away = np.abs(x)
    top = 0.665 + 0.26 * (away * (1 / (0.88 if canvas.person.male else 0.76))) ** 2.4
    body = (top - y) * 0.9
    if s.collar == "turtleneck":
        tube = np.maximum(away - 0.30 - 0.10 * ramp(0.75, 0.95, y), 0.63 - y)
        body = np.minimum(body, tube)
    neckline = {
        "crew": ellipse(x, y - 0.62, 0.30, 0.13),
        "scoop": ellipse(x, y - 0.60, 0.36, 0.24),
        "v": (away * 1.25 + y - 0.94) * 0.62,
        "shirt": (away * 1.5 + y - 0.82) * 0.55,
        "turtleneck": ellipse(x, y - 0.48, 0.30, 0.16),
        "suit": (away * 1.0 + y - 0.98) * 0.7,
    }[s.collar]
    tone = canvas.facing(clip(x, -0.85, 0.85), 0.35 - 0.75 * ramp(0.12, 0.0, y - top))
    folds = 1 + 0.05 * np.sin(x * 9 + y * 7) * ramp(0.0, 0.3, y - top)
    colour = canvas.lit(s.cloth[0], tone * folds)
    if s.pattern == "stripes":
        stripes = ramp(-0.25, 0.25, np.sin((y - top * 0.55) * 52))
        colour = colour + stripes * (canvas.lit(s.cloth[1], tone) - colour)
    elif s.pattern == "block":
        colour = colour + canvas.cover(0.80 - y) * (canvas.lit(s.cloth[1], tone) - colour)
    return _Cut(x, y, away, body, neckline, tone, colour)


def _pullover(canvas: Canvas, cut: _Cut) -> None:
    """Paint a garment of one piece with a hem at the neck."""
    box = canvas.chest_box
    garment = np.maximum(cut.body, -cut.neckline)
    canvas.shade(box, ramp(0.05, 0.0, garment) * 0.6 * canvas.shows(box, "neck"), 0.72)
    canvas.fill(box, canvas.cover(garment), cut.colour, "cloth")
    hem = np.maximum(cut.body, np.abs(cut.neckline - 0.025) - 0.022)
    canvas.put(box, hem, canvas.scene.cloth[2], cut.tone, "cloth")
    if canvas.scene.collar == "turtleneck":
        fold = canvas.cover(cut.body) * ramp(0.05, 0.0, np.abs(cut.y - 0.76)) * canvas.cover(cut.away - 0.36)
        canvas.shade(box, fold, 0.78)


def _open_collar(canvas: Canvas, cut: _Cut) -> None:
    """Paint a shirt, or a jacket over a shirt, with the flaps of the collar."""
    s, box = canvas.scene, canvas.chest_box
    main, second, _ = s.cloth
    shirt = np.maximum(cut.body, -(cut.away * 1.6 + cut.y - 0.76) * 0.5)
    if s.collar == "suit":
        canvas.put(box, shirt, second, cut.tone, "cloth")
    if s.tie:
        _necktie(canvas, cut)
    canvas.fill(box, canvas.cover(np.maximum(cut.body, -cut.neckline)), cut.colour, "cloth")
    flap = np.maximum(np.maximum(cut.body, np.abs(cut.neckline - 0.045) - 0.045), cut.y - 1.02)
    canvas.put(box, flap, scaled(main, 0.72) if s.collar == "suit" else second, cut.tone, "cloth")
    seam = 0.5 * canvas.cover(np.abs(cut.neckline - 0.09) - 0.004, 2) * canvas.cover(cut.body)
    canvas.shade(box, seam, 0.6)
    if s.tie and s.collar == "shirt":  # buttoned up: cloth fills the opening, and the tie lies on it
        closed = canvas.cover(shirt) * canvas.cover(cut.neckline)
        canvas.fill(box, closed, canvas.lit(second, cut.tone), "cloth")
        _necktie(canvas, cut)


def _necktie(canvas: Canvas, cut: _Cut) -> None:
    box = canvas.chest_box
    knot = np.maximum(cut.away - 0.085 + 0.30 * (cut.y - 0.67), np.abs(cut.y - 0.70) - 0.060)
    blade = np.maximum(cut.away - 0.052 - 0.30 * (cut.y - 0.74), 0.74 - cut.y)
    canvas.put(box, np.minimum(knot, blade), canvas.scene.cloth[2], cut.tone, "cloth")
    canvas.shade(box, canvas.cover(np.abs(cut.y - 0.762) - 0.008, 2) * canvas.cover(blade), 0.6)


def backdrop(canvas: Canvas) -> None:
    """Fill the picture with the background of the scene."""
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
        for blob_x, blob_y, radius, which in s.blobs:  # lights out of focus
            box = _span(canvas.n, blob_y, radius * 1.3), _span(canvas.n, blob_x, radius * 1.3)
            away = np.sqrt((x[:, box[1]] - blob_x) ** 2 + (y[box[0]] - blob_y) ** 2) * (1 / radius)
            canvas.fill(box, 0.7 * ramp(1.25, 0.75, away), s.back[which])


def _span(n: int, centre: float, reach: float) -> slice:
    """The samples of a row of n within `reach` of a position in -1..1."""
    first = max(int((centre - reach + 1) / 2 * n), 0)
    return slice(first, max(int((centre + reach + 1) / 2 * n), 0) + 1)
