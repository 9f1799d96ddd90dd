"""What a report shows of people: a few identities at even distances, each with its pictures side by side.

Knows SAMPLES and FACES rows that say whom they show. Reads the few pictures that it shows. Knows no HTML.
"""

from collections.abc import Sequence

from raygen import galleries
from raygen.storage import Slice

__all__ = ["crowd"]

PEOPLE = 8
#: Pictures of each; a set in which nobody has two shows nobody.
PICTURES = 10


def crowd(slices: Sequence[Slice], key: str) -> list[tuple[str, list[galleries.Pair]]]:
    """Names and pictures of people in the rows of `slices`, whose ids are in `key`; empty where rows name nobody."""
    found: list[tuple[str, list[galleries.Pair]]] = []
    for row in galleries.evenly(slices, PEOPLE, ["identity_id"]):
        name = row.get("identity_id")
        if name is None or name in [other for other, _ in found]:
            continue
        rows = galleries.together(slices, "identity_id", name, (key, "image", "mask", "source"))
        pairs = [pair for one in rows if one["image"] and (pair := galleries.pair(one, key))][:PICTURES]
        if len(pairs) > 1:
            found.append((name, pairs))
    return found
