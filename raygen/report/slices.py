"""Section: metrics of slices such as `Male: yes`."""

from collections.abc import Sequence

from raygen.metrics.registry import lookup, order
from raygen.report.metric_rows import Number
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section

__all__ = ["section", "slices"]


def section(run: RunFolder) -> Section | None:
    """A table of slices by metrics; None without slices."""
    metrics, values = slices(run.numbers)
    variables = {"metrics": metrics, "slices": values}
    return Section("slices", "Slices", "slices.html.j2", variables) if values else None


def slices(numbers: Sequence[Number]) -> tuple[list[str], dict[str, dict[str, Number]]]:
    """The metrics of slices in the order of the cards, and each slice's numbers by metric."""
    by_slice: dict[str, dict[str, Number]] = {}
    for number in numbers:
        if ": " in number.part and "/" not in number.part and lookup(number.metric).in_slices:
            by_slice.setdefault(number.part, {})[number.metric] = number
    metrics = dict.fromkeys(metric for values in by_slice.values() for metric in values)
    return sorted(metrics, key=order), by_slice
