"""The lines of a sweep: a number at each step count, a line a sampler, and how many steps are enough.

Knows METRICS rows that name their cell. Does not know how lines are drawn. Needs no torch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from raygen.metrics import SECONDS, better

__all__ = ["CELL", "WITHIN", "Curve", "Point", "best_steps", "cell_of", "curves"]

#: Key of a METRICS row's protocol under which a sweep keeps what is special about a cell.
CELL: Final = "cell"
#: A step count is good enough where its number is this near to the line's best.
WITHIN: Final = 0.05
#: Settings of a cell, besides its sampler and steps, that belong to its line, and how they are said.
SAID: Final[Mapping[str, str]] = {"guidance": "guidance {}", "conditions": "conditions: {}", "checkpoint": "{}"}


@dataclass(frozen=True)
class Point:
    """One cell of a line."""

    steps: int
    value: float
    low: float | None
    high: float | None
    seconds: float | None
    n: int


@dataclass(frozen=True)
class Curve:
    """One line: its name, and its points by steps."""

    name: str
    points: tuple[Point, ...]


def cell_of(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The cell that a METRICS row of a sweep names."""
    try:
        found = json.loads(row.get("protocol") or "{}").get(CELL)
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, dict) else None


def curves(rows: Iterable[Mapping[str, Any]], metric: str, slice_: str = "all") -> list[Curve]:
    """The lines of one metric, in the order in which rows name them; a line has one guidance and one checkpoint."""
    rows = list(rows)
    cells = [(cell, row) for row in rows if (cell := cell_of(row)) is not None]
    seconds = {cell["name"]: row["value"] for cell, row in cells if row["metric"] == SECONDS}
    titles = _titles([cell for cell, _ in cells])
    found: dict[str, list[Point]] = {}
    for cell, row in cells:
        if row["metric"] == metric and row["slice"] == slice_:
            point = Point(
                int(cell["steps"]), row["value"], row["ci_low"], row["ci_high"], seconds.get(cell["name"]), row["n"]
            )
            found.setdefault(titles[_line(cell)], []).append(point)
    return [Curve(name, tuple(sorted(points, key=lambda p: p.steps))) for name, points in sorted(found.items())]


def best_steps(curve: Curve, metric: str, within: float = WITHIN) -> tuple[int, float]:
    """The smallest step count whose number is within 5 % of the line's best, and that best."""
    lower = better(metric) == "lower"
    best = (min if lower else max)(point.value for point in curve.points)
    limit = abs(best) * within
    near = [p.steps for p in curve.points if (p.value - best if lower else best - p.value) <= limit]
    return min(near), best


def _line(cell: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(cell.get(name, "")) for name in ("line", *SAID))


def _titles(cells: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], str]:
    """Names of lines: the sampler, and of the other settings what differs."""
    lines = list(dict.fromkeys(_line(cell) for cell in cells))
    many = [i for i in range(1, 1 + len(SAID)) if len({line[i] for line in lines}) > 1]
    said = tuple(SAID.values())
    return {line: ", ".join([line[0], *(said[i - 1].format(line[i]) for i in many)]) for line in lines}
