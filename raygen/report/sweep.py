"""What a report says of a sweep: plots, how many steps are enough, and the same rows under every cell.

Knows METRICS rows that name their cell, and the folders of cells. Knows no HTML.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from raygen.core.errors import ConfigError
from raygen.evaluation.comparison import Curve, best_steps, cell_of, curves
from raygen.metrics.registry import SECONDS, lookup
from raygen.report import pictures as picture_rows
from raygen.report.line_plot import plot
from raygen.store.run_store import open_input

__all__ = ["Measure", "SeriesSummary", "SweepSection", "sweep_section"]


#: Pictures of each cell.
SHOWN: Final = 8
MOST_CELLS: Final = 60


@dataclass(frozen=True)
class SeriesSummary:
    """One line of a plot in words."""

    name: str
    best: float
    enough: int
    seconds: float | None  # a picture, at that many steps


@dataclass(frozen=True)
class Measure:
    """One metric: its drawings, and its lines."""

    metric: str
    drawings: tuple[Markup, ...]
    lines: tuple[SeriesSummary, ...]
    ceiling: float | None  # the same of the reference itself, where it can be measured


@dataclass(frozen=True)
class SweepSection:
    """All of it; `cells` are (name, pictures of the same rows)."""

    measures: tuple[Measure, ...]
    cells: tuple[tuple[str, tuple[picture_rows.ImageWithMask, ...]], ...]
    rows: int


def sweep_section(root: str, rows: Sequence[Mapping[str, Any]]) -> SweepSection | None:
    """Of the sweep in `root`; None where the METRICS name no cells."""
    celled = [(cell, row) for row in rows if (cell := cell_of(row)) is not None]
    if not celled:
        return None
    names = list(dict.fromkeys(str(row["metric"]) for _, row in celled if row["slice"] == "all"))
    drawn = sorted((name for name in names if lookup(name).plotted), key=lambda name: lookup(name).plotted)
    real = {row["metric"]: float(row["value"]) for row in rows if row["slice"] == "reference"}
    found = (_measure(name, curves((row for _, row in celled), name), real.get(name)) for name in drawn)
    order = sorted({(str(c["line"]), int(c["steps"]), str(c["name"])) for c, _ in celled})
    n = max((int(row["n"]) for _, row in celled if row["metric"] != SECONDS), default=0)
    return SweepSection(tuple(found), tuple(_pictures(root, [name for _, _, name in order[:MOST_CELLS]])), n)


def _measure(metric: str, found: Sequence[Curve], ceiling: float | None) -> Measure:
    lines = []
    for curve in found:
        steps, best = best_steps(curve, metric)
        seconds = next(point.seconds for point in curve.points if point.steps == steps)
        lines.append(SeriesSummary(curve.name, best, steps, seconds))
    drawings = (plot(found, metric), plot(found, metric, over="seconds"))
    # Every word inside was escaped where it was drawn.
    return Measure(metric, tuple(Markup(drawing) for drawing in drawings if drawing), tuple(lines), ceiling)


def _pictures(root: str, names: Iterable[str]) -> Iterable[tuple[str, tuple[picture_rows.ImageWithMask, ...]]]:
    ids: list[str] = []
    for name in names:
        try:
            store, _ = open_input(f"{root.rstrip('/')}/cells/{name}")
        except ConfigError:
            continue  # the table is here, the pictures are not
        pieces = store.slices("samples")
        if not ids:
            some = picture_rows.evenly(pieces, SHOWN, ["sample_id"])
            ids = [row["sample_id"] for row in some]
        rows = picture_rows.find(pieces, "sample_id", ids, ("image", "mask", "source"))
        pairs = [picture_rows.pair(rows[one], "sample_id") for one in ids if one in rows]
        yield name, tuple(pair for pair in pairs if pair)
