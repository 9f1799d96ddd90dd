"""What every data set gives: a light listing of its faces, and FACES rows for any part of that listing.

Knows the contract and the shared handling of bad rows. Knows no particular data set, no models and no Ray.
The listing is made once on the driver and cut into shards; `load` runs wherever a shard is worked on.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from raygen.core.config import Config
from raygen.core.errors import InputError
from raygen.store.schemas import FACES, check_id, reason_of

__all__ = ["FACES_OR_ERROR", "DataSet", "IngestWorker", "faces_table", "load_rows"]


#: FACES with one more column: why a row could not be made. Such rows go to quarantine.
FACES_OR_ERROR = FACES.append(pa.field("error", pa.string()))


class DataSet(Config):
    """One source of faces. Subclasses add `kind: Literal[...]` and their own fields."""

    @abstractmethod
    def listing(self) -> pa.Table:
        """Every face as a light row: `face_id`, and what `load` needs (paths, numbers); sorted, ids unique.

        Raises `ConfigError` where the data set's folder or a file that it cannot do without is missing.
        """

    @abstractmethod
    def load(self, listing: pa.Table) -> pa.Table:
        """`FACES_OR_ERROR` rows for `listing`, one each and in its order; a bad file is a row with `error`."""


def load_rows(listing: pa.Table, load: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> pa.Table:
    """`load` called on every listing row; what it raises of `InputError` or `OSError` becomes the row's error."""
    return faces_table(_one(row, load) for row in listing.to_pylist())


def _one(row: Mapping[str, Any], load: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Mapping[str, Any]:
    try:
        check_id(row["face_id"])
        return {"split": "train", **load(row), "face_id": row["face_id"]}
    except (InputError, OSError) as error:
        return {"face_id": str(row["face_id"]), "split": str(row.get("split") or ""), "error": reason_of(error)}


def faces_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows (picture columns as `tables.picture(...)` values) -> a `FACES_OR_ERROR` table."""
    return pa.Table.from_pylist([dict(row) for row in rows], FACES_OR_ERROR)


class IngestWorker:
    """Listing rows -> FACES rows: the worker of an ingest job. Holds no state between batches."""

    def __init__(self, dataset: DataSet) -> None:
        self.dataset = dataset

    def __call__(self, rows: pa.Table) -> dict[str, pa.Table]:
        """`{"faces": FACES_OR_ERROR}` for a table of listing rows."""
        return {"faces": self.dataset.load(rows)}

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """No device work to overlap: all of it happens in the returned call."""
        return lambda: self(rows)
