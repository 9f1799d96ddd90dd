"""`raygen ingest`: raw data -> FACES; pictures of another method -> SAMPLES.

out/attempt-00/data/faces/     FACES, or samples/ with SAMPLES
out/listing-*.parquet          list of the files that were found, which the workers read
out/unmatched.json             rows without a picture and pictures without a row, if there are any
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from raygen.commands.base import PreparedRun, ShardedJob
from raygen.commands.inputs import keep_listings, listing_inputs, plan_run, record_landmarks, with_landmarks
from raygen.core.errors import ConfigError
from raygen.core.hashing import canonical
from raygen.datasets import AnyDataSet
from raygen.datasets.pictures import file_addresses
from raygen.extractors.config import LandmarksConfig
from raygen.sampling.config import LANDMARKS
from raygen.store.filesystem import FileStore
from raygen.store.run_store import RunStore

__all__ = ["JOB", "IngestJob"]


class IngestJob(ShardedJob):
    """Raw data -> FACES; pictures of another method -> SAMPLES."""

    kind: Literal["ingest"] = "ingest"
    data: AnyDataSet = Field(description="data set to read, chosen by its `kind`")
    landmarks: LandmarksConfig | None = Field(None, description=LANDMARKS)
    batch: int = Field(64, ge=1, description="pictures that are read at once")

    def prepare(self, *, write: bool) -> PreparedRun:
        """List the data set and plan its shards; `ConfigError` where `out` holds a run over files that changed."""
        listing = self.data.listing()
        if listing.num_rows == 0:
            raise ConfigError("the data set has no pictures")
        remarks = listing.schema.metadata or {}
        note = remarks.get(b"note", b"").decode()
        notes = (f"masks: {self.data.count_masks(listing):,} of {len(listing):,}", *([note] if note else []))
        listing = listing.replace_schema_metadata(None)
        store = RunStore(self.out)
        settings: dict[str, Any] = {"data": self.data}
        landmarks = record_landmarks(self.landmarks, settings)
        store.storage.check_place()
        refuse_changed_files(store, settings, listing)
        inputs = listing_inputs(listing, self.out, *self.data.inputs(), write=write)
        plan = plan_run("ingest", settings, inputs, batch=self.batch, shard_rows=self.shard_rows)
        if write:
            keep_listings(store, plan, inputs)
            if b"unmatched" in remarks:
                FileStore(self.out).update("unmatched.json", remarks[b"unmatched"])
        build = partial(with_landmarks, self.data.worker(plan.run_id), landmarks, self.resources.threads)
        return PreparedRun(store, plan, self.max_error_fraction, build=build, first=listing, notes=notes)


def refuse_changed_files(store: RunStore, settings: Mapping[str, Any], listing: pa.Table) -> None:
    """`ConfigError` where `store` holds a run of the same settings over other files, with the names of some of them."""
    if not store.storage.exists("plan.json"):
        return
    stored = store.plan()
    if stored.kind != "ingest" or canonical(stored.settings) != canonical(settings):
        return  # the caller is told which settings differ
    try:
        before = pa.concat_tables([shard.read() for shard in stored.shards])
    except (OSError, ConfigError):
        return  # the listing was removed: the caller is told that the inputs differ
    if before.equals(listing):
        return
    old, new = ({row["face_id"]: row for row in rows.to_pylist()} for rows in (before, listing))
    groups = {
        "changed": [name for key in new if key in old for name in _changed(old[key], new[key])],
        "new": [_name(row) for key, row in new.items() if key not in old],
        "gone": [_name(row) for key, row in old.items() if key not in new],
    }
    texts = [
        f"{len(names):,} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in groups.items()
        if names
    ]
    if texts:
        hint = "Choose another `out` to read the files as they are now"
        raise ConfigError(f"{store.url} holds a run over other files: {'; '.join(texts)}. {hint}")


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The files of a listing row that changed; the row itself where its labels did."""
    if old == new:
        return []
    addresses, before, after = file_addresses(new), old.get("versions") or [], new.get("versions") or []
    if file_addresses(old) != addresses or len(before) != len(after):
        return [_name(new)]
    names = [name for name, a, b in zip(addresses, before, after, strict=True) if a != b]
    return names or [f"labels of {new['face_id']}"]


def _name(row: Mapping[str, Any]) -> str:
    return str(row.get("image") or row["face_id"])


JOB = IngestJob
