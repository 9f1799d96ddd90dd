"""Eyes, brows and mouth under every expression, with make-up; painted on the face."""

from dataclasses import dataclass

import numpy as np

from raygen.datasets.procedural.canvas import Box, Canvas
from raygen.datasets.procedural.fields import WHITE, Colour, Field, bump, clip, ellipse, mixed, planes, ramp, scaled
from raygen.datasets.procedural.skin import EYES, MOUTH, face_cover

__all__ = ["brow", "eye", "mouth"]


@dataclass(frozen=True)
class _Mouth:
    """Fields over the piece `box`; `y` is the height over the line on which the lips meet."""

    box: Box
    u: Field
    y: Field
    half: float  # half its width
    bent: Field  # squared position from the middle, 0, to the corners, 1
    wide: Field  # distance beyond the corners
    gap: Field  # between the lips


def mouth(canvas: Canvas) -> None:
    """Paint the lips and the open mouth; a smile bends the lips and deepens the corners."""
    p, s = canvas.person, canvas.scene
    box = canvas.around_on_face(0, MOUTH + 0.03, p.lip_width * 1.3 + 0.03, 0.22)
    u, v = canvas.face(box)
    u = u - 0.035 * canvas.turn
    half = p.lip_width * (1 + 0.20 * max(s.smile, 0) - 0.10 * s.gape * (s.smile < 0.2))
    q = np.abs(u) * (1 / half)
    bent = np.minimum(q * q, 1)
    bend = s.smile + 0.16
    y = v - MOUTH - bend * (0.022 - 0.072 * bent)
    m = _Mouth(box, u, y, half, bent, wide=(q - 1) * half, gap=0.085 * s.gape * (1 - bent) ** 0.7)
    lips = _lips(canvas, m)
    if s.gape > 0:
        _open_mouth(canvas, m)
    else:
        seam = np.maximum(np.abs(y) - 0.0075, m.wide - 0.004)
        canvas.shade(box, canvas.cover(seam, 1.6), 0.42, (1.1, 0.9, 0.9))
    corner = np.sqrt((np.abs(u) - half - 0.006) ** 2 + (v - MOUTH + bend * 0.050) ** 2)
    canvas.shade(box, (1 - lips) * 0.8 * ramp(0.034, 0.0, corner), 0.70)


def _lips(canvas: Canvas, m: _Mouth) -> Field:
    """Paint both lips; returns their coverage."""
    p, s = canvas.person, canvas.scene
    happy = max(s.smile, 0)
    bow = 1 - 0.22 * np.maximum(1 - (m.u * (1 / 0.035)) ** 2, 0)
    up = (p.lip_full * 0.92 * (1 - m.bent) ** 0.75 + 0.012 * (1 - m.bent)) * bow * (1 - 0.18 * happy)
    low = p.lip_full * 1.22 * (1 - m.bent) ** 0.55 * (1 - 0.15 * happy)
    r, g, b = p.skin
    colour = s.lipstick or (r * 0.80 + 0.03, g * 0.56, b * 0.60 + 0.005)
    rise = (m.y - 0.65 * m.gap) / np.maximum(low, 0.004)
    above = canvas.cover(np.maximum(np.maximum(-m.y - up - 0.35 * m.gap, m.y + 0.35 * m.gap), m.wide))
    below = canvas.cover(np.maximum(np.maximum(m.y - 0.65 * m.gap - low, 0.65 * m.gap - m.y), m.wide))
    slope = m.u * (1 / m.half) * 0.6
    canvas.fill(m.box, above, canvas.lit(colour, 0.82 * canvas.facing(slope, np.full_like(m.u, 0.30))), "u_lip")
    tone = canvas.facing(slope, clip((rise - 0.45) * 0.9, -0.5, 0.5))
    canvas.fill(m.box, below, canvas.lit(mixed(colour, (1, 0.85, 0.85), 0.05), tone), "l_lip")
    gloss = bump(m.u - 0.03 * s.sun[0], rise * 0.05 - 0.018, 0.055, 0.014)
    canvas.add(m.box, below * (0.22 if s.lipstick is None else 0.36) * gloss * planes(s.light))
    return np.maximum(above, below)


def _open_mouth(canvas: Canvas, m: _Mouth) -> None:
    """Paint the open mouth: its inside, the tongue, the upper teeth."""
    hole = np.maximum(np.maximum(-m.y - 0.35 * m.gap, m.y - 0.65 * m.gap), m.wide + 0.008)
    inside = canvas.cover(hole)
    canvas.fill(m.box, inside, canvas.lit((0.30, 0.07, 0.08), 0.5), "mouth")
    tongue = ellipse(m.u, m.y - 0.65 * m.gap - 0.012, m.half * 0.55, 0.035)
    canvas.fill(m.box, inside * canvas.cover(tongue, 3), canvas.lit((0.72, 0.30, 0.32), 0.55))
    length = 0.030 + 0.012 * max(canvas.scene.smile, 0)
    teeth = np.maximum(m.y + 0.35 * m.gap - length, np.abs(m.u) - m.half * 0.80)
    white = canvas.lit((0.93, 0.92, 0.88), 0.86 - 0.35 * m.bent)
    canvas.fill(m.box, inside * canvas.cover(teeth, 1.5), white)
    canvas.shade(m.box, inside * 0.6 * ramp(0.016, 0.0, m.y + 0.35 * m.gap), 0.72)


@dataclass(frozen=True)
class _Eye:
    """Fields over the piece `box`; `a` runs from the middle of the eye to the temple, `b` down."""

    side: int  # -1 the person's right, 1 the left
    box: Box
    face: Field  # coverage of the face
    a: Field
    b: Field
    q: Field  # `a`, with the corners at -1 and 1
    top: Field  # heights of the lids
    bottom: Field
    wide: Field  # distance beyond the corners


def eye(canvas: Canvas, side: int) -> None:
    """Paint an eye with its socket and lashes; side -1 is the person's right, 1 the left."""
    p, s = canvas.person, canvas.scene
    box = canvas.around_on_face(side * (p.eye_gap + 0.01), EYES - 0.01, 0.24, 0.16)
    u, v = canvas.face(box)
    a = u * side - p.eye_gap
    b = v - EYES + p.eye_tilt * a
    q = a * (1 / p.eye_width)
    skewed = (q + 0.14 * (1 - q * q)) ** 2
    arch = np.maximum(1 - np.minimum(skewed, 1.0), 0)
    bottom = p.eye_height * (0.72 - 0.30 * max(s.smile, 0)) * arch
    top = -p.eye_height * 1.05 * np.sqrt(arch) * (0.45 + 0.55 * arch)
    top = bottom + (top - bottom) * s.lids
    e = _Eye(side, box, face_cover(canvas, box), a, b, q, top, bottom, wide=(np.abs(q) - 1) * p.eye_width)
    _socket(canvas, e)
    ball = np.maximum(np.maximum(top - b, b - bottom), e.wide)
    _eyeball(canvas, e, canvas.cover(ball))
    _lashes(canvas, e)
    # The line of the upper lid belongs to the eye, so that a shut eye is in the mask as well.
    lid = np.maximum(np.abs(b - top) - 0.018, e.wide)
    canvas.mark(box, np.minimum(ball, lid) < 0, "l_eye" if side > 0 else "r_eye")


def _socket(canvas: Canvas, e: _Eye) -> None:
    """Paint the hollow, the upper lid and its crease, the bags."""
    s = canvas.scene
    canvas.shade(e.box, e.face * 0.55 * bump(e.a + 0.05, e.b + 0.075, 0.16, 0.060), 0.78, (1.03, 0.97, 0.96))
    reach = ramp(1.45, 0.75, np.abs(e.q))
    over = e.top - e.b
    lid = e.face * reach * ramp(0.0, 0.02, over) * ramp(0.075, 0.045, over)
    if s.shadow is not None:
        big = e.face * bump(e.a - 0.01, e.b + 0.075, 0.15, 0.060)
        canvas.fill(e.box, 0.75 * np.maximum(big, 0.7 * lid), canvas.lit(s.shadow, 0.65))
    else:
        canvas.brighten(e.box, 0.07 * lid)
    crease = np.abs(over - 0.046 - 0.01 * s.lids)
    canvas.shade(e.box, e.face * reach * 0.85 * ramp(0.020, 0.0, crease), 0.66, (1.06, 0.95, 0.92))
    if canvas.person.bags:
        below = e.b - e.bottom
        bag = e.face * ramp(1.15, 0.6, np.abs(e.q + 0.1))
        canvas.shade(e.box, bag * ramp(0.028, 0.0, np.abs(below - 0.062)), 0.66, (1.0, 0.93, 0.97))
        canvas.brighten(e.box, 0.09 * bag * ramp(0.025, 0.0, np.abs(below - 0.032)))


def _eyeball(canvas: Canvas, e: _Eye, ball: Field) -> None:
    """Paint white, iris, pupil, the shadow of the lid and two highlights."""
    s = canvas.scene
    bright = 0.70 + 0.30 * ramp(0.0, 0.05, e.b - e.top) - 0.18 * (e.q * e.q)
    canvas.fill(e.box, ball, canvas.lit((0.97, 0.95, 0.93), clip(bright, 0, 1) * 0.80))
    a = e.a - e.side * (s.gaze[0] * 0.045 + 0.02 * canvas.turn)
    b = e.b + 0.012 - s.gaze[1] * 0.02
    far = np.sqrt(a * a + b * b)
    glow = 0.55 + 0.75 * ramp(-0.05, 0.06, b - 0.3 * a * s.sun[0])
    ring = ramp(0.070, 0.050, far) * 0.7 + 0.3
    iris = canvas.lit(canvas.person.iris, clip(glow * ring, 0, 1.3))
    canvas.fill(e.box, ball * canvas.cover(far - 0.066), iris)
    canvas.fill(e.box, ball * canvas.cover(far - 0.031, 1.4), (0.03, 0.025, 0.03))
    canvas.shade(e.box, ball * ramp(0.035, 0.0, e.b - e.top), 0.62)
    gx = 0.024 * (1 if s.sun[0] * e.side > 0 else -1)
    canvas.fill(e.box, ball * canvas.cover(np.sqrt((a - gx) ** 2 + (b + 0.026) ** 2) - 0.019, 1.2), WHITE)
    canvas.fill(e.box, 0.35 * ball * ramp(0.016, 0.006, np.sqrt((a + gx) ** 2 + (b - 0.028) ** 2)), WHITE)


def _lashes(canvas: Canvas, e: _Eye) -> None:
    p, s = canvas.person, canvas.scene
    colour: Colour = scaled(p.hair, 0.22) if max(p.hair) < 0.6 else (0.20, 0.13, 0.10)
    made_up = s.lipstick is not None or s.shadow is not None
    thick = (0.012 if p.male else 0.017) + (0.007 if made_up else 0)
    tail = 0.05 * np.maximum(e.q - 0.75, 0) if made_up else 0.0
    upper = np.abs(e.b - e.top + 0.3 * thick + tail) - thick * (0.55 + 0.45 * clip(e.q + 0.6, 0, 1))
    upper = np.maximum(upper, np.abs(e.a - 0.006) - p.eye_width - 0.012)
    canvas.fill(e.box, e.face * canvas.cover(upper, 1.3), canvas.lit(colour, 0.35))
    lower = np.maximum(np.abs(e.b - e.bottom - 0.004) - 0.006, e.wide)
    canvas.shade(e.box, e.face * 0.6 * canvas.cover(lower, 1.5), 0.60)


def brow(canvas: Canvas, side: int) -> None:
    """Paint a brow, darker than the hair of the head; sides as for `eye`."""
    p, s = canvas.person, canvas.scene
    height = EYES - 0.158 - s.raised - 0.3 * (p.eye_height - 0.06)
    box = canvas.around_on_face(side * (p.eye_gap + 0.01), height, 0.26, 0.14)
    u, v = canvas.face(box)
    a, b = u * side - p.eye_gap - 0.008, v - height
    half = p.eye_width * 1.28
    q = a * (1 / half)
    arch = -p.brow_arch * (1 - (q - 0.15) ** 2)
    curve = arch + 0.036 * np.maximum(q - 0.25, 0) - 0.012 * q * (q < 0) - 0.02 * max(-s.smile, 0) * q
    ends = np.sqrt(clip((1 - q) * 3, 0.02, 1) * clip((1 + q) * 5, 0.1, 1))
    thick = p.brow_thick * (1 - 0.55 * clip(q * 0.5 + 0.5, 0, 1) ** 2) * ends
    shape = np.maximum(np.abs(b - curve) - thick, np.abs(a) - half)
    alpha = face_cover(canvas, box, 0.01) * canvas.cover(shape, 2.0 if p.age < 65 else 2.6) * 0.95
    dye = {"gray": 0.82, "blond": 0.66, "black": 0.9}.get(p.hair_name, 0.72)
    tone = canvas.facing(np.zeros_like(a), clip((b - curve) * -6, -0.4, 0.4))
    canvas.fill(box, alpha, canvas.lit(scaled(p.hair, dye), tone), "l_brow" if side > 0 else "r_brow")
