"""`raygen edit`: CONDITIONS of edits and the FACES they change -> SAMPLES, SCORES, and SELECTION of the best alpha.

Knows which checkpoint, faces and rows. Does not know how an edit is made or judged.
"""

from functools import partial
from typing import Literal

from pydantic import Field

from raygen.commands.base import PreparedRun, ShardedJob, open_inputs, plan_run
from raygen.core.assets import resolve
from raygen.core.errors import ConfigError
from raygen.models.checkpoint import check_mixing
from raygen.models.checkpoint import digest as checkpoint_digest
from raygen.models.expert_mixing import AnyMixing
from raygen.models.schedule import SamplerConfig
from raygen.sampling.edit_judge import EditJudge, EditJudgeConfig
from raygen.sampling.imagic import EditWorker, ImagicConfig
from raygen.sampling.worker import SampleConfig
from raygen.store.images import Codec
from raygen.store.lookup import StoredRows
from raygen.store.parquet import read_slice
from raygen.store.run_store import RunStore

__all__ = ["JOB", "EditJob"]


class EditJob(ShardedJob):
    """CONDITIONS and FACES -> SAMPLES; an edit is a batch, so its alphas are never apart.

    Which model edits which pictures, and how.
    """

    kind: Literal["edit"] = "edit"
    conditions: str = Field(..., description="folder of a plan run of edits")
    faces: str = Field(..., description="folder of the ingest run whose pictures are edited")
    checkpoint: str = Field(..., description="model folder, or `bundled`")
    imagic: ImagicConfig = Field(default_factory=ImagicConfig)
    judge: EditJudgeConfig = Field(default_factory=EditJudgeConfig)
    sampler: SamplerConfig = Field(default_factory=SamplerConfig)
    mixing: AnyMixing | None = Field(None, description="of a collaboration: how experts are mixed; none is `paper`")
    missing: Literal["null", "quarantine"] = Field(
        "null", description="an edit without a condition the model takes: use what it was trained for, or refuse it"
    )
    influence_steps: int = Field(0, ge=0, le=1000, description="steps whose influence maps and estimates are kept")
    seed: int = Field(0, ge=0, description="with edit_id and attempt the key of an edit's noise")
    attempt: int = Field(0, ge=0, le=99, description="another attempt has other noise and a folder of its own")
    codec: Codec = "webp"
    shard_rows: int = Field(48, ge=1, le=1_000_000, description="rows in a shard; cut to whole edits")

    def prepare(self, *, write: bool) -> PreparedRun:
        """Plan the shards of edits. Checkpoint and faces enter by their content, not by their paths."""
        settings = self.settings(exclude={"conditions", "shard_rows", "max_error_fraction"})
        settings["checkpoint"] = checkpoint_digest(resolve(self.checkpoint))
        settings["faces"] = open_inputs(self.faces, "faces").digest
        settings["judges"] = EditJudge.digests(self.judge)
        if self.mixing is not None:
            check_mixing(resolve(self.checkpoint), self.mixing)
        given = open_inputs(self.conditions, "conditions")
        if not given.slices:
            raise ConfigError(f"{self.conditions}: has no edits")
        first = read_slice(given.slices[0], ["edit_id"])["edit_id"].to_pylist()
        if first[0] is None:
            raise ConfigError(f"{self.conditions}: no plan of edits (see planning `edits`, `edit_pairs`)")
        alphas = next((i for i, name in enumerate(first) if name != first[0]), len(first))
        plan = plan_run("edit", settings, given, batch=alphas, shard_rows=self.shard_rows, attempt=self.attempt)
        fields = (set(SampleConfig.model_fields) & set(EditJob.model_fields)) - {"checkpoint"}
        values = {name: getattr(self, name) for name in fields}
        config = SampleConfig(run_id=plan.run_id, checkpoint=resolve(self.checkpoint), batch=alphas, **values)
        faces = StoredRows(self.faces, ("image", "mask", "attributes"))
        build = partial(EditWorker, config, self.imagic, self.judge, faces, threads=self.resources.threads)
        return PreparedRun(RunStore(self.out, self.attempt), plan, self.max_error_fraction, build=build)


JOB = EditJob
