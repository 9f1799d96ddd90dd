"""`raygen edit`: CONDITIONS of edits and the FACES they change -> SAMPLES, SCORES, and SELECTION of the best alpha."""

from functools import partial
from typing import Literal

from pydantic import Field

from raygen.commands.base import PreparedRun, ShardedJob
from raygen.commands.inputs import open_inputs, plan_run
from raygen.core.assets import resolve
from raygen.core.errors import ConfigError
from raygen.core.location import Location
from raygen.core.types import PRECISION, TunedPrecision
from raygen.models.checkpoint_folder import digest as checkpoint_digest
from raygen.models.config.mixing import AnyMixing
from raygen.models.config.sampler import SamplerConfig
from raygen.sampling.config import IGNORE, EditJudgeConfig, ImagicConfig, SampleConfig, check_conditions
from raygen.store.images import CODECS, Codec
from raygen.store.lookup import StoredRows
from raygen.store.parquet import read_slice
from raygen.store.run_store import RunStore

__all__ = ["JOB", "EditJob"]


class EditJob(ShardedJob):
    """CONDITIONS and FACES -> SAMPLES. A batch is `edits` edits with all their alphas."""

    kind: Literal["edit"] = "edit"
    conditions: Location = Field(..., description="folder of a plan run with planning `edits` or `edit_pairs`")
    faces: Location = Field(..., description="folder of the ingest run whose pictures are edited")
    checkpoint: Location = Field(..., description="folder of a model in the diffusers layout, or `bundled`")
    ignore: tuple[Literal["mask", "attributes", "text", "style", "hint"], ...] = Field((), description=IGNORE)
    imagic: ImagicConfig = Field(
        default_factory=ImagicConfig, description="fine-tuning of the embedding and of the model to each picture"
    )
    edits: int = Field(
        1,
        ge=1,
        le=1024,
        description="edits whose embeddings are optimised at once; with imagic.tuning=low_rank they are also tuned and "
        "sampled at once",
    )
    judge: EditJudgeConfig = Field(
        default_factory=EditJudgeConfig, description="networks that choose the best alpha of each edit"
    )
    sampler: SamplerConfig = Field(default_factory=SamplerConfig, description="sampler and number of steps")
    mixing: AnyMixing | None = Field(
        None, description="collaborative models: how the experts are mixed, chosen by its `kind`; default `paper`"
    )
    missing: Literal["null", "quarantine"] = Field(
        "null",
        description="edits that lack a condition of the model. null: edit without it, as trained with condition "
        "dropout; quarantine: store the edit as failed",
    )
    influence_steps: int = Field(
        0, ge=0, le=1000, description="steps whose influence maps and intermediate estimates are stored; default none"
    )
    seed: int = Field(0, ge=0, description="seed of the noise; noise depends on the seed, edit_id and attempt only")
    attempt: int = Field(
        0, ge=0, le=99, description="number of the attempt; each has other noise and its own folder attempt-NN"
    )
    precision: TunedPrecision = Field(
        "float32", description=PRECISION + ". Weights and what the optimiser keeps are always float32"
    )
    codec: Codec = Field("webp", description=CODECS)
    shard_rows: int = Field(
        48,
        ge=1,
        le=1_000_000,
        description="input rows per shard, the unit of work and of commit; rounded down to whole batches of `edits`",
    )

    def prepare(self, *, write: bool) -> PreparedRun:
        """Plan the shards of edits. Checkpoint and faces enter the run id by content, not by path."""
        settings = self.settings(exclude={"conditions", "shard_rows", "max_error_fraction"})
        settings["checkpoint"] = checkpoint_digest(resolve(self.checkpoint))
        settings["faces"] = open_inputs(self.faces, "faces").digest
        settings["judges"] = self.judge.digests()
        inputs = open_inputs(self.conditions, "conditions")
        if not inputs.slices:
            raise ConfigError(f"{self.conditions}: no edits")
        first = read_slice(inputs.slices[0], ["edit_id"])["edit_id"].to_pylist()
        if first[0] is None:
            raise ConfigError(f"{self.conditions}: not a plan of edits; plan it with planning `edits` or `edit_pairs`")
        alphas = next((i for i, name in enumerate(first) if name != first[0]), len(first))
        batch = alphas * self.edits
        plan = plan_run("edit", settings, inputs, batch=batch, shard_rows=self.shard_rows, attempt=self.attempt)
        fields = (set(SampleConfig.model_fields) & set(EditJob.model_fields)) - {"checkpoint"}
        values = {name: getattr(self, name) for name in fields}
        config = SampleConfig(run_id=plan.run_id, checkpoint=resolve(self.checkpoint), batch=alphas, **values)
        notes = check_conditions(inputs.slices, config, self.ignore, references=True)
        from raygen.sampling.imagic import EditWorker
        from raygen.sampling.worker import check_sampling

        check_sampling(config)
        faces = StoredRows(self.faces, ("image", "mask", "attributes"))
        build = partial(
            EditWorker, config, self.imagic, self.judge, faces, threads=self.resources.threads, edits=self.edits
        )
        return PreparedRun(RunStore(self.out, self.attempt), plan, self.max_error_fraction, build=build, notes=notes)


JOB = EditJob
