"""The Fréchet distance as a number of a table: what it is taken to, its interval, and what is said beside it.

Knows rows by their ids, and which of them belong together. Knows neither networks nor where features come from.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from raygen.comparisons import Add, Features
from raygen.metrics.frechet import LOW_N, Reference, frechet_from
from raygen.metrics.frechet_intervals import LEAST, blocks_of, margin, most_blocks
from raygen.names import name_key

__all__ = ["ALONE", "Kin", "Prepared", "add_frechet", "few_rows"]


@dataclass(frozen=True)
class Kin:
    """Which rows belong together, by id: those of one `group_id`, such as a mask, and those of one person."""

    groups: Mapping[str, str] = field(default_factory=dict)
    people: Mapping[str, str] = field(default_factory=dict)


#: Every row by itself.
ALONE: Final = Kin()


class Prepared:
    """References of Fréchet distances by the name of their features, each factored once.

    Holds the vectors that they are of: others under the same name are prepared anew.
    """

    def __init__(self) -> None:
        self._made: dict[str, tuple[object, Reference]] = {}

    def of(self, name: str, real: Features) -> Reference:
        """Ready to be compared with; errors as `Reference.of_features`."""
        there = self._made.get(name)
        if there is None or there[0] is not real.vectors:
            there = self._made[name] = real.vectors, Reference.of_features(real.vectors)
        return there[1]


def add_frechet(
    add: Add, where: str, name: str, made: Features, reference: Reference, protocol: Mapping[str, Any],
    kin: Kin = ALONE,
) -> None:  # fmt: skip
    """Add the Fréchet distance of features to `reference`, its interval, and what a reader should know of both.

    `ValueError` for fewer than two rows or another width.
    """
    n, m, width = len(made.ids), reference.n, made.vectors.shape[1]
    distance = frechet_from(reference, made.vectors)
    few = n if m is None else min(n, m)
    interval, how = _interval(distance.value, made, reference, kin.people or kin.groups)
    protocol = {
        **protocol, "n_reference": "unknown" if m is None else m, "low_n": few < LOW_N,
        "fewer_rows_than_values": few <= width, "clipped": distance.clipped, "interval": how,
    }  # fmt: skip
    add(name, where, distance.value, n, protocol, interval)


def _interval(
    value: float, made: Features, reference: Reference, kin: Mapping[str, str]
) -> tuple[tuple[float, float] | tuple[None, None], str]:
    """95 % interval of a distance by leaving out blocks of rows, and how it was made or why there is none.

    Blocks are drawn by a hash, since ids follow content where they come from folders, plans or people.
    """
    ways = {"whole groups of kin": [kin.get(one, one) for one in made.ids], "rows": made.ids}
    for words, names in ways.items() if any(one in kin for one in made.ids) else [("rows", made.ids)]:
        keys = np.array([name_key(one) for one in names], np.uint64)
        blocks = blocks_of(keys, most_blocks(len(np.unique(keys)), made.vectors.shape[1]))
        if len(blocks) >= LEAST:  # if not, by a few people: then the interval is one of their pictures
            half = margin(made.vectors, reference, blocks)
            said = (
                f"delete-1/{len(blocks)} jackknife of the generated rows ({words} by a hash of their ids), Student's "
                "t; the reference is held fixed, and the bias of few rows stays"
            )
            return (value - half, value + half), said
    return (None, None), f"none: fewer than {2 * LEAST} rows"


def few_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, object]:
    """Of METRICS rows, the numbers that their protocols call those of few rows, as facts for people."""
    facts: dict[str, object] = {}
    for row in rows:
        said, name = json.loads(row["protocol"] or "{}"), f"{row['metric']} [{row['slice']}]"
        if said.get("fewer_rows_than_values"):
            facts[f"{name}, few rows"] = "no more rows than a feature has values: most of it may be bias"
        elif said.get("low_n") and "n_reference" in said:
            facts[f"{name}, few rows"] = f"fewer than {LOW_N:,}: biased upwards, compare at the same n only"
    return facts
