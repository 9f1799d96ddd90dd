"""The base class of data sets, and the worker of `raygen ingest`.

The driver makes the listing once and divides it into shards; `load` runs in the workers.
"""

import errno
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Protocol

import pyarrow as pa

from raygen.core.config import Config
from raygen.core.errors import InputError
from raygen.store.schemas import FACES, check_id, reason_of

__all__ = ["FACES_OR_ERROR", "DataSet", "IngestWorker", "faces_table", "is_outage", "load_rows"]


#: FACES with a column `error`; rows with an error are quarantined.
FACES_OR_ERROR = FACES.append(pa.field("error", pa.string()))


class FaceReader(Protocol):
    """Turns listing rows into tables."""

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """The rows of a batch; the returned call may run in another thread."""
        ...


class DataSet(Config):
    """A source of faces. Subclasses set `kind: Literal[...]` and add their settings."""

    kind: str

    @abstractmethod
    def listing(self) -> pa.Table:
        """A row a face without its picture: `face_id` and what `load` needs (paths, numbers). Sorted, with unique ids.

        The column `mask` is null where a face has no mask. The entry `note` of the schema's metadata is a remark for
        the user, and `unmatched` a JSON document that is written to `out/unmatched.json`. `ConfigError` where the
        folder or a required file is missing.
        """

    @abstractmethod
    def load(self, listing: pa.Table) -> pa.Table:
        """`FACES_OR_ERROR` rows for `listing`, one each and in its order; a bad file is a row with `error`."""

    def inputs(self) -> tuple[str, ...]:
        """Digests of other content that the rows depend on."""
        return ()

    def worker(self, run_id: str) -> Callable[[], FaceReader]:
        """Makes the worker of each actor. `run_id`: of the run."""
        return partial(IngestWorker, self)

    def count_masks(self, listing: pa.Table) -> int:
        """How many faces of a listing have a mask."""
        return len(listing) - int(listing["mask"].null_count) if "mask" in listing.column_names else 0


def load_rows(listing: pa.Table, load: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> pa.Table:
    """FACES rows from `load` of each listing row, or rows with an error.

    Whatever is wrong with one row is the error of that row: `InputError`, a missing or unreadable file, and values that
    the table cannot hold, such as half of a surrogate pair. Errors of the storage or the machine are raised.
    """
    rows: list[Mapping[str, Any]] = []
    for row in listing.to_pylist():
        try:
            check_id(row["face_id"])
            rows.append({"split": "train", **load(row), "face_id": row["face_id"]})
        except (InputError, OSError, ValueError, OverflowError) as error:
            if isinstance(error, OSError) and is_outage(error):
                raise
            rows.append(_failed(row, error))
    try:
        return faces_table(rows)
    except _UNFIT:
        return faces_table([_checked(row, listed) for row, listed in zip(rows, listing.to_pylist(), strict=True)])


#: What Arrow raises for a value that a column cannot hold.
_UNFIT: Final = (ValueError, OverflowError, TypeError)
_OUTAGES: Final = frozenset({errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.ESTALE})


def is_outage(error: OSError) -> bool:
    """Whether the storage or the machine is at fault, so that the same file may be readable later."""
    return isinstance(error, ConnectionError | TimeoutError) or error.errno in _OUTAGES


def _checked(row: Mapping[str, Any], listed: Mapping[str, Any]) -> Mapping[str, Any]:
    """`row` if a FACES table can hold it, or else its error row."""
    try:
        faces_table([row])
    except _UNFIT as error:
        return _failed(listed, InputError(f"a value does not fit the table: {error}", reason="value"))
    return row


def _failed(listed: Mapping[str, Any], error: BaseException) -> dict[str, Any]:
    """The error row of a listing row. The error names the picture's file, or another file or line of the row."""
    addresses = [str(listed[key]) for key in ("image", "mask", "hint") if listed.get(key) is not None]
    text = str(error)
    if addresses and not any(name in text for name in (*addresses, str(listed.get("line")))):
        reason = error.reason if isinstance(error, InputError) else type(error).__name__
        error = InputError(f"{addresses[0]}: {error.args[0] if error.args else ''}", reason=reason)
    printable = reason_of(error).encode("utf-8", "backslashreplace").decode()
    return {"face_id": str(listed["face_id"]), "split": str(listed.get("split") or ""), "error": printable}


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
