"""`raygen plan`: FACES, or nothing, -> CONDITIONS.

Knows where a planning function's input comes from. Knows no particular experiment.
"""

from functools import partial
from typing import Literal

from pydantic import Field

from raygen.planning import AnyPlanning, PlanWorker, Unconditional, columns_needed
from raygen.spec import ConfigError
from raygen.storage import RANGE, Slice
from raygen.verbs.base import Inputs, Prepared, ShardedJob, ShardedWhat, inputs, prepared

__all__ = ["PlanJob", "PlanWhat"]


class PlanWhat(ShardedWhat):
    """Which experiment, over which faces."""

    planning: AnyPlanning
    faces: str | None = Field(None, description="folder of an ingest run")


class PlanJob(ShardedJob):
    """FACES -> CONDITIONS."""

    kind: Literal["plan"] = "plan"
    what: PlanWhat

    def prepare(self, *, write: bool) -> Prepared:
        """Plan the shards of condition rows."""
        planning = self.what.planning
        columns: tuple[str, ...] | None
        if isinstance(planning, Unconditional):
            given, columns = Inputs([Slice(RANGE, 0, planning.count)], f"{RANGE}{planning.count}"), None
        elif self.what.faces is None:
            raise ConfigError(f"what.faces: planning {planning.kind!r} needs the folder of an ingest run")
        else:
            given, columns = inputs(self.what.faces, "faces"), tuple(columns_needed(planning))
        rows = max(1, self.what.shard_rows // planning.factor)
        sharding = self.what.model_copy(update={"shard_rows": rows})
        return prepared(
            self, "plan", {"planning": planning}, given, lambda _: partial(PlanWorker, planning),
            batch=min(rows, 1024), sharding=sharding, columns=columns,
        )  # fmt: skip
