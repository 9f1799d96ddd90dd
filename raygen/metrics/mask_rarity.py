"""Rarity of a mask: its mean negative log-likelihood, in nats a pixel, under the class frequencies of each pixel.

A rare mask has shapes where most masks have another class: a turned head, a hat over the brows, a face at the edge.
"""

from typing import Final

import numpy as np

from raygen.core.face_labels import CLASSES
from raygen.core.types import AnyArray, Float64Array, UInt8Array

__all__ = ["COMPARED", "KINDS", "SHARE", "SIDE", "Frequencies", "small"]


#: Side that masks are resized to before they are counted, by nearest neighbour.
SIDE: Final = 32
#: Added to each count, so that a class that never occurred has a finite rarity.
PRIOR: Final = 0.5
#: Groups of samples, in the order in which they are shown.
KINDS: Final = ("all", "refused", "refused, rare mask", "refused, usual mask", "passed at once")
#: Attempts that are compared.
COMPARED: Final = ("first try", "second try", "accepted")
#: METRICS name of the share of refused samples that passed in a later attempt.
SHARE: Final = "mended"


def small(mask: AnyArray) -> UInt8Array:
    """A label map [H, W] at `SIDE` x `SIDE`, by nearest neighbour."""
    y, x = (((np.arange(SIDE) + 0.5) * side / SIDE).astype(int) for side in mask.shape)
    resized: UInt8Array = mask[np.ix_(y, x)].astype(np.uint8)
    return resized


class Frequencies:
    """Counts of each class at each pixel, int64 [SIDE, SIDE, 19]; they add up over shards in any order."""

    def __init__(self) -> None:
        self.counts = np.zeros((SIDE, SIDE, len(CLASSES)), np.int64)

    def add(self, masks: UInt8Array) -> None:
        """Adds masks uint8 [n, SIDE, SIDE] to the counts."""
        for label in range(len(CLASSES)):
            self.counts[..., label] += (masks == label).sum(axis=0)

    def rarity(self, masks: UInt8Array) -> Float64Array:
        """Mean of -log p(class at pixel) over the pixels of masks uint8 [n, SIDE, SIDE]: float64 [n], at least 0."""
        shares = (self.counts + PRIOR) / (self.counts.sum(axis=-1, keepdims=True) + PRIOR * len(CLASSES))
        y, x = np.indices((SIDE, SIDE))
        nats: Float64Array = -np.log(shares[y[None], x[None], masks]).mean(axis=(1, 2))
        return nats
