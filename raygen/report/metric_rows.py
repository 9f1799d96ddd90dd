"""METRICS rows with their slices taken apart.

A metric is `name[@variant][:network]`; a slice is a population (`all`, `reference`, `roundtrip`), a class, or both.
"""

import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from raygen.metrics.registry import family

__all__ = ["GENERATED", "REFERENCE", "ROUNDTRIP", "Number", "numbers", "share_of_ceiling"]


GENERATED, ROUNDTRIP, REFERENCE = "generated", "roundtrip", "reference"
_POPULATIONS: Final = {
    "all": GENERATED,
    "samples": GENERATED,
    GENERATED: GENERATED,
    ROUNDTRIP: ROUNDTRIP,
    REFERENCE: REFERENCE,
}


class Number(NamedTuple):
    """One METRICS row, with its slice taken apart."""

    metric: str
    population: str
    part: str
    value: float | None
    n: int
    low: float | None
    high: float | None
    reference: str
    protocol: Mapping[str, Any]
    created: datetime | None

    @property
    def base(self) -> str:
        """The metric without variant and network: `fd` of `fd:raygen-parser`."""
        return family(self.metric)

    @property
    def network(self) -> str:
        """The network that measured it; empty where the name does not say."""
        return self.metric.partition(":")[2]


def numbers(rows: Iterable[Mapping[str, Any]]) -> list[Number]:
    """METRICS rows -> numbers, the newest one where a metric and slice come twice."""
    newest: dict[tuple[str, str, str], Number] = {}
    for row in rows:
        number = _number(row)
        key = number[:3]
        earlier = newest.get(key)
        if earlier is None or not (earlier.created and number.created and number.created < earlier.created):
            newest[key] = number
    return list(newest.values())


def _number(row: Mapping[str, Any]) -> Number:
    words = str(row["slice"]).split("/")
    try:
        protocol = json.loads(row.get("protocol") or "{}")
    except ValueError:
        protocol = row["protocol"]
    return Number(
        str(row["metric"]),
        next((_POPULATIONS[word] for word in words if word in _POPULATIONS), GENERATED),
        "/".join(word for word in words if word not in _POPULATIONS),
        _finite(row.get("value")),
        int(row["n"]),
        _finite(row.get("ci_low")),
        _finite(row.get("ci_high")),
        str(row.get("reference") or ""),
        protocol if isinstance(protocol, dict) else {"protocol": protocol},
        row.get("created"),
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def share_of_ceiling(group: Mapping[str, Number]) -> float | None:
    """The generated value over the best that can be reached: after the round trip, else on the reference.

    `group` has one metric by population. None where either value is missing.
    """
    ceiling = group.get(ROUNDTRIP) or group.get(REFERENCE)
    generated = group.get(GENERATED)
    if generated is None or ceiling is None or generated.value is None or not ceiling.value:
        return None
    return generated.value / ceiling.value
