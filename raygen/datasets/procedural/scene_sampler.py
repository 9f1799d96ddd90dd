"""Random choice of persons and scenes, from a seed and the numbers of identity and picture."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from raygen.datasets.procedural.fields import Colour
from raygen.datasets.procedural.scene import Person, Scene

__all__ = ["person_of", "scene_of"]


#: Skin from pale to dark, both ends of the range of each hair colour, eye colours, lip colours.
_SKINS: Final[tuple[Colour, ...]] = (
    (0.99, 0.87, 0.80),
    (0.97, 0.80, 0.69),
    (0.93, 0.73, 0.59),
    (0.84, 0.63, 0.46),
    (0.70, 0.49, 0.34),
    (0.53, 0.35, 0.24),
    (0.38, 0.25, 0.18),
)
_HAIRS: Final[Mapping[str, tuple[Colour, Colour]]] = {
    "black": ((0.06, 0.055, 0.065), (0.17, 0.14, 0.14)),
    "brown": ((0.24, 0.15, 0.10), (0.50, 0.33, 0.20)),
    "blond": ((0.72, 0.54, 0.30), (0.95, 0.83, 0.58)),
    "gray": ((0.52, 0.52, 0.54), (0.92, 0.92, 0.91)),
    "red": ((0.50, 0.19, 0.09), (0.80, 0.40, 0.18)),
    "dyed": ((0.60, 0.25, 0.52), (0.28, 0.52, 0.62)),
}
_EYES: Final[tuple[Colour, ...]] = (
    (0.26, 0.14, 0.07),
    (0.42, 0.25, 0.12),
    (0.52, 0.42, 0.18),
    (0.34, 0.50, 0.27),
    (0.27, 0.50, 0.72),
    (0.50, 0.60, 0.66),
)
_REDS: Final[tuple[Colour, ...]] = (
    (0.78, 0.10, 0.16),
    (0.84, 0.32, 0.40),
    (0.55, 0.10, 0.22),
    (0.80, 0.42, 0.36),
    (0.70, 0.20, 0.42),
)
_STYLES: Final = (
    "bald",
    "crop",
    "short",
    "receding",
    "parting",
    "quiff",
    "curly",
    "afro",
    "bun",
    "bob",
    "long",
    "wavy",
)
_FRINGED: Final = ("short", "curly", "bun", "bob", "long", "wavy", "crop")


class _Random:
    """Random choices as plain Python values, keyed by words."""

    def __init__(self, *words: object) -> None:
        data = hashlib.blake2b("|".join(map(str, words)).encode(), digest_size=16, person=b"raygen-faces-2").digest()
        self._r = np.random.Generator(np.random.Philox(key=int.from_bytes(data, "little")))

    def chance(self, p: float) -> bool:
        """True with probability `p`."""
        return bool(self._r.random() < p)

    def between(self, low: float, high: float) -> float:
        """Uniform."""
        return float(self._r.uniform(low, high))

    def normal(self, mean: float, deviation: float, low: float = -9.0, high: float = 9.0) -> float:
        """Normal, clipped to `low`..`high`."""
        return min(max(float(self._r.normal(mean, deviation)), low), high)

    def one_of(self, names: Sequence[str], weights: Sequence[float] | None = None) -> str:
        """One of `names`, with probabilities in proportion to `weights`."""
        shares = [1.0] * len(names) if weights is None else list(weights)
        left = self._r.random() * sum(shares)
        for name, share in zip(names, shares, strict=True):
            left -= share
            if left < 0:
                return name
        return names[-1]

    def colour(self, a: Colour, b: Colour, jitter: float = 0.0) -> Colour:
        """Between two colours, with noise on each channel."""
        t, off = self._r.random(), self._r.normal(0, jitter, 3) if jitter else np.zeros(3)
        return _rgb(np.array(a) + (np.array(b) - np.array(a)) * t + off)

    def on_scale(self, scale: Sequence[Colour], t: float, jitter: float = 0.0) -> Colour:
        """The colour at `t` in 0..1 of a scale."""
        place = t * (len(scale) - 1)
        low = min(int(place), len(scale) - 2)
        mixed = np.array(scale[low]) + (np.array(scale[low + 1]) - np.array(scale[low])) * (place - low)
        return _rgb(mixed + self._r.normal(0, jitter, 3))

    def any_colour(self) -> Colour:
        """Any colour; often one of skin or hair, so that colours say little about classes."""
        kind = self._r.random()
        if kind < 0.24:
            return self.on_scale(_SKINS, self._r.random(), 0.03)
        if kind < 0.44:
            return self.colour(*_HAIRS[self.one_of(tuple(_HAIRS))], 0.02)
        if kind < 0.58:
            grey = self._r.uniform(0.08, 0.95)
            return _rgb(np.array([grey, grey, grey]) + self._r.normal(0, 0.03, 3))
        hue, saturation, value = self._r.random(), self._r.uniform(0.20, 0.75), self._r.uniform(0.25, 0.95)
        k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
        return _rgb(value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1))


def _rgb(values: npt.NDArray[np.float64]) -> Colour:
    r, g, b = np.clip(values, 0.02, 1.0).tolist()
    return (r, g, b)


def person_of(seed: int, identity: int) -> Person:
    """The person of `identity`."""
    d = _Random("person", seed, identity)
    male = d.chance(0.5)
    age = d.between(18, 44) if d.chance(0.62) else d.between(40, 80)
    tone = d.between(0, 1)
    weight = d.normal(0, 1, -1.8, 2.2)
    light_skin = tone < 0.5
    style = _style(d, male, age, tone)
    hair_name = _hair_name(d, age, light_skin)
    grown = male and age > 19
    eye = d.between(0, 1) if light_skin else d.between(0, 0.3)
    return Person(
        male=male,
        age=age,
        skin=d.on_scale(_SKINS, tone, 0.012),
        pale=tone < 0.13,
        width=0.432 + 0.020 * weight + (0.010 if male else 0),
        chin=d.between(0.575, 0.635) + (0.015 if male else 0),
        jaw=min(max(d.normal(0.20 if male else 0.28, 0.06) - 0.035 * weight, 0.06), 0.42),
        square=d.between(0.05, 0.60) if male else d.between(0, 0.25),
        chubby=weight > 1.05,
        double_chin=weight > 0.7 and d.chance(0.6),
        cheekbones=weight < 0.6 and d.chance(0.45),
        bags=d.chance(0.55 if age > 50 else 0.14),
        freckles=light_skin and d.chance(0.16),
        eye_gap=d.between(0.192, 0.222),
        eye_width=d.between(0.122, 0.145),
        eye_height=d.between(0.048, 0.080) + (0 if male else 0.004),
        eye_tilt=d.between(-0.08, 0.16),
        iris=d.on_scale(_EYES, eye, 0.02),
        brow_thick=d.between(0.018, 0.034) + (0.010 if male else -0.003),
        brow_arch=d.between(0.0, 0.055),
        nose_width=d.between(0.078, 0.122) + (0.008 if male else 0),
        nose_drop=d.between(-0.020, 0.030),
        nose_sharp=d.between(0, 1),
        lip_width=d.between(0.140, 0.180),
        lip_full=d.between(0.034, 0.066) - (0.006 if male else 0),
        ears=d.between(0.85, 1.2),
        hair=d.colour(*_HAIRS[hair_name], 0.012),
        hair_name=hair_name,
        style=style,
        bangs=d.between(0.35, 1.0) if style in _FRINGED and d.chance(0.17 if male else 0.42) else 0.0,
        volume=d.between(0, 1),
        part=d.between(-1, 1),
        beard=d.one_of(("none", "stubble", "moustache", "goatee", "chin", "full"), (0.40, 0.17, 0.10, 0.11, 0.06, 0.16))
        if grown
        else "none",
        sideburns=grown and style != "bald" and d.chance(0.24),
    )


def _style(d: _Random, male: bool, age: float, tone: float) -> str:
    weights: list[float] = (
        [9, 12, 20, 8, 17, 14, 8, 5, 1, 1, 2, 3] if male else [1, 3, 4, 0.6, 5, 1, 10, 6, 9, 17, 22, 21]
    )
    if male and age > 45:
        weights = [20, 10, 17, 26, 14, 4, 4, 2, 0, 0.5, 1, 1]
    weights[7] *= 0.2 + 2.2 * tone  # afro
    return d.one_of(_STYLES, weights)


def _hair_name(d: _Random, age: float, light_skin: bool) -> str:
    if d.chance(min(max((age - 42) / 36, 0.0), 0.85)):
        return "gray"
    names = ("black", "brown", "blond", "red", "dyed")
    return d.one_of(names, (0.18, 0.36, 0.28, 0.13, 0.05) if light_skin else (0.60, 0.28, 0.05, 0.02, 0.05))


def scene_of(seed: int, identity: int, variant: int, person: Person) -> Scene:
    """The scene of picture `variant`; habits such as glasses and make-up depend on the identity alone."""
    d = _Random("scene", seed, identity, variant)
    habit = _Random("habit", seed, identity)
    side, up = d.between(-0.95, 0.95), d.between(-0.85, -0.15)
    length = float(np.sqrt(side**2 + up**2 + 1))
    warm, power, fill = d.normal(0, 1, -2, 2), d.between(0.52, 0.74), d.between(0.24, 0.42)
    smile = d.normal(0.40, 0.42, -0.4, 1.0)
    open_mouth = d.chance(0.30 + 0.25 * max(smile, 0))
    glasses = habit.chance(0.20) or d.chance(0.07)
    made_up = (not person.male) and d.chance(0.75 if habit.chance(0.5) else 0.20)
    heavy = made_up and d.chance(0.6)
    metal = d.one_of(("gold", "silver", "any"), (0.5, 0.3, 0.2))
    cuts = (0.26, 0.06, 0.18, 0.24, 0.08, 0.18) if person.male else (0.24, 0.26, 0.22, 0.10, 0.08, 0.10)
    collar = d.one_of(("crew", "scoop", "v", "shirt", "turtleneck", "suit"), cuts)
    necklace = d.chance(0.05 if person.male else 0.30)
    if necklace and collar not in ("scoop", "v"):
        collar = d.one_of(("scoop", "v"))
    tie = person.male and collar in ("shirt", "suit") and d.chance(0.55)
    frame = d.any_colour() if d.chance(0.5) else d.colour((0.05, 0.05, 0.06), (0.30, 0.20, 0.14))
    return Scene(
        yaw=d.normal(0, 0.13, -0.28, 0.28),
        pitch=d.normal(0.0, 0.07, -0.15, 0.15),
        roll=d.normal(0, 0.055, -0.13, 0.13),
        zoom=d.between(1.12, 1.24),
        shift=(d.normal(0, 0.02, -0.05, 0.05), d.normal(0.05, 0.02, 0.01, 0.09)),
        sun=(side / length, up / length, 1 / length),
        light=(power * (1 + 0.06 * warm), power, power * (1 - 0.08 * warm)),
        ambient=(
            fill * (1 - 0.05 * warm) + d.between(-0.02, 0.02),
            fill,
            fill * (1 + 0.06 * warm) + d.between(-0.02, 0.03),
        ),
        smile=smile,
        gape=d.between(0.30, 1.0) if open_mouth else 0.0,
        lids=0.0 if d.chance(0.03) else d.between(0.50, 0.75) if d.chance(0.15) else d.between(0.85, 1.0),
        raised=d.normal(0, 0.012, -0.02, 0.03),
        gaze=(d.normal(0, 0.4, -1, 1), d.normal(0, 0.4, -1, 1)),
        glasses=("dark" if d.chance(0.22) else "clear") if glasses else "none",
        frame=(habit.one_of(("round", "square", "soft", "cat", "aviator")), d.between(0.013, 0.026), frame),
        lens=d.colour((0.05, 0.05, 0.07), (0.35, 0.22, 0.16), 0.03),
        hat=d.one_of(("cap", "beanie", "fedora", "bucket", "beret")) if d.chance(0.13) else "none",
        hat_colours=(d.any_colour(), d.any_colour()),
        earrings=d.one_of(("stud", "drop", "hoop")) if d.chance(0.05 if person.male else 0.38) else "none",
        necklace=d.one_of(("chain", "beads")) if necklace else "none",
        metal={"gold": (0.95, 0.78, 0.36), "silver": (0.86, 0.88, 0.92)}.get(metal, d.any_colour()),
        tie=tie,
        collar=collar,
        cloth=(d.any_colour(), d.any_colour(), d.any_colour()),
        pattern=d.one_of(("plain", "stripes", "block"), (0.66, 0.20, 0.14)),
        lipstick=_rgb(np.array(_REDS[int(d.between(0, 4.999))]) + d.normal(0, 0.03)) if made_up else None,
        shadow=d.any_colour() if heavy else None,
        blush=d.between(0.55, 0.9) if d.chance(0.55 if heavy else 0.08) else 0.0,
        backdrop=d.one_of(("gradient", "blobs", "spot", "stripes", "room"), (0.28, 0.34, 0.20, 0.06, 0.12)),
        back=(d.any_colour(), d.any_colour(), d.any_colour()),
        blobs=tuple(
            (d.between(-1, 1), d.between(-1, 0.7), d.between(0.16, 0.55), int(d.between(0, 2.999)))
            for _ in range(int(d.between(2, 6)))
        ),
        tilt=d.between(-2.4, 2.4),
        blurry=d.chance(0.04),
    )
