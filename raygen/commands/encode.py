"""`raygen encode`: FACES -> LATENTS, once for a first stage.

Knows which checkpoint and which rows. Does not know how a first stage works.
"""

from functools import partial
from typing import Literal

from pydantic import Field

from raygen.commands.base import PreparedRun, ShardedJob, open_inputs, plan_run
from raygen.core.assets import resolve
from raygen.models.checkpoint import digest as checkpoint_digest
from raygen.sampling.encode import EncodeConfig, EncodeWorker
from raygen.store.run_store import RunStore

__all__ = ["JOB", "EncodeJob"]


class EncodeJob(ShardedJob):
    """FACES -> LATENTS.

    Which faces through which first stage.
    """

    kind: Literal["encode"] = "encode"
    faces: str = Field(..., description="folder of an ingest run")
    checkpoint: str = Field(..., description="folder of a first stage, or of a model that has one")
    horizontal_flips: bool = Field(True, description="also encode the mirrored picture, as a row of its own")
    batch: int = Field(32, ge=1, le=4096)

    def prepare(self, *, write: bool) -> PreparedRun:
        """Plan the shards of latents."""
        folder = resolve(self.checkpoint)
        settings = {"checkpoint": checkpoint_digest(folder), "horizontal_flips": self.horizontal_flips}
        config = EncodeConfig(checkpoint=folder, horizontal_flips=self.horizontal_flips)
        inputs = open_inputs(self.faces, "faces")
        plan = plan_run("encode", settings, inputs, batch=self.batch, shard_rows=self.shard_rows)
        build = partial(EncodeWorker, config, threads=self.resources.threads)
        return PreparedRun(RunStore(self.out), plan, self.max_error_fraction, ("face_id", "image"), build=build)


JOB = EncodeJob
