"""The picture while it is painted: coordinates, light, and strokes.

It is planar float32 [3, n, n], on a grid a few times finer than the result. There are three coordinate systems:

- body: upright, moved and zoomed; x [1, n], y [n, 1].
- head: the body's, rolled about the neck; x, y [n, n].
- face: u, v on an ellipsoid that turns and nods, equal to the head's x, y when the head looks ahead; [n, n].
"""

import numpy as np
import numpy.typing as npt

from raygen.core.face_labels import CLASS_INDEX
from raygen.datasets.procedural.fields import WHITE, Colour, Field, clip, planes, scaled
from raygen.datasets.procedural.scene import Person, Scene

__all__ = ["Box", "Canvas", "UInt8Array"]


Box = tuple[slice, slice]
UInt8Array = npt.NDArray[np.uint8]

#: The head rolls about this height.
_NECK = 0.70


class Canvas:
    """The samples of one picture, `rgb` and the class `label`, with its person and scene."""

    def __init__(self, person: Person, scene: Scene, size: int) -> None:
        self.person, self.scene, self.size = person, scene, size
        self.factor = 4 if size < 48 else 2 if size <= 160 else 1
        n = self.n = size * self.factor
        self.pixel = 2 / (n * scene.zoom)
        self.rgb = np.zeros((3, n, n), np.float32)
        self.label = np.zeros((n, n), np.uint8)
        axis = (np.arange(n, dtype=np.float32) + 0.5) * (2 / n) - 1
        self.x, self.y = axis[None, :], axis[:, None]  # of the picture itself, -1..1
        self._body_x = (self.x - scene.shift[0]) * (1 / scene.zoom)
        self._body_y = (self.y - scene.shift[1]) * (1 / scene.zoom)
        self._cos_roll, self._sin_roll = float(np.cos(scene.roll)), float(np.sin(scene.roll))
        self._head_x = self._cos_roll * self._body_x + self._sin_roll * (self._body_y - _NECK)
        self._head_y = self._cos_roll * (self._body_y - _NECK) - self._sin_roll * self._body_x + _NECK
        self.turn, self.nod = float(np.sin(scene.yaw)), float(np.sin(scene.pitch))
        self._cos_yaw, self._cos_pitch = float(np.cos(scene.yaw)), float(np.cos(scene.pitch))
        self._radii = person.width * 1.22, 0.86  # of the ellipsoid
        nx, ny = self._head_x * (1 / self._radii[0]), self._head_y * (1 / self._radii[1])
        nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0))
        self._u = (nx * self._cos_yaw - nz * self.turn) * self._radii[0]
        self._v = (ny * self._cos_pitch - (nx * self.turn + nz * self._cos_yaw) * self.nod) * self._radii[1]
        self.face_box = self.around(0, 0.02, person.width + 0.05, 0.70)
        self.chest_box = self.around(0, 1.05, 1.4, 0.50)

    # --- coordinates ---

    def body(self, box: Box) -> tuple[Field, Field]:
        """Coordinates of the body in the piece `box`."""
        return self._body_x[:, box[1]], self._body_y[box[0]]

    def head(self, box: Box) -> tuple[Field, Field]:
        """Coordinates of the head in the piece `box`."""
        return self._head_x[box], self._head_y[box]

    def face(self, box: Box) -> tuple[Field, Field]:
        """Coordinates of the face in the piece `box`."""
        return self._u[box], self._v[box]

    def around(self, x: float, y: float, rx: float, ry: float) -> Box:
        """The piece of the picture around a point of the head, with radii `rx` and `ry`."""
        cos, sin = self._cos_roll, self._sin_roll
        bx, by = cos * x - sin * (y - _NECK), sin * x + cos * (y - _NECK) + _NECK
        rx, ry = rx + abs(sin) * ry, ry + abs(sin) * rx
        slices = []
        for centre, radius, shift in ((by, ry, self.scene.shift[1]), (bx, rx, self.scene.shift[0])):
            low = ((centre - radius) * self.scene.zoom + shift + 1) * self.n / 2
            high = ((centre + radius) * self.scene.zoom + shift + 1) * self.n / 2
            first = min(max(int(low), 0), self.n - 2)
            slices.append(slice(first, max(min(int(high) + 2, self.n), first + 2)))
        return slices[0], slices[1]

    def around_on_face(self, u: float, v: float, ru: float, rv: float) -> Box:
        """The piece around a point of the face, inside `face_box`."""
        x, y = self._of_face(u, v)
        small = self.around(x + 0.08 * self.turn, y + 0.05 * self.nod, ru, rv)
        rows, columns = (
            slice(min(max(a.start, b.start), b.stop - 2), max(min(a.stop, b.stop), b.start + 2))
            for a, b in zip(small, self.face_box, strict=True)
        )
        return rows, columns

    def _of_face(self, u: float, v: float) -> tuple[float, float]:
        """A point of the face, on the ellipsoid, turned and nodded, in coordinates of the head."""
        a, b = u / self._radii[0], v / self._radii[1]
        z = float(np.sqrt(max(1 - a * a - b * b, 0)))
        nodded, z = b * self._cos_pitch + z * self.nod, z * self._cos_pitch - b * self.nod
        return (a * self._cos_yaw + z * self.turn) * self._radii[0], nodded * self._radii[1]

    def place(self, u: float, v: float) -> tuple[float, float]:
        """A point of the face as fractions of the sides of the picture, x and y."""
        x, y = self._of_face(u, v)
        cos, sin = self._cos_roll, self._sin_roll
        bx, by = cos * x - sin * (y - _NECK), sin * x + cos * (y - _NECK) + _NECK
        (dx, dy), zoom = self.scene.shift, self.scene.zoom
        return (bx * zoom + dx + 1) / 2, (by * zoom + dy + 1) / 2

    # --- light ---

    def facing(self, nx: Field, ny: Field) -> Field:
        """Direct light on a surface with the normal (nx, ny, ·), 0..1."""
        x, y, z = self.scene.sun
        nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0.02))
        return clip((nx * x + ny * y + nz * z + 0.25) * 0.8, 0, 1)

    def lit(self, colour: Colour, amount: Field | float) -> Field:
        """A colour under this much direct light, [3, ...]; shadows are slightly warmer."""
        d = np.asarray(amount, np.float32)
        shaded = np.empty((3, *(d.shape or (1, 1))), np.float32)
        for i, warm in enumerate((0.22, 0.06, 0.0)):
            c, light, ambient = colour[i], self.scene.light[i], self.scene.ambient[i]
            np.multiply(d, -c * light * warm, out=shaded[i])
            shaded[i] += c * light * (1 + warm)
            shaded[i] *= d
            shaded[i] += c * ambient
        return shaded

    # --- strokes ---

    def cover(self, distance: Field, soft: float = 1.0) -> Field:
        """Coverage 0..1 of the inside of a distance; `soft` widens the edge."""
        t: Field = np.asarray(0.5 - distance * (1 / (self.pixel * soft * 1.2)))
        np.maximum(t, 0, out=t)
        np.minimum(t, 1, out=t)
        return t

    def fill(self, box: Box, alpha: Field, colour: Colour | Field, name: str | None = None) -> None:
        """Blend in a colour ([3], or [3, h, w]), and set its class where alpha is above 0.5."""
        view = self.rgb[:, box[0], box[1]]
        change = (planes(colour) if isinstance(colour, tuple) else colour) - view
        change *= alpha
        view += change
        if name is not None:
            self.mark(box, alpha > 0.5, name)

    def put(self, box: Box, distance: Field, colour: Colour, amount: Field | float, name: str | None = None) -> None:
        """Fill the inside of a shape, given as a distance, with a colour under this much light."""
        self.fill(box, self.cover(distance), self.lit(colour, amount), name)

    def shade(self, box: Box, alpha: Field, factor: float, tint: Colour = WHITE) -> None:
        """Multiply by `factor` (and `tint`) where alpha is 1."""
        view = self.rgb[:, box[0], box[1]]
        if tint == WHITE:
            view *= 1 + alpha * (factor - 1)
        else:
            view *= 1 + alpha * (planes(scaled(tint, factor)) - 1)

    def brighten(self, box: Box, by: Field) -> None:
        """Multiply by 1 + `by`."""
        self.rgb[:, box[0], box[1]] *= 1 + by

    def add(self, box: Box, light: Field) -> None:
        """Add light, [3, h, w]."""
        self.rgb[:, box[0], box[1]] += light

    def mark(self, box: Box, where: npt.NDArray[np.bool_], name: str) -> None:
        """Set the class without changing colours."""
        np.copyto(self.label[box], CLASS_INDEX[name], where=where)

    def shows(self, box: Box, *names: str) -> npt.NDArray[np.bool_]:
        """Where the class is one of `names` so far."""
        label = self.label[box]
        shown = np.zeros(label.shape, np.bool_)
        for name in names:
            shown |= label == CLASS_INDEX[name]
        return shown

    # --- result ---

    def finish(self) -> tuple[UInt8Array, UInt8Array]:
        """RGB and classes of the pixels: the mean, and the most frequent class, of their samples."""
        rgb, label = self.rgb, self.label
        for _ in range(self.factor.bit_length() - 1):
            rgb = (rgb[:, ::2] + rgb[:, 1::2]) * 0.5
            rgb = (rgb[:, :, ::2] + rgb[:, :, 1::2]) * 0.5
            a, b, c, d = label[::2, ::2], label[::2, 1::2], label[1::2, ::2], label[1::2, 1::2]
            label = np.where((b == c) | (b == d), b, np.where(c == d, c, a))
        if self.scene.blurry:
            from scipy import ndimage  # here, because jobs are read and checked without it

            rgb = ndimage.gaussian_filter(rgb, (0, self.size / 85, self.size / 85), mode="nearest", truncate=2.5)
        pixels = (clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
        return np.ascontiguousarray(pixels), np.ascontiguousarray(label)
