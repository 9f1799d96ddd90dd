"""Names that are one and the same file on every system, and which names a data set's rows get.

Knows what Windows, macOS and Linux make of a name. Knows no format and no picture.
"""

import hashlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from raygen.spec import InputError
from raygen.tables import check_id

__all__ = ["Naming", "name_key", "safe_name", "twins"]

#: Device names: Windows opens these instead of a file, whatever follows the first dot and in either case.
RESERVED: Final = frozenset(
    {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}
)


def safe_name(value: object) -> str:
    """`value` as a file name that means the same on every system; `InputError` (`bad_id`) otherwise.

    ASCII letters, digits, `.`, `_` and `-`, which have one Unicode form only; no path, no device, no last dot.
    """
    name = check_id(value)
    if name.endswith(".") or name.split(".", 1)[0].casefold() in RESERVED:
        raise InputError(f"id {name!r} is no file name on Windows", reason="bad_id")
    return name


def name_key(path: str) -> int:
    """64 bits that are equal for names which some system takes for the same: case and Unicode form do not count."""
    same = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
    return int.from_bytes(hashlib.blake2b(same.encode(), digest_size=8).digest(), "big")


def twins(keys: npt.NDArray[np.uint64]) -> tuple[int, int] | None:
    """The first two places that have the same key; None where all differ."""
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if not same.size:
        return None
    return int(order[same[0]]), int(order[same[0] + 1])


@dataclass(frozen=True)
class Naming:
    """How rows are called. `people`: a folder an identity; `by_variant`: numbers in it instead of row ids.

    `dotless` replaces dots: readers of tar shards take what follows the first dot for the kind of a member.
    """

    key: str
    people: bool = False
    by_variant: bool = False
    dotless: bool = False

    def stem(self, row: Mapping[str, Any]) -> str:
        """Path of a row without its ending; `InputError` (`bad_id`) where an id is no safe name."""
        name = safe_name(row[self.key])
        if self.dotless:
            name = name.replace(".", "_")
        if not self.people or row["identity_id"] is None:
            return name
        person = safe_name(row["identity_id"])
        return f"{person}/{row['variant']:03d}" if self.by_variant else f"{person}/{name}"
