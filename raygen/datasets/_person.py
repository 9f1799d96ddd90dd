"""Who is drawn: the looks of a procedural identity, and what varies from picture to picture.

Knows how a person and a scene are chosen from keys, and which attributes and captions follow. Draws nothing.
Every number is chosen before any pixel is, so one scene is the same at every size.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from raygen.faces import ATTRIBUTES

__all__ = ["Person", "Scene", "attributes_of", "captions_of", "person_of", "scene_of"]

Colour = npt.NDArray[np.float32]
HAIR_STYLES: Final = (
    "bald", "receding", "short", "crop", "parting", "bangs", "bob", "long", "wavy", "curly", "afro", "bun",
)  # fmt: skip
LONG: Final = frozenset({"bob", "long", "wavy"})
BEARDS: Final = ("none", "stubble", "moustache", "goatee", "full")
HATS: Final = ("none", "cap", "beanie", "brim", "band")


def _rng(*words: object) -> np.random.Generator:
    data = hashlib.blake2b("|".join(map(str, words)).encode(), digest_size=16, person=b"raygen-faces-1").digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(data, "little")))


def _colour(*values: float) -> Colour:
    return np.array(values, dtype=np.float32)


def _mix(a: Colour, b: Colour, t: float) -> Colour:
    return (a + (b - a) * np.float32(t)).astype(np.float32)


_SKIN: Final = [_colour(*c) for c in (
    (0.97, 0.82, 0.73), (0.94, 0.76, 0.64), (0.89, 0.70, 0.56), (0.78, 0.57, 0.42), (0.62, 0.43, 0.30),
    (0.46, 0.30, 0.21), (0.33, 0.21, 0.15),
)]  # fmt: skip
_HAIR: Final = {
    "black": [_colour(0.07, 0.06, 0.07), _colour(0.16, 0.13, 0.13)],
    "brown": [_colour(0.25, 0.15, 0.09), _colour(0.50, 0.32, 0.19)],
    "blond": [_colour(0.70, 0.53, 0.30), _colour(0.95, 0.84, 0.60)],
    "gray": [_colour(0.55, 0.55, 0.56), _colour(0.90, 0.90, 0.89)],
    "red": [_colour(0.52, 0.20, 0.09), _colour(0.78, 0.38, 0.18)],
    "dyed": [_colour(0.55, 0.25, 0.50), _colour(0.30, 0.55, 0.62)],
}
_EYES: Final = [_colour(*c) for c in (
    (0.23, 0.13, 0.07), (0.38, 0.23, 0.12), (0.30, 0.42, 0.22), (0.25, 0.45, 0.65), (0.45, 0.55, 0.60),
)]  # fmt: skip


@dataclass(frozen=True)
class Person:
    """What stays the same over all pictures of one identity. Lengths are in half picture widths."""

    male: bool
    age: float
    tone: float
    skin: Colour
    width: float
    height: float
    jaw: float
    chin: float
    eye_colour: Colour
    eye_width: float
    eye_height: float
    eye_gap: float
    eye_tilt: float
    brow_thick: float
    brow_arch: float
    nose_width: float
    nose_length: float
    nose_point: float
    lip_width: float
    lip_full: float
    ear_size: float
    hair_name: str
    hair: Colour
    style: str
    part_side: float
    volume: float
    beard: str
    sideburns: bool
    bags: bool
    cheekbones: bool
    double_chin: bool
    glasses: float
    lipstick: float


@dataclass(frozen=True)
class Scene:
    """What changes from picture to picture."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    dx: float
    dy: float
    light: Colour
    light_dir: tuple[float, float, float]
    ambient: float
    smile: float
    open_mouth: float
    lids: float
    brow_raise: float
    gaze: float
    glasses: str
    frame: Colour
    hat: str
    hat_colour: Colour
    earrings: bool
    metal: Colour
    necklace: bool
    tie: bool
    tie_colour: Colour
    cloth: Colour
    cloth_alt: Colour
    collar: str
    lipstick: Colour | None
    shadow: Colour | None
    blush: float
    background: tuple[Colour, Colour]
    blobs: tuple[tuple[float, float, float, Colour], ...]
    blurry: bool


def person_of(seed: int, identity: int) -> Person:
    """The looks of one identity."""
    r = _rng("person", seed, identity)
    male = bool(r.random() < 0.5)
    age = float(np.clip(18 + 62 * r.beta(1.3, 2.0), 18, 80))
    tone = float(r.random())
    chubby = float(r.normal(0, 1))
    style = _style(r, male, age)
    name = _hair_name(r, age, tone)
    place = float(r.random())
    can_beard = male and age > 20
    return Person(
        male=male, age=age, tone=tone, skin=_skin(r, tone),
        width=float(0.415 + 0.022 * chubby + (0.012 if male else 0)), height=float(0.545 + 0.02 * r.normal()),
        jaw=float(np.clip(0.30 + (0.0 if male else 0.07) - 0.03 * chubby + 0.05 * r.normal(), 0.12, 0.46)),
        chin=float(r.uniform(2.0, 2.5) + (0.35 if male else 0)),
        eye_colour=_mix(_EYES[i := int(r.integers(0, 5 if tone < 0.5 else 2))], _EYES[min(i + 1, 4)], r.random() * 0.5),
        eye_width=float(r.uniform(0.118, 0.150)), eye_height=float(r.uniform(0.046, 0.080)),
        eye_gap=float(r.uniform(0.175, 0.205)), eye_tilt=float(r.uniform(-0.10, 0.16)),
        brow_thick=float(r.uniform(0.018, 0.034) + (0.010 if male else -0.002)), brow_arch=float(r.uniform(0.0, 0.055)),
        nose_width=float(r.uniform(0.075, 0.125) + (0.008 if male else 0)), nose_length=float(r.uniform(0.0, 0.05)),
        nose_point=float(r.random()), lip_width=float(r.uniform(0.135, 0.185)),
        lip_full=float(r.uniform(0.030, 0.062) - (0.006 if male else 0)), ear_size=float(r.uniform(0.85, 1.2)),
        hair_name=name, hair=_mix(_HAIR[name][0], _HAIR[name][1], place), style=style,
        part_side=float(r.choice([-1.0, 1.0])), volume=float(r.uniform(0.0, 1.0)),
        beard=str(r.choice(BEARDS, p=[0.42, 0.18, 0.12, 0.12, 0.16])) if can_beard else "none",
        sideburns=bool(can_beard and style not in ("bald",) and r.random() < 0.3),
        bags=bool(r.random() < (0.5 if age > 50 else 0.15)),
        cheekbones=bool(r.random() < 0.4), double_chin=bool(chubby > 0.7 and r.random() < 0.7),
        glasses=float(r.random()), lipstick=float(r.random()),
    )  # fmt: skip


def _style(r: np.random.Generator, male: bool, age: float) -> str:
    if male:
        p = [0.10, 0.10, 0.22, 0.18, 0.16, 0.08, 0.02, 0.03, 0.02, 0.05, 0.04, 0.0]
        if age > 45:
            p = [0.22, 0.25, 0.17, 0.12, 0.14, 0.03, 0.01, 0.01, 0.01, 0.02, 0.02, 0.0]
    else:
        p = [0.01, 0.01, 0.04, 0.03, 0.10, 0.17, 0.15, 0.17, 0.15, 0.06, 0.05, 0.06]
    return str(r.choice(HAIR_STYLES, p=np.array(p) / np.sum(p)))


def _hair_name(r: np.random.Generator, age: float, tone: float) -> str:
    if r.random() < np.clip((age - 42) / 40, 0, 0.85):
        return "gray"
    p = [0.20, 0.36, 0.28, 0.10, 0.06] if tone < 0.5 else [0.60, 0.28, 0.05, 0.02, 0.05]
    return str(r.choice(["black", "brown", "blond", "red", "dyed"], p=p))


def _skin(r: np.random.Generator, tone: float) -> Colour:
    place = tone * (len(_SKIN) - 1)
    low = min(int(place), len(_SKIN) - 2)
    return np.clip(_mix(_SKIN[low], _SKIN[low + 1], place - low) + r.normal(0, 0.015, 3), 0, 1).astype(np.float32)


def _any_colour(r: np.random.Generator) -> Colour:
    """A colour of anything at all; often one of skin or hair, so that colour says little about the class."""
    kind = r.random()
    if kind < 0.22:
        return np.clip(_skin(r, float(r.random())) + r.normal(0, 0.03, 3), 0, 1).astype(np.float32)
    if kind < 0.42:
        pair = _HAIR[str(r.choice(list(_HAIR)))]
        return _mix(pair[0], pair[1], float(r.random()))
    if kind < 0.62:
        return np.full(3, r.uniform(0.06, 0.95), np.float32) + r.normal(0, 0.02, 3).astype(np.float32)
    hue, sat, value = r.random(), r.uniform(0.25, 0.85), r.uniform(0.25, 0.92)
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    return (value - value * sat * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)


def scene_of(seed: int, identity: int, variant: int, person: Person) -> Scene:
    """One picture of a person."""
    r = _rng("scene", seed, identity, variant)
    warm = r.normal(0, 1)
    light = np.clip(np.array([1 + 0.07 * warm, 1.0, 1 - 0.08 * warm]) + r.normal(0, 0.03, 3), 0.75, 1.2)
    light *= r.uniform(0.80, 1.08)
    side, up = r.uniform(-0.9, 0.9), r.uniform(-0.8, -0.1)
    length = np.sqrt(side**2 + up**2 + 1)
    smile = float(np.clip(r.normal(0.42, 0.42), -0.35, 1))
    talking = r.random() < 0.40
    wears = person.glasses > 0.78 or r.random() < 0.08
    female_extra = 0.0 if person.male else 1.0
    made_up = (not person.male) and r.random() < 0.25 + 0.4 * person.lipstick
    reds = [_colour(0.72, 0.10, 0.16), _colour(0.80, 0.30, 0.34), _colour(0.55, 0.10, 0.22), _colour(0.76, 0.42, 0.38)]
    return Scene(
        yaw=float(np.clip(r.normal(0, 0.20), -0.45, 0.45)), pitch=float(np.clip(r.normal(0, 0.35), -0.8, 0.8)),
        roll=float(np.clip(r.normal(0, 0.06), -0.14, 0.14)), scale=float(r.uniform(0.95, 1.09)),
        dx=float(r.normal(0, 0.015)), dy=float(r.normal(0, 0.015)),
        light=light.astype(np.float32), light_dir=(float(side / length), float(up / length), float(1 / length)),
        ambient=float(r.uniform(0.45, 0.68)), smile=smile,
        open_mouth=float(r.uniform(0.25, 1.0)) if talking else 0.0,
        lids=float(r.choice([1.0, 1.0, 1.0, 0.75, 0.5, 0.08], p=[0.3, 0.25, 0.2, 0.12, 0.09, 0.04])),
        brow_raise=float(r.normal(0, 0.012)), gaze=float(np.clip(r.normal(0, 0.25), -0.6, 0.6)),
        glasses=str(r.choice(["clear", "dark"], p=[0.8, 0.2])) if wears else "none",
        frame=_colour(*(np.clip(_any_colour(r) * r.uniform(0.1, 0.8), 0, 1))),
        hat=str(r.choice(HATS[1:])) if r.random() < 0.12 else "none", hat_colour=_any_colour(r),
        earrings=bool(r.random() < 0.04 + 0.36 * female_extra), metal=_colour(*((0.93, 0.78, 0.35) if r.random() < 0.6 else (0.85, 0.87, 0.90))),
        necklace=bool(r.random() < 0.03 + 0.27 * female_extra), tie=bool(person.male and r.random() < 0.22),
        tie_colour=_any_colour(r), cloth=_any_colour(r), cloth_alt=_any_colour(r),
        collar=str(r.choice(["round", "v", "shirt", "high"], p=[0.35, 0.25, 0.28, 0.12])),
        lipstick=reds[int(r.integers(0, 4))] if made_up else None,
        shadow=_any_colour(r) if made_up and r.random() < 0.6 else None,
        blush=float(r.uniform(0.3, 0.75)) if (made_up and r.random() < 0.5) or r.random() < 0.06 else 0.0,
        background=(_any_colour(r), _any_colour(r)),
        blobs=tuple((float(r.uniform(-1, 1)), float(r.uniform(-1, 1)), float(r.uniform(0.15, 0.6)), _any_colour(r)) for _ in range(int(r.integers(0, 4)))),
        blurry=bool(r.random() < 0.04),
    )  # fmt: skip


# --- what follows ---------------------------------------------------------------------------------------------


def covers(person: Person, scene: Scene) -> bool:
    """Whether a hat hides the hairline."""
    return scene.hat in ("cap", "beanie", "brim")


def attributes_of(person: Person, scene: Scene) -> npt.NDArray[np.int8]:
    """The 40 CelebA attributes of a picture, int8 [40] of -1 and 1."""
    p, s = person, scene
    hair = p.style != "bald"
    made_up = s.lipstick is not None
    true: dict[str, Any] = {
        "5_o_Clock_Shadow": p.beard == "stubble", "Arched_Eyebrows": p.brow_arch > 0.036,
        "Attractive": p.age < 38 and p.jaw > 0.24, "Bags_Under_Eyes": p.bags, "Bald": not hair,
        "Bangs": p.style == "bangs" and not covers(p, s), "Big_Lips": p.lip_full > 0.048, "Big_Nose": p.nose_width > 0.110,
        "Black_Hair": hair and p.hair_name == "black", "Blond_Hair": hair and p.hair_name == "blond", "Blurry": s.blurry,
        "Brown_Hair": hair and p.hair_name == "brown", "Bushy_Eyebrows": p.brow_thick > 0.034, "Chubby": p.width > 0.446,
        "Double_Chin": p.double_chin, "Eyeglasses": s.glasses != "none", "Goatee": p.beard == "goatee",
        "Gray_Hair": hair and p.hair_name == "gray", "Heavy_Makeup": made_up and (s.shadow is not None or s.blush > 0),
        "High_Cheekbones": p.cheekbones, "Male": p.male, "Mouth_Slightly_Open": s.open_mouth > 0,
        "Mustache": p.beard in ("moustache", "goatee", "full"), "Narrow_Eyes": p.eye_height * min(s.lids, 1) < 0.050,
        "No_Beard": p.beard in ("none", "moustache"), "Oval_Face": p.jaw > 0.36, "Pale_Skin": p.tone < 0.12,
        "Pointy_Nose": p.nose_point > 0.65, "Receding_Hairline": p.style == "receding", "Rosy_Cheeks": s.blush > 0,
        "Sideburns": p.sideburns, "Smiling": s.smile > 0.35, "Straight_Hair": p.style in ("long", "bob", "bangs", "parting"),
        "Wavy_Hair": p.style in ("wavy", "curly"), "Wearing_Earrings": s.earrings, "Wearing_Hat": s.hat != "none",
        "Wearing_Lipstick": made_up, "Wearing_Necklace": s.necklace, "Wearing_Necktie": s.tie, "Young": p.age < 40,
    }  # fmt: skip
    return np.array([1 if true[name] else -1 for name in ATTRIBUTES], dtype=np.int8)


def captions_of(person: Person, scene: Scene) -> dict[str, str]:
    """One sentence an aspect with its degree, `overall` with all, `beard_and_age` with what a mask does not show."""
    who, they = ("man", "He") if person.male else ("woman", "She")
    own = "his" if person.male else "her"
    texts = {
        "Bangs": _bangs(person, scene, they, own),
        "Eyeglasses": {
            "none": f"{they} is not wearing any eyeglasses.",
            "clear": f"{they} is wearing eyeglasses with clear lenses.",
            "dark": f"{they} is wearing sunglasses with dark lenses.",
        }[scene.glasses],
        "No_Beard": {
            "none": f"{they} has no beard at all.",
            "stubble": f"{they} has a short stubble on {own} chin.",
            "moustache": f"{they} has a moustache but no beard.",
            "goatee": f"{they} has a goatee around {own} mouth.",
            "full": f"{they} has a full, thick beard.",
        }[person.beard],
        "Smiling": _smile(scene, they),
        "Young": _age(person, who),
    }
    texts["overall"] = " ".join(texts[name] for name in ("Young", "Bangs", "Eyeglasses", "No_Beard", "Smiling"))
    texts["beard_and_age"] = f"{texts['Young']} {texts['No_Beard']}"
    return texts


def _bangs(person: Person, scene: Scene, they: str, own: str) -> str:
    if covers(person, scene):
        return f"A hat hides {own} forehead."
    if person.style == "bangs":
        return f"{they} has long bangs that cover {own} forehead."
    if person.style == "parting":
        return f"{they} has short bangs swept to one side."
    return f"{they} has no bangs and {own} forehead is visible."


def _smile(scene: Scene, they: str) -> str:
    if scene.smile > 0.75:
        return f"{they} is smiling broadly" + (" and showing teeth." if scene.open_mouth else ".")
    if scene.smile > 0.35:
        return f"{they} has a gentle smile."
    return f"{they} looks serious, without a smile." if scene.smile < 0.05 else f"{they} is hardly smiling."


def _age(person: Person, who: str) -> str:
    decade = (
        "twenties" if person.age < 30 else "thirties" if person.age < 40 else "forties" if person.age < 50 else None
    )
    if decade:
        return f"This {who} is in the {decade}."
    return f"This {who} is in the fifties or sixties." if person.age < 68 else f"This {who} is old."
