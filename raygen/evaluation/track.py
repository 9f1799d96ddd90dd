"""The numbers and pictures of an evaluation, recorded by trackers."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from raygen.evaluation.reference import Stores
from raygen.store.lookup import evenly, images_of
from raygen.tracking.base import TrackedRun

__all__ = ["track"]


#: Pictures of a set on its sheet.
SHEET: Final = 32


def track(
    log: Sequence[str], run: TrackedRun, metrics: Sequence[Mapping[str, Any]], stores: Stores
) -> dict[str, object]:
    """Record METRICS rows, and a sheet of each set's pictures, by the trackers `log`; what did not work."""
    from raygen.tracking.background import Trackers, contact_sheet

    trackers = Trackers(log, run)
    trackers.numbers(
        {f"{row['metric']}/{row['slice']}": row["value"] for row in metrics if row["value"] is not None}, 0
    )
    for name, (store, table, _) in stores.items():
        sheet = contact_sheet(images_of(evenly(store.slices(table), SHEET, ["image"])))
        if sheet is not None:
            trackers.picture(f"sheet/{name}", sheet, 0)
    problems = trackers.close()
    return {"not_logged": "; ".join(problems)} if problems else {}
