"""Section: a sweep over samplers and step counts, as plots and as the same rows under every cell."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from markupsafe import Markup

from raygen.core.errors import ConfigError
from raygen.evaluation.comparison import Curve, best_steps, cell_of, curves
from raygen.metrics.registry import SECONDS, better, lookup
from raygen.report.images import ImageWithMask, find_rows, image_with_mask
from raygen.report.plots import DataPoint, Series, line_plot
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section
from raygen.store.lookup import evenly
from raygen.store.run_store import open_input

__all__ = ["Measure", "SeriesSummary", "section", "sweep_plot"]


Over = Literal["steps", "seconds"]
AXES: Final[Mapping[Over, str]] = {"steps": "steps", "seconds": "seconds per image"}
#: Images of each cell.
MAX_IMAGES: Final = 8
MAX_CELLS: Final = 60


class SeriesSummary(NamedTuple):
    """One line of a plot: its best value, the fewest steps within 5 % of it, and seconds per image at these steps."""

    name: str
    best: float
    steps: int
    seconds: float | None


class Measure(NamedTuple):
    """One metric: its plots, its lines, and its value on the reference itself where it has one."""

    metric: str
    plots: Sequence[Markup]
    lines: Sequence[SeriesSummary]
    reference: float | None


def section(run: RunFolder) -> Section | None:
    """Plots of each metric, and images of every cell; None where the METRICS name no cells."""
    celled = [(cell, row) for row in run.rows if (cell := cell_of(row)) is not None]
    if not celled:
        return None
    names = list(dict.fromkeys(str(row["metric"]) for _, row in celled if row["slice"] == "all"))
    drawn = sorted((name for name in names if lookup(name).plotted), key=lambda name: lookup(name).plotted)
    reference = {row["metric"]: float(row["value"]) for row in run.rows if row["slice"] == "reference"}
    cells = sorted({(str(c["line"]), int(c["steps"]), str(c["name"])) for c, _ in celled})
    variables = {
        "measures": [_measure(name, curves((row for _, row in celled), name), reference.get(name)) for name in drawn],
        "cells": list(_images(run, [name for _, _, name in cells[:MAX_CELLS]])),
        "rows": max((int(row["n"]) for _, row in celled if row["metric"] != SECONDS), default=0),
    }
    return Section("sweep", "Quality over steps", "sweep.html.j2", variables)


def _measure(metric: str, lines: Sequence[Curve], reference: float | None) -> Measure:
    summaries = []
    for curve in lines:
        steps, best = best_steps(curve, metric)
        seconds = next(point.seconds for point in curve.points if point.steps == steps)
        summaries.append(SeriesSummary(curve.name, best, steps, seconds))
    plots = (sweep_plot(lines, metric), sweep_plot(lines, metric, over="seconds"))
    return Measure(metric, [Markup(plot) for plot in plots if plot], summaries, reference)


def sweep_plot(lines: Sequence[Curve], metric: str, *, over: Over = "steps", standalone: bool = False) -> str:
    """SVG of a metric over steps or seconds with its intervals, a line a sampler; empty where no point has a place."""
    series = []
    for curve in lines:
        places = [(float(point.steps) if over == "steps" else point.seconds, point) for point in curve.points]
        points = [
            DataPoint(x, p.value, p.low, p.high, f"{curve.name}, {p.steps} steps: {p.value:.4g} (n = {p.n:,})")
            for x, p in places
            if x is not None
        ]
        series += [Series(curve.name, points)] if points else []
    return line_plot(
        series,
        name=f"{metric}-{over}",
        title=f"{metric} over {AXES[over]}" + (f"; {better(metric)} is better" if better(metric) else ""),
        xlabel=AXES[over],
        log_x=True,
        standalone=standalone,
    )


def _images(run: RunFolder, names: Iterable[str]) -> Iterator[tuple[str, Sequence[ImageWithMask]]]:
    """Images of the same rows in every cell."""
    ids: list[str] = []
    for name in names:
        try:
            store, _ = open_input(f"{run.url}/cells/{name}")
        except ConfigError:
            continue  # the table is here, the images are not
        pieces = store.slices("samples")
        ids = ids or [row["sample_id"] for row in evenly(pieces, MAX_IMAGES, ["sample_id"])]
        rows = find_rows(pieces, "sample_id", ids, ("image", "mask", "source"))
        images = [image_with_mask(rows[sample], "sample_id") for sample in ids if sample in rows]
        yield name, [image for image in images if image]
