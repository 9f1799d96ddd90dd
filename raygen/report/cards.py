"""Section: the metrics of the run, one card each with its protocol and caveats."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from raygen.metrics.registry import Metric, family, lookup, order
from raygen.report.metric_rows import GENERATED, REFERENCE, ROUNDTRIP, Number, share_of_ceiling
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section

__all__ = ["Card", "PublishedValue", "cards", "section"]


_HASH: Final = re.compile("[0-9a-f]{40,}")


class PublishedValue(NamedTuple):
    """A value that a paper prints, as text; it was not measured here."""

    metric: str
    value: str
    source: str
    measured: str


class Card(NamedTuple):
    """One metric as text: value, meaning, values of the other populations, caveats and protocol."""

    title: str
    metric: str
    value: str
    meaning: str
    better: str
    n: int
    counts: str
    interval: str
    others: Sequence[tuple[str, str]]
    share: float | None
    share_of: str
    notes: Sequence[str]
    warning: str
    protocol: Sequence[tuple[str, str]]
    published: Sequence[PublishedValue] = ()


def section(run: RunFolder) -> Section | None:
    """A card for each metric; None without metrics."""
    printed = [
        PublishedValue(name, _text(value, lookup(name).digits), entry["source"], entry["measured"])
        for entry in run.json("metrics/published.json") or []
        for name, value in entry["values"].items()
    ]
    shown = [
        card._replace(published=[entry for entry in printed if family(entry.metric) == family(card.metric)])
        for card in cards(run.numbers)
    ]
    measured = {family(card.metric) for card in shown}
    variables = {"cards": shown, "printed": [entry for entry in printed if family(entry.metric) not in measured]}
    return Section("metrics", "Metrics", "cards.html.j2", variables) if shown else None


def cards(numbers: Sequence[Number]) -> list[Card]:
    """One card for each metric over whole populations; the generated images come first where they were measured."""
    by_metric: dict[str, dict[str, Number]] = {}
    for number in numbers:
        if not number.part:
            by_metric.setdefault(number.metric, {})[number.population] = number
    return [_card(by_metric[name]) for name in sorted(by_metric, key=lambda name: (order(name), name))]


def _card(group: Mapping[str, Number]) -> Card:
    lead = group.get(GENERATED) or group.get(ROUNDTRIP) or next(iter(group.values()))
    metric = lookup(lead.metric)
    labels = {GENERATED: "generated", ROUNDTRIP: "reconstructed reference", REFERENCE: "reference"}
    interval = ""
    if lead.low is not None and lead.high is not None:
        interval = f"{_text(lead.low, metric.digits)} to {_text(lead.high, metric.digits)}"
    return Card(
        metric.title + (f" ({labels[lead.population]})" if lead.population != GENERATED else ""),
        lead.metric,
        _text(lead.value, metric.digits),
        metric.meaning,
        metric.better,
        lead.n,
        str(lead.protocol.get("counts", "images")),
        interval,
        [(labels[k], _text(v.value, metric.digits)) for k, v in group.items() if v is not lead],
        share_of_ceiling(group) if metric.better == "higher" else None,
        "the reconstructed reference" if ROUNDTRIP in group else "the reference",
        _notes(lead, metric),
        _warning(lead, metric),
        _protocol_lines(lead),
    )


def _text(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:,.{digits}f}"


def _notes(number: Number, metric: Metric) -> list[str]:
    """Caveats that belong to the number wherever it is quoted."""
    notes = [metric.note.format(metric=number.metric)] if metric.note else []
    if metric.judged_by_network and number.network:
        notes.append(f"Measured by {number.network}, which makes errors too: compare with the value on the reference.")
    stored = [number.protocol.get(key) for key in ("warning", "warnings", "note", "notes", "caveat")]
    notes += [str(text) for value in stored if value for text in (value if isinstance(value, list) else [value])]
    return notes


def _warning(number: Number, metric: Metric) -> str:
    """Says that n is too low: by the protocol, which knows the reference too, else by the number of images."""
    flag, reference = number.protocol.get("low_n"), number.protocol.get("n_reference")
    words = []
    if number.n < metric.min_n if flag is None else flag is True:
        smaller = reference if isinstance(reference, int) and reference < number.n else None
        n, counts = (
            (number.n, number.protocol.get("counts", "images")) if smaller is None else (smaller, "reference images")
        )
        words.append(f"Low n: {n:,} {counts}, {metric.min_n:,} advised" if n < metric.min_n else "Low n: too few pairs")
    if number.protocol.get("fewer_rows_than_values") is True:
        words.append("No more images than a feature has values, so most of it may be bias")
    return ". ".join(words)


def _protocol_lines(number: Number) -> list[tuple[str, str]]:
    """The protocol as names and values; a hash by its first 12 digits."""
    lines = [("reference", number.reference)] if number.reference else []
    for key, value in number.protocol.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        lines.append((str(key).replace("_", " "), f"{text[:12]}…" if _HASH.fullmatch(text) else text))
    return lines
