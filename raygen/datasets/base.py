"""The base class of data sets, and the worker of `raygen ingest`.

The driver makes the listing once and divides it into shards; `load` runs in the workers.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from raygen.core.config import Config
from raygen.core.errors import InputError
from raygen.store.schemas import FACES, check_id, reason_of

__all__ = ["FACES_OR_ERROR", "DataSet", "IngestWorker", "faces_table", "load_rows"]


#: FACES with a column `error`; rows with an error are quarantined.
FACES_OR_ERROR = FACES.append(pa.field("error", pa.string()))


class DataSet(Config):
    """A source of faces. Subclasses set `kind: Literal[...]` and add their settings."""

    kind: str

    @abstractmethod
    def listing(self) -> pa.Table:
        """A row a face without its picture: `face_id` and what `load` needs (paths, numbers). Sorted, with unique ids.

        `ConfigError` where the folder or a required file is missing.
        """

    @abstractmethod
    def load(self, listing: pa.Table) -> pa.Table:
        """`FACES_OR_ERROR` rows for `listing`, one each and in its order; a bad file is a row with `error`."""


def load_rows(listing: pa.Table, load: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> pa.Table:
    """FACES rows from `load` of each listing row; its `InputError` or `OSError` becomes the error of the row."""
    rows: list[Mapping[str, Any]] = []
    for row in listing.to_pylist():
        try:
            check_id(row["face_id"])
            rows.append({"split": "train", **load(row), "face_id": row["face_id"]})
        except (InputError, OSError) as error:
            split = str(row.get("split") or "")
            rows.append({"face_id": str(row["face_id"]), "split": split, "error": reason_of(error)})
    return faces_table(rows)


def faces_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """A `FACES_OR_ERROR` table of rows whose pictures are values of `raygen.store.images.picture`.

    `attributes`: the 40 values in the order of `ATTRIBUTES`. `texts`: pairs of a name and a text.
    """
    named = [{**row, "attributes": row.get("attributes") and tuple(row["attributes"])} for row in rows]
    return pa.Table.from_pylist(named, FACES_OR_ERROR)


class IngestWorker:
    """The worker of an ingest job: listing rows -> FACES rows."""

    def __init__(self, dataset: DataSet) -> None:
        self.dataset = dataset

    def __call__(self, rows: pa.Table) -> dict[str, pa.Table]:
        """`{"faces": FACES_OR_ERROR}` for a table of listing rows."""
        return {"faces": self.dataset.load(rows)}

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """No device work: the returned call does all."""
        return lambda: self(rows)
