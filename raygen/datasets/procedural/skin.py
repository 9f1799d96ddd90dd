"""Bare skin: neck, ears and face, with complexion, wrinkles and nose."""

from dataclasses import dataclass

import numpy as np

from raygen.datasets.procedural.canvas import Box, Canvas
from raygen.datasets.procedural.fields import Field, bump, clip, ellipse, mixed, planes, ramp
from raygen.datasets.procedural.scene import Person, Scene

__all__ = [
    "EYES",
    "MOUTH",
    "NOSE",
    "FaceShading",
    "ear_place",
    "ears",
    "face",
    "face_cover",
    "neck",
    "outline",
    "relief",
]


@dataclass(frozen=True)
class FaceShading:
    """The painted face, for later layers: fields over `Canvas.face_box`."""

    distance: Field  # to its edge
    cover: Field  # 0..1
    tone: Field  # direct light on it, 0..1
    u: Field  # coordinates of the face, shifted at the nose, which moves more when the head turns
    v: Field


def neck(canvas: Canvas) -> None:
    """Paint the neck, in the shadow of the head."""
    p = canvas.person
    box = canvas.around(0, 0.75, 0.62, 0.42)
    half = (0.265 if p.male else 0.215) + (0.04 if p.chubby else 0)
    x, y = canvas.body(box)
    x = x - 0.10 * canvas.turn * ramp(0.9, 0.4, y)
    width = half + 0.05 * ramp(0.55, 0.30, y) + 0.40 * ramp(0.70, 1.05, y) ** 2
    tone = canvas.facing(clip(x / width, -1, 1) * 0.85, np.full_like(y, 0.15))
    cover = canvas.cover(np.maximum(np.abs(x) - width, 0.25 - y))
    canvas.fill(box, cover, canvas.lit(p.skin, tone), "neck")
    sx, sy, _ = canvas.scene.sun
    hx, hy = canvas.head(box)
    under, _, _ = outline(canvas, hx + 0.05 * sx, hy - 0.09 + 0.05 * sy)
    canvas.shade(box, cover * ramp(0.06, -0.08, under), 0.62, (1.06, 0.97, 0.96))
    for side in (-1, 1):  # the two tendons above the collar bones
        line = np.abs(x - side * (0.10 + 0.28 * (0.95 - y)))
        canvas.shade(box, cover * 0.5 * ramp(0.035, 0.0, line) * ramp(0.62, 0.76, y), 0.88)


def ears(canvas: Canvas) -> None:
    """Paint both ears; the turn of the head makes one wider and one narrower."""
    p = canvas.person
    flesh = mixed(p.skin, (p.skin[0] * 0.98, p.skin[1] * 0.78, p.skin[2] * 0.76), 0.5)
    for side, name in ((-1, "r_ear"), (1, "l_ear")):
        cx, cy, seen = ear_place(canvas, side)
        box = canvas.around(cx, cy, 0.13, 0.19)
        x, y = canvas.head(box)
        x, y = (x - cx) * side, y - cy
        a, b = 0.082 * p.ears * seen, 0.135 * p.ears
        x = x - 0.20 * np.minimum(-y, 0.06) + 0.012  # the upper ear stands out, the lobe lies close
        tone = canvas.facing(clip(side * x / a * 0.75, -0.9, 0.9), clip(y / b * 0.6, -0.9, 0.9))
        canvas.put(box, ellipse(x, y, a, b), flesh, tone * 0.92, name)
        hollow = ellipse(x + 0.01, y + 0.012, a * 0.55, b * 0.58)
        canvas.shade(box, ramp(0.03, -0.02, hollow), 0.66, (1.1, 0.95, 0.93))


def face(canvas: Canvas) -> FaceShading:
    """Paint the skin of the face under the light, with complexion and nose."""
    p, s = canvas.person, canvas.scene
    box = canvas.face_box
    distance, across, down = outline(canvas, *canvas.head(box))
    cover = canvas.cover(distance)
    # The nose stands out, so it moves more than the cheeks when the head turns.
    u, v = canvas.face(box)
    out = clip((v - EYES) * 4.5, 0, 1) * bump(u, v - NOSE, 0.13, 0.16)
    u, v = u - 0.13 * canvas.turn * out, v - 0.11 * canvas.nod * out
    # Its slope is that of the relief on top of a flattened ball.
    gy, gx = np.gradient(relief(p, s, u, v), canvas.pixel)
    r = np.maximum(np.sqrt(across * across + down * down), 1)
    nx, ny = across / r * 0.86 - gx, down / r * 0.66 - gy
    nz = np.sqrt(np.maximum(1 - (across / r * 0.86) ** 2 - (down / r * 0.66) ** 2, 0.05))
    norm = 1 / np.sqrt(nx * nx + ny * ny + nz * nz)
    x, y, z = s.sun
    tone = clip(((nx * x + ny * y + nz * z) * norm + 0.22) * 0.82, 0, 1)
    canvas.fill(box, cover, canvas.lit(p.skin, tone), "skin")
    # Specular highlight (Blinn-Phong): the angle to the direction halfway between light and viewer.
    shine = np.maximum((nx * x + ny * y + nz * (z + 1)) * norm, 0) * (1 / float(np.sqrt(x * x + y * y + (z + 1) ** 2)))
    for _ in range(4):
        shine = shine * shine
    canvas.add(box, cover * (0.30 if p.male else 0.24) * shine * (planes(s.light) * 0.55))
    shading = FaceShading(distance, cover, tone, u, v)
    _complexion(canvas, shading)
    _nose(canvas, shading)
    return shading


def _complexion(canvas: Canvas, face: FaceShading) -> None:
    """Blush, hollows, folds and freckles."""
    p, s = canvas.person, canvas.scene
    box, cover, u, v = canvas.face_box, face.cover, face.u, face.v
    au = np.abs(u)
    canvas.shade(box, cover * bump(au - 0.27, v - 0.16, 0.15, 0.11) * max(s.blush, 0.16), 1.0, (1.04, 0.62, 0.66))
    canvas.shade(box, cover * 0.14 * bump(u, v - NOSE, 0.09, 0.08), 1.0, (1.02, 0.72, 0.72))
    if p.cheekbones:
        hollow = np.abs(au - 0.33 + 0.45 * (v - 0.26))
        hollowed = cover * 0.8 * ramp(0.07, 0.0, hollow) * ramp(0.14, 0.22, v) * ramp(0.40, 0.30, v)
        canvas.shade(box, hollowed, 0.84)
    _lines(canvas, face)
    if p.freckles:
        spots = np.zeros_like(u)
        for k in range(7):
            fu, fv = 0.11 + 0.045 * (k % 4) + 0.01 * (k % 3), 0.075 + 0.045 * (k // 3) + 0.008 * (k % 2)
            spots = np.maximum(spots, ramp(0.018, 0.008, np.sqrt((au - fu) ** 2 + (v - fv) ** 2)))
        canvas.shade(box, cover * spots * 0.75, 0.66, (1.0, 0.86, 0.78))
    if p.double_chin:
        arc = np.abs(ellipse(u, v - p.chin + 0.21, 0.25, 0.155))
        canvas.shade(box, cover * ramp(0.032, 0.0, arc) * ramp(p.chin - 0.16, p.chin - 0.09, v), 0.70)
    canvas.shade(box, cover * 0.9 * bump(u, v - MOUTH - 0.135, 0.085, 0.026), 0.80)  # under the lower lip


def _lines(canvas: Canvas, face: FaceShading) -> None:
    """The folds beside the mouth, of age or a smile; wrinkles on the forehead and at the eyes."""
    p, s = canvas.person, canvas.scene
    box, cover, u, v = canvas.face_box, face.cover, face.u, face.v
    au = np.abs(u)
    old = float(clip((p.age - 44) / 28, 0, 1))
    fold = old * 0.9 + 0.28 * max(s.smile, 0)
    if fold > 0.05:
        bend = np.abs(au - p.nose_width * 1.1 - 0.02 - 0.42 * np.maximum(v - NOSE, 0) * (1 + 0.3 * s.smile))
        folded = cover * min(fold, 0.9) * ramp(0.026, 0.0, bend) * ramp(0.13, 0.19, v) * ramp(0.36, 0.26, v)
        canvas.shade(box, folded, 0.74)
    if old > 0.15:
        waves = np.sin((v + 0.02 * np.cos(u * 9)) * 62 + 1.2)
        canvas.shade(box, cover * old * 0.8 * ramp(0.45, 0.95, waves) * bump(u, v + 0.335, 0.20, 0.085), 0.80)
        corner = np.abs(au - p.eye_gap - 0.165)
        rays = np.sin((v - EYES - 0.01) * 95 + au * 20)
        feet = cover * old * 0.8 * ramp(0.045, 0.0, corner) * ramp(0.3, 0.9, rays)
        canvas.shade(box, feet * ramp(0.07, 0.04, np.abs(v - EYES)), 0.80)


def _nose(canvas: Canvas, face: FaceShading) -> None:
    p, s = canvas.person, canvas.scene
    tip, w = NOSE + p.nose_drop, p.nose_width
    box = canvas.around_on_face(0.0, (EYES + tip) / 2, w * 2.3 + 0.10, (tip - EYES) / 2 + 0.17)
    inner = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, canvas.face_box, strict=True))
    cover, u, v = face.cover[inner], face.u[inner], face.v[inner]
    au = np.abs(u)
    # The class in the mask: bridge, ball and wings.
    side = 0.038 + 0.35 * w * clip((v - EYES) * (1 / (tip - EYES)), 0, 1.3) ** 2
    bridge = np.maximum(np.maximum(au - side, EYES + 0.01 - v), v - tip)
    ball = ellipse(u, v - tip + 0.005, w * 0.62, 0.062)
    wings = ellipse(au - w * 0.72, v - tip - 0.012, w * 0.42, 0.048)
    shape = np.minimum(bridge, np.minimum(ball, wings))
    canvas.mark(box, canvas.cover(shape) * cover > 0.5, "nose")
    # The colours: the shadow under the nose, creases round the wings, nostrils, and two highlights.
    away = s.sun[0]
    below = bump(u + 0.05 * away, v - tip - 0.075, w * 1.05, 0.030)
    canvas.shade(box, cover * 0.75 * below, 0.66, (1.05, 0.95, 0.93))
    crease = np.abs(ellipse(au - w * 0.72, v - tip - 0.010, w * 0.46, 0.050))
    canvas.shade(box, cover * ramp(0.020, 0.0, crease) * ramp(w * 0.70, w * 1.05, au), 0.72)
    nostril = ellipse(au - w * 0.43, v - tip - 0.040 + 0.10 * au, w * 0.25, 0.016)
    canvas.shade(box, cover * canvas.cover(nostril, 1.6), 0.30, (1.25, 0.9, 0.85))
    on_tip = bump(u - 0.02 * away, v - tip + 0.022, 0.026, 0.024)
    on_ridge = bump(u - 0.014 * away, v - tip + 0.13, 0.018, 0.11)
    glint = 0.26 * on_tip + 0.10 * on_ridge
    canvas.add(box, cover * glint * planes(s.light) * (0.45 + 0.55 * p.skin[0]))


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
    """Coverage 0..1 of the face, enlarged by `wider`."""
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
    """Centre of an ear and the factor of its visible width; side -1 is the person's right, 1 the left."""
    x = side * (canvas.person.width * float(np.cos(canvas.scene.yaw)) + 0.012) - 0.05 * canvas.turn
    return x, 0.015 + 0.20 * canvas.nod * -0.5, float(clip(1 - 1.6 * side * canvas.turn, 0.45, 1.35))
