"""Experiments as functions that write condition rows: FACES (or nothing) -> CONDITIONS.

Knows how faces become the rows that ask for pictures. Knows nothing of models, pixels or Ray: masks travel as
the bytes they came in. A new experiment is one more spec with `rows`, and nothing else changes.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field

from raygen.spec import Spec
from raygen.tables import CONDITIONS, check_id

__all__ = ["AnyPlanning", "FromFaces", "PlanWorker", "Planning", "Unconditional"]

Modality = Literal["mask", "attributes", "text"]


class Planning(Spec):
    """One way to write condition rows. Subclasses add `kind: Literal[...]`."""

    seed: int = Field(0, ge=0, description="kept in every row")

    @abstractmethod
    def rows(self, given: pa.Table) -> pa.Table:
        """CONDITIONS rows for a piece of the input, depending on nothing but that piece and the spec."""

    @property
    @abstractmethod
    def factor(self) -> int:
        """Condition rows for each input row."""


class FromFaces(Planning):
    """Each face's own conditions, `per_face` times: same mask and attributes, another noise each time."""

    kind: Literal["from_faces"] = "from_faces"
    conditions: tuple[Modality, ...] = ("mask", "attributes")
    per_face: int = Field(1, ge=1, le=100_000, description="pictures asked for from each face's conditions")
    splits: tuple[str, ...] = Field((), description="only faces of these splits; empty takes all")
    recipe: str = Field("overall", description="which of a face's texts becomes the row's text")

    @property
    def factor(self) -> int:
        """Rows for each face."""
        return self.per_face

    def rows(self, given: pa.Table) -> pa.Table:
        """FACES -> CONDITIONS; `sample_id` is the face's id with a running number."""
        if self.splits:
            given = given.filter(pa.compute.is_in(given["split"], pa.array(self.splits)))
        index = pa.array([i for i in range(given.num_rows) for _ in range(self.per_face)], pa.int64())
        faces = given.take(index)
        variants = list(range(self.per_face)) * given.num_rows
        sources = faces["face_id"].to_pylist()
        columns: dict[str, object] = {
            "sample_id": [check_id(f"{face}-{k:03d}") for face, k in zip(sources, variants, strict=True)],
            "plan": [self.kind] * len(sources),
            "seed": [self.seed] * len(sources),
            "source": sources,
            "group_id": sources,
            "identity_id": faces["identity_id"],
            "variant": pa.array(variants, pa.int32()),
        }
        for name in ("mask", "attributes"):
            if name in self.conditions:
                columns[name] = faces[name]
        if "text" in self.conditions:
            columns["text"] = [dict(texts or ()).get(self.recipe) for texts in faces["texts"].to_pylist()]
        return _table(columns)


class Unconditional(Planning):
    """`count` rows without conditions."""

    kind: Literal["unconditional"] = "unconditional"
    count: int = Field(..., ge=1)
    prefix: str = "s"

    @property
    def factor(self) -> int:
        """One row for each number."""
        return 1

    def rows(self, given: pa.Table) -> pa.Table:
        """Row numbers (column `index`) -> CONDITIONS."""
        numbers = given["index"].to_pylist()
        ids = [check_id(f"{self.prefix}{n:09d}") for n in numbers]
        return _table({"sample_id": ids, "plan": [self.kind] * len(ids), "seed": [self.seed] * len(ids)})


def _table(columns: dict[str, object]) -> pa.Table:
    arrays = {n: v if isinstance(v, pa.Array | pa.ChunkedArray) else pa.array(v) for n, v in columns.items()}
    table = pa.table(arrays)
    missing = [field for field in CONDITIONS if field.name not in arrays]
    for field in missing:
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(CONDITIONS.names).cast(CONDITIONS)


AnyPlanning = Annotated[FromFaces | Unconditional, Field(discriminator="kind")]


class PlanWorker:
    """Input rows -> `{"conditions": …}`: the worker of a plan job."""

    def __init__(self, planning: Planning) -> None:
        self.planning = planning

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Nothing for a device to do: all of it happens in the returned call."""
        return lambda: {"conditions": self.planning.rows(rows)}


def columns_needed(planning: Planning) -> Iterable[str]:
    """Columns of FACES that a planning function reads; pictures are never among them."""
    return ("face_id", "split", "mask", "attributes", "texts", "identity_id")
