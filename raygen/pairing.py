"""Rows that have a picture and no mask, or a mask and no picture: what a number over both leaves out.

Knows where committed rows lie and which columns are null. Reads no picture and no mask.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from raygen.storage import read_slice
from raygen.store import Store

__all__ = ["Unpaired", "unpaired"]


class Unpaired(NamedTuple):
    """Ids by what is missing, of a table with `rows` rows, `masks` of them with a mask."""

    rows: int
    masks: int
    without_mask: Sequence[str]
    without_picture: Sequence[str]

    def counts(self) -> Mapping[str, int]:
        """How many there are of each kind, in words; empty where every picture has its mask."""
        found = {
            "pictures without a mask": len(self.without_mask), "masks without a picture": len(self.without_picture),
        }  # fmt: skip
        return {name: n for name, n in found.items() if n}


def unpaired(store: Store, table: str, key: str) -> Unpaired | None:
    """Of the FACES or SAMPLES in `store`; None where no row has a mask, because then none was wanted.

    A row with neither, such as a failed one of a model without masks, is in no list.
    """
    rows, masks = 0, 0
    lists: tuple[list[str], list[str]] = ([], [])
    for piece in store.slices(table):
        # The small field of the two says as well whether the pair of them is null.
        part = read_slice(piece, [key, "image.path", "mask.path"])
        ids, image = part[key].to_pylist(), part["image"].is_valid().to_pylist()
        mask = part["mask"].is_valid().to_pylist() if "mask" in part.column_names else [False] * len(ids)
        rows, masks = rows + len(ids), masks + sum(mask)
        for one, picture, wanted in zip(ids, image, mask, strict=True):
            if picture != wanted:
                lists[wanted].append(one)
    return Unpaired(rows, masks, *lists) if masks else None
