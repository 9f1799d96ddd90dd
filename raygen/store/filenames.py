"""Names that are one and the same file on every system.

Knows what Windows, macOS and Linux make of a name. Knows no table and no format.
"""

import hashlib
import unicodedata
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from raygen.core.errors import InputError
from raygen.store.schemas import check_id

__all__ = ["name_key", "portable_ids", "safe_name", "twins"]


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


def portable_ids(ids: Iterable[str]) -> None:
    """Refuse ids that are not each a file name of its own on Linux, macOS and Windows.

    `InputError`: `bad_id` for one that is no name there, `twin` for two that would be one file where case or the
    spelling in Unicode does not count; both are named. Holds all ids.
    """
    seen: dict[str, str] = {}
    for name in ids:
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        if why := _unportable(name, folded):
            raise InputError(f"id {name[:80]!r} {why}, which is no file name on every system", reason="bad_id")
        if folded in seen:
            raise InputError(f"ids {seen[folded]!r} and {name!r} would be one file on some systems", reason="twin")
        seen[folded] = name


def _unportable(name: str, folded: str) -> str:
    """What is wrong with a name; empty where nothing is."""
    if not name or name != name.strip() or name.endswith("."):
        return "is empty, or has a space at an end or a dot at its end"
    # What NFKC unfolds counts as well: a full-width slash is one to whoever normalises names.
    if wrong := [c for c in name + folded if c in '<>:"/\\|?*' or (unicodedata.category(c)[0] in "CZ" and c != " ")]:
        return f"holds {wrong[0]!r}"
    if folded.split(".")[0].rstrip() in RESERVED:
        return "is a device of Windows"
    return f"has {len(name.encode())} bytes, more than 255" if len(name.encode()) > 255 else ""
