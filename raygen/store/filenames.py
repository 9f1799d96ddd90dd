"""File names that are valid and distinct on Linux, macOS and Windows."""

import hashlib
import unicodedata
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from raygen.core.errors import InputError
from raygen.store.schemas import check_id

__all__ = ["first_duplicate", "name_key", "portable_ids", "safe_name"]


#: Device names of Windows, which opens the device instead of a file, in any case and with any extension.
RESERVED: Final = frozenset(
    {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}
)


def safe_name(value: object) -> str:
    """`value` as a file name that is valid on every system; `InputError` (`bad_id`) otherwise.

    Allowed are ASCII letters, digits, `.`, `_` and `-`; no path, no device name, no dot at the end.
    """
    name = check_id(value)
    if name.endswith(".") or name.split(".", 1)[0].casefold() in RESERVED:
        raise InputError(f"id {name!r} is no file name on Windows", reason="bad_id")
    return name


def name_key(path: str) -> int:
    """A 64-bit hash that is equal for names that differ only in case or Unicode form."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
    return int.from_bytes(hashlib.blake2b(folded.encode(), digest_size=8).digest(), "big")


def first_duplicate(keys: npt.NDArray[np.uint64]) -> tuple[int, int] | None:
    """The indices of the first two equal keys; None where all differ."""
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if not same.size:
        return None
    return int(order[same[0]]), int(order[same[0] + 1])


def portable_ids(ids: Iterable[str]) -> None:
    """Check that ids are valid and distinct file names on Linux, macOS and Windows.

    `InputError`: `bad_id` for an invalid name, `twin` for two names that differ only in case or Unicode form. Holds
    all ids in memory.
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
    """Why a name is invalid; empty if it is valid."""
    if not name or name != name.strip() or name.endswith("."):
        return "is empty, or has a space at an end or a dot at its end"
    # Also in the NFKC form, because programs that normalise names turn a full-width slash into a slash.
    if wrong := [c for c in name + folded if c in '<>:"/\\|?*' or (unicodedata.category(c)[0] in "CZ" and c != " ")]:
        return f"holds {wrong[0]!r}"
    if folded.split(".")[0].rstrip() in RESERVED:
        return "is a device of Windows"
    return f"has {len(name.encode())} bytes, more than 255" if len(name.encode()) > 255 else ""
