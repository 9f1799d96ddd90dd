"""`raygen encode`: FACES -> LATENTS, so that the first stage does not run at every step of a training."""

from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from raygen.commands.base import Estimate, PreparedRun, ShardedJob, estimate_cost
from raygen.commands.counted import count_instead
from raygen.commands.inputs import open_inputs, plan_run
from raygen.core.assets import resolve
from raygen.core.location import Location
from raygen.core.types import PRECISION, Precision
from raygen.models.checkpoint_folder import digest as checkpoint_digest
from raygen.sampling.config import EncodeConfig
from raygen.store.run_store import RunStore

if TYPE_CHECKING:
    from raygen.sampling.operations import Counted

__all__ = ["JOB", "EncodeJob"]


class EncodeJob(ShardedJob):
    """FACES -> LATENTS of one first stage."""

    kind: Literal["encode"] = "encode"
    faces: Location = Field(..., description="folder of an ingest run, whose pictures are encoded")
    checkpoint: Location = Field(
        ..., description="folder of a first stage, or of a model with a first stage; or `bundled`"
    )
    horizontal_flips: bool = Field(True, description="also encode the mirrored pictures, as rows of their own")
    batch: int = Field(32, ge=1, le=4096, description="pictures that are encoded at once")
    precision: Precision = Field("float32", description=PRECISION)

    def prepare(self, *, write: bool) -> PreparedRun:
        """Plan the shards of latents."""
        folder = resolve(self.checkpoint)
        own = {"horizontal_flips": self.horizontal_flips, "precision": self.precision}
        settings = {"checkpoint": checkpoint_digest(folder), **own}
        config = EncodeConfig(checkpoint=folder, horizontal_flips=self.horizontal_flips, precision=self.precision)
        inputs = open_inputs(self.faces, "faces")
        plan = plan_run("encode", settings, inputs, batch=self.batch, shard_rows=self.shard_rows)
        from raygen.sampling.encode import EncodeWorker

        build = partial(EncodeWorker, config, threads=self.resources.threads)
        return PreparedRun(RunStore(self.out), plan, self.max_error_fraction, ("face_id", "image"), build=build)

    def estimate(self) -> Estimate:
        """One batch, timed; for a first stage that is too large for a CPU, its operations."""
        work = self.prepare(write=False)
        return count_instead(work, self._count) or estimate_cost(work, self.resources)

    def _count(self) -> "Counted":
        from raygen.sampling.operations import count_encoding

        return count_encoding(resolve(self.checkpoint), flips=self.horizontal_flips)


JOB = EncodeJob
