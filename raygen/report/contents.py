"""Section: the stores of the run folder."""

from raygen.report.run_folder import RunFolder
from raygen.report.section import Section

__all__ = ["section"]


def section(run: RunFolder) -> Section | None:
    """A table of stores with rows, size, time and digest; None for a folder without stores."""
    variables = {"stages": list(run.stages.values())}
    return Section("contents", "Stored tables", "contents.html.j2", variables) if run.stages else None
