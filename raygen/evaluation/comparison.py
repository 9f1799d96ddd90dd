"""The lines of a sweep: a number at each step count, a line a sampler, and how many steps are enough.

Knows METRICS rows that name their cell. Does not know how lines are drawn. Needs no torch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, NamedTuple

from raygen.core.errors import ConfigError, InputError
from raygen.metrics.registry import SECONDS, better, lookup

__all__ = [
    "CELL",
    "WITHIN",
    "Curve",
    "Grid",
    "Point",
    "best_steps",
    "cell_of",
    "check_counts",
    "check_names",
    "check_protocols",
    "curves",
    "grid",
    "side_by_side",
    "variant_of",
]


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


#: Slices with a part that an ablation's table shows nevertheless.
SHOWN: Final = ("all/captions", "all/small parts", "all/inside", "all/outside")


# --- variants -----------------------------------------------------------------------------------------------


def variant_of(row: Mapping[str, Any]) -> str | None:
    """The variant that a METRICS row of an ablation names."""
    try:
        return json.loads(row.get("protocol") or "{}").get("variant")  # type: ignore[no-any-return]
    except (ValueError, AttributeError):
        return None


class Grid(NamedTuple):
    """The numbers of whole sets of an ablation."""

    columns: list[str]
    values: dict[str, dict[str, float]]  # by variant and column
    n: dict[str, dict[str, int | None]]  # rows that each value is of, alike

    def n_of(self, column: str) -> int | None:
        """The number of rows that all variants have there; None where they differ, or nobody knows."""
        found = {counts[column] for counts in self.n.values() if column in counts}
        return found.pop() if len(found) == 1 else None


def side_by_side(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """METRICS rows of whole sets by column and variant: those that an ablation compares.

    Reference and round trip are the same for all, unless it is the judge that varies: rates of verification are kept.
    """
    columns: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        variant = variant_of(row)
        part = row["slice"].removeprefix("all/")
        if variant is None or (
            row["slice"] in ("reference", "roundtrip") and not lookup(row["metric"]).describes_network
        ):
            continue
        if "/" in row["slice"] and row["slice"] not in SHOWN:
            continue
        name = row["metric"] if row["slice"] in ("all", "reference") else f"{row['metric']} ({part})"
        cells = columns.setdefault(name, {})
        if row["slice"] != "reference" or cells.get(variant, row)["slice"] == "reference":  # else it is at hand itself
            cells[variant] = row
    return columns


def grid(rows: Iterable[Mapping[str, Any]]) -> Grid:
    """Columns, values and numbers of rows, for a table with a line a variant."""
    columns = side_by_side(rows)
    found = Grid(list(columns), {}, {})
    for name, cells in columns.items():
        for variant, row in cells.items():
            found.values.setdefault(variant, {})[name] = row["value"]
            found.n.setdefault(variant, {})[name] = row.get("n")
    return found


Row = Mapping[str, Any]
#: What a protocol says of how a number was measured; the rest (`clipped`, `low_n`) is what came out, or is the variant.
METHOD: Final = (
    "network",
    "sha256",
    "version",
    "model",
    "input",
    "text",
    "labels",
    "label_order",
    "region",
    "precision",
    "compare",
    "compared by",
    "window",
    "k",
    "range",
    "border",
    "level",
    "kernel",
    "estimator",
    "splits",
    "split",
    "seed",
    "size",
    "n_reference",
    "statistics",
    "distance",
    "against",
    "margin",
    "inside",
    "q",
    "n_training",
    "n_held_out",
)
#: Digits of a digest that a message shows.
SHORT: Final = 12


def check_protocols(column: str, rows: Mapping[str, Row]) -> None:
    """`ConfigError` where the METRICS rows of one column, by the name of what they judge, were not measured alike.

    It names the two and what differs: reference, sha256 of the network, picture size, or another part of the protocol.
    """
    (one, first), *others = rows.items()  # what is equal to the first is equal
    for other, second in others:
        a, b = _method(first), _method(second)
        differs = [
            f"{key} {_serialize(a.get(key))} and {_serialize(b.get(key))}" for key in a | b if a.get(key) != b.get(key)
        ]
        if differs:
            raise ConfigError(f"{column}: {one} and {other} are not comparable: {'; '.join(differs)}")


def check_names(rows: Mapping[str, Sequence[Row]]) -> None:
    """`ConfigError` where two have numbers of one kind and none by the same protocol, such as `fid@clean` and `fid@tf`.

    `rows`: whole sets' METRICS rows, by the name of what they judge.
    """
    found: dict[str, dict[str, set[str]]] = {}
    for name, own in rows.items():
        for row in own:
            metric = lookup(row["metric"])
            if metric.better and not metric.describes_network:
                kind = metric.name.replace(
                    "fid", "fd"
                )  # distances over Inception and over other features are of one kind
                found.setdefault(f"{kind} [{row['slice']}]", {}).setdefault(name, set()).add(row["metric"])
    for kind, by in found.items():
        for (one, first), (other, second) in combinations(by.items(), 2):
            if not first & second:
                ours, theirs = (", ".join(sorted(names)) for names in (first, second))
                raise ConfigError(f"{kind}: {one} and {other} are not comparable: protocol {ours} and {theirs}")


def check_counts(column: str, rows: Mapping[str, Row]) -> None:
    """`InputError` (`n`) where a distance or another number of whole sets is over unequal numbers of rows."""
    (one, first), *others = rows.items()
    for other, second in others:
        if lookup(first["metric"]).set_level and first["n"] != second["n"]:
            counts = f"{one} has n {first['n']:,} and {other} n {second['n']:,}"
            raise InputError(f"{column}: {counts}; over unequal n it is not comparable", reason="n")


def _method(row: Row) -> dict[str, Any]:
    said = json.loads(row.get("protocol") or "{}")
    against = said.get("reference") or {}
    found = {"reference": row.get("reference"), "made from": against.get("made"), "picture size": against.get("size")}
    if row["slice"] == "reference" and lookup(row["metric"]).describes_network:
        return found  # it is the judge that is judged
    return found | {key: said.get(key) for key in METHOD}


def _serialize(value: Any) -> str:
    if value is None:
        return "unknown"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text[:SHORT] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
