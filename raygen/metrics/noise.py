"""Whether pictures look like noise: the kurtosis of differences between neighbours. It needs no network.

Differences of neighbours in photographs and drawings are mostly small and sometimes large, at edges: their distribution
has heavy tails at every scale (Ruderman and Bialek 1994; Huang and Mumford 1999). Noise has no edges, also where it is
as smooth as a photograph: its differences are normally distributed, whose kurtosis is 3. The measure therefore tells
noise in latents from pictures, which the correlation of neighbouring pixels and the slope of the spectrum do not
(docs/results.md#noise). Cells of an eighth of a picture are too large for it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from raygen.core.types import Float64Array, UInt8Array

__all__ = ["FLAT", "LIMIT", "LUMA", "SIDE", "NoiseCheck", "check_noise", "edge_kurtosis"]


#: Side of the grid of means that a picture is brought to, and distance of neighbours in it: noise of a latent has cells
#: of several pixels, and within a cell pixels are alike.
SIDE, STEP = 32, 2
#: Pictures below this kurtosis are noise. Medians of sets: 3.4 and less for models that were hardly trained, 4.7 and
#: more for faces.
LIMIT: Final = 3.75
#: Standard deviation of the grey means, of 255, below which a picture is of one colour.
FLAT: Final = 2.0
#: Luminance of red, green and blue (ITU-R BT.601).
LUMA: Final = (0.299, 0.587, 0.114)
#: Least share of the pictures that is told.
SHARE: Final = 0.05


def edge_kurtosis(image: UInt8Array) -> float | None:
    """uint8 [H, W, 3] -> kurtosis of the differences of neighbours, 3 for noise; 0 for a picture of one colour.

    The picture is brought to `SIDE` x `SIDE` means of its luminance first. None where it is smaller.
    """
    if min(image.shape[:2]) < SIDE:
        return None
    means = _means(image @ np.array(LUMA))
    if means.std() < FLAT:
        return 0.0
    across, down = means[:, STEP:] - means[:, :-STEP], means[STEP:] - means[:-STEP]
    squares = np.concatenate([across.ravel(), down.ravel()]) ** 2
    return float((squares**2).mean() / squares.mean() ** 2)


def _means(grey: Float64Array) -> Float64Array:
    """[H, W] -> the means of `SIDE` x `SIDE` parts, each of whole pixels."""
    starts = [np.arange(SIDE) * side // SIDE for side in grey.shape]
    sums = np.add.reduceat(np.add.reduceat(grey, starts[0], axis=0), starts[1], axis=1)
    rows, columns = (np.diff(start, append=side) for start, side in zip(starts, grey.shape, strict=True))
    means: Float64Array = sums / np.outer(rows, columns)
    return means


@dataclass(frozen=True)
class NoiseCheck:
    """Of `n` pictures that were looked at: how many are noise, how many of one colour, and the median kurtosis."""

    n: int
    noise: int
    flat: int
    median: float

    @property
    def failed(self) -> bool:
        """Whether most of the pictures show nothing."""
        return 2 * (self.noise + self.flat) > self.n

    @property
    def what(self) -> str:
        """What most of the pictures are."""
        return "noise" if self.noise >= self.flat else "one colour"

    def sentence(self) -> str:
        """What was found, with the numbers; empty where (nearly) all pictures show something."""
        if self.noise + self.flat <= SHARE * self.n:
            return ""
        counted = ((self.noise, "with the statistics of noise"), (self.flat, "of one colour"))
        parts = " and ".join(f"{count:,} {what}" for count, what in counted if count)
        return (
            f"{self.n:,} images were looked at: {parts} "
            f"(median kurtosis of edges {self.median:.1f}; noise has 3, sets of faces have 4.7 and more)."
        )


def check_noise(images: Iterable[UInt8Array]) -> NoiseCheck | None:
    """Looks at pictures uint8 [H, W, 3]; None where none is large enough."""
    values = [value for image in images if (value := edge_kurtosis(image)) is not None]
    if not values:
        return None
    flat = values.count(0.0)
    noise = sum(value < LIMIT for value in values) - flat
    return NoiseCheck(len(values), noise, flat, float(np.median(values)))
