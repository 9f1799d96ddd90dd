"""Comparison of runs: curves of a sweep over step counts, the table of an ablation, and checks of comparability."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, NamedTuple

from raygen.core.errors import ConfigError, InputError
from raygen.metrics.registry import SECONDS, better, lookup

__all__ = [
    "CELL",
    "ROW_IDS",
    "WITHIN",
    "Curve",
    "Grid",
    "Point",
    "best_steps",
    "cell_of",
    "check_comparable",
    "check_counts",
    "check_names",
    "check_protocols",
    "curves",
    "grid",
    "side_by_side",
    "variant_of",
]


#: Key of a digest of the ids of all samples, in the protocol of their METRICS rows.
ROW_IDS: Final = "row_ids"
#: Key of the settings of a sweep's cell in the protocol of its METRICS rows.
CELL: Final = "cell"
#: A step count is enough where its value is within this share of the best value of the curve.
WITHIN: Final = 0.05
#: Settings of a cell, besides its sampler and steps, that identify its curve, and their text in its name.
SETTINGS: Final[Mapping[str, str]] = {"guidance": "guidance {}", "conditions": "conditions: {}", "checkpoint": "{}"}


@dataclass(frozen=True)
class Point:
    """One cell of a curve: a value over `n` rows with its interval, and the seconds per picture."""

    steps: int
    value: float
    low: float | None
    high: float | None
    seconds: float | None
    n: int


@dataclass(frozen=True)
class Curve:
    """One curve: its name, and its points by steps."""

    name: str
    points: tuple[Point, ...]


def cell_of(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The settings of the cell of a METRICS row; None where it is not a row of a sweep."""
    try:
        cell = json.loads(row.get("protocol") or "{}").get(CELL)
    except (ValueError, AttributeError):
        return None
    return cell if isinstance(cell, dict) else None


def curves(rows: Iterable[Mapping[str, Any]], metric: str, slice_: str = "all") -> list[Curve]:
    """The curves of one metric by name; all cells of a curve have the same settings but for their steps."""
    rows = list(rows)
    cells = [(cell, row) for row in rows if (cell := cell_of(row)) is not None]
    seconds = {cell["name"]: row["value"] for cell, row in cells if row["metric"] == SECONDS}
    lines = list(dict.fromkeys(_line(cell) for cell, _ in cells))
    # The name of a curve has its sampler, and those of the other settings that differ between curves.
    differing = [i for i in range(1, 1 + len(SETTINGS)) if len({line[i] for line in lines}) > 1]
    texts = tuple(SETTINGS.values())
    names = {line: ", ".join([line[0], *(texts[i - 1].format(line[i]) for i in differing)]) for line in lines}
    points_of: dict[str, list[Point]] = {}
    for cell, row in cells:
        if row["metric"] == metric and row["slice"] == slice_:
            point = Point(
                int(cell["steps"]), row["value"], row["ci_low"], row["ci_high"], seconds.get(cell["name"]), row["n"]
            )
            points_of.setdefault(names[_line(cell)], []).append(point)
    return [Curve(name, tuple(sorted(points, key=lambda p: p.steps))) for name, points in sorted(points_of.items())]


def best_steps(curve: Curve, metric: str, within: float = WITHIN) -> tuple[int, float]:
    """The smallest step count whose value is within a share `within` of the best of the curve, and the best value."""
    lower = better(metric) == "lower"
    best = (min if lower else max)(point.value for point in curve.points)
    limit = abs(best) * within
    near = [p.steps for p in curve.points if (p.value - best if lower else best - p.value) <= limit]
    return min(near), best


def _line(cell: Mapping[str, Any]) -> tuple[str, ...]:
    """The sampler and the `SETTINGS` of a cell."""
    return tuple(str(cell.get(name, "")) for name in ("line", *SETTINGS))


#: Slices with a part that are columns of the table of an ablation.
SHOWN: Final = ("all/captions", "all/small parts", "all/inside", "all/outside")


# --- variants -----------------------------------------------------------------------------------------------


def variant_of(row: Mapping[str, Any]) -> str | None:
    """The variant of a METRICS row; None where it is not a row of an ablation."""
    try:
        return json.loads(row.get("protocol") or "{}").get("variant")  # type: ignore[no-any-return]
    except (ValueError, AttributeError):
        return None


class Grid(NamedTuple):
    """The table of an ablation: a row a variant, a column a metric of whole sets."""

    columns: list[str]
    values: dict[str, dict[str, float]]  # by variant and column
    n: dict[str, dict[str, int | None]]  # rows of each value, alike

    def n_of(self, column: str) -> int | None:
        """The number of rows of all variants in a column; None where it differs or is unknown."""
        counts = {by_column[column] for by_column in self.n.values() if column in by_column}
        return counts.pop() if len(counts) == 1 else None


def side_by_side(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """METRICS rows of whole sets by column and variant, for the table of an ablation.

    Rows of the reference and the round trip are the same for all variants and left out, except those of metrics that
    describe their network, which may be what varies.
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
        if (
            row["slice"] != "reference" or cells.get(variant, row)["slice"] == "reference"
        ):  # a row of the samples takes precedence
            cells[variant] = row
    return columns


def grid(rows: Iterable[Mapping[str, Any]]) -> Grid:
    """The table of an ablation, from its METRICS rows."""
    columns = side_by_side(rows)
    table = Grid(list(columns), {}, {})
    for name, cells in columns.items():
        for variant, row in cells.items():
            table.values.setdefault(variant, {})[name] = row["value"]
            table.n.setdefault(variant, {})[name] = row.get("n")
    return table


Row = Mapping[str, Any]
#: Keys of a protocol that say how a number was measured; the others are results (`clipped`, `low_n`) or the variant.
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
    """`ConfigError` where the METRICS rows of one column, by variant, were not measured in the same way.

    It names two variants and what differs: the reference, the sha256 of the network, the picture size, or another part
    of the protocol.
    """
    (variant, first), *others = rows.items()
    for other, second in others:
        a, b = _method(first), _method(second)
        differs = [
            f"{key} {_serialize(a.get(key))} and {_serialize(b.get(key))}" for key in a | b if a.get(key) != b.get(key)
        ]
        if differs:
            raise ConfigError(f"{column}: {variant} and {other} are not comparable: {'; '.join(differs)}")


def check_names(rows: Mapping[str, Sequence[Row]]) -> None:
    """`ConfigError` where two variants have a metric by different protocols only, such as `fid@clean` and `fid@tf1`.

    `rows`: METRICS rows of whole sets, by variant.
    """
    names: dict[str, dict[str, set[str]]] = {}
    for variant, own_rows in rows.items():
        for row in own_rows:
            metric = lookup(row["metric"])
            if metric.better and not metric.describes_network:
                # Distances over Inception (fid) and over other features (fd) are of one kind.
                kind = metric.name.replace("fid", "fd")
                names.setdefault(f"{kind} [{row['slice']}]", {}).setdefault(variant, set()).add(row["metric"])
    for kind, by_variant in names.items():
        for (variant, first), (other, second) in combinations(by_variant.items(), 2):
            if not first & second:
                protocol, other_protocol = (", ".join(sorted(metrics)) for metrics in (first, second))
                raise ConfigError(
                    f"{kind}: {variant} and {other} are not comparable: protocol {protocol} and {other_protocol}"
                )


def check_comparable(measured: Mapping[str, Sequence[Row]]) -> None:
    """`ConfigError` where METRICS rows of variants were not measured with one protocol."""
    columns = side_by_side(row for rows in measured.values() for row in rows)
    for column, cells in columns.items():
        check_protocols(column, cells)
    check_names({variant: [cells[variant] for cells in columns.values() if variant in cells] for variant in measured})


def check_counts(column: str, rows: Mapping[str, Row]) -> None:
    """`InputError` (`n`) where a metric of whole sets, such as a distance, is over unequal numbers of rows."""
    (variant, first), *others = rows.items()
    for other, second in others:
        if lookup(first["metric"]).set_level and first["n"] != second["n"]:
            counts = f"{variant} has n {first['n']:,} and {other} n {second['n']:,}"
            raise InputError(f"{column}: {counts}; over unequal n it is not comparable", reason="n")


def _method(row: Row) -> dict[str, Any]:
    """How a METRICS row was measured: its reference and the `METHOD` of its protocol."""
    protocol = json.loads(row.get("protocol") or "{}")
    source = protocol.get("reference") or {}
    reference = {"reference": row.get("reference"), "made from": source.get("made"), "picture size": source.get("size")}
    reference["reference split"] = source.get("split")
    if row["slice"] == "reference" and lookup(row["metric"]).describes_network:
        return reference  # the network is what is compared
    return reference | {key: protocol.get(key) for key in METHOD}


def _serialize(value: Any) -> str:
    """A value of a protocol in a message; a sha256 by its first digits."""
    if value is None:
        return "unknown"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text[:SHORT] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
