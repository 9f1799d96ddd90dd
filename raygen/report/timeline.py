"""Geometry of the timeline: lanes, ticks and steps, in percent of the drawing area."""

import heapq
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

__all__ = ["Span", "Tick", "axis", "clock", "lanes", "steps", "without_pauses"]


#: Round distances between ticks, seconds.
_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


class Span(NamedTuple):
    """One piece of work in time, seconds."""

    start: float
    end: float
    rows: int
    shard: int
    worker: str


class Tick(NamedTuple):
    """A mark on an axis: its place in percent and its label."""

    at: float
    label: str


def clock(seconds: float) -> str:
    """Seconds in two units: `0.8 s`, `58 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    units = (("s", 1), ("min", 60), ("h", 3600), ("d", 86400))
    whole = round(seconds)
    level = max(i for i, (_, size) in enumerate(units) if whole >= size)
    if level == 0:
        return f"{whole} s"
    (name, size), (small, part) = units[level], units[level - 1]
    rest = whole % size // part
    return f"{whole // size} {name} {rest} {small}" if rest else f"{whole // size} {name}"


def axis(end: float, most: int = 6) -> list[Tick]:
    """At most `most` + 1 round ticks from 0 to `end` seconds."""
    step = next((step for step in _STEPS if end / step <= most), max(end / most, 1.0))
    count = int(end / step)
    return [Tick(100 * i * step / max(end, 1e-9), clock(i * step) if i else "0") for i in range(count + 1)]


def lanes(spans: Sequence[Span]) -> list[int]:
    """The lane of each span so that none overlap, with as few lanes as possible; spans in order of start."""
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    chosen: list[int] = []
    for span in spans:
        while busy and busy[0][0] <= span.start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (span.end, lane))
        chosen.append(lane)
    return chosen


def without_pauses(spans: Sequence[Span], longest: float) -> tuple[list[Span], float]:
    """Spans (in order of start) without pauses longer than `longest` seconds, and the sum of these pauses."""
    moved: list[Span] = []
    removed, reached = 0.0, spans[0].start if spans else 0.0
    for span in spans:
        if span.start - reached > longest:
            removed += span.start - reached
        reached = max(reached, span.end)
        moved.append(span._replace(start=span.start - removed, end=span.end - removed))
    return moved, removed


def steps(times: Sequence[float], amounts: Sequence[int], end: float, most: int = 300) -> str:
    """SVG path (area 1000 x 100, y downwards) of the sum of `amounts` that has arrived by each of `times`."""
    order = np.argsort(np.asarray(times))
    at = np.asarray(times, dtype=np.float64)[order] / max(end, 1e-9) * 1000
    total = np.cumsum(np.asarray(amounts, dtype=np.float64)[order])
    level = 100 - 100 * total / max(float(total[-1]) if len(total) else 1.0, 1.0)
    keep = np.unique(np.linspace(0, len(at) - 1, min(most, len(at))).astype(int))
    return "M0 100" + "".join(f"H{at[i]:.1f}V{level[i]:.1f}" for i in keep) + "H1000"
