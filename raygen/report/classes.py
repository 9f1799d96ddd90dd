"""Section: IoU of each of the 19 classes."""

from collections.abc import Sequence
from dataclasses import dataclass

from raygen.core.face_labels import CLASS_INDEX
from raygen.report.metric_rows import GENERATED, REFERENCE, ROUNDTRIP, Number
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section

__all__ = ["ClassRow", "class_rows", "section"]


@dataclass(frozen=True)
class ClassRow:
    """IoU of one class in the three populations; None where it was not measured or the class never occurs."""

    index: int
    name: str
    generated: float | None
    roundtrip: float | None
    reference: float | None


def section(run: RunFolder) -> Section | None:
    """A bar for each class; None without IoU of classes."""
    rows = class_rows(run.numbers)
    return Section("classes", "IoU by class", "classes.html.j2", {"rows": rows}) if rows else None


def class_rows(numbers: Sequence[Number]) -> list[ClassRow]:
    """IoU of every class that was measured, the best generated one first."""
    values: dict[str, dict[str, float | None]] = {}
    for number in numbers:
        if number.base == "iou" and number.part in CLASS_INDEX:
            values.setdefault(number.part, {})[number.population] = number.value
    rows = [
        ClassRow(CLASS_INDEX[name], name, v.get(GENERATED), v.get(ROUNDTRIP), v.get(REFERENCE))
        for name, v in values.items()
    ]
    return sorted(rows, key=lambda row: (1.0 if row.generated is None else -row.generated, row.index))
