"""How a person in a scene becomes pixels and a class mask: soft-edged shapes, a face with relief, light.

Knows shapes and shading; chooses nothing, every number comes from `Person` and `Scene`. Lengths are in half
picture widths at zoom 1, x to the right, y down; the person's left is on the right of the picture.
"""

from raygen.datasets.procedural.fields import Colour
from raygen.datasets.procedural.scene import Person, Scene, hidden_eyes
from raygen.datasets.procedural.types import paint

__all__ = ["Colour", "Person", "Scene", "hidden_eyes", "paint"]
