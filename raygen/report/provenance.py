"""Section: whether the images are synthetic, whom they may show and which licences apply."""

from raygen.report.run_folder import RunFolder
from raygen.report.section import Section

__all__ = ["section"]


def section(run: RunFolder) -> Section:
    """Where faces and images come from; every page has it."""
    data = run.data_set
    variables = {"data": data, "drawn": data.get("kind") == "procedural", "generated": run.generated}
    return Section("provenance", "Provenance", "provenance.html.j2", variables)
