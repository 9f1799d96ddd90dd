"""Hats: cap, beanie, fedora, bucket and beret, and the shadow that they throw on the forehead.

Knows their shapes. The hair under a hat is cut to fit by `hair`.
"""

from dataclasses import dataclass

import numpy as np

from raygen.datasets.painting.canvas import Box, Canvas
from raygen.datasets.painting.fields import Colour, Field, clip, ellipse, ramp, rounded, scaled

__all__ = ["hat"]

#: Height of the edge of a hat on the forehead.
_BROW = -0.315


@dataclass(frozen=True)
class _Hat:
    """What all hats share: fields over the piece `box`."""

    box: Box
    x: Field
    y: Field
    rise: Field  # `y` over the edge on the forehead
    w: float  # half width of the head in it
    sag: Field  # how far the edge is bent up at the sides
    dome: Field  # distance to a hat as tight as it can be
    nx: Field  # slope to the sides
    tone: Field
    main: Colour
    trim: Colour


def hat(canvas: Canvas) -> None:
    """The hat that the scene names, over everything else."""
    s = canvas.scene
    if s.hat == "none":
        return
    h = _fitted(canvas)
    depth = {"fedora": 0.16, "bucket": 0.14, "cap": 0.17}.get(s.hat, 0.06)
    canvas.shade(h.box, ramp(depth, 0.0, h.rise) * canvas.shows(h.box, "skin"), 0.60, (1.06, 0.97, 0.95))
    {"cap": _cap, "beanie": _beanie, "fedora": _fedora, "bucket": _bucket, "beret": _beret}[s.hat](canvas, h)


def _fitted(canvas: Canvas) -> _Hat:
    p = canvas.person
    box = canvas.around(0, -0.55, 1.05, 0.55)
    x, y = canvas.head(box)
    x, y = x - 0.05 * canvas.turn, y - 0.10 * canvas.nod
    w = p.width + (0.05 + (0.03 if p.has_hair else 0.0) + (0.05 if p.style == "afro" else 0.0))
    sag = 0.06 * (x * (1 / w)) ** 2
    nx, ny = clip(x * (1 / w), -0.95, 0.95) * 0.85, clip((y + 0.1) * (1 / 0.7), -0.9, 0.2) * 0.9
    ex, ey = (x * (1 / w)) ** 2, ((y + 0.24) * (1 / 0.52)) ** 2
    dome = (0.5 * np.sqrt(ex + ey) + 0.5 * np.sqrt(np.sqrt(ex * ex + ey * ey)) - 1) * w
    rise = y - _BROW
    dome = np.maximum(dome, (rise - 0.02 + sag) * 0.95)
    return _Hat(box, x, y, rise, w, sag, dome, nx, canvas.facing(nx, ny), *canvas.scene.hat_colours)


def _cap(canvas: Canvas, h: _Hat) -> None:
    seams = np.abs(np.abs(h.x) - 0.30 * (0.2 + clip(h.y + 0.75, 0, 0.5) * 1.6)) - 0.007
    colour = canvas.lit(h.main, h.tone) * (1 - 0.22 * canvas.cover(seams, 2))
    canvas.fill(h.box, canvas.cover(h.dome), colour, "hat")
    canvas.put(h.box, ellipse(h.x, h.y + 0.76, 0.045, 0.022), h.trim, 0.8, "hat")  # the button on top
    x = h.x - 0.20 * canvas.turn
    visor = np.maximum(ellipse(x, h.rise - 0.045, h.w * 0.92, 0.115), -(h.rise + 0.045 - 0.22 * x * x))
    tone = canvas.facing(clip(x, -0.7, 0.7), clip(h.rise * 3 - 0.3, -0.6, 0.6))
    canvas.put(h.box, visor, h.trim, tone, "hat")


def _beanie(canvas: Canvas, h: _Hat) -> None:
    ribs = 1 + 0.10 * np.sin(h.x / (0.35 + clip(h.y + 0.78, 0, 0.5)) * 26)
    canvas.fill(h.box, canvas.cover(h.dome), canvas.lit(h.main, h.tone) * ribs, "hat")
    fold = rounded(h.x, h.rise + 0.070 + h.sag, h.w + 0.016, 0.078, 0.055)
    canvas.shade(h.box, canvas.cover(h.dome) * ramp(0.04, 0.0, fold), 0.7)
    colour = canvas.lit(h.trim, h.tone) * (1 + 0.10 * np.sin(h.x * 34))
    canvas.fill(h.box, canvas.cover(fold), colour, "hat")
    if canvas.person.volume > 0.5:  # a bobble, on the same person always
        tone = canvas.facing(clip(h.x * 7, -0.8, 0.8), clip(h.y * 7 + 5.5, -0.8, 0.8))
        canvas.put(h.box, ellipse(h.x, h.y + 0.79, 0.12, 0.11), h.trim, tone, "hat")


def _fedora(canvas: Canvas, h: _Hat) -> None:
    dent = 0.03 * np.exp(-((h.x * 9) ** 2))
    crown = rounded(h.x, h.y + 0.53, h.w * 0.90 - 0.05 * clip(-h.y - 0.3, 0, 0.5), 0.33, 0.13) + dent
    crown = np.maximum(crown, h.rise)
    brim = ellipse(h.x, h.rise + 0.01 + 0.10 * h.x * h.x, h.w + 0.34, 0.095)
    tone = canvas.facing(h.nx * 0.4, clip(h.rise * 5, -0.5, 0.6))
    canvas.put(h.box, brim, scaled(h.main, 0.8), tone, "hat")
    canvas.put(h.box, crown, h.main, canvas.facing(h.nx, np.full_like(h.y, -0.1)), "hat")
    band = np.maximum(crown, np.abs(h.rise + 0.10) - 0.055)
    canvas.put(h.box, band, h.trim, canvas.facing(h.nx, np.zeros_like(h.y)), "hat")


def _bucket(canvas: Canvas, h: _Hat) -> None:
    crown = rounded(h.x, h.y + 0.46, h.w * 0.93 + 0.10 * (h.y + 0.4), 0.32, 0.10)
    tone = canvas.facing(h.nx, np.full_like(h.y, -0.1))
    canvas.put(h.box, np.maximum(crown, h.rise), h.main, tone, "hat")
    away = np.abs(h.x) - h.w
    brim = np.maximum(away - 0.02 - 0.75 * (h.rise + 0.12), np.abs(h.rise + 0.03 + h.sag) - 0.105)
    tone = canvas.facing(h.nx, np.full_like(h.y, 0.15))
    canvas.put(h.box, brim, scaled(h.main, 0.86), tone, "hat")
    seam = canvas.cover(np.abs(h.rise + 0.135 + h.sag) - 0.008, 2)
    canvas.shade(h.box, seam * canvas.cover(away), 0.66)


def _beret(canvas: Canvas, h: _Hat) -> None:
    """It hangs to one side."""
    side = 1.0 if canvas.person.part >= 0 else -1.0
    x, y = h.x - side * 0.10, h.y + 0.50 - side * 0.22 * h.x
    cloth = np.minimum(ellipse(x, y, h.w + 0.10, 0.24), np.maximum(h.dome, -0.52 - h.y))
    tone = canvas.facing(clip(x / (h.w + 0.1), -0.95, 0.95) * 0.8, clip(y * 3.2, -0.9, 0.7))
    canvas.put(h.box, cloth, h.main, tone, "hat")
    band = np.maximum(np.abs(h.rise + 0.03 + h.sag) - 0.045, np.abs(h.x) - h.w * 0.97)
    canvas.put(h.box, band, h.trim, h.tone, "hat")
