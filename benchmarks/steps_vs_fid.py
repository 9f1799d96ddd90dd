"""Plots of a sweep: a metric over steps and over seconds per picture, with one line per sampler.

    python benchmarks/steps_vs_fid.py runs/sweep/steps runs/sweep/many_steps --out docs/figures

Writes one SVG per metric and axis, and prints the tables of docs/results.md. Measures nothing itself.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raygen.core.errors import InputError, RaygenError
from raygen.evaluation.comparison import WITHIN, best_steps, cell_of, check_protocols, curves
from raygen.metrics.registry import SECONDS, family
from raygen.report.sweep import sweep_plot
from raygen.store.parquet import from_parquet


def rows_of(folders: Iterable[str]) -> Iterator[dict[str, Any]]:
    """METRICS rows of several sweeps, each with its `sweep`."""
    for folder in folders:
        for row in from_parquet((Path(folder) / "metrics/metrics.parquet").read_bytes()).to_pylist():
            yield {**row, "sweep": folder}


def check(rows: Iterable[Mapping[str, Any]]) -> list[int]:
    """The number of pictures per cell: a list with one number, or empty without cells.

    `ConfigError` names two cells that were measured against other references, by other networks or at other sizes;
    `InputError` says which numbers of pictures there are, where there are several.
    """
    columns: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if (cell := cell_of(row)) and row["slice"] == "all" and row["metric"] != SECONDS:
            columns.setdefault(row["metric"], {})[f"{row['sweep']}: {cell['name']}"] = row
    for metric, cells in columns.items():
        check_protocols(metric, cells)
    counts = sorted({row["n"] for cells in columns.values() for row in cells.values()})
    if len(counts) > 1:
        raise InputError(f"cells of {counts} pictures: unequal n is not comparable; draw them apart", reason="n")
    return counts


def tables(rows: list[Mapping[str, Any]], metric: str) -> Iterator[str]:
    """Markdown tables: a row per line of the plot, a column per step count; then the steps within 5 % of the best."""
    lines = curves(rows, metric)
    steps = sorted({point.steps for curve in lines for point in curve.points})
    yield f"| {metric} | " + " | ".join(map(str, steps)) + f" | within {WITHIN:.0%} of its best |"
    yield "|---|" + "---|" * (len(steps) + 1)
    for curve in lines:
        by = {point.steps: point for point in curve.points}
        cells = [f"{by[s].value:#.3g}" if s in by else "" for s in steps]
        enough, _ = best_steps(curve, metric)
        seconds = by[enough].seconds
        yield f"| {curve.name} | {' | '.join(cells)} | {enough} steps" + (f", {seconds:.3g} s |" if seconds else " |")


def main() -> None:
    """Write the plots and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", help="folders of `raygen sweep`")
    parser.add_argument("--metrics", nargs="+", default=["fd:raygen-parser", "miou:raygen-parser"])
    parser.add_argument("--out", default="docs/figures")
    options = parser.parse_args()
    rows = list(rows_of(options.sweeps))
    try:
        counts = check(rows)
    except RaygenError as error:
        raise SystemExit(str(error)) from error
    for metric in options.metrics:
        lines = curves(rows, metric)
        for over in ("steps", "seconds"):
            name = f"{family(metric)}_over_{over}.svg"
            figure = sweep_plot(lines, metric, over=over, standalone=True)
            (Path(options.out) / name).write_text(figure, encoding="utf-8")
        print("\n".join(tables(rows, metric)), end="\n\n")
    print(json.dumps({"n": counts}))


if __name__ == "__main__":
    main()
