"""What an experiment is: a function that writes condition rows.

Knows the contract and how columns become a CONDITIONS table. Knows no experiment.
"""

from abc import abstractmethod
from collections.abc import Mapping

import pyarrow as pa
from pydantic import Field

from raygen.core.config import Config
from raygen.store.lookup import RowLookup
from raygen.store.schemas import CONDITIONS

__all__ = ["Planning", "table"]


class Planning(Config):
    """One way to write condition rows. Subclasses add `kind: Literal[...]`."""

    seed: int = Field(0, ge=0, description="kept in every row")

    @abstractmethod
    def rows(self, given: pa.Table, faces: RowLookup | None = None) -> pa.Table:
        """CONDITIONS rows for a piece of the input, depending on nothing but that piece, the config and `faces`.

        A column `error` may stand beside them: such rows go to quarantine.
        """

    @property
    @abstractmethod
    def factor(self) -> int:
        """Condition rows for each input row."""


def table(columns: Mapping[str, object]) -> pa.Table:
    """Columns -> CONDITIONS; those that are not given are null."""
    arrays = {n: v if isinstance(v, pa.Array | pa.ChunkedArray) else pa.array(v) for n, v in columns.items()}
    made = pa.table(arrays)
    missing = [field for field in CONDITIONS if field.name not in arrays]
    for field in missing:
        made = made.append_column(field, pa.nulls(made.num_rows, field.type))
    return made.select(CONDITIONS.names).cast(CONDITIONS)
