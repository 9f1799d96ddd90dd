"""`raygen ingest`: raw data -> FACES.

out/attempt-00/data/faces/     FACES
out/listing-*.parquet          list of the files that were found, which the workers read
"""

from functools import partial
from typing import Literal

from pydantic import Field

from raygen.commands.base import PreparedRun, ShardedJob, plan_run, store_listing
from raygen.core.errors import ConfigError
from raygen.datasets import AnyDataSet
from raygen.datasets.base import IngestWorker
from raygen.store.run_store import RunStore

__all__ = ["JOB", "IngestJob"]


class IngestJob(ShardedJob):
    """Raw data -> FACES."""

    kind: Literal["ingest"] = "ingest"
    data: AnyDataSet = Field(description="data set to read, chosen by its `kind`")
    batch: int = Field(64, ge=1, description="pictures that are read at once")

    def prepare(self, *, write: bool) -> PreparedRun:
        """List the data set and plan its shards."""
        listing = self.data.listing()
        if listing.num_rows == 0:
            raise ConfigError("the data set has no pictures")
        inputs = store_listing(listing, self.out, write=write)
        plan = plan_run("ingest", {"data": self.data}, inputs, batch=self.batch, shard_rows=self.shard_rows)
        build = partial(IngestWorker, self.data)
        return PreparedRun(RunStore(self.out), plan, self.max_error_fraction, build=build, first=listing)


JOB = IngestJob
