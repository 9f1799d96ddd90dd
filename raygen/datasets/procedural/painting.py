"""Painting a person in a scene: soft-edged shapes, a face with relief, light; pixels and a class mask.

Every number comes from `Person` and `Scene`. Lengths are in half picture widths at zoom 1, x to the right, y down; the
person's left is on the right of the picture.
"""

from raygen.datasets.procedural.accessories import earrings, glasses, hat, necklace
from raygen.datasets.procedural.canvas import Canvas, UInt8Array
from raygen.datasets.procedural.clothes import backdrop, clothes
from raygen.datasets.procedural.features import brow, eye, mouth
from raygen.datasets.procedural.hair import beard, hair_before, hair_behind, haircut
from raygen.datasets.procedural.scene import Person, Scene
from raygen.datasets.procedural.skin import ears, face, neck

__all__ = ["paint"]


def paint(person: Person, scene: Scene, size: int) -> tuple[UInt8Array, UInt8Array]:
    """RGB uint8 [size, size, 3] and class ids uint8 [size, size], painted from back to front."""
    canvas = Canvas(person, scene, size)
    hair = haircut(canvas)
    backdrop(canvas)
    if hair is not None:
        hair_behind(canvas, hair)
    neck(canvas)
    clothes(canvas)
    necklace(canvas)
    ears(canvas)
    shading = face(canvas)
    beard(canvas, shading)
    mouth(canvas)
    for side in (-1, 1):
        eye(canvas, side)
    glasses(canvas)
    for side in (-1, 1):
        brow(canvas, side)
    if hair is not None:
        hair_before(canvas, hair)
    earrings(canvas)
    hat(canvas)
    return canvas.finish()
