"""The base class of experiments, and the worker of `raygen plan`."""

from abc import abstractmethod
from collections.abc import Callable, Mapping

import pyarrow as pa
from pydantic import Field

from raygen.core.config import Config
from raygen.store.lookup import RowLookup
from raygen.store.schemas import CONDITIONS

__all__ = ["PlanWorker", "Planning", "conditions_table"]


class Planning(Config):
    """An experiment: a way to write CONDITIONS rows. Subclasses set `kind: Literal[...]` and add their settings."""

    kind: str
    seed: int = Field(0, ge=0, description="seed of the random choices of the plan; stored in every row")

    @abstractmethod
    def rows(self, inputs: pa.Table, faces: RowLookup | None = None) -> pa.Table:
        """CONDITIONS rows for a piece of the input.

        They depend only on that piece, the settings and `faces`. The table may have a column `error`: such rows are
        quarantined.
        """

    @property
    @abstractmethod
    def factor(self) -> int:
        """Condition rows for each input row."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of FACES that the experiment reads."""
        return ("face_id", "split", "mask", "attributes", "texts", "identity_id")


def conditions_table(columns: Mapping[str, object]) -> pa.Table:
    """CONDITIONS from columns by name; the other columns are null."""
    arrays = {n: v if isinstance(v, pa.Array | pa.ChunkedArray) else pa.array(v) for n, v in columns.items()}
    table = pa.table(arrays)
    for field in CONDITIONS:
        if field.name not in arrays:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(CONDITIONS.names).cast(CONDITIONS)


class PlanWorker:
    """The worker of a plan job. `faces` is for experiments that refer to other faces than those of the input rows."""

    def __init__(self, planning: Planning, faces: RowLookup | None = None) -> None:
        self.planning, self.faces = planning, faces

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """No device work: the returned call makes `{"conditions": ...}`."""
        return lambda: {"conditions": self.planning.rows(rows, self.faces)}
