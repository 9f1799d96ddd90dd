"""METRICS rows as findings: cards with their protocol and caveats, per-class rows, one sentence in plain words.

Knows what the project's metrics mean, which way is better and from how many pictures on they can be trusted.
Computes no metric and knows nothing of files, pictures or HTML.

A metric is `name[@variant][:network]`; a slice is a population (`all`, `reference`, `roundtrip`), a class, or both.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from raygen.core.face_labels import CLASS_INDEX, CLASSES
from raygen.metrics.registry import Metric, family, lookup, order

__all__ = ["LABELS", "Card", "ClassRow", "Number", "cards", "class_rows", "numbers", "slices", "verdict"]


#: The 19 classes in plain words; left and right are the person's own.
LABELS: Final[Mapping[str, str]] = dict(
    zip(
        CLASSES,
        (
            "background",
            "skin",
            "nose",
            "eyeglasses",
            "left eye",
            "right eye",
            "left brow",
            "right brow",
            "left ear",
            "right ear",
            "mouth",
            "upper lip",
            "lower lip",
            "hair",
            "hat",
            "earring",
            "necklace",
            "neck",
            "clothes",
        ),
        strict=True,
    )
)

GENERATED, ROUNDTRIP, REFERENCE = "generated", "roundtrip", "reference"
_POPULATIONS: Final = {
    "all": GENERATED,
    "samples": GENERATED,
    GENERATED: GENERATED,
    ROUNDTRIP: ROUNDTRIP,
    REFERENCE: REFERENCE,
}


_HASH: Final = re.compile("[0-9a-f]{40,}")


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
        """What looked at the pictures; empty where the name does not say."""
        return self.metric.partition(":")[2]


class Card(NamedTuple):
    """A key number as a person should read it."""

    title: str
    metric: str
    value: str
    meaning: str
    better: str
    n: int
    counts: str
    interval: str
    beside: Sequence[tuple[str, str]]
    share: float | None
    share_of: str
    notes: Sequence[str]
    warning: str
    protocol: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ClassRow:
    """IoU of one class in the three populations; None where nobody measured it or the class never occurs."""

    index: int
    name: str
    generated: float | None
    roundtrip: float | None
    reference: float | None


def numbers(rows: Iterable[Mapping[str, Any]]) -> list[Number]:
    """METRICS rows -> numbers, the newest one where a metric and slice come twice."""
    newest: dict[tuple[str, str, str], Number] = {}
    for row in rows:
        number = _number(row)
        key = number[:3]
        there = newest.get(key)
        if there is None or not (there.created and number.created and number.created < there.created):
            newest[key] = number
    return list(newest.values())


def _number(row: Mapping[str, Any]) -> Number:
    words = str(row["slice"]).split("/")
    population = next((_POPULATIONS[word] for word in words if word in _POPULATIONS), GENERATED)
    part = "/".join(word for word in words if word not in _POPULATIONS)
    return Number(
        str(row["metric"]),
        population,
        part,
        _finite(row.get("value")),
        int(row["n"]),
        _finite(row.get("ci_low")),
        _finite(row.get("ci_high")),
        str(row.get("reference") or ""),
        _protocol(row.get("protocol")),
        row.get("created"),
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _protocol(text: str | None) -> Mapping[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = text
    return value if isinstance(value, dict) else {"protocol": value}


def cards(found: Sequence[Number]) -> list[Card]:
    """One card for each metric over whole populations; the generated pictures in front where they were measured."""
    whole: dict[str, dict[str, Number]] = {}
    for number in found:
        if not number.part:
            whole.setdefault(number.metric, {})[number.population] = number
    return [_card(whole[name]) for name in sorted(whole, key=lambda name: (order(name), name))]


def _card(group: Mapping[str, Number]) -> Card:
    lead = group.get(GENERATED) or group.get(ROUNDTRIP) or next(iter(group.values()))
    metric = lookup(lead.metric)
    labels = {GENERATED: "generated", ROUNDTRIP: "after the round trip", REFERENCE: "on the reference"}
    beside = [(labels[k], _text(v.value, metric.digits)) for k, v in group.items() if v is not lead]
    title = metric.title + (f" ({labels[lead.population]})" if lead.population != GENERATED else "")
    interval = ""
    if lead.low is not None and lead.high is not None:
        interval = f"{_text(lead.low, metric.digits)} to {_text(lead.high, metric.digits)}"
    return Card(
        title,
        lead.metric,
        _text(lead.value, metric.digits),
        metric.meaning,
        metric.better,
        lead.n,
        str(lead.protocol.get("counts", "pictures")),
        interval,
        beside,
        _share(group) if metric.better == "higher" else None,
        "the reference after the round trip" if ROUNDTRIP in group else "the reference",
        _notes(lead, metric),
        _low_n(lead, metric),
        _listed(lead),
    )


def _text(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:,.{digits}f}"


def _share(group: Mapping[str, Number]) -> float | None:
    """Generated as a fraction of what can be had: after the round trip, else on the reference."""
    ceiling = group.get(ROUNDTRIP) or group.get(REFERENCE)
    lead = group.get(GENERATED)
    if lead is None or ceiling is None or lead.value is None or not ceiling.value:
        return None
    return lead.value / ceiling.value


def _notes(number: Number, metric: Metric) -> list[str]:
    """What a reader should know before quoting the number."""
    notes = [metric.note.format(metric=number.metric)] if metric.note else []
    if metric.judged_by_network and number.network:
        notes.append(f"Judged by {number.network}, which errs too: see what it says of the reference itself.")
    told = [number.protocol.get(key) for key in ("warning", "warnings", "note", "notes", "caveat")]
    notes += [str(text) for value in told if value for text in (value if isinstance(value, list) else [value])]
    return notes


def _low_n(number: Number, metric: Metric) -> str:
    """What there is too little of: as the protocol says, which knows of the reference too; else by the pictures."""
    said, rows = number.protocol.get("low_n"), number.protocol.get("n_reference")
    counts = number.protocol.get("counts", "pictures")
    words = []
    if number.n < metric.min_n if said is None else said is True:
        real = rows if isinstance(rows, int) and rows < number.n else None
        few, what = (number.n, counts) if real is None else (real, "reference pictures")
        words.append(
            f"Low n: {few:,} {what}, {metric.min_n:,} advised" if few < metric.min_n else "Low n: too few pairs"
        )
    if number.protocol.get("fewer_rows_than_values") is True:
        words.append("No more pictures than a feature has values, so most of it may be bias")
    return ". ".join(words)


def _listed(number: Number) -> list[tuple[str, str]]:
    """The protocol as short lines; a hash by its first 12 digits."""
    lines = [("reference", number.reference)] if number.reference else []
    for key, value in number.protocol.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        short = f"{text[:12]}…" if _HASH.fullmatch(text) else text
        lines.append((str(key).replace("_", " "), short))
    return lines


def class_rows(found: Sequence[Number]) -> list[ClassRow]:
    """IoU of every class that somebody measured, the best generated one first."""
    values: dict[str, dict[str, float | None]] = {}
    for number in found:
        if number.base == "iou" and number.part in CLASS_INDEX:
            values.setdefault(number.part, {})[number.population] = number.value
    rows = [
        ClassRow(CLASS_INDEX[name], name, v.get(GENERATED), v.get(ROUNDTRIP), v.get(REFERENCE))
        for name, v in values.items()
    ]
    return sorted(rows, key=lambda row: (1.0 if row.generated is None else -row.generated, row.index))


def slices(found: Sequence[Number]) -> tuple[list[str], dict[str, dict[str, Number]]]:
    """Numbers of parts such as `Male: yes`: the metrics, and the numbers of each part by metric."""
    parts: dict[str, dict[str, Number]] = {}
    for number in found:
        if ": " in number.part and "/" not in number.part and lookup(number.metric).in_slices:
            parts.setdefault(number.part, {})[number.metric] = number
    metrics = dict.fromkeys(metric for values in parts.values() for metric in values)
    return sorted(metrics, key=order), parts


def verdict(found: Sequence[Number]) -> str:
    """One or two sentences on how good the pictures are, with the numbers they rest on; empty without metrics."""
    groups: dict[str, dict[str, Number]] = {}
    for number in found:
        if number.base == "miou" and not number.part:
            groups.setdefault(number.metric, {})[number.population] = number
    for group in groups.values():
        lead = group.get(GENERATED)
        if lead is not None and lead.value is not None:
            return _follows(lead.value, group)
    for number in found:
        if number.base in ("fid", "fd") and number.population == GENERATED and number.value is not None:
            return (
                f"The generated pictures are at {number.metric} {number.value:.2f} from the reference (0 is the same)."
            )
    return ""


def _follows(value: float, group: Mapping[str, Number]) -> str:
    share = _share(group)
    if share is None:
        return f"The pictures reach a mean IoU of {value:.3f} with the masks they were asked for."
    words = ((0.95, "very closely"), (0.8, "closely"), (0.6, "in the main"), (0.0, "only loosely"))
    how = next(word for limit, word in words if share >= limit)
    what = " after a round trip through the first stage" if ROUNDTRIP in group else ""
    ceiling = (group.get(ROUNDTRIP) or group[REFERENCE]).value
    return (
        f"The pictures follow their masks {how}: mean IoU {value:.3f}, {share:.0%} of the {ceiling:.3f} "
        f"that the same parser reaches on the reference pictures{what}."
    )
