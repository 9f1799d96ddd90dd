"""`raygen ingest`: raw data -> FACES.

Knows that a data set's listing is cut into shards and stored beside the result, so that actors read what the
driver saw. Knows no particular data set.
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
    """Raw data -> FACES.

    Which data set, and how its rows are cut.
    """

    kind: Literal["ingest"] = "ingest"
    data: AnyDataSet
    batch: int = Field(64, ge=1, description="listing rows a worker takes at once")

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
