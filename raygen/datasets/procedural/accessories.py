"""Accessories: glasses, earrings, necklace and hats."""

from dataclasses import dataclass

import numpy as np

from raygen.datasets.procedural.canvas import Box, Canvas
from raygen.datasets.procedural.fields import WHITE, Colour, Field, clip, ellipse, planes, ramp, rounded, scaled
from raygen.datasets.procedural.scene import hidden_eyes
from raygen.datasets.procedural.skin import EYES, ear_place, face_cover

__all__ = ["earrings", "glasses", "hat", "necklace"]


def necklace(canvas: Canvas) -> None:
    """Paint a chain with a pendant, or beads, on neck and clothes."""
    s, box = canvas.scene, canvas.chest_box
    if s.necklace == "none":
        return
    beads = s.necklace == "beads"
    x, y = canvas.body(box)
    line = np.maximum(np.abs(ellipse(x, y - 0.575, 0.26, 0.195)) - (0.026 if beads else 0.020), 0.61 - y)
    canvas.shade(box, ramp(0.04, 0.0, line) * (y > 0.62), 0.75)
    colour = canvas.lit(s.metal, canvas.facing(clip(x * 2, -0.8, 0.8), np.full_like(y, -0.2)))
    if beads:
        colour = colour * (1 + 0.22 * np.sin(np.arctan2(x, y - 0.575) * 30))
    else:  # a pendant
        line = np.minimum(line, ellipse(x, y - 0.79, 0.050, 0.055))
    canvas.fill(box, canvas.cover(line), colour, "neck_l")


def glasses(canvas: Canvas) -> None:
    """Paint glasses. Behind clear lenses the mask keeps the classes of the eyes."""
    p, s = canvas.person, canvas.scene
    if s.glasses == "none":
        return
    kind, thick, colour = s.frame
    box = canvas.around_on_face(0, EYES + 0.02, p.width * 1.15, 0.26)
    u, v = canvas.face(box)
    u, v = u - 0.04 * canvas.turn, v - 0.02 * canvas.nod
    a, b = np.abs(u) - p.eye_gap - 0.008, v - EYES - 0.022
    face = face_cover(canvas, box, 0.012)
    lens = _lens(kind, a, b)
    bridge = np.maximum(np.abs(b + 0.045 - 0.9 * u * u) - thick * 0.9, np.abs(u) - p.eye_gap + 0.14)
    temple = np.maximum(np.abs(b + 0.050) - thick, 0.155 - a)
    frame = np.minimum(np.abs(lens) - thick, np.maximum(np.minimum(bridge, temple), -lens))
    glass, rims = canvas.cover(lens) * face, canvas.cover(frame) * face
    canvas.shade(box, face * 0.6 * ramp(0.03, 0.0, np.abs(lens - 0.012)), 0.80)
    worn = (glass > 0.5) | (rims > 0.5)
    dark = hidden_eyes(s)
    if dark:
        canvas.fill(box, glass * 0.94, canvas.lit(s.lens, 0.45 + 0.35 * ramp(-0.12, 0.12, b)))
    else:
        worn &= ~canvas.shows(box, "l_eye", "r_eye")
        canvas.fill(box, glass * 0.07, WHITE)
    across = a * 0.75 + b * 0.55
    glare = ramp(0.035, 0.0, np.abs(across + 0.055)) + 0.6 * ramp(0.015, 0.0, np.abs(across - 0.005))
    canvas.fill(box, glass * glare * (0.30 if dark else 0.20), planes(clip(s.light, 0, 1)))
    tone = canvas.facing(np.zeros_like(b), clip(b * -4, -0.6, 0.6))
    canvas.fill(box, rims, canvas.lit(colour, tone))
    canvas.mark(box, worn, "eye_g")


def _lens(kind: str, a: Field, b: Field) -> Field:
    """Distance to a lens, in coordinates from its centre."""
    if kind == "round":
        return ellipse(a, b, 0.158, 0.140)
    if kind == "square":
        return rounded(a, b, 0.165, 0.115, 0.035)
    if kind == "soft":
        return rounded(a, b, 0.168, 0.122, 0.085)
    if kind == "cat":
        return rounded(a, b + 0.22 * a, 0.165, 0.112, 0.075)
    return ellipse(a + 0.10 * b, b, 0.170, 0.135)  # aviator


def earrings(canvas: Canvas) -> None:
    """Paint an earring at each visible ear."""
    s = canvas.scene
    if s.earrings == "none":
        return
    for side in (-1, 1):
        cx, cy, seen = ear_place(canvas, side)
        if seen < 0.6:
            continue
        cx, cy = cx + side * 0.022 * seen, cy + 0.135 * canvas.person.ears
        box = canvas.around(cx, cy + 0.06, 0.10, 0.16)
        x, y = canvas.head(box)
        x, y = x - cx, y - cy
        if s.earrings == "stud":
            shape = ellipse(x, y, 0.040, 0.040)
        elif s.earrings == "drop":
            shape = np.minimum(ellipse(x, y, 0.024, 0.024), ellipse(x, y - 0.085, 0.036, 0.056))
        else:
            shape = np.abs(ellipse(x, y - 0.062, 0.060 * min(seen, 1.0), 0.070)) - 0.016
        tone = canvas.facing(clip(x * 14, -0.8, 0.8), clip(y * 7 - 0.3, -0.7, 0.7))
        canvas.shade(box, 0.5 * ramp(0.02, -0.01, shape), 0.7)
        colour = canvas.lit(s.metal, tone) + 0.6 * np.maximum(tone - 0.75, 0)
        canvas.fill(box, canvas.cover(shape), colour, "ear_r")


#: Height of the edge of a hat on the forehead.
_BROW = -0.315


@dataclass(frozen=True)
class _Hat:
    """Measures that all hats share: fields over the piece `box`."""

    box: Box
    x: Field
    y: Field
    rise: Field  # `y` over the edge on the forehead
    w: float  # half width of the head in it
    sag: Field  # how far the edge is bent up at the sides
    dome: Field  # distance to a tight hat
    nx: Field  # slope to the sides
    tone: Field
    main: Colour
    trim: Colour


def hat(canvas: Canvas) -> None:
    """Paint the hat of the scene, over everything else."""
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
    if canvas.person.volume > 0.5:  # a bobble; depends on the person
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
    """A beret hangs to one side."""
    side = 1.0 if canvas.person.part >= 0 else -1.0
    x, y = h.x - side * 0.10, h.y + 0.50 - side * 0.22 * h.x
    cloth = np.minimum(ellipse(x, y, h.w + 0.10, 0.24), np.maximum(h.dome, -0.52 - h.y))
    tone = canvas.facing(clip(x / (h.w + 0.1), -0.95, 0.95) * 0.8, clip(y * 3.2, -0.9, 0.7))
    canvas.put(h.box, cloth, h.main, tone, "hat")
    band = np.maximum(np.abs(h.rise + 0.03 + h.sag) - 0.045, np.abs(h.x) - h.w * 0.97)
    canvas.put(h.box, band, h.trim, h.tone, "hat")
