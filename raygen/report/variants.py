"""Section: the variants of an ablation side by side."""

from raygen.evaluation.comparison import grid
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section

__all__ = ["section"]


def section(run: RunFolder) -> Section | None:
    """A table of variants by metrics; None where METRICS name no variants."""
    variants = grid(run.rows)
    return Section("variants", "Variants", "variants.html.j2", {"variants": variants}) if variants.values else None
