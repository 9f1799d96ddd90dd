"""`raygen generate`: CONDITIONS -> SAMPLES, and SCORES of the pictures before they are encoded."""

from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from raygen.commands.base import Estimate, PreparedRun, ShardedJob, estimate_cost
from raygen.commands.counted import count_instead
from raygen.commands.inputs import Inputs, open_inputs, plan_run, record_landmarks, with_landmarks
from raygen.core.assets import resolve
from raygen.core.errors import ConfigError
from raygen.core.location import Location
from raygen.core.types import PRECISION, Precision
from raygen.evaluation.config import ScoreConfig
from raygen.execution.worker import Worker
from raygen.extractors.config import LandmarksConfig
from raygen.models.checkpoint_folder import digest as checkpoint_digest
from raygen.models.config.compile import Compile
from raygen.models.config.mixing import AnyMixing
from raygen.models.config.sampler import SamplerConfig
from raygen.sampling.config import (
    GUIDED,
    IGNORE,
    LANDMARKS,
    Guidance,
    GuidanceInterval,
    GuidanceParametrization,
    SampleConfig,
    check_conditions,
)
from raygen.store.images import CODECS, Codec
from raygen.store.run_store import RunStore

if TYPE_CHECKING:
    from raygen.sampling.operations import Counted

__all__ = ["JOB", "GenerateJob"]


class GenerateJob(ShardedJob):
    """CONDITIONS -> SAMPLES: one picture per row."""

    kind: Literal["generate"] = "generate"
    conditions: Location = Field(..., description="folder of a plan run, whose rows are generated")
    checkpoint: Location = Field(..., description="folder of a model in the diffusers layout, or `bundled`")
    sampler: SamplerConfig = Field(default_factory=SamplerConfig, description="sampler and number of steps")
    guidance: Guidance = Field(
        1.0,
        description="guidance weight w: one number, or a weight per condition such as {mask: 1.5, text: 3}; 1 is no "
        "guidance and the fastest",
    )
    guidance_parametrization: GuidanceParametrization = Field(
        "cfg",
        description="meaning of the weight w. cfg: e0 + w (e - e0), so 1 is no guidance; cfg_minus_one: "
        "e + w (e - e0), so 0 is no guidance",
    )
    negative_keeps: tuple[str, ...] = Field(
        (), description="conditions that the unconditional prediction e0 keeps, such as [mask]; default none"
    )
    guidance_interval: GuidanceInterval = Field((0.0, 1.0), description=GUIDED)
    use_conditions: tuple[str, ...] | None = Field(
        None, description="conditions of the rows that are used; default: all; an empty list uses none"
    )
    ignore: tuple[Literal["mask", "attributes", "text", "style", "hint"], ...] = Field((), description=IGNORE)
    references: Location | None = Field(
        None, description="folder of the ingest run with the faces that rows take styles from, or are scored against"
    )
    seed: int = Field(0, ge=0, description="seed of the noise; noise depends on the seed, sample_id and attempt only")
    noise: Literal["sample", "group"] = Field(
        "sample",
        description="sample: each row has its own noise; group: rows with the same group_id share it, as in an "
        "interpolation",
    )
    attempt: int = Field(
        0, ge=0, le=99, description="number of the attempt; each has other noise and its own folder attempt-NN"
    )
    batch: int = Field(
        32, ge=1, le=4096, description="pictures generated at once; changing it can change the last bits of pictures"
    )
    decode_batch: int = Field(
        16,
        ge=1,
        le=4096,
        description="pictures that the first stage decodes at once, to bound its memory; the last bits depend on it",
    )
    codec: Codec = Field("webp", description=CODECS)
    precision: Precision = Field("float32", description=PRECISION)
    compile: Compile = Field(
        "off",
        description="compile the repeated blocks of the networks with torch.compile, when a worker starts; "
        "max-autotune also tries several kernels. Without a compiler pictures are made as with off",
    )
    cuda_graph: bool = Field(
        False,
        description="replay each prediction as one CUDA graph, which helps small batches; where a replay is not equal "
        "to the bit, or the device is not a GPU, pictures are made as with false",
    )
    mixing: AnyMixing | None = Field(
        None, description="collaborative models: how the experts are mixed, chosen by its `kind`; default `paper`"
    )
    missing: Literal["null", "quarantine"] = Field(
        "null",
        description="rows that lack a condition of the model. null: generate without it, as trained with condition "
        "dropout; quarantine: store the row as failed",
    )
    influence_steps: int = Field(
        0, ge=0, le=1000, description="steps whose influence maps and intermediate estimates are stored; default none"
    )
    score: ScoreConfig | None = Field(
        None, description="measurements of each picture before it is encoded; default none"
    )
    landmarks: LandmarksConfig | None = Field(None, description=LANDMARKS)

    def prepare(self, *, write: bool) -> PreparedRun:
        """Plan the shards of the rows of `conditions`; see `planned`."""
        return self.planned(open_inputs(self.conditions, "conditions"))

    def estimate(self) -> Estimate:
        """One batch, timed; for networks that are too large for a CPU, their operations."""
        work = self.prepare(write=False)
        return count_instead(work, self._count) or estimate_cost(work, self.resources)

    def _count(self) -> "Counted":
        from raygen.sampling.operations import count_sampling

        return count_sampling(self.sampling(""))

    def planned(self, rows: Inputs, *, checked: bool = False) -> PreparedRun:
        """Plan the shards of `rows`. Checkpoint and networks enter the run id by content, not by path.

        Everything that the rows and the model's folder tell is checked here, before anything is written. `checked`: the
        model and its sampler are known to fit, so that they are not checked again, which imports torch.
        """
        settings = self.settings(exclude={"conditions", "shard_rows", "max_error_fraction", "landmarks"})
        landmarks, score = record_landmarks(self.landmarks, settings), self.score
        settings["checkpoint"] = checkpoint_digest(resolve(self.checkpoint))
        config = self.sampling("")
        notes = check_conditions(rows.slices, config, self.ignore, references=self.references is not None)
        if score is not None:
            settings["score"] = score.by_content()
            score = score.pinned(settings["score"])
            if score.to_source and self.references is None:
                raise ConfigError(f"score.{score.to_source}: needs `references`, the folder of the source faces")
        if self.references is not None:
            settings["references"] = open_inputs(self.references, "faces").digest
        if not checked:
            from raygen.sampling.worker import check_sampling

            check_sampling(config)
        plan = plan_run("generate", settings, rows, batch=self.batch, shard_rows=self.shard_rows, attempt=self.attempt)
        config = config.model_copy(update={"run_id": plan.run_id})
        build = partial(sample_worker, config, score, self.resources.threads, self.references, landmarks)
        return PreparedRun(RunStore(self.out, self.attempt), plan, self.max_error_fraction, build=build, notes=notes)

    def sampling(self, run_id: str) -> SampleConfig:
        """The configuration of a worker of this job."""
        fields = (set(SampleConfig.model_fields) & set(GenerateJob.model_fields)) - {"checkpoint"}
        values = {name: getattr(self, name) for name in fields}
        return SampleConfig(run_id=run_id, checkpoint=resolve(self.checkpoint), **values)


def sample_worker(
    config: SampleConfig,
    score: ScoreConfig | None,
    threads: int,
    references: str | None,
    landmarks: LandmarksConfig | None = None,
) -> Worker:
    """The worker of a generate run, made in the process that generates: the driver of a cluster needs no torch."""
    from raygen.evaluation import scored_sampler

    build = partial(scored_sampler.sample_worker, config, score, threads, references)
    return with_landmarks(build, landmarks, threads)


JOB = GenerateJob
