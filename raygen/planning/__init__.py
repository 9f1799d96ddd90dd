"""Experiments: functions that turn FACES, or nothing, into CONDITIONS rows.

A new one is a module with a subclass of `Planning`, and its line in `EXPERIMENTS`. Sampling and scoring do not change.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from raygen.core.config import tagged_union
from raygen.planning.base import Planning, PlanWorker
from raygen.planning.edits import ALPHAS, EditLine, EditsFromFile, EditsFromPairs, paste
from raygen.planning.from_faces import FromFaces, Unconditional
from raygen.planning.identities import Identities
from raygen.planning.styles import Styles

__all__ = [
    "ALPHAS",
    "EXPERIMENTS",
    "AnyPlanning",
    "EditLine",
    "EditsFromFile",
    "EditsFromPairs",
    "FromFaces",
    "Identities",
    "PlanWorker",
    "Planning",
    "Styles",
    "Unconditional",
    "paste",
]


#: Experiments by the value of `planning.kind`.
EXPERIMENTS: Final[Mapping[str, type[Planning]]] = {
    "from_faces": FromFaces,
    "unconditional": Unconditional,
    "styles": Styles,
    "edits": EditsFromFile,
    "edit_pairs": EditsFromPairs,
    "identities": Identities,
}

if TYPE_CHECKING:
    AnyPlanning = Planning
else:
    AnyPlanning = tagged_union(EXPERIMENTS)
