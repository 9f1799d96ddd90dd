"""Experiments as functions that write condition rows: FACES (or nothing) -> CONDITIONS.

How faces become the rows that ask for pictures. A new experiment is one more config
with `rows` and one more name in the union here; sampling and scoring never change for it.
"""

from collections.abc import Callable, Iterable
from typing import Annotated

import pyarrow as pa
from pydantic import Field

from raygen.planning.base import Planning
from raygen.planning.edits import ALPHAS, EditLine, EditsFromFile, EditsFromPairs, paste
from raygen.planning.from_faces import FromFaces, Unconditional
from raygen.planning.identities import Identities
from raygen.planning.styles import Styles
from raygen.store.lookup import RowLookup

__all__ = [
    "ALPHAS",
    "AnyPlanning",
    "EditLine",
    "EditsFromFile",
    "EditsFromPairs",
    "FromFaces",
    "Identities",
    "PlanWorker",
    "Planning",
    "RowLookup",
    "Styles",
    "Unconditional",
    "columns_needed",
    "paste",
]


AnyPlanning = Annotated[
    FromFaces | Unconditional | Styles | EditsFromFile | EditsFromPairs | Identities, Field(discriminator="kind")
]


class PlanWorker:
    """Input rows -> `{"conditions": …}`: the worker of a plan job. `faces` for experiments that refer to faces."""

    def __init__(self, planning: Planning, faces: RowLookup | None = None) -> None:
        self.planning, self.faces = planning, faces

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Nothing for a device to do: all of it happens in the returned call."""
        return lambda: {"conditions": self.planning.rows(rows, self.faces)}


def columns_needed(planning: Planning) -> Iterable[str]:
    """Columns of FACES that a planning function reads; pictures only where rows name them by their content."""
    columns = ("face_id", "split", "mask", "attributes", "texts", "identity_id")
    if isinstance(planning, FromFaces) and "hint" in planning.conditions:
        return (*columns, "hint")
    return (*columns, "image") if isinstance(planning, Styles) else columns
