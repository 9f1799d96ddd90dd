"""An example of a package that offers networks to raygen: one of each kind, in numpy alone.

Each is made without its weights, which are "read" in `load`. Real ones are found beside the package's code.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np

WEIGHTS = np.random.default_rng(5).normal(size=(3 * 16 * 16, 8)).astype(np.float32)


def digest(name):
    return hashlib.sha256(name.encode() + WEIGHTS.tobytes()).hexdigest()


@dataclass
class Parser:
    """Pixels darker than 0.5 are hair, the others skin; how much more likely depends on the distance from 0.5."""

    kind: str = "parser"
    sha256: str = field(default_factory=lambda: digest("parser"))
    licence: str = "CC0-1.0"
    input_size: int | None = 32
    channels: str = "rgb"
    value_range: tuple[float, float] = (0, 1)
    labels: str = "face_parsing"

    def load(self, device):
        def logits(pixels):
            grey = pixels.mean(axis=1)
            result = np.full((len(grey), 19, *grey.shape[1:]), -30, np.float32)
            result[:, 1] = 8 * (grey - 0.5)  # skin in both orders
            result[:, 17] = 8 * (0.5 - grey)  # hair in the order of face-parsing.PyTorch
            return result

        return logits


@dataclass
class Embedder:
    """A projection of 16 x 16 pixels; a black picture has no face."""

    kind: str = "embedder"
    sha256: str = field(default_factory=lambda: digest("embedder"))
    licence: str = "CC0-1.0"
    input_size: int | None = 16
    channels: str = "bgr"
    value_range: tuple[float, float] = (-1, 1)

    def load(self, device):
        def vectors(pixels):
            flat = pixels.reshape(len(pixels), -1)
            return np.where((flat == -1).all(axis=1)[:, None], np.nan, flat @ WEIGHTS)

        return vectors


@dataclass
class Landmarker:
    """The middle of the pixels of each of five pure colours."""

    kind: str = "landmarker"
    sha256: str = field(default_factory=lambda: digest("landmarker"))
    licence: str = "CC0-1.0"
    input_size: int | None = None
    channels: str = "rgb"
    value_range: tuple[float, float] = (0, 255)

    def load(self, device):
        def points(pixels):
            return np.array([[_middle(image, colour) for colour in COLOURS] for image in pixels])

        return points


COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)])


def _middle(image, colour):
    rows, columns = np.nonzero(np.abs(image - colour[:, None, None]).max(axis=0) < 40)
    if not len(rows):
        return np.nan, np.nan
    return (columns.mean() + 0.5) / image.shape[2], (rows.mean() + 0.5) / image.shape[1]


@dataclass
class Scorer:
    """Mean brightness of a picture, 0 to 1; a black picture has none."""

    kind: str = "scorer"
    sha256: str = field(default_factory=lambda: digest("scorer"))
    licence: str = "CC0-1.0"
    input_size: int | None = None
    channels: str = "rgb"
    value_range: tuple[float, float] = (0, 1)

    def load(self, device):
        def numbers(pixels):
            means = pixels.mean(axis=(1, 2, 3))
            return np.where(means == 0, np.nan, means)

        return numbers
