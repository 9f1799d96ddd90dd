"""Hair of the head and of the face.

A haircut is computed before any of it is painted, because some of it is behind the neck and some over the face.
"""

from dataclasses import dataclass

import numpy as np

from raygen.datasets.procedural.canvas import Box, Canvas
from raygen.datasets.procedural.fields import Field, bump, clip, ellipse, mixed, planes, ramp, scaled
from raygen.datasets.procedural.scene import Person
from raygen.datasets.procedural.skin import MOUTH, FaceShading, outline

__all__ = ["Hair", "beard", "hair_before", "hair_behind", "haircut"]


#: How far hair stands off the head, and how far down it ends at the sides; by style, else 0.055 and below the picture.
_FLUFF = {"afro": 0.20, "curly": 0.11, "crop": 0.015, "receding": 0.02, "short": 0.035, "quiff": 0.04, "bun": 0.03}
_ENDS = {
    "crop": -0.06,
    "receding": -0.04,
    "short": 0.0,
    "quiff": -0.04,
    "parting": 0.02,
    "bun": -0.03,
    "curly": 0.16,
    "afro": 0.20,
}
#: Height of the hairline in the middle; else -0.40.
_HAIRLINES = {"receding": -0.475, "crop": -0.42, "bun": -0.43, "afro": -0.36, "curly": -0.34}


@dataclass(frozen=True)
class Hair:
    """A haircut to be painted: fields over the piece `box`."""

    box: Box
    shell: Field  # distance to the outline of all of it
    window: Field  # distance to the hair round the face, so positive where the face shows
    rgb: Field


@dataclass(frozen=True)
class _Cut:
    """Measures of a haircut and coordinates of the head, over the piece `box`."""

    box: Box
    x: Field  # of the head; hair moves less than the face when it turns
    y: Field
    grow: float  # how far it stands off
    width: float  # half the width of the head with it
    top: float  # from the middle of the head to its top with it
    end: float  # how far down it goes
    sx: Field  # `x` and `y` in these measures
    sy: Field
    radius: Field  # above the ears, 1 at the outline
    wave: Field | float  # how far a lock is moved aside


def haircut(canvas: Canvas) -> Hair | None:
    """The haircut of the person; None without hair."""
    if not canvas.person.has_hair:
        return None
    cut = _cut(canvas)
    return Hair(cut.box, _shell(canvas, cut), _window(canvas, cut), _colour(canvas, cut))


def hair_behind(canvas: Canvas, hair: Hair) -> None:
    """Paint the hair behind the neck and the ears, in their shadow."""
    if canvas.person.has_long_hair or canvas.person.has_curls:
        _, y = canvas.head(hair.box)
        canvas.fill(hair.box, canvas.cover(hair.shell), hair.rgb * (0.72 - 0.25 * ramp(0.1, 0.5, y)), "hair")


def hair_before(canvas: Canvas, hair: Hair) -> None:
    """Paint the hair on the head and over the face, with its shadow on the skin."""
    box = hair.box
    shape = np.maximum(hair.shell, hair.window)
    depth = 0.03 + 0.05 * canvas.person.volume
    shadow = 0.75 * ramp(depth, 0.0, shape + 0.03 * canvas.scene.sun[1])
    canvas.shade(box, shadow * canvas.shows(box, "skin", "l_brow", "r_brow"), 0.66, (1.05, 0.96, 0.94))
    edge = 1 - 0.35 * ramp(0.05, 0.0, np.abs(hair.window)) * (hair.window < 0)
    canvas.fill(box, canvas.cover(shape, 1.4), hair.rgb * edge, "hair")


def _cut(canvas: Canvas) -> _Cut:
    p = canvas.person
    grow = _FLUFF.get(p.style, 0.055) + (0.02 if p.style in ("crop", "receding") else 0.05) * p.volume
    end = 0.44 + 0.10 * p.volume if p.style == "bob" else _ENDS.get(p.style, 1.05 + 0.3 * p.volume)
    low = min(end + 0.12, 1.5)
    box = canvas.around(0, (low - 1.05) / 2, p.width + grow + 0.20, (low + 1.05) / 2)
    x, y = canvas.head(box)
    x = x + 0.05 * canvas.turn
    width = p.width + grow
    top = 0.60 + (grow * 0.8 + (0.05 if p.style == "quiff" else 0.02))
    sx, sy = x * (1 / width), (y + 0.06) * (1 / top)
    radius = np.sqrt(sx * sx + np.minimum(sy, 0) ** 2)
    wave = 0.028 * np.sin(y * 11 + 1.5 * p.part) * ramp(-0.1, 0.25, y) if p.style == "wavy" else 0.0
    return _Cut(box, x, y, grow, width, top, end, sx, sy, radius, wave)


def _shell(canvas: Canvas, cut: _Cut) -> Field:
    """Distance to the outline of all of the hair."""
    p = canvas.person
    x, y, width = cut.x, cut.y, cut.width
    dome = (cut.radius - 1) * width
    shell: Field
    beside = y + 0.06 > 0  # below the dome: at the sides of the face
    if p.has_long_hair:
        half = width + (0.05 + 0.05 * p.volume) * ramp(-0.06, 0.45, y)
        if p.style == "bob":
            half = half - 0.05 * ramp(0.25, 0.50, y)
        tips = (y - cut.end + 0.10 * cut.sx**2 - 0.02 * np.sin(x * 23)) * 0.9
        shell = np.maximum(np.where(beside, np.abs(x + cut.wave) - half, dome), tips)
    elif p.has_curls:
        count, depth = (7, 0.55) if p.style == "afro" else (6, 1)
        lobes = 0.030 * np.abs(np.sin(np.arctan2(x, -(y + 0.08)) * count + p.part)) * depth
        tips = (y - cut.end - 0.04 * np.abs(np.sin(x * 14))) * 0.8
        shell = np.maximum(ellipse(x, y + 0.14, width, cut.top * 0.92) - lobes, tips)
    else:
        taper = (cut.grow - 0.012) * ramp(-0.10, cut.end, y)
        shell = np.maximum(np.where(beside, np.abs(x) - width + taper, dome + taper), (y - cut.end) * 0.9)
    if p.style == "bun":
        shell = np.minimum(shell, ellipse(x, y + cut.top + 0.10, 0.17, 0.14))
    if p.style == "quiff":
        shell = np.minimum(shell, ellipse(x - 0.10 * p.part, y + 0.54, width * 0.72, 0.17))
    if canvas.scene.hat != "none":  # no hair may stick out above it
        shell = np.maximum(shell, -0.31 - y + 1.3 * np.maximum(np.abs(x) - p.width + 0.01, 0))
    return shell


def _window(canvas: Canvas, cut: _Cut) -> Field:
    """Distance to the opening in which the face shows, positive inside."""
    p, y = canvas.person, cut.y
    x, _ = canvas.head(cut.box)
    u, v = canvas.face(cut.box)
    au = np.abs(u)
    hairline = _hairline(canvas.person, u)
    # At the temples it goes down to the ears, or on beside the cheeks; where it is steep, height is not distance.
    start, stop = (0.62, 0.92) if p.has_long_hair else (0.74, 0.97)
    s = clip((au * (1 / p.width) - start) * (1 / (stop - start)), 0, 1)
    drop = (-0.08 if p.has_long_hair else cut.end + 0.08) - hairline
    hairline = hairline + drop * s * s * (3 - 2 * s)
    steep = 6 * s * (1 - s) * drop * (1 / (p.width * (stop - start)))
    window: Field = (v - hairline) / np.sqrt(1 + steep * steep)
    if p.has_long_hair:
        lock = p.width * (0.90 - 0.10 * p.volume) + 0.06 * ramp(0.1, 0.5, y) - 0.10 * ramp(0.6, 0.9, y)
        window = np.minimum(window, (lock - np.abs(x - 0.02 * canvas.turn + cut.wave)) * 0.95)
    elif p.has_curls:
        window = np.minimum(window, p.width * 0.97 - np.abs(x))
    # Beyond the edge of the face the opening shows hair, not the background.
    edge, _, _ = outline(canvas, x, y)
    opening: Field = np.minimum(window, 4 * np.maximum(y + 0.04, 0) - edge)
    return opening


def _hairline(p: Person, u: Field) -> Field:
    """Height on the face at which the hair begins, without its descent at the temples."""
    side = -1.0 if p.part < 0 else 1.0
    if p.bangs > 0:
        fringe = np.full_like(u, -0.40) + 0.20 * p.bangs + 0.012 * np.sin(u * 34 + 2 * p.part)
        if p.bangs < 0.7:  # swept to a side
            fringe = fringe + 0.30 * (u * side + 0.05) * ramp(-0.40, 0.1, u * side)
        return fringe
    hairline = np.full_like(u, _HAIRLINES.get(p.style, -0.40))
    if p.style == "receding":
        hairline = hairline - 0.13 * bump(np.abs(u) - 0.23, np.zeros_like(u), 0.11, 1.0) + 0.015
    elif p.style == "parting" or (p.has_long_hair and abs(p.part) > 0.35):
        away = (u * side + 0.14) * (1 / p.width)  # the part is on one side; hair falls to the other
        hairline = hairline - 0.05 + np.where(away > 0, 0.20 * away * away, 0.34 * away * away)
    elif p.has_long_hair:
        hairline = hairline - 0.07 + 0.36 * (np.abs(u) * (1 / p.width)) ** 1.6
    else:
        hairline = hairline + 0.03 * np.cos(u * 6)
    return hairline


def _colour(canvas: Canvas, cut: _Cut) -> Field:
    """Colour under the light, with strands that fan out from the part and then fall; [3, h, w]."""
    p, x, y = canvas.person, cut.x, cut.y
    root = -0.25 * p.part if p.has_long_hair or p.style in ("parting", "quiff") else 0.0
    fan = (x - root) / (0.30 + clip(y + 0.62, 0, 0.45))
    if p.has_long_hair:
        fan = fan + cut.wave * 3
    if p.has_curls:
        k = 26 if p.style == "curly" else 34
        strands = 0.85 * np.sin(x * k + 2.2 * np.sin(y * k * 0.45)) * np.sin(y * k + 2.0 * np.sin(x * k * 0.4))
    else:
        strands = np.sin(fan * 19 + p.part) + 0.6 * np.sin(fan * 43 + 2)
    nx = clip(cut.sx, -1, 1) * 0.85
    ny = clip(np.where(cut.sy < 0, cut.sy, cut.sy * 0.15), -1, 1) * 0.85
    tone = canvas.facing(nx, ny)
    band = np.maximum(1 - ((cut.radius - 0.72 + 0.03 * np.sin(fan * 15)) * (1 / 0.14)) ** 2, 0) * (cut.sy < 0.25)
    gloss = (0.05 if p.has_curls or p.style == "crop" else 0.20) * band * tone
    colour = canvas.lit(p.hair, clip(tone * (1 + 0.10 * strands) + 0.04, 0, 1.2))
    return colour * (1 + 0.05 * strands) + gloss * planes(mixed(p.hair, canvas.scene.light, 0.45))


def beard(canvas: Canvas, face: FaceShading) -> None:
    """Paint beard, moustache and sideburns; the lips are painted later."""
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
    if p.beard == "full":  # a full beard extends beyond the edge of the face
        canvas.mark(box, (alpha > 0.5) & ~canvas.shows(box, "nose"), "skin")


def _stubble(canvas: Canvas, u: Field, v: Field) -> Field:
    """Coverage of stubble, 0..1."""
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


# Distances to the parts of the face where a beard grows.


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
    """The part of the face below a line from ear to ear under the cheeks, with the chin."""
    au = np.abs(u)
    line = 0.115 + 0.55 * np.maximum(0.40 - au, 0) - 0.95 * np.maximum(au - 0.34, 0) * 3
    return np.minimum(np.maximum((line - v) * 0.7, -(v + 0.02)), _chin(u, v))
