"""What is put on: glasses, earrings and the necklace. Hats are in `hats`.

Knows their shapes and how they shine. Each is painted over the part of the body that wears it.
"""

import numpy as np

from raygen.datasets.painting.canvas import Canvas
from raygen.datasets.painting.fields import WHITE, Field, clip, ellipse, planes, ramp, rounded
from raygen.datasets.painting.head import EYES, ear_place, face_cover
from raygen.datasets.painting.scene import hidden_eyes

__all__ = ["earrings", "glasses", "necklace"]


def necklace(canvas: Canvas) -> None:
    """A chain with a pendant, or beads, on neck and clothes."""
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
    """Clear or dark; the eyes stay eyes in the mask where they can be seen through the glass."""
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
    """Distance to one of the two lenses, from its middle."""
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
    """One at each ear that is not turned away."""
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
