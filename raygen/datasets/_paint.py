"""How a scene becomes pixels and a class mask: signed distances, soft edges, light.

Knows shapes and shading. Chooses nothing: every number comes from the person and the scene. Lengths are in half
picture widths, x to the right, y down, the person's left on the right side of the picture.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from raygen.datasets._person import LONG, Colour, Person, Scene
from raygen.faces import CLASS_INDEX

__all__ = ["paint"]

Field = npt.NDArray[Any]
UInt8Array = npt.NDArray[np.uint8]
ARRAYS = ("x", "y", "bx", "by", "hx", "hy", "rgb", "label", "face")
#: Samples along each side of a pixel.
SUPER = 2
#: How much of the picture the head fills.
ZOOM = 1.17
EYES_Y, BROWS_Y, NOSE_Y, MOUTH_Y = -0.075, -0.215, 0.125, 0.290
#: Centre and half size of the parts that are painted on a piece of the picture.
AROUND = {"mouth": (0, MOUTH_Y, 0.42, 0.24), "nose": (0, 0.05, 0.36, 0.30)}


def paint(person: Person, scene: Scene, size: int) -> tuple[UInt8Array, UInt8Array]:
    """RGB uint8 [size, size, 3] and class ids uint8 [size, size]."""
    return _Painter(person, scene, size).run()


def _step(low: float, high: float, x: Field) -> Field:
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _ellipse(x: Field, y: Field, a: float, b: float) -> Field:
    return np.asarray((np.sqrt((x / a) ** 2 + (y / b) ** 2) - 1) * min(a, b), np.float32)


def _super(x: Field, y: Field, a: float, b: float, p: float) -> Field:
    return np.asarray(((np.abs(x / a) ** p + np.abs(y / b) ** p) ** (1 / p) - 1) * min(a, b), np.float32)


class _Painter:
    """One picture in the making: colours, labels, and the coordinates of the posed head."""

    def __init__(self, person: Person, scene: Scene, size: int) -> None:
        self.p, self.s, self.size = person, scene, size
        n = size * SUPER
        axis = (np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1
        self.x, self.y = np.meshgrid(axis, axis)  # picture coordinates
        self.zoomed = ZOOM * scene.scale
        self.dx, self.dy = scene.dx, scene.dy + 0.02
        x, y = (self.x - self.dx) / np.float32(self.zoomed), (self.y - self.dy) / np.float32(self.zoomed)
        c, s = np.float32(np.cos(scene.roll)), np.float32(np.sin(scene.roll))
        self.bx, self.by = x, y  # body: moved and scaled, not turned
        self.hx = c * x + s * (y - 0.6)  # head: turned about the neck as well
        self.hy = -s * x + c * (y - 0.6) + 0.6 + 0.05
        self.soft = np.float32(2.4 / n / self.zoomed)
        self.rgb = np.zeros((n, n, 3), np.float32)
        self.label = np.zeros((n, n), np.uint8)

    # --- tools ---

    def place(self, u: float, v: float) -> tuple[float, float, float]:
        """Where a point of the face lies after yaw and pitch, and how narrow things are there."""
        p, s = self.p, self.s
        z = np.sqrt(max(0.0, 1 - (u / p.width) ** 2 - (v / p.height / 1.1) ** 2))
        x = u * np.cos(s.yaw) + 0.75 * p.width * z * np.sin(s.yaw)
        narrow = np.cos(np.arcsin(np.clip(u / p.width, -1, 1)) * 0.6 + s.yaw)
        return float(x), float(v + 0.065 * s.pitch * z), float(np.clip(narrow, 0.55, 1))

    @contextmanager
    def near(self, x: float, y: float, rx: float, ry: float) -> Iterator[None]:
        """Inside, every array is a view of the part of the picture around a place of the head: most of the speed."""
        s = self.s
        c, d = np.cos(s.roll), np.sin(s.roll)
        hy = y - 0.65
        px = (c * x - d * hy) * self.zoomed + self.dx
        py = (d * x + c * hy + 0.6) * self.zoomed + self.dy
        px_r, py_r = (rx + 0.15 * ry) * self.zoomed, (ry + 0.15 * rx) * self.zoomed
        n = len(self.rgb)
        cut = [
            (max(0, int((v - r + 1) / 2 * n)), min(n, int((v + r + 1) / 2 * n) + 1))
            for v, r in ((py, py_r), (px, px_r))
        ]
        box = tuple(slice(low, max(high, low + 1)) for low, high in cut)
        whole = {name: getattr(self, name) for name in ARRAYS if hasattr(self, name)}
        for name, array in whole.items():
            setattr(self, name, array[box])
        try:
            yield
        finally:
            for name, array in whole.items():
                setattr(self, name, array)

    def cover(self, distance: Field, soft: float = 1.0) -> Field:
        """Coverage in 0..1 of the inside of a signed distance."""
        return np.asarray(np.clip(0.5 - distance / (self.soft * soft), 0, 1), np.float32)

    def fill(self, alpha: Field, colour: Any, name: str | None = None, keep: tuple[str, ...] = ()) -> None:
        """Lay a colour over what is there; `name` labels it, except where a class of `keep` is."""
        self.rgb += alpha[..., None] * (np.asarray(colour, np.float32) - self.rgb)
        if name is not None:
            inside = alpha > 0.5
            for other in keep:
                inside &= self.label != CLASS_INDEX[other]
            self.label[inside] = CLASS_INDEX[name]

    def shade(self, alpha: Field, factor: float) -> None:
        """Darken (below 1) or lighten (above 1)."""
        self.rgb *= 1 + alpha[..., None] * np.float32(factor - 1)

    def lit(self, colour: Colour, nx: Field, ny: Field) -> Field:
        """A colour under the scene's light on a surface with this slope, [H, W, 3]."""
        lx, ly, lz = self.s.light_dir
        nz = np.sqrt(np.clip(1 - nx * nx - ny * ny, 0, 1))
        lambert = np.clip(nx * lx + ny * ly + nz * lz, 0, 1)
        strength = self.s.ambient + (1.08 - self.s.ambient) * lambert
        return np.asarray(strength[..., None] * colour, np.float32)

    # --- the picture ---

    def run(self) -> tuple[UInt8Array, UInt8Array]:
        """Back to front."""
        self.background()
        self.hair_behind()
        with self.near(0, 0.75, 1.3, 0.75):
            self.neck()
        with self.near(0, 1.0, 1.4, 0.55):
            self.clothes()
        with self.near(0, 0, 0.70, 0.25):
            self.ears()
        self.head()
        with self.near(0, 0.05, 0.62, 0.62):
            self.skin_details()
        for part in (self.mouth, self.nose):
            with self.near(*AROUND[part.__name__]):
                part()
        for side in (-1.0, 1.0):
            x, y, _ = self.place(side * self.p.eye_gap, EYES_Y)
            with self.near(x, y, 0.22, 0.16):
                self.eye(side)
        with self.near(0, EYES_Y, 0.62, 0.30):
            self.glasses()
        for side in (-1.0, 1.0):
            x, y, _ = self.place(side * self.p.eye_gap, BROWS_Y)
            with self.near(x, y, 0.24, 0.15):
                self.brow(side)
        self.hair()
        with self.near(0, 0.15, 0.70, 0.14):
            self.earrings()
        with self.near(0, -0.5, 0.95, 0.55):
            self.hat()
        return self.finish()

    def background(self) -> None:
        a, b = self.s.background
        t = _step(-1.2, 1.2, self.y + 0.4 * self.x * self.s.light_dir[0])
        self.rgb[:] = a + t[..., None] * (b - a)
        for cx, cy, radius, colour in self.s.blobs:
            alpha = 0.75 * _step(1.3, 0.7, np.sqrt((self.x - cx) ** 2 + (self.y - cy) ** 2) / np.float32(radius))
            self.fill(alpha, colour)

    def hair_shell(self) -> Field:
        """Distance to the outline of all hair around the head."""
        p = self.p
        grow = {"short": 0.045, "crop": 0.025, "receding": 0.04, "afro": 0.21, "curly": 0.12}.get(p.style, 0.07)
        grow += 0.035 * p.volume if p.style not in ("crop", "receding", "bald") else 0.0
        cx = 0.4 * p.width * np.sin(self.s.yaw) * 0.4
        x, y = self.hx - np.float32(cx), self.hy
        shell = _ellipse(x, y + np.float32(0.03 + grow * 0.25), p.width + grow, p.height + grow * 0.75)
        if p.style in ("curly", "afro"):
            angle = np.arctan2(y, x)
            shell = shell - np.float32(0.016) * np.sin(angle * np.float32(15 + 6 * p.volume)) - np.float32(0.008)
        if p.style in LONG or p.style == "bangs":
            bottom = {"bob": 0.38, "bangs": 0.46}.get(p.style, 1.3)
            half = p.width + grow * 0.92 + (0.03 if p.style == "bob" else 0.07) * _step(0.0, 0.55, y)
            wave = np.float32(0.028) * np.sin(y * 13) if p.style == "wavy" else np.float32(0)
            bottom = np.float32(bottom) - np.float32(0.10) * np.clip(np.abs(x) / (p.width + grow), 0, 1) ** 4
            sides = np.maximum(np.abs(x + wave) - half, np.maximum(-y, y - bottom))
            shell = np.minimum(shell, sides)
        if p.style == "bun":
            shell = np.minimum(shell, _ellipse(x, y + np.float32(p.height + 0.16), 0.16, 0.13))
        return np.asarray(shell, np.float32)

    def hair_colour(self) -> Field:
        """Hair with a few soft strands and a shine that follows the light."""
        p, s = self.p, self.s
        x, y = self.hx / np.float32(p.width * 1.3), (self.hy + 0.1) / np.float32(p.height * 1.4)
        base = self.lit(p.hair, np.clip(x, -0.8, 0.8), np.clip(y, -0.9, 0.5))
        fall = self.hx + (np.float32(0.05) * np.sin(self.hy * 9) if p.style in ("wavy", "curly") else 0)
        strands = np.sin(fall * 34 + self.hy * 3) * np.float32(0.045)
        shine = 0.30 * np.exp(-(((self.hy + 0.42 - 0.3 * self.hx * s.light_dir[0]) / 0.10) ** 2))
        return np.asarray(base * (1 + strands + shine * 0.8)[..., None], np.float32)

    def hair_behind(self) -> None:
        if self.p.style in LONG or self.p.style == "bangs":
            self.fill(self.cover(self.hair_shell()), self.hair_colour() * np.float32(0.72), "hair")

    def neck(self) -> None:
        p = self.p
        half = 0.235 if p.male else 0.195
        lean = np.float32(np.sin(self.s.yaw) * 0.05)
        x = self.bx - lean * (1 - _step(0.4, 0.9, self.by))
        width = np.float32(half) + np.float32(0.16) * _step(0.62, 1.0, self.by) ** 2
        distance = np.maximum(np.abs(x) - width, np.float32(0.1) - self.by)
        skin = self.lit(p.skin, np.clip(x / width, -1, 1) * 0.8, np.zeros_like(x))
        self.fill(self.cover(distance), skin * np.float32(0.93), "neck")
        chin = p.height + 0.02
        under = self.cover(distance) * _step(chin + 0.22, chin - 0.03, self.hy)
        self.shade(under, 0.66)

    def clothes(self) -> None:
        p, s = self.p, self.s
        by = self.by + np.float32(0.10)
        broad = 0.86 if p.male else 0.74
        x = np.abs(self.bx)
        top = np.float32(0.70) + np.float32(0.22) * (x / np.float32(broad)) ** 2
        body = np.maximum(top - by, x - np.float32(broad + 0.03))
        cut = {
            "round": _ellipse(self.bx, by - 0.66, 0.27, 0.15),
            "v": (x * 1.15 + (by - np.float32(0.98))) * 0.65,
            "shirt": (x * 1.5 + (by - np.float32(0.92))) * 0.55,
            "high": _ellipse(self.bx, by - 0.62, 0.25, 0.05),
        }[s.collar]
        if s.tie:
            cut = (x * 1.5 + (by - np.float32(0.88))) * 0.55
        body = np.maximum(body, -cut)
        fold = 1 + 0.06 * np.sin(self.bx * 17 + by * 6)
        shaded = self.lit(s.cloth, np.clip(self.bx * 0.9, -0.8, 0.8), np.full_like(x, 0.25))
        alpha = self.cover(body)
        if s.necklace:
            self.necklace()
        self.fill(alpha, shaded * fold[..., None], "cloth")
        edge = alpha * np.clip(1 - np.abs(cut - 0.025) / 0.03, 0, 1)
        if s.collar == "shirt" or s.tie:
            band = alpha * self.cover(np.abs(cut - 0.05) - np.float32(0.05))
            self.fill(band, self.lit(s.cloth_alt, np.zeros_like(x), np.full_like(x, 0.1)), "cloth")
        else:
            self.shade(edge, 0.80)
        if s.tie:
            knot = np.maximum(x - np.float32(0.055) - np.float32(0.10) * (by - 0.86), np.float32(0.83) - by)
            self.fill(self.cover(knot), self.lit(s.tie_colour, self.bx * 3, np.zeros_like(x)), "cloth")

    def necklace(self) -> None:
        by = self.by + np.float32(0.10)
        arc = np.abs(_ellipse(self.bx, by - 0.60, 0.205, 0.17)) - np.float32(0.020)
        arc = np.maximum(arc, np.float32(0.60) - by)
        self.fill(self.cover(arc), self.lit(self.s.metal, np.sin(self.bx * 40) * 0.5, np.zeros_like(arc)), "neck_l")

    def ears(self) -> None:
        p, s = self.p, self.s
        if p.style in LONG or p.style == "bangs":
            return
        for side, name in ((-1.0, "r_ear"), (1.0, "l_ear")):
            show = 1 + 0.9 * side * -np.sin(s.yaw)
            cx = side * (p.width * np.cos(s.yaw * 0.6) + 0.012) + 0.10 * p.width * np.sin(s.yaw)
            a = 0.062 * p.ear_size * float(np.clip(show, 0.35, 1.3))
            x, y = self.hx - np.float32(cx), self.hy - np.float32(-0.01)
            distance = _ellipse(x, y, a, 0.105 * p.ear_size)
            self.fill(self.cover(distance), self.lit(p.skin, np.clip(x / a * 0.7, -1, 1), y * 0), name)
            self.shade(self.cover(_ellipse(x - side * 0.002, y, a * 0.55, 0.062), 3), 0.78)

    def earrings(self) -> None:
        p, s = self.p, self.s
        if not s.earrings:
            return
        for side in (-1.0, 1.0):
            cx = side * (p.width * np.cos(s.yaw * 0.6) + 0.022) + 0.10 * p.width * np.sin(s.yaw)
            x, y = self.hx - np.float32(cx), self.hy - np.float32(0.145)
            metal = self.lit(s.metal, np.clip(x * 12, -0.8, 0.8), np.clip(y * 8, -0.8, 0.8))
            self.fill(self.cover(_ellipse(x, y, 0.034, 0.05)), metal, "ear_r")

    def outline(self) -> Field:
        """Distance to the face outline: an egg whose lower half narrows to the chin."""
        p = self.p
        lower = np.clip(self.hy / np.float32(p.height), 0, 1)
        taper = 1 - np.float32(p.jaw) * lower ** np.float32(p.chin)
        x = self.hx - np.float32(0.05 * np.sin(self.s.yaw)) * lower
        squash = np.float32(np.cos(self.s.yaw * 0.45))
        return _super(x / (taper * squash), self.hy, p.width, p.height, 2.15)

    def head(self) -> None:
        p = self.p
        distance = self.outline()
        nx, ny = self.hx / np.float32(p.width * 1.08), self.hy / np.float32(p.height * 1.15)
        self.face = self.cover(distance)
        self.fill(self.face, self.lit(p.skin, np.clip(nx, -0.95, 0.95), np.clip(ny, -0.9, 0.9) * 0.8), "skin")
        if p.double_chin:
            arc = np.abs(_ellipse(self.hx, self.hy - np.float32(p.height * 0.62), 0.24, p.height * 0.33))
            self.shade(self.face * _step(0.03, 0.0, arc) * _step(0.40, 0.48, self.hy), 0.80)

    def skin_details(self) -> None:
        p, s = self.p, self.s
        for side in (-1.0, 1.0):
            cx, cy, narrow = self.place(side * 0.245, 0.09)
            x, y = self.hx - np.float32(cx), self.hy - np.float32(cy)
            glow = self.face * np.exp(-((x / (0.13 * narrow)) ** 2) - (y / 0.10) ** 2)
            tint = np.array([1.06, 0.93, 0.92] if not s.blush else [1.1, 0.70, 0.72], np.float32)
            self.rgb *= 1 + ((0.35 if not s.blush else s.blush) * glow)[..., None] * (tint - 1)
            if p.cheekbones:
                line = np.exp(-(((y - 0.10 + 0.5 * side * x) / 0.045) ** 2) - ((x - side * 0.03) / 0.12) ** 2)
                self.shade(self.face * line, 0.84)
                self.shade(self.face * np.exp(-(((y + 0.02 + 0.4 * side * x) / 0.04) ** 2) - (x / 0.10) ** 2), 1.10)
            self.eye_surroundings(side)
            if p.age > 48:
                fx, fy, _ = self.place(side * 0.155, 0.215)
                fold = np.abs((self.hx - fx) - side * 0.45 * (self.hy - fy)) - 0.006
                near = np.exp(-(((self.hy - fy) / 0.075) ** 2))
                self.shade(self.face * near * _step(0.022, 0.0, fold) * min(1, (p.age - 48) / 22), 0.80)
        if p.age > 55:
            lines = np.cos((self.hy + 0.34) * 95)
            near = np.exp(-((self.hx / 0.2) ** 2) - ((self.hy + 0.36) / 0.055) ** 2)
            self.shade(self.face * near * _step(0.55, 0.95, lines), 0.90)
        self.beard()

    def eye_surroundings(self, side: float) -> None:
        p, s = self.p, self.s
        cx, cy, narrow = self.place(side * p.eye_gap, EYES_Y)
        x, y = self.hx - np.float32(cx), self.hy - np.float32(cy)
        socket = self.face * np.exp(-((x / (0.17 * narrow)) ** 2) - ((y + 0.01) / 0.10) ** 2)
        self.shade(socket, 0.86)
        if s.shadow is not None:
            lid = self.face * np.exp(-((x / (0.15 * narrow)) ** 2) - ((y + 0.06) / 0.05) ** 2)
            self.fill(np.asarray(0.62 * lid, np.float32), s.shadow * s.light)
        if p.bags:
            arc = np.abs(_ellipse(x, y - np.float32(0.03), p.eye_width * 0.9 * narrow, 0.075))
            self.shade(self.face * _step(0.03, 0.0, arc) * _step(0.02, 0.06, y), 0.74)

    def beard(self) -> None:
        p = self.p
        if p.beard == "none" and not p.sideburns:
            return
        mx, my, _ = self.place(0.0, MOUTH_Y)
        x, y = self.hx - np.float32(mx), self.hy - np.float32(my)
        jaw = _step(0.10, 0.20, y + 0.55 * np.abs(x) + 0.02) * _step(0.30, 0.12, np.abs(x) * 0.0 - y - 0.12)
        stache = self.cover(np.maximum(_ellipse(x, y + 0.075, 0.165, 0.040), -_ellipse(x, y + 0.145, 0.06, 0.05)), 3)
        goatee = self.cover(_super(x, y - 0.135, 0.120, 0.095, 2.5), 4)
        ring = self.cover(np.abs(_ellipse(x, y - 0.01, 0.185, 0.125)) - np.float32(0.032), 4) * _step(-0.06, 0.0, y)
        colour = self.lit(p.hair * np.float32(0.82), x * 1.5, np.full_like(x, 0.2))
        if p.beard in ("stubble", "full"):
            amount = 0.40 if p.beard == "stubble" else 0.94
            region = np.maximum(jaw, stache if p.beard == "full" else stache * 0.8)
            self.fill(np.asarray(self.face * region * amount, np.float32), colour)
        if p.beard in ("moustache", "goatee"):
            self.fill(self.face * stache * np.float32(0.93), colour)
        if p.beard == "goatee":
            self.fill(self.face * np.maximum(goatee, ring) * np.float32(0.93), colour)
        if p.sideburns:
            side = (
                _step(p.width * 0.80, p.width * 0.93, np.abs(self.hx))
                * _step(0.22, 0.16, self.hy)
                * _step(-0.3, -0.1, self.hy)
            )
            self.fill(np.asarray(self.face * side * 0.93, np.float32), colour)

    def mouth(self) -> None:
        p, s = self.p, self.s
        cx, cy, narrow = self.place(0.0, MOUTH_Y)
        half = p.lip_width * (1 + 0.20 * max(s.smile, 0)) * narrow
        x, y = self.hx - np.float32(cx), self.hy - np.float32(cy)
        t = np.clip(np.abs(x) / np.float32(half), 0, 1)
        bend = np.float32(0.055 * s.smile) * (0.45 - t * t)  # corners up when smiling
        y = y - bend
        gap = np.float32(0.060 * s.open_mouth) * np.sqrt(np.clip(1 - t**2.2, 0, 1))
        round_ = np.sqrt(np.clip(1 - t**2, 0, 1))
        bow = 1 - np.float32(0.26) * np.exp(-((x / 0.03) ** 2))
        upper = np.float32(p.lip_full * 0.92 + 0.008) * round_ * bow
        lower = np.float32(p.lip_full * 1.15 + 0.010) * round_
        wide = np.abs(x) - np.float32(half)
        natural = p.skin * np.array([0.86, 0.58, 0.56], np.float32) + np.array([0.05, 0.0, 0.01], np.float32)
        lips = natural if s.lipstick is None else s.lipstick * np.float32(1.0)
        top = np.maximum(np.maximum(-y - gap * 0.4 - upper, y + gap * 0.4), wide)
        low = np.maximum(np.maximum(y - gap * 0.6 - lower, gap * 0.6 - y), wide)
        self.shade(self.face * np.exp(-((x / 0.10) ** 2) - ((y - 0.115) / 0.028) ** 2), 0.86)
        zero = np.zeros_like(x)
        self.fill(self.cover(top), self.lit(lips * np.float32(0.86), x * 2, zero + 0.35), "u_lip")
        self.fill(self.cover(low), self.lit(lips, x * 2, zero - 0.15), "l_lip")
        if s.open_mouth > 0:
            inner = np.maximum(np.maximum(-y - gap * 0.4, y - gap * 0.6), wide * 1.0 + 0.012)
            alpha = self.cover(inner)
            self.fill(alpha, np.array([0.26, 0.07, 0.08], np.float32) * s.light, "mouth")
            teeth = alpha * _step(0.010, -0.004, y + gap * 0.4 - np.float32(0.034))
            self.fill(
                np.asarray(teeth * (0.96 if s.smile > 0.1 else 0.6), np.float32),
                np.float32([0.95, 0.93, 0.88]) * s.light,
            )
        else:
            self.shade(self.cover(np.maximum(np.abs(y) - np.float32(0.007), wide), 1.2), 0.52)
        self.fill(
            np.asarray(0.30 * np.exp(-((x / 0.05) ** 2) - ((y - gap * 0.6 - lower * 0.45) / 0.014) ** 2), np.float32),
            s.light,
        )
        for side in (-1.0, 1.0):
            dimple = np.exp(
                -(((self.hx - cx - side * (half + 0.014)) / 0.020) ** 2) - ((self.hy - cy + 0.02 * s.smile) / 0.03) ** 2
            )
            self.shade(self.face * dimple, 0.80)

    def nose(self) -> None:
        p, s = self.p, self.s
        cx, cy, _ = self.place(0.0, NOSE_Y + p.nose_length)
        bx, by, _ = self.place(0.0, -0.10)
        tip = float(cx + 0.05 * np.sin(s.yaw))
        down = np.clip((self.hy - by) / (cy - by), 0, 1.3)
        centre = bx + (tip - bx) * down
        width = np.float32(0.034) + np.float32(p.nose_width * 0.62 - 0.02) * down**3
        x, y = self.hx - centre, self.hy - np.float32(cy)
        bridge = np.maximum(np.maximum(np.abs(x) - width, np.float32(by) - self.hy), y)
        ball = _ellipse(self.hx - np.float32(tip), y, p.nose_width * 0.70, 0.064)
        wings = np.minimum(
            _ellipse(self.hx - np.float32(tip - p.nose_width * 0.62), y - 0.012, p.nose_width * 0.46, 0.047),
            _ellipse(self.hx - np.float32(tip + p.nose_width * 0.62), y - 0.012, p.nose_width * 0.46, 0.047),
        )
        shape = np.minimum(np.minimum(bridge, ball), wings)
        alpha = self.cover(shape)
        self.shade(
            self.face * np.exp(-(((self.hx - tip) / (p.nose_width * 1.2)) ** 2) - ((y - 0.072) / 0.022) ** 2), 0.74
        )
        skin = self.lit(p.skin, np.clip(x / (width * 1.25), -0.9, 0.9), np.clip(y * 3.5, -0.3, 0.8))
        self.fill(np.asarray(alpha * 0.85, np.float32), skin, "nose")
        point = 0.45 + 0.5 * p.nose_point
        self.fill(
            np.asarray(
                point * 0.34 * np.exp(-(((self.hx - tip) / 0.024) ** 2) - ((y + 0.016) / 0.026) ** 2), np.float32
            ),
            s.light,
        )
        self.fill(np.asarray(0.16 * alpha * np.exp(-((x / 0.016) ** 2)) * _step(0.02, -0.05, y), np.float32), s.light)
        for side in (-1.0, 1.0):
            hole = _ellipse(
                self.hx - np.float32(tip + side * p.nose_width * 0.42), y - 0.036, p.nose_width * 0.22, 0.013
            )
            self.shade(self.cover(hole, 1.5), 0.38)

    def eye(self, side: float) -> None:
        p, s = self.p, self.s
        cx, cy, narrow = self.place(side * p.eye_gap, EYES_Y)
        a, b = p.eye_width * narrow * 0.92, p.eye_height * max(s.lids, 0.06) * (1 - 0.12 * max(s.smile, 0))
        x, y = (
            self.hx - np.float32(cx),
            self.hy - np.float32(cy) + np.float32(side * p.eye_tilt) * (self.hx - np.float32(cx)),
        )
        t = np.clip(np.abs(x) / np.float32(a), 0, 1)
        arch = np.float32(b) * np.sqrt(np.clip(1 - t**1.8, 0, 1))
        shape = np.maximum(np.maximum(-y - arch * 1.10, y - arch * 0.90), np.abs(x) - np.float32(a))
        alpha = self.cover(shape)
        name = "l_eye" if side > 0 else "r_eye"
        white = np.array([0.95, 0.94, 0.93], np.float32) * s.light
        self.fill(alpha, white * (0.80 + 0.20 * _step(-b, b * 0.2, y))[..., None], name)
        ix = x - np.float32(s.gaze * a * 0.45 + s.yaw * 0.04)
        radius = p.eye_height * 1.02 + 0.006
        iris = alpha * self.cover(_ellipse(ix, y, radius, radius))
        ring = _step(radius * 0.4, radius * 1.1, np.sqrt(ix**2 + y**2))
        self.fill(iris, (p.eye_colour * 1.15 * s.light) * (1.15 - 0.6 * ring)[..., None])
        self.fill(alpha * self.cover(_ellipse(ix, y, radius * 0.48, radius * 0.48)), np.float32([0.03, 0.03, 0.04]))
        spot = _ellipse(ix - np.float32(s.light_dir[0] * 0.030), y + np.float32(radius * 0.42), 0.016, 0.016)
        self.fill(alpha * self.cover(spot, 1.4) * np.float32(0.95), np.float32([1, 1, 1]))
        lash = np.abs(y + arch * 1.10) - np.float32(0.011 if p.male else 0.016)
        lash = np.maximum(lash, np.abs(x) - np.float32(a * 1.05))
        dark = p.hair * np.float32(0.25) if p.hair_name != "blond" else np.float32([0.22, 0.15, 0.1])
        self.fill(self.cover(lash, 1.2) * np.float32(0.9), dark * s.light)
        crease = np.maximum(np.abs(y + arch * 1.10 + 0.032) - np.float32(0.005), np.abs(x) - np.float32(a * 0.9))
        self.shade(self.cover(crease, 2.0), 0.74)

    def brow(self, side: float) -> None:
        p, s = self.p, self.s
        cx, cy, narrow = self.place(side * (p.eye_gap + 0.01), BROWS_Y - s.brow_raise - 0.35 * (p.eye_height - 0.06))
        x, y = (self.hx - np.float32(cx)) * side, self.hy - np.float32(cy)
        half = np.float32(p.eye_width * 1.18 * narrow)
        t = x / half  # -1 at the nose, 1 at the temple
        curve = -np.float32(p.brow_arch) * (1 - (t - 0.25) ** 2) + np.float32(0.028) * np.clip(t - 0.2, 0, 1)
        thick = np.float32(p.brow_thick) * (1.05 - 0.55 * np.clip((t + 1) / 2, 0, 1) ** 2)
        shape = np.maximum(np.abs(y - curve) - thick, np.abs(x) - half)
        colour = self.lit(
            p.hair * np.float32(0.70) if p.hair_name != "gray" else p.hair * np.float32(0.8), x * 0, x * 0 - 0.3
        )
        self.fill(self.cover(shape, 1.3), colour, "l_brow" if side > 0 else "r_brow")

    def glasses(self) -> None:
        p, s = self.p, self.s
        if s.glasses == "none":
            return
        frame = np.full_like(self.hx, 1e3)
        lens = np.full_like(self.hx, 1e3)
        thick = np.float32(0.017)
        for side in (-1.0, 1.0):
            cx, cy, narrow = self.place(side * p.eye_gap, EYES_Y + 0.02)
            shape = _super(self.hx - np.float32(cx), self.hy - np.float32(cy), 0.170 * narrow, 0.125, 3.2)
            lens = np.minimum(lens, shape)
            frame = np.minimum(frame, np.abs(shape) - thick)
            temple = np.maximum(
                np.abs(self.hy - np.float32(cy - 0.04)) - thick, (np.float32(abs(cx) + 0.16 * narrow) - side * self.hx)
            )
            frame = np.minimum(frame, np.maximum(temple, side * self.hx - np.float32(p.width + 0.01)))
        _, y, _ = self.place(0.0, EYES_Y)
        bridge = np.maximum(
            np.abs(self.hy - np.float32(y + 0.005)) - thick * 0.8,
            np.abs(self.hx - np.float32(self.place(0, 0)[0])) - 0.06,
        )
        frame = np.minimum(frame, np.maximum(bridge, -lens))
        glass = self.cover(lens)
        keep = ("l_eye", "r_eye")
        if s.glasses == "dark":
            tint = 0.80 + 0.10 * np.sin(self.hx * 4 + self.hy * 3)
            self.fill(np.asarray(glass * tint, np.float32), s.frame * np.float32(0.5) + np.float32(0.03), "eye_g", keep)
        else:
            self.fill(np.asarray(glass * 0.10, np.float32), s.light)
            self.label[(glass > 0.5) & ~np.isin(self.label, [CLASS_INDEX[k] for k in keep])] = CLASS_INDEX["eye_g"]
        glare = np.exp(-(((self.hx * 0.8 + self.hy * 0.6 - 0.05) / 0.035) ** 2)) + np.exp(
            -(((self.hx * 0.8 + self.hy * 0.6 + 0.24) / 0.035) ** 2)
        )
        self.fill(np.asarray(glass * 0.20 * glare, np.float32), s.light)
        self.fill(self.cover(frame), self.lit(s.frame, self.hx * 0, self.hy * 0 - 0.3), "eye_g", keep)

    def window(self) -> Field:
        """Distance to the part of the face that hair leaves free."""
        p, s = self.p, self.s
        line = {"receding": -0.41, "short": -0.40, "crop": -0.43, "bangs": -0.19, "curly": -0.36, "afro": -0.36, "bob": -0.38,
                "parting": -0.36}.get(p.style, -0.40)  # fmt: skip
        cx = 0.30 * p.width * np.sin(s.yaw)
        x = self.hx - np.float32(cx)
        half = p.width * (0.90 if p.style in LONG or p.style == "bangs" else 0.94 if p.style == "receding" else 0.965)
        rise = np.zeros_like(x)
        if p.style == "parting":
            rise = np.float32(0.17) * np.clip(-p.part_side * x / p.width + 0.25, -0.4, 1) - 0.05
        elif p.style == "receding":
            rise = np.float32(0.07) * np.cos(x * np.float32(3.1 / p.width)) - np.float32(0.05)
        elif p.style in ("long", "wavy", "bob", "bun"):
            rise = -np.float32(0.10) * np.exp(-(((x - 0.07 * p.part_side) / 0.16) ** 2))
        elif p.style == "bangs":
            rise = np.float32(0.012) * np.sin(x * 42) + np.float32(0.05) * (x / p.width) ** 2
        top = np.float32(line + 0.045 * s.pitch * 0.6) + rise
        corner = np.clip(np.abs(x) / np.float32(half), 0, 1)
        edge = np.abs(x) - np.float32(half) * np.sqrt(
            np.clip(1.0 - np.clip(-(self.hy + 0.05) / 0.62, 0, 1) ** 2.6, 0.02, 1)
        )
        return np.asarray(np.maximum(top + 0.10 * corner**4 - self.hy, edge), np.float32)

    def hair(self) -> None:
        p, s = self.p, self.s
        if p.style != "bald":
            shape = np.maximum(self.hair_shell(), -self.window())
            end = {
                "short": 0.05,
                "crop": -0.02,
                "receding": 0.0,
                "parting": 0.05,
                "bun": 0.0,
                "curly": 0.12,
                "afro": 0.16,
            }
            if p.style in end:
                shape = np.maximum(shape, self.hy - np.float32(end[p.style]))
                shape = np.maximum(
                    shape,
                    np.where(
                        self.hy > -0.12, -self.outline() * 0 + np.abs(self.hx) - np.float32(p.width + 0.20), -1
                    ).astype(np.float32),
                )
            self.shade(self.face * _step(0.05, 0.0, shape), 0.80)
            self.fill(self.cover(shape), self.hair_colour(), "hair")

    def hat(self) -> None:
        p, s = self.p, self.s
        if s.hat == "none":
            return
        x, y = self.hx - np.float32(0.10 * p.width * np.sin(s.yaw)), self.hy
        w, h = p.width + 0.085, p.height + 0.10
        low = np.float32(-0.30 + 0.05 * s.pitch * 0.5)
        zero = np.zeros_like(x)
        dome = np.maximum(_super(x, y + 0.05, w, h, 2.3), y - low)
        cloth = self.lit(s.hat_colour, np.clip(x / w, -0.9, 0.9), np.clip(y / h, -0.9, 0.3))
        trim = self.lit(s.hat_colour * np.float32(0.72), np.clip(x / w, -0.9, 0.9), zero)
        self.shade(self.face * _step(0.13, 0.0, y - low) * _step(-0.02, 0.0, y - low), 0.72)
        if s.hat == "band":
            band = np.maximum(_super(x, y + 0.05, w - 0.03, h - 0.02, 2.3), np.abs(y - low + 0.05) - np.float32(0.075))
            self.fill(self.cover(band), cloth, "hat")
            return
        self.fill(
            self.cover(dome), cloth * (1 + (0.10 * np.sin(x * 45) if s.hat == "beanie" else zero))[..., None], "hat"
        )
        if s.hat == "beanie":
            fold = np.maximum(np.abs(x) - np.float32(w), np.abs(y - low + 0.06) - np.float32(0.085))
            self.fill(self.cover(fold), trim, "hat")
        elif s.hat == "cap":
            visor = np.maximum(_ellipse(x - np.float32(0.18 * np.sin(s.yaw)), y - low, w * 0.98, 0.105), low - 0.02 - y)
            self.fill(self.cover(visor), trim, "hat")
        else:
            brim = _ellipse(x, y - low, w + 0.30, 0.085)
            self.fill(self.cover(brim), trim, "hat")

    def finish(self) -> tuple[UInt8Array, UInt8Array]:
        """Light the whole, average the samples of each pixel, take the class that covers most of it."""
        s, size = self.s, self.size
        self.rgb *= 0.35 + 0.65 * s.light
        quarters = self.rgb.reshape(size, SUPER, size, SUPER, 3)
        pixels = sum(quarters[:, i, :, j] for i in range(SUPER) for j in range(SUPER)) / np.float32(SUPER**2)
        if s.blurry:
            pixels = _blur(pixels, max(1, round(size / 64)))
        image = (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
        votes = self.label.reshape(size, SUPER, size, SUPER).transpose(0, 2, 1, 3).reshape(size, size, -1)
        return image, _majority(votes)


def _majority(votes: UInt8Array) -> UInt8Array:
    """The most frequent of a few labels [H, W, n]; ties go to the first."""
    counts = (votes[..., :, None] == votes[..., None, :]).sum(axis=-1)
    best: UInt8Array = np.take_along_axis(votes, counts.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    return best


def _blur(pixels: Field, radius: int) -> Field:
    """Box blur along both axes."""
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        total = np.cumsum(np.pad(pixels, pad, mode="edge"), axis=axis)
        high = np.take(total, np.arange(2 * radius, total.shape[axis]), axis=axis)
        low = np.take(total, np.arange(total.shape[axis] - 2 * radius), axis=axis)
        pixels = np.asarray((high - low) / (2 * radius), np.float32)
    return pixels
