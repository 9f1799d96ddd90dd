"""`raygen edit`: CONDITIONS of edits and the FACES they change -> SAMPLES, SCORES, and SELECTION of the best alpha.

Knows which checkpoint, faces and rows. Does not know how an edit is made or judged.
"""

from functools import partial
from typing import Literal

from pydantic import Field

from raygen.commands.base import PreparedRun, ShardedJob, ShardedWhat, open_inputs, prepare_run
from raygen.core.assets import resolve
from raygen.core.errors import ConfigError
from raygen.execution.worker import Worker
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

__all__ = ["EditJob", "EditWhat", "build_editor"]


class EditWhat(ShardedWhat):
    """Which model edits which pictures, and how."""

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


class EditJob(ShardedJob):
    """CONDITIONS and FACES -> SAMPLES; an edit is a batch, so its alphas are never apart."""

    kind: Literal["edit"] = "edit"
    what: EditWhat

    def prepare(self, *, write: bool) -> PreparedRun:
        """Plan the shards of edits. Checkpoint and faces enter by their content, not by their paths."""
        what = self.what.model_dump(mode="json", exclude={"conditions", "shard_rows", "bad_rows"})
        what["checkpoint"] = checkpoint_digest(resolve(self.what.checkpoint))
        what["faces"] = open_inputs(self.what.faces, "faces").digest
        what["judges"] = EditJudge.digests(self.what.judge)
        if self.what.mixing is not None:
            check_mixing(resolve(self.what.checkpoint), self.what.mixing)
        given = open_inputs(self.what.conditions, "conditions")
        if not given.slices:
            raise ConfigError(f"{self.what.conditions}: has no edits")
        first = read_slice(given.slices[0], ["edit_id"])["edit_id"].to_pylist()
        if first[0] is None:
            raise ConfigError(f"{self.what.conditions}: no plan of edits (see planning `edits`, `edit_pairs`)")
        alphas = next((i for i, name in enumerate(first) if name != first[0]), len(first))
        return prepare_run(
            self,
            "edit",
            what,
            given,
            partial(self._builder, alphas),
            batch=alphas,
            sharding=self.what,
            attempt=self.what.attempt,
        )

    def _builder(self, alphas: int, run_id: str) -> "partial[Worker]":
        fields = (set(SampleConfig.model_fields) & set(EditWhat.model_fields)) - {"checkpoint"}
        values = {name: getattr(self.what, name) for name in fields}
        sample = SampleConfig(run_id=run_id, checkpoint=resolve(self.what.checkpoint), batch=alphas, **values)
        return partial(build_editor, sample, self.what.imagic, self.what.judge, self.what.faces, self.where.threads)


def build_editor(
    sample: SampleConfig, imagic: ImagicConfig, judge: EditJudgeConfig, faces: str, threads: int
) -> Worker:
    """The worker of an actor."""
    return EditWorker(sample, imagic, judge, StoredRows(faces, ("image", "mask", "attributes")), threads=threads)
