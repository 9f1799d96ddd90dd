"""The inputs of jobs over shards: rows of earlier runs, rows that the driver makes, and the plan over them."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from raygen.core.errors import ConfigError, InputError
from raygen.core.hashing import digest, run_id
from raygen.execution.worker import Worker
from raygen.extractors.config import LandmarksConfig
from raygen.extractors.digests import checked_content, pinned
from raygen.store.filesystem import FileStore
from raygen.store.parquet import Slice, read_slice, to_parquet
from raygen.store.run_store import Plan, RunStore, make_shards, open_input
from raygen.store.schemas import texts_by_name

__all__ = [
    "Inputs",
    "check_conditions_of_faces",
    "check_splits",
    "keep_listings",
    "listing_inputs",
    "open_inputs",
    "plan_run",
    "record_landmarks",
    "with_landmarks",
]


@dataclass(frozen=True)
class Inputs:
    """Input rows as slices of files, and the digest of their content."""

    slices: Sequence[Slice]
    digest: str
    #: Writes the rows that the driver made.
    store: Callable[[], None] = lambda: None


def open_inputs(url: str, table: str) -> Inputs:
    """The committed rows of `table` of a complete earlier run; `ConfigError` where there is none."""
    store, content = open_input(url)
    if not store.has(table):
        raise ConfigError(f"{url}: is the result of `raygen {store.plan().kind}` and has no table {table.upper()}")
    return Inputs(store.slices(table), content)


#: Rows of a row group of a listing, at most; the digest of the inputs is that of a file with such groups.
GROUP_ROWS: Final = 4096


def listing_inputs(listing: pa.Table, out: str, *also: str, write: bool, group_rows: int = GROUP_ROWS) -> Inputs:
    """Rows that the driver made, as inputs. `Inputs.store` writes them into `out`, where actors read them.

    `write`: whether that will be done. It is done by `keep_listings`, when the plan is known to fit.

    `also`: digests of other content that the rows refer to; they become part of the inputs' digest. `group_rows`: rows
    of a shard, where rows are large: a shard is read with the whole row groups that it lies in.
    """
    data = stored = to_parquet(listing, row_group_rows=GROUP_ROWS)
    if write and group_rows < min(GROUP_ROWS, listing.num_rows):
        stored = to_parquet(listing, row_group_rows=group_rows)
    name = f"listing-{digest(stored)[:12]}.parquet"
    storage = FileStore(out)

    def store() -> None:
        storage.require()
        storage.update(name, stored)

    return Inputs([Slice(storage.address(name), 0, listing.num_rows)], ":".join((digest(data), *also)), store)


def plan_run(
    kind: str,
    settings: Mapping[str, Any],
    inputs: Inputs,
    *,
    batch: int,
    shard_rows: int,
    attempt: int = 0,
) -> Plan:
    """The plan of a run over `inputs`. The run id is a hash of `settings` and of the inputs' digest.

    Shards are whole multiples of the batch, so that a batch holds the same rows on any number of workers. Raises
    `InputError` where the inputs have no rows, and `ConfigError` where a shard is smaller than a batch.
    """
    if not any(piece.rows for piece in inputs.slices):
        raise InputError(f"{kind}: the input has no rows", reason="empty")
    if shard_rows < batch:
        raise ConfigError(f"shard_rows: {shard_rows} is less than one batch of {batch} rows")
    rows = shard_rows // batch * batch
    parts = {"kind": kind, "settings": settings, "inputs": inputs.digest, "shard_rows": rows, "attempt": attempt}
    return Plan(kind, run_id(parts), settings, batch, make_shards(inputs.slices, rows))


def check_splits(faces: str, splits: Iterable[str], key: str) -> None:
    """`InputError` where a split named by the setting `key` has no faces in the ingest run `faces`."""
    if not (splits := set(splits)):
        return
    counts: Counter[str] = Counter()
    for table in open_input(faces)[0].tables("faces", ["split"]):
        counts.update(str(name) for name in table["split"].to_pylist())
    if empty := sorted(splits - set(counts)):
        there = ", ".join(f"{name} ({number:,})" for name, number in sorted(counts.items()))
        raise InputError(f"{key}: {faces} has no faces in {', '.join(empty)}; it has {there}", reason="empty")


def keep_listings(store: RunStore, plan: Plan, *inputs: Inputs) -> None:
    """Write the rows that the driver made; `ConfigError`, and nothing is written, where `store` cannot hold `plan`."""
    store.check(plan)
    for rows in inputs:
        rows.store()


def check_conditions_of_faces(
    faces: str, conditions: Iterable[str], splits: Collection[str], *, key: str, caption: tuple[str, str]
) -> None:
    """`InputError` where no face of the splits (none: of all) has one of the conditions, or the text of the caption.

    `key`: the setting that asks for them. `caption`: the setting that names a text, and its value. Rows are read until
    one has each condition; no picture is.
    """
    columns = {"mask": "mask.path", "attributes": "attributes", "hint": "hint.path", "text": "texts"}
    lacking = {name: columns[name] for name in conditions if name in columns}
    names = Counter[str]()
    for piece in open_inputs(faces, "faces").slices if lacking else ():
        rows = read_slice(piece, ["split", *lacking.values()])
        rows = rows.filter(pc.is_in(rows["split"], pa.array(sorted(splits), pa.string()))) if splits else rows
        for name, column in tuple(lacking.items()):
            column = column.partition(".")[0]
            if name == "text" and column in rows.column_names:
                names.update(key for texts in rows[column].to_pylist() for key in texts_by_name(texts))
            has = (
                caption[1] in names
                if name == "text"
                else column in rows.column_names and rows[column].null_count < len(rows)
            )
            if has:
                del lacking[name]
        if not lacking:
            return
    if "text" in lacking:
        there = f"it has {', '.join(sorted(names))}" if names else "it has none"
        raise InputError(f"{caption[0]}: {faces} has no text {caption[1]!r}; {there}", reason="empty")
    if lacking:
        raise InputError(f"{key}: no face of {faces} has {' or '.join(lacking)}", reason="empty")


def record_landmarks(landmarks: LandmarksConfig | None, settings: dict[str, Any]) -> LandmarksConfig | None:
    """Put `landmarks` into the settings of a plan, by content; the value for workers, with the whole sha256."""
    if landmarks is None:
        return None
    settings["landmarks"] = checked_content("landmarks", landmarks, "landmarker")
    return pinned(landmarks, settings["landmarks"])


def with_landmarks(build: Callable[[], Worker], landmarks: LandmarksConfig | None, threads: int) -> Worker:
    """The worker of `build`, and landmarks where they are asked for."""
    if landmarks is None:
        return build()
    from raygen.sampling.landmarked import LandmarkedWorker

    return LandmarkedWorker(build, landmarks, threads)
