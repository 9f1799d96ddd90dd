"""How unlike the others a mask is: nats a pixel under the frequencies of classes at each place.

Knows label maps and their counts. A mask that is rare here is one whose shapes lie where others have something else: a
turned head, a hat over the brows, a face at the edge. Nothing is said of how it looks.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from raygen.core.face_labels import CLASSES

__all__ = ["KINDS", "SHARE", "SIDE", "WHENS", "Frequencies", "small"]


#: Side that masks are brought to before they are counted; nearest neighbour.
SIDE: Final = 32
#: Added to each count, so that what was never seen is rare and not impossible.
PRIOR: Final = 0.5
#: The kinds of sample, in the order in which they are shown.
KINDS: Final = ("all", "refused", "refused, rare mask", "refused, usual mask", "passed at once")
#: The tries that are compared.
WHENS: Final = ("first try", "second try", "what counts")
#: METRICS name of the share that passed in a later round.
SHARE: Final = "mended"
UInt8Array = npt.NDArray[np.uint8]


def small(mask: npt.NDArray[Any]) -> UInt8Array:
    """A label map [H, W] at `SIDE` x `SIDE`: the nearest pixel of each place."""
    y, x = (((np.arange(SIDE) + 0.5) * side / SIDE).astype(int) for side in mask.shape)
    found: UInt8Array = mask[np.ix_(y, x)].astype(np.uint8)
    return found


class Frequencies:
    """Counts of each class at each place, int64 [SIDE, SIDE, 19]; they add up over shards in any order."""

    def __init__(self) -> None:
        self.counts = np.zeros((SIDE, SIDE, len(CLASSES)), np.int64)

    def add(self, masks: UInt8Array) -> None:
        """Count masks uint8 [n, SIDE, SIDE]."""
        for label in range(len(CLASSES)):
            self.counts[..., label] += (masks == label).sum(axis=0)

    def rarity(self, masks: UInt8Array) -> npt.NDArray[np.float64]:
        """Mean of -log p(class at place) over the pixels of each of [n, SIDE, SIDE]: float64 [n], 0 or more."""
        shares = (self.counts + PRIOR) / (self.counts.sum(axis=-1, keepdims=True) + PRIOR * len(CLASSES))
        y, x = np.indices((SIDE, SIDE))
        found: npt.NDArray[np.float64] = -np.log(shares[y[None], x[None], masks]).mean(axis=(1, 2))
        return found
