"""The content of a picture as plain numbers and names: a person, and the scene."""

from dataclasses import dataclass

from raygen.datasets.procedural.fields import Colour

__all__ = ["Person", "Scene", "hidden_eyes"]


@dataclass(frozen=True)
class Person:
    """What all pictures of an identity have in common. Lengths are as in `painting`."""

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

    @property
    def has_hair(self) -> bool:
        """Whether there is hair on the head."""
        return self.style != "bald"

    @property
    def has_long_hair(self) -> bool:
        """Whether the hair falls beside the face."""
        return self.style in ("bob", "long", "wavy")

    @property
    def has_curls(self) -> bool:
        """Whether the hair has a round shape."""
        return self.style in ("curly", "afro")


@dataclass(frozen=True)
class Scene:
    """What differs between the pictures of an identity. Angles are in radians."""

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
    """Whether the eyes are invisible."""
    return scene.glasses == "dark"
