"""Drawing a face with its mask, attributes and captions.

`scene_sampler` chooses person and scene, `painting` paints them; here are the attributes and captions that are true of
them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from raygen.core.face_labels import ATTRIBUTES
from raygen.datasets.procedural.painting import paint
from raygen.datasets.procedural.scene import Person, Scene
from raygen.datasets.procedural.scene_sampler import person_of, scene_of

__all__ = ["SIZES", "DrawnFace", "draw"]


#: Smallest and largest picture, pixels.
SIZES: Final = (32, 512)


@dataclass(frozen=True)
class DrawnFace:
    """One drawn picture and its labels.

    `pixels` RGB uint8 [size, size, 3]; `mask` class ids uint8 [size, size]; `attributes` int8 [40] of -1 and 1;
    `texts` a caption by recipe: Bangs, Eyeglasses, No_Beard, Smiling, Young, `overall` (all five), and
    `beard_and_age` (those that a mask does not show).
    """

    pixels: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    attributes: npt.NDArray[np.int8]
    texts: Mapping[str, str]
    identity_id: str


def draw(seed: int, identity: int, variant: int, size: int) -> DrawnFace:
    """Picture `variant` of person `identity`; depends on the four arguments only.

    The same seed, identity and variant at another size show the same scene. `ValueError` for a size outside
    32..512.
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size {size} is not in {SIZES[0]}..{SIZES[1]}")
    person = person_of(seed, identity)
    scene = scene_of(seed, identity, variant, person)
    pixels, mask = paint(person, scene, size)
    return DrawnFace(pixels, mask, _attributes(person, scene), _captions(person, scene), f"p{identity:06d}")


def _covered(scene: Scene) -> bool:
    """Whether a hat hides the hairline."""
    return scene.hat != "none"


def _attributes(person: Person, scene: Scene) -> npt.NDArray[np.int8]:
    p, s = person, scene
    hair = p.has_hair
    young = p.age < 42
    true = {
        "5_o_Clock_Shadow": p.beard == "stubble",
        "Arched_Eyebrows": p.brow_arch > 0.036,
        "Attractive": young and not (p.chubby or p.double_chin or p.bags) and s.smile > -0.1,
        "Bags_Under_Eyes": p.bags,
        "Bald": not hair,
        "Bangs": p.bangs > 0 and not _covered(s),
        "Big_Lips": p.lip_full > 0.050,
        "Big_Nose": p.nose_width > 0.108,
        "Black_Hair": hair and p.hair_name == "black",
        "Blond_Hair": hair and p.hair_name == "blond",
        "Blurry": s.blurry,
        "Brown_Hair": hair and p.hair_name == "brown",
        "Bushy_Eyebrows": p.brow_thick > 0.033,
        "Chubby": p.chubby,
        "Double_Chin": p.double_chin,
        "Eyeglasses": s.glasses != "none",
        "Goatee": p.beard in ("goatee", "chin"),
        "Gray_Hair": hair and p.hair_name == "gray",
        "Heavy_Makeup": s.lipstick is not None and s.shadow is not None,
        "High_Cheekbones": p.cheekbones,
        "Male": p.male,
        "Mouth_Slightly_Open": s.gape > 0,
        "Mustache": p.beard in ("moustache", "goatee", "full"),
        "Narrow_Eyes": p.eye_height * s.lids < 0.046,
        "No_Beard": p.beard in ("none", "moustache"),
        "Oval_Face": p.jaw > 0.24 and p.square < 0.3 and not p.chubby,
        "Pale_Skin": p.pale,
        "Pointy_Nose": p.nose_sharp > 0.62 and p.nose_width <= 0.108,
        "Receding_Hairline": p.style == "receding",
        "Rosy_Cheeks": s.blush > 0,
        "Sideburns": p.sideburns,
        "Smiling": s.smile > 0.35,
        "Straight_Hair": p.style in ("bob", "long", "parting"),
        "Wavy_Hair": p.style in ("wavy", "curly"),
        "Wearing_Earrings": s.earrings != "none",
        "Wearing_Hat": s.hat != "none",
        "Wearing_Lipstick": s.lipstick is not None,
        "Wearing_Necklace": s.necklace != "none",
        "Wearing_Necktie": s.tie,
        "Young": young,
    }
    return np.array([1 if true[name] else -1 for name in ATTRIBUTES], dtype=np.int8)


def _captions(person: Person, scene: Scene) -> dict[str, str]:
    noun, they, own = ("man", "He", "his") if person.male else ("woman", "She", "her")
    glasses = f"{they} is not wearing any eyeglasses."
    if scene.glasses != "none":
        kind = "sunglasses with dark" if scene.glasses == "dark" else "eyeglasses with clear"
        rim = "thin" if scene.frame[1] < 0.019 else "thick"
        glasses = f"{they} is wearing {kind} lenses and a {rim} frame."
    age = "is in the late teens" if person.age < 20 else "is very old"
    if 20 <= person.age < 72:
        decades = ("twenties", "thirties", "forties", "fifties", "sixties", "seventies")
        age = f"is in the {decades[int(person.age // 10) - 2]}"
    texts = {
        "Bangs": _bangs(person, scene, they, own),
        "Eyeglasses": glasses,
        "No_Beard": {
            "none": f"{they} has no beard at all.",
            "stubble": f"{they} has a short stubble on {own} chin and cheeks.",
            "moustache": f"{they} has a moustache but no beard.",
            "goatee": f"{they} has a goatee around {own} mouth.",
            "chin": f"{they} has a small beard on {own} chin.",
            "full": f"{they} has a full, thick beard.",
        }[person.beard],
        "Smiling": _smile(scene, they),
        "Young": f"This {noun} {age}.",
    }
    texts["overall"] = " ".join(texts[name] for name in ("Young", "Bangs", "Eyeglasses", "No_Beard", "Smiling"))
    texts["beard_and_age"] = f"{texts['Young']} {texts['No_Beard']}"
    return texts


def _bangs(person: Person, scene: Scene, they: str, own: str) -> str:
    if _covered(scene):
        return f"A hat covers {own} hairline, so no bangs can be seen."
    if person.bangs == 0:
        return f"{they} has no bangs and {own} whole forehead is visible."
    if person.bangs < 0.55:
        return f"{they} has short bangs that cover a small part of {own} forehead."
    if person.bangs < 0.78:
        return f"{they} has medium bangs that cover half of {own} forehead."
    return f"{they} has long bangs that cover almost all of {own} forehead."


def _smile(scene: Scene, they: str) -> str:
    if scene.smile > 0.75:
        return f"{they} is smiling broadly" + (" and showing teeth." if scene.gape else ".")
    if scene.smile > 0.35:
        return f"{they} has a gentle smile" + (" with the mouth slightly open." if scene.gape else ".")
    return f"{they} is hardly smiling." if scene.smile > 0.08 else f"{they} looks serious, without any smile."
