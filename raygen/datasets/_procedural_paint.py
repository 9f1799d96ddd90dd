"""How a person in a scene becomes pixels and a class mask: soft-edged shapes, a face with relief, light.

Knows shapes and shading; chooses nothing, every number comes from `Person` and `Scene`. Lengths are in half
picture widths at zoom 1, x to the right, y down; the person's left is on the right of the picture. Pictures are
planar while they are painted, float32 [3, n, n], on a grid a few times finer than the result.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from raygen.faces import CLASS_INDEX

__all__ = ["Colour", "Person", "Scene", "hidden_eyes", "paint"]

Colour = tuple[float, float, float]
Field = npt.NDArray[Any]
UInt8Array = npt.NDArray[np.uint8]
Box = tuple[slice, slice]

EYES, NOSE, MOUTH = -0.06, 0.155, 0.325  # heights of the features
MIDDLE = -0.02  # height at which the face is widest
NECK = 0.70  # the head turns about this height
WHITE: Colour = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Person:
    """What stays the same over all pictures of one identity. Colours RGB in 0..1; see the module for lengths."""

    male: bool
    age: float
    skin: Colour
    pale: bool
    width: float
    chin: float
    jaw: float
    square: float
    chubby: bool
    double_chin: bool
    cheekbones: bool
    bags: bool
    freckles: bool
    eye_gap: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    iris: Colour
    brow_thick: float
    brow_arch: float
    nose_width: float
    nose_drop: float
    nose_sharp: float
    lip_width: float
    lip_full: float
    ears: float
    hair: Colour
    hair_name: str
    style: str  # bald crop short receding parting quiff curly afro bun bob long wavy
    bangs: float  # 0 none; else how far the fringe reaches down, 0.3..1
    volume: float  # 0..1
    part: float  # -1..1
    beard: str  # none stubble moustache goatee chin full
    sideburns: bool


@dataclass(frozen=True)
class Scene:
    """What changes from picture to picture. Angles in radians."""

    yaw: float
    pitch: float
    roll: float
    zoom: float
    shift: tuple[float, float]
    sun: tuple[float, float, float]  # unit vector towards the light
    light: Colour
    ambient: Colour
    smile: float  # -0.4..1
    gape: float  # 0 shut .. 1 wide open
    lids: float  # 0 shut .. 1 open
    raised: float
    gaze: tuple[float, float]
    glasses: str  # none clear dark
    frame: tuple[str, float, Colour]  # shape, half thickness, colour
    lens: Colour
    hat: str  # none cap beanie fedora bucket beret
    hat_colours: tuple[Colour, Colour]
    earrings: str  # none stud drop hoop
    necklace: str  # none chain beads
    metal: Colour
    tie: bool
    collar: str  # crew scoop v shirt turtleneck suit
    cloth: tuple[Colour, Colour, Colour]
    pattern: str  # plain stripes block
    lipstick: Colour | None
    shadow: Colour | None
    blush: float
    backdrop: str  # gradient blobs spot stripes room
    back: tuple[Colour, Colour, Colour]
    blobs: tuple[tuple[float, float, float, int], ...]
    tilt: float
    blurry: bool


def hidden_eyes(scene: Scene) -> bool:
    """Whether nothing of the eyes can be seen."""
    return scene.glasses == "dark"


def paint(person: Person, scene: Scene, size: int) -> tuple[UInt8Array, UInt8Array]:
    """RGB uint8 [size, size, 3] and class ids uint8 [size, size]."""
    return _Painter(person, scene, size).run()


def _clip(x: Any, low: float, high: float) -> Field:
    """`np.clip` at half its cost for small arrays."""
    clipped: Field = np.minimum(np.maximum(x, low), high)
    return clipped


def _ramp(low: float, high: float, x: Field) -> Field:
    """0 at `low`, 1 at `high`, smooth between; `low` may be the larger."""
    t: Field = np.asarray((x - low) * (1 / (high - low)))
    np.maximum(t, 0, out=t)
    np.minimum(t, 1, out=t)
    rest = 3 - 2 * t
    t *= t
    t *= rest
    return t


def _bump(x: Field, y: Field, a: float, b: float) -> Field:
    """A round bump of height 1 and radii a, b."""
    across, along = x * (0.5 / a), y * (0.5 / b)
    r: Field = np.asarray(1 - (across * across + along * along))
    np.maximum(r, 0, out=r)
    r *= r
    r *= r
    return r


def _ellipse(x: Field, y: Field, a: float, b: float) -> Field:
    """Distance to an ellipse, negative inside; exact on the edge only."""
    return (np.sqrt((x * (1 / a)) ** 2 + (y * (1 / b)) ** 2) - 1) * min(a, b)


def _rounded(x: Field, y: Field, a: float | Field, b: float, r: float) -> Field:
    """Distance to a rectangle with rounded corners."""
    dx, dy = np.abs(x) - (a - r), np.abs(y) - (b - r)
    outside = np.sqrt(np.maximum(dx, 0) ** 2 + np.maximum(dy, 0) ** 2)
    distance: Field = outside + np.minimum(np.maximum(dx, dy), 0) - r
    return distance


def _planes(colour: Colour | npt.NDArray[np.float32]) -> Field:
    return np.asarray(colour, np.float32).reshape(3, 1, 1)


def _scaled(colour: Colour, by: float) -> Colour:
    return (colour[0] * by, colour[1] * by, colour[2] * by)


def _mixed(a: Colour, b: Colour, t: float) -> Colour:
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


class _Painter:
    """One picture in the making."""

    def __init__(self, person: Person, scene: Scene, size: int) -> None:
        self.p, self.s, self.size = person, scene, size
        self.factor = 4 if size < 48 else 2 if size <= 160 else 1
        n = self.n = size * self.factor
        axis = (np.arange(n, dtype=np.float32) + 0.5) * (2 / n) - 1
        self.X, self.Y = axis[None, :], axis[:, None]  # picture
        self.bx = (self.X - scene.shift[0]) * (1 / scene.zoom)  # body [1, n]
        self.by = (self.Y - scene.shift[1]) * (1 / scene.zoom)  # body [n, 1]
        self.cos, self.sin = float(np.cos(scene.roll)), float(np.sin(scene.roll))
        self.hx = self.cos * self.bx + self.sin * (self.by - NECK)  # head [n, n]
        self.hy = self.cos * (self.by - NECK) - self.sin * self.bx + NECK
        self.pixel = 2 / (n * scene.zoom)
        self.rgb = np.zeros((3, n, n), np.float32)
        self.label = np.zeros((n, n), np.uint8)
        self.turn = float(np.sin(scene.yaw))
        self.nod = float(np.sin(scene.pitch))
        # The face is painted on an ellipsoid that turns: u, v are places on it, equal to x, y when it looks ahead.
        self.A, self.B = person.width * 1.22, 0.86
        nx, ny = self.hx * (1 / self.A), self.hy * (1 / self.B)
        nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0))
        c, s = float(np.cos(scene.yaw)), self.turn
        cp, sp = float(np.cos(scene.pitch)), self.nod
        self.u = (nx * c - nz * s) * self.A
        self.v = (ny * cp - (nx * s + nz * c) * sp) * self.B

    # --- tools ---

    def at(self, x: float, y: float, rx: float, ry: float) -> Box:
        """The piece of the picture around a place of the head."""
        bx, by = self.cos * x - self.sin * (y - NECK), self.sin * x + self.cos * (y - NECK) + NECK
        rx, ry = rx + abs(self.sin) * ry, ry + abs(self.sin) * rx
        out = []
        for centre, radius, shift in ((by, ry, self.s.shift[1]), (bx, rx, self.s.shift[0])):
            low = ((centre - radius) * self.s.zoom + shift + 1) * self.n / 2
            high = ((centre + radius) * self.s.zoom + shift + 1) * self.n / 2
            first = min(max(int(low), 0), self.n - 2)
            out.append(slice(first, max(min(int(high) + 2, self.n), first + 2)))
        return out[0], out[1]

    def on_face(self, u: float, v: float) -> tuple[float, float]:
        """Where a place of the face is seen, in head coordinates."""
        a, b = u / self.A, v / self.B
        z = float(np.sqrt(max(1 - a * a - b * b, 0)))
        cp, sp, c = float(np.cos(self.s.pitch)), self.nod, float(np.cos(self.s.yaw))
        y, z = b * cp + z * sp, z * cp - b * sp
        return (a * c + z * self.turn) * self.A, y * self.B

    def cover(self, distance: Field, soft: float = 1.0) -> Field:
        """Coverage 0..1 of the inside of a distance; `soft` widens the edge."""
        t: Field = np.asarray(0.5 - distance * (1 / (self.pixel * soft * 1.2)))
        np.maximum(t, 0, out=t)
        np.minimum(t, 1, out=t)
        return t

    def fill(self, box: Box, alpha: Field, colour: Any, name: str | None = None) -> None:
        """Lay a colour ([3], or [3, h, w]) over what is there, and its class where it covers most."""
        view = self.rgb[:, box[0], box[1]]
        change = (_planes(colour) if isinstance(colour, tuple) else colour) - view
        change *= alpha
        view += change
        if name is not None:
            np.copyto(self.label[box], CLASS_INDEX[name], where=alpha > 0.5)

    def shade(self, box: Box, alpha: Field, factor: float, tint: Colour = WHITE) -> None:
        """Multiply by `factor` (and `tint`) where alpha is 1."""
        view = self.rgb[:, box[0], box[1]]
        if tint == WHITE:
            view *= 1 + alpha * (factor - 1)
        else:
            view *= 1 + alpha * (_planes(_scaled(tint, factor)) - 1)

    def lit(self, colour: Colour, amount: Field | float) -> Field:
        """A colour under this much direct light, [3, ...]; shadows of skin-like colours go warm."""
        d = np.asarray(amount, np.float32)
        out = np.empty((3, *(d.shape or (1, 1))), np.float32)
        for i, warm in enumerate((0.22, 0.06, 0.0)):
            c, light, ambient = colour[i], self.s.light[i], self.s.ambient[i]
            np.multiply(d, -c * light * warm, out=out[i])
            out[i] += c * light * (1 + warm)
            out[i] *= d
            out[i] += c * ambient
        return out

    def facing(self, nx: Field, ny: Field) -> Field:
        """How much direct light falls on a slope, 0..1."""
        x, y, z = self.s.sun
        nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0.02))
        return _clip((nx * x + ny * y + nz * z + 0.25) * 0.8, 0, 1)

    # --- the picture, back to front ---

    def run(self) -> tuple[UInt8Array, UInt8Array]:
        self.background()
        self.hair_field()
        self.hair_behind()
        self.neck()
        self.clothes()
        self.ears()
        self.face()
        self.mouth()
        for side in (-1, 1):
            self.eye(side)
        if self.s.glasses != "none":
            self.glasses()
        for side in (-1, 1):
            self.brow(side)
        self.hair()
        self.earrings()
        if self.s.hat != "none":
            self.hat()
        return self.finish()

    def background(self) -> None:
        s = self.s
        c, d = float(np.cos(s.tilt)), float(np.sin(s.tilt))
        along = self.X * d + self.Y * c
        a, b, third = (_planes(colour) for colour in s.back)
        t = _ramp(-1.1, 1.1, along)
        if s.backdrop == "spot":
            t = _ramp(0.2, 1.6, np.sqrt((self.X - d * 0.5) ** 2 + (self.Y + 0.2) ** 2))
        elif s.backdrop == "stripes":
            t = 0.5 + 0.5 * _clip(1.5 * np.sin(along * 7.5 + c), -1, 1)
        self.rgb[:] = a + t * (b - a)
        if s.backdrop == "room":
            edge = self.X * c * 0.2 + self.Y - 0.15
            self.rgb += _ramp(-0.05, 0.05, edge) * (third - self.rgb)
            window = _rounded(self.X - 0.75 * np.sign(d), self.Y + 0.45, 0.42, 0.40, 0.05)
            self.rgb += 0.8 * _ramp(0.03, -0.03, window) * (b * 0.6 + 0.35 - self.rgb)
        for x, y, radius, which in s.blobs if s.backdrop == "blobs" else ():
            r = radius * 1.3
            box = (
                slice(max(int((y - r + 1) / 2 * self.n), 0), max(int((y + r + 1) / 2 * self.n), 0) + 1),
                slice(max(int((x - r + 1) / 2 * self.n), 0), max(int((x + r + 1) / 2 * self.n), 0) + 1),
            )
            away = np.sqrt((self.X[:, box[1]] - x) ** 2 + (self.Y[box[0]] - y) ** 2) * (1 / radius)
            self.fill(box, 0.7 * _ramp(1.25, 0.75, away), s.back[which])

    def neck(self) -> None:
        p = self.p
        box = self.at(0, 0.75, 0.62, 0.42)
        half = (0.265 if p.male else 0.215) + (0.04 if p.chubby else 0)
        x, y = self.bx[:, box[1]] - 0.10 * self.turn * _ramp(0.9, 0.4, self.by[box[0]]), self.by[box[0]]
        width = half + 0.05 * _ramp(0.55, 0.30, y) + 0.40 * _ramp(0.70, 1.05, y) ** 2
        across = x / width
        tone = self.facing(_clip(across, -1, 1) * 0.85, 0.15 + 0 * y)
        colour = self.lit(p.skin, tone)
        neck = self.cover(np.maximum(np.abs(x) - width, 0.25 - y))
        self.fill(box, neck, colour, "neck")
        sx, sy, _ = self.s.sun
        under, _, _ = self.outline(self.hx[box] + 0.05 * sx, self.hy[box] - 0.09 + 0.05 * sy)
        self.shade(box, neck * _ramp(0.06, -0.08, under), 0.62, (1.06, 0.97, 0.96))
        for side in (-1, 1):  # the two tendons above the collar bones
            line = np.abs(x - side * (0.10 + 0.28 * (0.95 - y)))
            self.shade(box, neck * 0.5 * _ramp(0.035, 0.0, line) * _ramp(0.62, 0.76, y), 0.88)

    def clothes(self) -> None:
        p, s = self.p, self.s
        box = self.at(0, 1.05, 1.4, 0.50)
        x, y = self.bx[:, box[1]], self.by[box[0]]
        away = np.abs(x)
        broad = 0.88 if p.male else 0.76
        top = 0.665 + 0.26 * (away * (1 / broad)) ** 2.4
        body = (top - y) * 0.9
        main, second, third = s.cloth
        neckline = {
            "crew": _ellipse(x, y - 0.62, 0.30, 0.13), "scoop": _ellipse(x, y - 0.60, 0.36, 0.24),
            "v": (away * 1.25 + y - 0.94) * 0.62, "shirt": (away * 1.5 + y - 0.82) * 0.55,
            "turtleneck": _ellipse(x, y - 0.48, 0.30, 0.16), "suit": (away * 1.0 + y - 0.98) * 0.7,
        }[s.collar]  # fmt: skip
        if s.collar == "turtleneck":
            tube = np.maximum(away - 0.30 - 0.10 * _ramp(0.75, 0.95, y), 0.63 - y)
            body = np.minimum(body, tube)
        fall = self.facing(_clip(x * 1.0, -0.85, 0.85), 0.35 - 0.75 * _ramp(0.12, 0.0, y - top) + 0 * x)
        folds = 1 + 0.05 * np.sin(x * 9 + y * 7) * _ramp(0.0, 0.3, y - top)
        colour = self.lit(main, fall * folds)
        if s.pattern == "stripes":
            colour = colour + _ramp(-0.25, 0.25, np.sin((y - top * 0.55) * 52)) * (self.lit(second, fall) - colour)
        elif s.pattern == "block":
            colour = colour + self.cover(y * -1 + 0.80 + 0 * x) * (self.lit(second, fall) - colour)
        if s.collar in ("shirt", "suit"):  # the shirt under a jacket, or the open collar
            inner = np.maximum(body, -(away * 1.6 + y - 0.76) * 0.5)
            if s.collar == "suit":
                self.fill(box, self.cover(inner), self.lit(second, fall), "cloth")
            if s.tie:
                self.necktie(box, x, y, fall)
            self.fill(box, self.cover(np.maximum(body, -neckline)), colour, "cloth")
            edge = np.maximum(np.maximum(body, np.abs(neckline - 0.045) - 0.045), y - 1.02)
            flap = self.lit(_scaled(main, 0.72) if s.collar == "suit" else second, fall)
            self.fill(box, self.cover(edge), flap, "cloth")
            self.shade(box, 0.5 * self.cover(np.abs(neckline - 0.09) - 0.004, 2) * self.cover(body), 0.6)
            if s.tie and s.collar == "shirt":
                self.fill(box, self.cover(inner) * self.cover(neckline), self.lit(second, fall), "cloth")
                self.necktie(box, x, y, fall)
        else:
            garment = np.maximum(body, -neckline)
            on_neck = self.label[box] == CLASS_INDEX["neck"]
            self.shade(box, _ramp(0.05, 0.0, garment) * 0.6 * on_neck, 0.72)
            self.fill(box, self.cover(garment), colour, "cloth")
            self.fill(
                box, self.cover(np.maximum(body, np.abs(neckline - 0.025) - 0.022)), self.lit(third, fall), "cloth"
            )
            if s.collar == "turtleneck":
                self.shade(box, self.cover(body) * _ramp(0.05, 0.0, np.abs(y - 0.76)) * self.cover(away - 0.36), 0.78)
        if s.necklace != "none":
            self.necklace(box, x, y)

    def necktie(self, box: Box, x: Field, y: Field, fall: Field) -> None:
        away = np.abs(x)
        knot = np.maximum(away - 0.085 + 0.30 * (y - 0.67), np.abs(y - 0.70) - 0.060)
        blade = np.maximum(away - 0.052 - 0.30 * (y - 0.74), 0.74 - y)
        colour = self.lit(self.s.cloth[2], fall)
        self.fill(box, self.cover(np.minimum(knot, blade)), colour, "cloth")
        self.shade(box, self.cover(np.abs(y - 0.762) - 0.008, 2) * self.cover(blade), 0.6)

    def necklace(self, box: Box, x: Field, y: Field) -> None:
        tone = self.facing(_clip(x * 2, -0.8, 0.8), -0.2 + 0 * y)
        arc = _ellipse(x, y - 0.575, 0.26, 0.195)
        line = np.maximum(np.abs(arc) - (0.026 if self.s.necklace == "beads" else 0.020), 0.61 - y)
        self.shade(box, _ramp(0.04, 0.0, line) * (y > 0.62), 0.75)
        colour = self.lit(self.s.metal, tone)
        if self.s.necklace == "beads":
            colour = colour * (1 + 0.22 * np.sin(np.arctan2(x, y - 0.575) * 30))
        else:
            line = np.minimum(line, _ellipse(x, y - 0.79, 0.050, 0.055))
        self.fill(box, self.cover(line), colour, "neck_l")

    def ear_place(self, side: int) -> tuple[float, float, float]:
        """Centre, and how wide the ear is seen."""
        x = side * (self.p.width * float(np.cos(self.s.yaw)) + 0.012) - 0.05 * self.turn
        return x, 0.015 + 0.20 * self.nod * -0.5, float(_clip(1 - 1.6 * side * self.turn, 0.45, 1.35))

    def ears(self) -> None:
        p = self.p
        for side, name in ((-1, "r_ear"), (1, "l_ear")):
            cx, cy, seen = self.ear_place(side)
            box = self.at(cx, cy, 0.13, 0.19)
            x, y = (self.hx[box] - cx) * side, self.hy[box] - cy
            a, b = 0.082 * p.ears * seen, 0.135 * p.ears
            x = x - 0.20 * np.minimum(-y, 0.06) + 0.012  # the upper ear stands out, the lobe lies close
            shape = _ellipse(x, y, a, b)
            tone = self.facing(_clip(side * x / a * 0.75, -0.9, 0.9), _clip(y / b * 0.6, -0.9, 0.9))
            ear = _mixed(p.skin, (p.skin[0] * 0.98, p.skin[1] * 0.78, p.skin[2] * 0.76), 0.5)
            self.fill(box, self.cover(shape), self.lit(ear, tone * 0.92), name)
            self.shade(
                box, _ramp(0.03, -0.02, _ellipse(x + 0.01, y + 0.012, a * 0.55, b * 0.58)), 0.66, (1.1, 0.95, 0.93)
            )

    def outline(self, x: Field, y: Field) -> tuple[Field, Field, Field]:
        """Distance to the edge of the face, and the two coordinates in which it is about a unit disk."""
        p = self.p
        t = y - MIDDLE
        t = t * np.where(t < 0, np.float32(1 / 0.60), np.float32(1 / (p.chin - MIDDLE)))
        low = _clip(t, 0, 1.15)
        low = low * low
        across = (x - 0.16 * self.turn * low) / (p.width * (1 - p.jaw * low))
        r2 = across * across + t * t
        r4 = np.sqrt(r2 * r2 - 2 * (across * t) ** 2)
        r = np.sqrt(r2 + (r4 - r2) * p.square)
        return (r - 1) * (p.width * 0.92), across, t

    def relief(self, u: Field, v: Field) -> Field:
        """Height of the features over the ellipsoid of the head."""
        p, s = self.p, self.s
        tip = NOSE + p.nose_drop
        h = 0.040 * _bump(u, v - EYES + 0.155, 0.30, 0.07)  # brow ridge
        au = np.abs(u)
        h -= 0.036 * _bump(au - p.eye_gap * 0.9, v - EYES, 0.13, 0.085)
        cheek = 0.040 + 0.030 * max(s.smile, 0) + (0.035 if p.cheekbones else 0)
        high = 0.155 if p.cheekbones else 0.19 - 0.02 * s.smile
        round_ = 0.13 if p.cheekbones else 0.16 + (0.02 if p.chubby else 0)
        h += cheek * _bump(au - 0.27, v - high, round_, 0.105)
        h += 0.045 * _bump(u, v - MOUTH, 0.20, 0.13) + 0.045 * _bump(u, v - p.chin * 0.90, 0.12, 0.075)
        down = _clip((v - EYES + 0.05) * (1 / (tip - EYES + 0.05)), 0, 1)
        end = _ramp(tip + 0.060, tip - 0.005, v)
        spread = 1 / (0.040 + 0.030 * down * (1.15 - 0.45 * p.nose_sharp) * (p.nose_width / 0.1))
        ridge = np.maximum(1 - 0.25 * (u * spread) ** 2, 0) ** 3
        h += (0.012 * _ramp(EYES - 0.12, EYES, v) + 0.085 * down * down) * ridge * end
        h += 0.030 * _bump(u, v - tip + 0.005, 0.048 - 0.012 * p.nose_sharp, 0.045)
        wing = p.nose_width * 0.78
        h += 0.034 * _bump(au - wing, v - tip - 0.012, 0.034, 0.034)
        return h

    def face(self) -> None:
        p, s = self.p, self.s
        box = self.box = self.at(0, 0.02, p.width + 0.05, 0.70)
        hx, hy = self.hx[box], self.hy[box]
        distance, across, t = self.outline(hx, hy)
        face = self.cover(distance)
        # The nose stands out, so it moves more than the cheeks when the head turns.
        u, v = self.u[box], self.v[box]
        out = _clip((v - EYES) * 4.5, 0, 1) * _bump(u, v - NOSE, 0.13, 0.16)
        self.fu, self.fv = u - 0.13 * self.turn * out, v - 0.11 * self.nod * out
        h = self.relief(self.fu, self.fv)
        gy, gx = np.gradient(h, self.pixel)
        r = np.maximum(np.sqrt(across * across + t * t), 1)
        nx, ny = across / r * 0.86 - gx, t / r * 0.66 - gy
        nz = np.sqrt(np.maximum(1 - (across / r * 0.86) ** 2 - (t / r * 0.66) ** 2, 0.05))
        norm = 1 / np.sqrt(nx * nx + ny * ny + nz * nz)
        x, y, z = s.sun
        flat = (nx * x + ny * y + nz * z) * norm
        self.tone = _clip((flat + 0.22) * 0.82, 0, 1)
        self.fill(box, face, self.lit(p.skin, self.tone), "skin")
        half = np.maximum((nx * x + ny * y + nz * (z + 1)) * norm, 0) * (
            1 / float(np.sqrt(x * x + y * y + (z + 1) ** 2))
        )
        for _ in range(4):
            half = half * half
        shine = face * (0.30 if p.male else 0.24) * half
        self.rgb[:, box[0], box[1]] += shine * (_planes(s.light) * 0.55)
        self.face_cover, self.face_distance = face, distance
        self.complexion(box, face, self.fu, self.fv)
        self.nose(box, face, self.fu, self.fv)
        if p.beard != "none" or p.sideburns:
            self.beard(box, u, v)

    def complexion(self, box: Box, face: Field, u: Field, v: Field) -> None:
        """What lies on the skin: blush, age, freckles, make-up."""
        p, s = self.p, self.s
        rosy = max(s.blush, 0.16)
        cheeks = _bump(np.abs(u) - 0.27, v - 0.16, 0.15, 0.11)
        self.shade(box, face * cheeks * rosy, 1.0, (1.04, 0.62, 0.66))
        self.shade(box, face * 0.14 * _bump(u, v - NOSE, 0.09, 0.08), 1.0, (1.02, 0.72, 0.72))
        if p.cheekbones:
            hollow = np.abs(u) - 0.33 + 0.45 * (v - 0.26)
            self.shade(
                box, face * 0.8 * _ramp(0.07, 0.0, np.abs(hollow)) * _ramp(0.14, 0.22, v) * _ramp(0.40, 0.30, v), 0.84
            )
        old = float(_clip((p.age - 44) / 28, 0, 1))
        fold = old * 0.9 + 0.28 * max(s.smile, 0)
        if fold > 0.05:
            bend = np.abs(np.abs(u) - p.nose_width * 1.1 - 0.02 - 0.42 * np.maximum(v - NOSE, 0) * (1 + 0.3 * s.smile))
            self.shade(
                box, face * min(fold, 0.9) * _ramp(0.026, 0.0, bend) * _ramp(0.13, 0.19, v) * _ramp(0.36, 0.26, v), 0.74
            )
        if old > 0.15:
            waves = np.sin((v + 0.02 * np.cos(u * 9)) * 62 + 1.2)
            self.shade(box, face * old * 0.8 * _ramp(0.45, 0.95, waves) * _bump(u, v + 0.335, 0.20, 0.085), 0.80)
            corner = np.abs(np.abs(u) - p.eye_gap - 0.165)
            rays = np.sin((v - EYES - 0.01) * 95 + np.abs(u) * 20)
            self.shade(
                box,
                face
                * old
                * 0.8
                * _ramp(0.045, 0.0, corner)
                * _ramp(0.3, 0.9, rays)
                * _ramp(0.07, 0.04, np.abs(v - EYES)),
                0.80,
            )
        if p.freckles:
            spots = np.zeros_like(u)
            for k in range(7):
                fu, fv = 0.11 + 0.045 * (k % 4) + 0.01 * (k % 3), 0.075 + 0.045 * (k // 3) + 0.008 * (k % 2)
                spots = np.maximum(spots, _ramp(0.018, 0.008, np.sqrt((np.abs(u) - fu) ** 2 + (v - fv) ** 2)))
            self.shade(box, face * spots * 0.75, 0.66, (1.0, 0.86, 0.78))
        if p.double_chin:
            arc = np.abs(_ellipse(u, v - p.chin + 0.21, 0.25, 0.155))
            self.shade(box, face * _ramp(0.032, 0.0, arc) * _ramp(p.chin - 0.16, p.chin - 0.09, v), 0.70)
        self.shade(box, face * 0.9 * _bump(u, v - MOUTH - 0.135, 0.085, 0.026), 0.80)  # under the lower lip

    def nose(self, box: Box, face: Field, u: Field, v: Field) -> None:
        p = self.p
        tip = NOSE + p.nose_drop
        part = self.sub(box, 0.0, (EYES + tip) / 2, p.nose_width * 2.3 + 0.10, (tip - EYES) / 2 + 0.17)
        inner = (slice(part[0].start - box[0].start, part[0].stop - box[0].start),
                 slice(part[1].start - box[1].start, part[1].stop - box[1].start))  # fmt: skip
        face, u, v = face[inner], u[inner], v[inner]
        w = p.nose_width
        down = _clip((v - EYES) * (1 / (tip - EYES)), 0, 1.3)
        side = 0.038 + 0.35 * w * down**2
        bridge = np.maximum(np.maximum(np.abs(u) - side, EYES + 0.01 - v), v - tip)
        ball = np.minimum(
            _ellipse(u, v - tip + 0.005, w * 0.62, 0.062),
            _ellipse(np.abs(u) - w * 0.72, v - tip - 0.012, w * 0.42, 0.048),
        )
        shape = np.minimum(bridge, ball)
        np.copyto(self.label[part], CLASS_INDEX["nose"], where=(self.cover(shape) * face) > 0.5)
        away = self.s.sun[0]
        self.shade(
            part, face * 0.75 * _bump(u + 0.05 * away, v - tip - 0.075, w * 1.05, 0.030), 0.66, (1.05, 0.95, 0.93)
        )
        crease = np.abs(_ellipse(np.abs(u) - w * 0.72, v - tip - 0.010, w * 0.46, 0.050))
        self.shade(part, face * _ramp(0.020, 0.0, crease) * _ramp(w * 0.70, w * 1.05, np.abs(u)), 0.72)
        hole = _ellipse(np.abs(u) - w * 0.43, v - tip - 0.040 + 0.10 * np.abs(u), w * 0.25, 0.016)
        self.shade(part, face * self.cover(hole, 1.6), 0.30, (1.25, 0.9, 0.85))
        light = _planes(self.s.light)
        spot = 0.26 * _bump(u - 0.02 * away, v - tip + 0.022, 0.026, 0.024) + 0.10 * _bump(
            u - 0.014 * away, v - tip + 0.13, 0.018, 0.11
        )
        self.rgb[:, part[0], part[1]] += face * spot * light * (0.45 + 0.55 * p.skin[0])

    def sub(self, box: Box, u: float, v: float, ru: float, rv: float) -> Box:
        """The piece around a place of the face, inside another piece."""
        x, y = self.on_face(u, v)
        x, y = x + 0.08 * self.turn, y + 0.05 * self.nod
        small = self.at(x, y, ru, rv)
        rows, cols = (
            slice(min(max(a.start, b.start), b.stop - 2), max(min(a.stop, b.stop), b.start + 2))
            for a, b in zip(small, box, strict=True)
        )
        return rows, cols

    def beard(self, box: Box, u: Field, v: Field) -> None:
        p, s = self.p, self.s
        v0 = v - MOUTH
        curve = -0.05 * max(s.smile, 0) * (u * (1 / p.lip_width)) ** 2
        grow = self.cover(self.face_distance - (0.022 if p.beard == "full" else 0.0))
        strands = 1 + 0.09 * np.sin(u * 62 + 5 * np.sin(v * 14))
        colour = self.lit(_scaled(p.hair, 0.86), self.tone * 0.85 + 0.05) * strands
        lips = _ellipse(u, v0 - curve * 0.4 - 0.012 - 0.035 * s.gape, p.lip_width * 0.98, 0.075 + 0.05 * s.gape)
        stache = np.maximum(
            _ellipse(u, v0 - curve + 0.082, p.lip_width + 0.045, 0.050), -_ellipse(u, v0 + 0.155, 0.045, 0.050)
        )
        chin = _ellipse(u, v0 - 0.215, 0.135, 0.125)
        ring = np.maximum(np.abs(_ellipse(u, v0 - 0.05, p.lip_width + 0.035, 0.15)) - 0.034, -v0 - 0.06)
        line = 0.115 + 0.55 * np.maximum(0.40 - np.abs(u), 0) - 0.95 * np.maximum(np.abs(u) - 0.34, 0) * 3
        jaw = np.minimum(np.maximum((line - v) * 0.7, -(v + 0.02)), chin)
        side = np.maximum(p.width * (0.80 + 0.55 * np.maximum(v - 0.02, 0)) - np.abs(u), np.abs(v - 0.03) - 0.17)
        alpha = np.zeros_like(u)
        if p.beard == "stubble":
            shadow = np.maximum(_ramp(0.05, -0.05, jaw), 0.9 * _ramp(0.025, -0.02, stache)) * (
                1 - _ramp(0.02, -0.005, lips)
            )
            alpha = 0.48 * shadow
            colour = self.lit(_mixed(_scaled(p.hair, 0.7), (0.20, 0.20, 0.23), 0.4), self.tone)
        elif p.beard != "none":
            whole = {
                "moustache": stache, "goatee": np.minimum(np.minimum(stache, chin), ring), "chin": chin,
                "full": np.minimum(jaw, stache),
            }[p.beard]  # fmt: skip
            alpha = 0.95 * self.cover(np.maximum(whole, -lips - 0.01), 4.0)
        if p.sideburns and p.beard != "full":
            alpha = np.maximum(alpha, 0.95 * self.cover(side, 3.0))
        self.fill(box, alpha * grow, colour)
        if p.beard == "full":
            np.copyto(
                self.label[box],
                CLASS_INDEX["skin"],
                where=(alpha * grow > 0.5) & (self.label[box] != CLASS_INDEX["nose"]),
            )

    def mouth(self) -> None:
        p, s = self.p, self.s
        reach = p.lip_width * 1.3 + 0.03
        box = self.sub(self.box, 0, MOUTH + 0.03, reach, 0.22)
        u, v = self.u[box], self.v[box]
        u = u - 0.035 * self.turn
        half = p.lip_width * (1 + 0.20 * max(s.smile, 0) - 0.10 * s.gape * (s.smile < 0.2))
        q = np.abs(u) * (1 / half)
        q2 = np.minimum(q * q, 1)
        bend = s.smile + 0.16
        y = v - MOUTH - bend * (0.022 - 0.072 * q2)
        wide = (q - 1) * half
        gap = 0.085 * s.gape * (1 - q2) ** 0.7
        bow = 1 - 0.22 * np.maximum(1 - (u * (1 / 0.035)) ** 2, 0)
        up = (p.lip_full * 0.92 * (1 - q2) ** 0.75 + 0.012 * (1 - q2)) * bow * (1 - 0.18 * max(s.smile, 0))
        low = p.lip_full * 1.22 * (1 - q2) ** 0.55 * (1 - 0.15 * max(s.smile, 0))
        a = p.skin
        bare = (a[0] * 0.80 + 0.03, a[1] * 0.56, a[2] * 0.60 + 0.005)
        lips = bare if s.lipstick is None else s.lipstick
        rise = (y - 0.65 * gap) / np.maximum(low, 0.004)
        above = self.cover(np.maximum(np.maximum(-y - up - 0.35 * gap, y + 0.35 * gap), wide))
        below = self.cover(np.maximum(np.maximum(y - 0.65 * gap - low, 0.65 * gap - y), wide))
        side = u * (1 / half) * 0.6
        self.fill(box, above, self.lit(lips, 0.82 * self.facing(side, 0.30 + 0 * u)), "u_lip")
        tone = self.facing(side, _clip((rise - 0.45) * 0.9, -0.5, 0.5))
        self.fill(box, below, self.lit(_mixed(lips, (1, 0.85, 0.85), 0.05), tone), "l_lip")
        gloss = 0.22 if s.lipstick is None else 0.36
        self.rgb[:, box[0], box[1]] += (
            below * gloss * _bump(u - 0.03 * s.sun[0], rise * 0.05 - 0.018, 0.055, 0.014) * _planes(s.light)
        )
        if s.gape > 0:
            hole = np.maximum(np.maximum(-y - 0.35 * gap, y - 0.65 * gap), wide + 0.008)
            inside = self.cover(hole)
            self.fill(box, inside, self.lit((0.30, 0.07, 0.08), 0.5), "mouth")
            tongue = _ellipse(u, y - 0.65 * gap - 0.012, half * 0.55, 0.035)
            self.fill(box, inside * self.cover(tongue, 3), self.lit((0.72, 0.30, 0.32), 0.55))
            length = 0.030 + 0.012 * max(s.smile, 0)
            teeth = np.maximum(y + 0.35 * gap - length, np.abs(u) - half * 0.80)
            white = self.lit((0.93, 0.92, 0.88), 0.86 - 0.35 * q2)
            self.fill(box, inside * self.cover(teeth, 1.5), white)
            self.shade(box, inside * 0.6 * _ramp(0.016, 0.0, y + 0.35 * gap), 0.72)
        else:
            seam = np.maximum(np.abs(y) - 0.0075, wide - 0.004)
            self.shade(box, self.cover(seam, 1.6), 0.42, (1.1, 0.9, 0.9))
        corner = np.sqrt((np.abs(u) - half - 0.006) ** 2 + (v - MOUTH + bend * 0.050) ** 2)
        self.shade(box, (1 - np.maximum(above, below)) * 0.8 * _ramp(0.034, 0.0, corner), 0.70)

    def lid_line(self, q2: Field) -> tuple[Field, Field]:
        """Heights of the two lids over an eye, by the squared place between its corners."""
        p, s = self.p, self.s
        arch = np.maximum(1 - q2, 0)
        bottom = p.eye_height * (0.72 - 0.30 * max(s.smile, 0)) * arch
        top = -p.eye_height * 1.05 * np.sqrt(arch) * (0.45 + 0.55 * arch)
        return bottom + (top - bottom) * s.lids, bottom

    def eye(self, side: int) -> None:
        p, s = self.p, self.s
        box = self.sub(self.box, side * (p.eye_gap + 0.01), EYES - 0.01, 0.24, 0.16)
        a = self.u[box] * side - p.eye_gap
        b = self.v[box] - EYES + p.eye_tilt * a
        w = p.eye_width
        q = a * (1 / w)
        q2 = q * q
        skewed = (q + 0.14 * (1 - q2)) ** 2
        top, bottom = self.lid_line(np.minimum(skewed, 1.0))
        wide = (np.abs(q) - 1) * w
        face = self.cover(self.outline(self.hx[box], self.hy[box])[0])
        reach = _ramp(1.45, 0.75, np.abs(q))
        # Socket, upper lid, crease.
        self.shade(box, face * 0.55 * _bump(a + 0.05, b + 0.075, 0.16, 0.060), 0.78, (1.03, 0.97, 0.96))
        lid = face * reach * _ramp(0.0, 0.02, top - b) * _ramp(0.075, 0.045, top - b)
        if s.shadow is not None:
            big = face * _bump(a - 0.01, b + 0.075, 0.15, 0.060)
            self.fill(box, 0.75 * np.maximum(big, 0.7 * lid), self.lit(s.shadow, 0.65))
        else:
            self.rgb[:, box[0], box[1]] *= 1 + 0.07 * lid
        crease = np.abs(top - b - 0.046 - 0.01 * s.lids)
        self.shade(box, face * reach * 0.85 * _ramp(0.020, 0.0, crease), 0.66, (1.06, 0.95, 0.92))
        if p.bags:
            below = b - bottom
            bag = face * _ramp(1.15, 0.6, np.abs(q + 0.1))
            self.shade(box, bag * _ramp(0.028, 0.0, np.abs(below - 0.062)), 0.66, (1.0, 0.93, 0.97))
            self.rgb[:, box[0], box[1]] *= 1 + 0.09 * bag * _ramp(0.025, 0.0, np.abs(below - 0.032))
        # Ball.
        shape = np.maximum(np.maximum(top - b, b - bottom), wide)
        ball = self.cover(shape)
        name = "l_eye" if side > 0 else "r_eye"
        bright = 0.70 + 0.30 * _ramp(0.0, 0.05, b - top) - 0.18 * q2
        self.fill(box, ball, self.lit((0.97, 0.95, 0.93), _clip(bright, 0, 1) * 0.80))
        ga = side * (s.gaze[0] * 0.045 + 0.02 * self.turn)
        ia, ib = a - ga, b + 0.012 - s.gaze[1] * 0.02
        far = np.sqrt(ia * ia + ib * ib)
        iris = ball * self.cover(far - 0.066)
        glow = 0.55 + 0.75 * _ramp(-0.05, 0.06, ib - 0.3 * ia * s.sun[0])
        ring = _ramp(0.070, 0.050, far) * 0.7 + 0.3
        self.fill(box, iris, self.lit(p.iris, _clip(glow * ring, 0, 1.3)))
        self.fill(box, ball * self.cover(far - 0.031, 1.4), (0.03, 0.025, 0.03))
        self.shade(box, ball * _ramp(0.035, 0.0, b - top), 0.62)
        sx = 0.024 * (1 if s.sun[0] * side > 0 else -1)
        self.fill(box, ball * self.cover(np.sqrt((ia - sx) ** 2 + (ib + 0.026) ** 2) - 0.019, 1.2), (1.0, 1.0, 1.0))
        self.fill(box, 0.35 * ball * _ramp(0.016, 0.006, np.sqrt((ia + sx) ** 2 + (ib - 0.028) ** 2)), WHITE)
        # Lashes.
        dark = self.lit(_scaled(p.hair, 0.22) if max(p.hair) < 0.6 else (0.20, 0.13, 0.10), 0.35)
        made_up = s.lipstick is not None or s.shadow is not None
        thick = (0.012 if p.male else 0.017) + (0.007 if made_up else 0)
        tail = 0.05 * np.maximum(q - 0.75, 0) if made_up else 0.0
        lash = np.maximum(
            np.abs(b - top + 0.3 * thick + tail) - thick * (0.55 + 0.45 * _clip(q + 0.6, 0, 1)),
            np.abs(a - 0.006) - w - 0.012,
        )
        self.fill(box, face * self.cover(lash, 1.3), dark)
        self.shade(box, face * 0.6 * self.cover(np.maximum(np.abs(b - bottom - 0.004) - 0.006, wide), 1.5), 0.60)
        np.copyto(
            self.label[box], CLASS_INDEX[name], where=np.minimum(shape, np.maximum(np.abs(b - top) - 0.018, wide)) < 0
        )

    def brow(self, side: int) -> None:
        p, s = self.p, self.s
        height = EYES - 0.158 - s.raised - 0.3 * (p.eye_height - 0.06)
        box = self.sub(self.box, side * (p.eye_gap + 0.01), height, 0.26, 0.14)
        a, b = self.u[box] * side - p.eye_gap - 0.008, self.v[box] - height
        half = p.eye_width * 1.28
        q = a * (1 / half)
        arch = p.brow_arch
        curve = (
            -arch * (1 - (q - 0.15) ** 2)
            + 0.036 * np.maximum(q - 0.25, 0)
            - 0.012 * q * (q < 0)
            - 0.02 * max(-s.smile, 0) * q
        )
        thick = (
            p.brow_thick
            * (1 - 0.55 * _clip(q * 0.5 + 0.5, 0, 1) ** 2)
            * np.sqrt(_clip((1 - q) * 3, 0.02, 1) * _clip((1 + q) * 5, 0.1, 1))
        )
        shape = np.maximum(np.abs(b - curve) - thick, np.abs(a) - half)
        dye = {"gray": 0.82, "blond": 0.66, "black": 0.9}.get(p.hair_name, 0.72)
        tone = self.facing(0 * a, _clip((b - curve) * -6, -0.4, 0.4))
        face = self.cover(self.outline(self.hx[box], self.hy[box])[0] - 0.01)
        soft = 2.0 if p.age < 65 else 2.6
        self.fill(
            box,
            face * self.cover(shape, soft) * 0.95,
            self.lit(_scaled(p.hair, dye), tone),
            "l_brow" if side > 0 else "r_brow",
        )

    def glasses(self) -> None:
        p, s = self.p, self.s
        kind, thick, colour = s.frame
        box = self.sub(self.box, 0, EYES + 0.02, p.width * 1.15, 0.26)
        u, v = self.u[box] - 0.04 * self.turn, self.v[box] - 0.02 * self.nod
        a, b = np.abs(u) - p.eye_gap - 0.008, v - EYES - 0.022
        lens = {
            "round": lambda: _ellipse(a, b, 0.158, 0.140), "square": lambda: _rounded(a, b, 0.165, 0.115, 0.035),
            "soft": lambda: _rounded(a, b, 0.168, 0.122, 0.085),
            "cat": lambda: _rounded(a, b + 0.22 * a, 0.165, 0.112, 0.075),
            "aviator": lambda: _ellipse(a + 0.10 * b, b, 0.170, 0.135 + 0.0),
        }[kind]()  # fmt: skip
        face = self.cover(self.outline(self.hx[box], self.hy[box])[0] - 0.012)
        rim = np.abs(lens) - thick
        bridge = np.maximum(np.abs(b + 0.045 - 0.9 * u * u) - thick * 0.9, np.abs(u) - p.eye_gap + 0.14)
        temple = np.maximum(np.abs(b + 0.050) - thick, 0.155 - a)
        frame = np.minimum(rim, np.maximum(np.minimum(bridge, temple), -lens))
        glass = self.cover(lens) * face
        eyes = (self.label[box] == CLASS_INDEX["l_eye"]) | (self.label[box] == CLASS_INDEX["r_eye"])
        self.shade(box, face * 0.6 * _ramp(0.03, 0.0, np.abs(lens - 0.012 + 0.5 * b * 0)), 0.80)
        if s.glasses == "dark":
            self.fill(box, glass * 0.94, self.lit(s.lens, 0.45 + 0.35 * _ramp(-0.12, 0.12, b)), "eye_g")
            eyes = np.zeros_like(eyes)
        else:
            self.fill(box, glass * 0.07, WHITE)
        glare = _ramp(0.035, 0.0, np.abs(a * 0.75 + b * 0.55 + 0.055)) + 0.6 * _ramp(
            0.015, 0.0, np.abs(a * 0.75 + b * 0.55 - 0.005)
        )
        self.fill(box, glass * glare * (0.30 if s.glasses == "dark" else 0.20), tuple(_clip(s.light, 0, 1).tolist()))
        rims = self.cover(frame) * face
        tone = self.facing(0 * b, _clip(b * -4, -0.6, 0.6))
        self.fill(box, rims, self.lit(colour, tone))
        np.copyto(self.label[box], CLASS_INDEX["eye_g"], where=((glass > 0.5) | (rims > 0.5)) & ~eyes)

    # --- hair ---

    def hair_field(self) -> None:
        """The outline of the hair, the line at which the face begins, its direction and shine."""
        p = self.p
        self.has_hair = p.style != "bald"
        if not self.has_hair:
            return
        self.long = p.style in ("bob", "long", "wavy")
        fluff = {
            "afro": 0.20,
            "curly": 0.11,
            "crop": 0.015,
            "receding": 0.02,
            "short": 0.035,
            "quiff": 0.04,
            "bun": 0.03,
        }
        grow = fluff.get(p.style, 0.055) + (0.02 if p.style in ("crop", "receding") else 0.05) * p.volume
        lift = grow * 0.8 + (0.05 if p.style == "quiff" else 0.02)
        ends = {
            "crop": -0.06, "receding": -0.04, "short": 0.0, "quiff": -0.04, "parting": 0.02, "bun": -0.03,
            "curly": 0.16, "afro": 0.20, "bob": 0.44 + 0.10 * p.volume,
        }  # fmt: skip
        self.end = ends.get(p.style, 1.05 + 0.3 * p.volume)
        low = min(self.end + 0.12, 1.5)
        self.hair_box = self.at(0, (low - 1.05) / 2, p.width + grow + 0.20, (low + 1.05) / 2)
        x = self.hx[self.hair_box] + 0.05 * self.turn
        y = self.hy[self.hair_box]
        width = p.width + grow
        top = 0.60 + lift
        sx, sy = x * (1 / width), (y + 0.06) * (1 / top)
        radius = np.sqrt(sx * sx + np.minimum(sy, 0) ** 2)
        dome = (radius - 1) * width
        below = np.maximum(y + 0.06, 0)
        if self.long:
            flare = 0.05 + 0.05 * p.volume
            half = width + flare * _ramp(-0.06, 0.45, y)
            if p.style == "bob":
                half = half - 0.05 * _ramp(0.25, 0.50, y)
            wave = (
                0.028 * np.sin(y * 11 + 1.5 * p.part) * _ramp(-0.1, 0.25, y) if p.style == "wavy" else np.zeros_like(y)
            )
            self.wave = wave
            sides = np.abs(x + wave) - half
            tips = (y - self.end + 0.10 * (x * (1 / width)) ** 2 - 0.02 * np.sin(x * 23)) * 0.9
            dome = np.maximum(np.where(below > 0, sides, dome), tips)
        elif p.style in ("curly", "afro"):
            ball = _ellipse(x, y + 0.14, width, top * 0.92)
            angle = np.arctan2(x, -(y + 0.08))
            lobes = (
                0.030
                * np.abs(np.sin(angle * (7 if p.style == "afro" else 6) + p.part))
                * (1 if p.style == "curly" else 0.55)
            )
            dome = np.maximum(ball - lobes, (y - self.end - 0.04 * np.abs(np.sin(x * 14))) * 0.8)
        else:
            taper = (grow - 0.012) * _ramp(-0.10, self.end, y)
            dome = np.maximum(np.where(below > 0, np.abs(x) - width + taper, dome + taper), (y - self.end) * 0.9)
        if p.style == "bun":
            dome = np.minimum(dome, _ellipse(x, y + top + 0.10, 0.17, 0.14))
        if p.style == "quiff":
            dome = np.minimum(dome, _ellipse(x - 0.10 * p.part, y + 0.54, width * 0.72, 0.17))
        if self.s.hat != "none":
            dome = np.maximum(dome, -0.31 - y + 1.3 * np.maximum(np.abs(x) - p.width + 0.01, 0))
        self.shell = dome
        # The face's edge of the hair, on the face.
        u, v = self.u[self.hair_box], self.v[self.hair_box]
        au = np.abs(u)
        side = float(np.sign(p.part) or 1)
        line = {"receding": -0.475, "crop": -0.42, "quiff": -0.40, "bun": -0.43, "afro": -0.36, "curly": -0.34}.get(
            p.style, -0.40
        )
        hairline = np.full_like(u, line)
        if p.bangs > 0:
            hairline = hairline * 0 - 0.40 + 0.20 * p.bangs + 0.012 * np.sin(u * 34 + 2 * p.part)
            if p.bangs < 0.7:  # swept to a side
                hairline = hairline + 0.30 * (u * side + 0.05) * _ramp(-0.40, 0.1, u * side)
        elif p.style == "receding":
            hairline = hairline - 0.13 * (_bump(au - 0.23, v * 0, 0.11, 1.0)) + 0.015
        elif p.style == "parting" or (self.long and abs(p.part) > 0.35):
            away = (u * side + 0.14) * (1 / p.width)  # the part is on one side; hair falls to the other
            hairline = hairline - 0.05 + np.where(away > 0, 0.20 * away * away, 0.34 * away * away)
        elif self.long:
            hairline = hairline - 0.07 + 0.36 * (au * (1 / p.width)) ** 1.6
        else:
            hairline = hairline + 0.03 * np.cos(u * 6)
        self.end_side = self.end + (0.08 if not self.long else 0.0)
        start, stop = (0.62, 0.92) if self.long else (0.74, 0.97)
        s = _clip((au * (1 / p.width) - start) * (1 / (stop - start)), 0, 1)
        drop = (-0.08 if self.long else self.end_side) - hairline
        hairline = hairline + drop * s * s * (3 - 2 * s)
        steep = 6 * s * (1 - s) * drop * (1 / (p.width * (stop - start)))
        window = (v - hairline) / np.sqrt(1 + steep * steep)
        if self.long:
            lock = p.width * (0.90 - 0.10 * p.volume) + 0.06 * _ramp(0.1, 0.5, y) - 0.10 * _ramp(0.6, 0.9, y)
            window = np.minimum(window, (lock - np.abs(self.hx[self.hair_box] - 0.02 * self.turn + self.wave)) * 0.95)
        elif p.style in ("curly", "afro"):
            window = np.minimum(window, p.width * 0.97 - np.abs(self.hx[self.hair_box]))
        # Where the hairline leaves the face there is hair, not what lies behind the head.
        edge, _, _ = self.outline(self.hx[self.hair_box], y)
        self.window = np.minimum(window, 4 * np.maximum(y + 0.04, 0) - edge)
        # Light on it, and strands that fan out from the part and then fall.
        root = -0.25 * p.part if self.long or p.style in ("parting", "quiff") else 0.0
        fan = (x - root) / (0.30 + _clip(y + 0.62, 0, 0.45))
        if self.long:
            fan = fan + self.wave * 3
        strands = np.sin(fan * 19 + p.part) + 0.6 * np.sin(fan * 43 + 2)
        if p.style in ("curly", "afro"):
            k = 26 if p.style == "curly" else 34
            strands = 0.85 * np.sin(x * k + 2.2 * np.sin(y * k * 0.45)) * np.sin(y * k + 2.0 * np.sin(x * k * 0.4))
        nx = _clip(sx, -1, 1) * 0.85
        ny = _clip(np.where(sy < 0, sy, sy * 0.15), -1, 1) * 0.85
        tone = self.facing(nx, ny)
        band = np.maximum(1 - ((radius - 0.72 + 0.03 * np.sin(fan * 15)) * (1 / 0.14)) ** 2, 0) * (sy < 0.25)
        gloss = (0.05 if p.style in ("curly", "afro", "crop") else 0.20) * band * tone
        colour = self.lit(p.hair, _clip(tone * (1 + 0.10 * strands) + 0.04, 0, 1.2))
        self.hair_rgb = colour * (1 + 0.05 * strands) + gloss * _planes(_mixed(p.hair, self.s.light, 0.45))

    def hair_behind(self) -> None:
        if self.has_hair and (self.long or self.p.style in ("curly", "afro")):
            y = self.hy[self.hair_box]
            back = self.cover(self.shell)
            self.fill(self.hair_box, back, self.hair_rgb * (0.72 - 0.25 * _ramp(0.1, 0.5, y)), "hair")

    def hair(self) -> None:
        if not self.has_hair:
            return
        box = self.hair_box
        shape = np.maximum(self.shell, self.window)
        label = self.label[box]
        on_skin = (label == 1) | (label == 6) | (label == 7)
        depth = 0.03 + 0.05 * self.p.volume
        self.shade(box, 0.75 * _ramp(depth, 0.0, shape + 0.03 * self.s.sun[1]) * on_skin, 0.66, (1.05, 0.96, 0.94))
        alpha = self.cover(shape, 1.4)
        edge = 1 - 0.35 * _ramp(0.05, 0.0, np.abs(self.window)) * (self.window < 0)
        self.fill(box, alpha, self.hair_rgb * edge, "hair")

    # --- what is worn on the head ---

    def earrings(self) -> None:
        s = self.s
        if s.earrings == "none":
            return
        for side in (-1, 1):
            cx, cy, seen = self.ear_place(side)
            if seen < 0.6:
                continue
            cx, cy = cx + side * 0.022 * seen, cy + 0.135 * self.p.ears
            box = self.at(cx, cy + 0.06, 0.10, 0.16)
            x, y = self.hx[box] - cx, self.hy[box] - cy
            if s.earrings == "stud":
                shape = _ellipse(x, y, 0.040, 0.040)
            elif s.earrings == "drop":
                shape = np.minimum(_ellipse(x, y, 0.024, 0.024), _ellipse(x, y - 0.085, 0.036, 0.056))
            else:
                shape = np.abs(_ellipse(x, y - 0.062, 0.060 * min(seen, 1.0), 0.070)) - 0.016
            tone = self.facing(_clip(x * 14, -0.8, 0.8), _clip(y * 7 - 0.3, -0.7, 0.7))
            self.shade(box, 0.5 * _ramp(0.02, -0.01, shape), 0.7)
            self.fill(box, self.cover(shape), self.lit(s.metal, tone) + 0.6 * np.maximum(tone - 0.75, 0), "ear_r")

    def hat(self) -> None:
        p, s = self.p, self.s
        box = self.at(0, -0.55, 1.05, 0.55)
        x, y = self.hx[box] - 0.05 * self.turn, self.hy[box] - 0.10 * self.nod
        main, trim = s.hat_colours
        puff = 0.05 + (0.03 if self.has_hair else 0.0) + (0.05 if p.style == "afro" else 0.0)
        w = p.width + puff
        brow = -0.315
        sag = 0.06 * (x * (1 / w)) ** 2
        nx, ny = _clip(x * (1 / w), -0.95, 0.95) * 0.85, _clip((y + 0.1) * (1 / 0.7), -0.9, 0.2) * 0.9
        tone = self.facing(nx, ny)
        skin = self.label[box] == CLASS_INDEX["skin"]
        depth = {"fedora": 0.16, "bucket": 0.14, "cap": 0.17}.get(s.hat, 0.06)
        self.shade(box, _ramp(depth, 0.0, y - brow) * skin, 0.60, (1.06, 0.97, 0.95))
        ex, ey = (x * (1 / w)) ** 2, ((y + 0.24) * (1 / 0.52)) ** 2
        dome = (0.5 * np.sqrt(ex + ey) + 0.5 * np.sqrt(np.sqrt(ex * ex + ey * ey)) - 1) * w
        dome = np.maximum(dome, (y - brow - 0.02 + sag) * 0.95)
        if s.hat == "beanie":
            ribs = 1 + 0.10 * np.sin(x / (0.35 + _clip(y + 0.78, 0, 0.5)) * 26)
            self.fill(box, self.cover(dome), self.lit(main, tone) * ribs, "hat")
            fold = _rounded(x, y - brow + 0.070 + sag, w + 0.016, 0.078, 0.055)
            self.shade(box, self.cover(dome) * _ramp(0.04, 0.0, fold), 0.7)
            self.fill(box, self.cover(fold), self.lit(trim, tone) * (1 + 0.10 * np.sin(x * 34)), "hat")
            if p.volume > 0.5:
                self.fill(
                    box,
                    self.cover(_ellipse(x, y + 0.79, 0.12, 0.11)),
                    self.lit(trim, self.facing(_clip(x * 7, -0.8, 0.8), _clip(y * 7 + 5.5, -0.8, 0.8))),
                    "hat",
                )
        elif s.hat == "cap":
            colour = self.lit(main, tone) * (
                1 - 0.22 * self.cover(np.abs(np.abs(x) - 0.30 * (0.2 + _clip(y + 0.75, 0, 0.5) * 1.6)) - 0.007, 2)
            )
            self.fill(box, self.cover(dome), colour, "hat")
            self.fill(box, self.cover(_ellipse(x, y + 0.76, 0.045, 0.022)), self.lit(trim, 0.8), "hat")
            vx = x - 0.20 * self.turn
            visor = np.maximum(_ellipse(vx, y - brow - 0.045, w * 0.92, 0.115), -(y - brow + 0.045 - 0.22 * vx * vx))
            self.fill(
                box,
                self.cover(visor),
                self.lit(trim, self.facing(_clip(vx, -0.7, 0.7), _clip((y - brow) * 3 - 0.3, -0.6, 0.6))),
                "hat",
            )
        elif s.hat == "fedora":
            crown = np.maximum(
                _rounded(x, y + 0.53, w * 0.90 - 0.05 * _clip(-y - 0.3, 0, 0.5), 0.33, 0.13)
                + 0.03 * np.exp(-((x * 9) ** 2)),
                y - brow,
            )
            brim = _ellipse(x, y - brow + 0.01 + 0.10 * x * x, w + 0.34, 0.095)
            self.fill(
                box,
                self.cover(brim),
                self.lit(_scaled(main, 0.8), self.facing(nx * 0.4, _clip((y - brow) * 5, -0.5, 0.6))),
                "hat",
            )
            self.fill(box, self.cover(crown), self.lit(main, self.facing(nx, -0.1 + 0 * y)), "hat")
            band = np.maximum(crown, np.abs(y - brow + 0.10) - 0.055)
            self.fill(box, self.cover(band), self.lit(trim, self.facing(nx, 0 * y)), "hat")
        elif s.hat == "bucket":
            self.fill(
                box,
                self.cover(np.maximum(_rounded(x, y + 0.46, w * 0.93 + 0.10 * (y + 0.4), 0.32, 0.10), y - brow)),
                self.lit(main, self.facing(nx, -0.1 + 0 * y)),
                "hat",
            )
            brim = np.maximum(np.abs(x) - w - 0.02 - 0.75 * (y - brow + 0.12), np.abs(y - brow + 0.03 + sag) - 0.105)
            self.fill(box, self.cover(brim), self.lit(_scaled(main, 0.86), self.facing(nx, 0.15 + 0 * y)), "hat")
            self.shade(box, self.cover(np.abs(y - brow + 0.135 + sag) - 0.008, 2) * self.cover(np.abs(x) - w), 0.66)
        else:  # beret, hanging to one side
            side = 1.0 if p.part >= 0 else -1.0
            bx, by = x - side * 0.10, y + 0.50 - side * 0.22 * x
            cloth = _ellipse(bx, by, w + 0.10, 0.24)
            self.fill(
                box,
                self.cover(np.minimum(cloth, np.maximum(dome, -0.52 - y))),
                self.lit(main, self.facing(_clip(bx / (w + 0.1), -0.95, 0.95) * 0.8, _clip(by * 3.2, -0.9, 0.7))),
                "hat",
            )
            band = np.maximum(np.abs(y - brow + 0.03 + sag) - 0.045, np.abs(x) - w * 0.97)
            self.fill(box, self.cover(band), self.lit(trim, tone), "hat")

    # --- the end ---

    def finish(self) -> tuple[UInt8Array, UInt8Array]:
        """Average the samples of each pixel; the class of most of its samples."""
        rgb, label = self.rgb, self.label
        for _ in range(self.factor.bit_length() - 1):
            rgb = (rgb[:, ::2] + rgb[:, 1::2]) * 0.5
            rgb = (rgb[:, :, ::2] + rgb[:, :, 1::2]) * 0.5
            a, b, c, d = label[::2, ::2], label[::2, 1::2], label[1::2, ::2], label[1::2, 1::2]
            label = np.where((b == c) | (b == d), b, np.where(c == d, c, a))
        if self.s.blurry:
            rgb = ndimage.gaussian_filter(rgb, (0, self.size / 85, self.size / 85), mode="nearest", truncate=2.5)
        pixels = (_clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
        return np.ascontiguousarray(pixels), np.ascontiguousarray(label)
