"""Section: rows that failed or were refused, with their reasons."""

from collections import Counter
from typing import Any, Final

from raygen.report.run_folder import RunFolder
from raygen.report.section import Section
from raygen.store.parquet import read_slice

__all__ = ["section"]


MAX_ROWS: Final = 50


def section(run: RunFolder) -> Section | None:
    """How many rows failed for each reason, and the first of them in full; None for a folder without stores."""
    if not run.stages:
        return None
    stages = run.stages.values()
    reasons = Counter((stage.title, reason) for stage in stages for reason in stage.reasons.elements())
    rows: list[dict[str, Any]] = []
    for piece in (piece for stage in stages for piece in stage.slices("quarantine")):
        if len(rows) < MAX_ROWS:
            rows += read_slice(piece._replace(rows=min(piece.rows, MAX_ROWS - len(rows)))).to_pylist()
    variables = {
        "total": sum(reasons.values()),
        "reasons": reasons.most_common(),
        "rows": rows,
        "complete": run.main is None or not run.main.missing,
    }
    return Section("failed-rows", "Failed rows", "failed_rows.html.j2", variables)
