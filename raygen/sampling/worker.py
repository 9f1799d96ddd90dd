"""The denoising loop, a generator of zt, and the worker that turns CONDITIONS rows into SAMPLES rows.

A picture's noise depends on (seed, sample_id, attempt) alone. Its bytes depend also on the batch shape, the device
class, the number of threads and the versions of the libraries.
"""

import copy
import hashlib
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa
import torch
from torch import Tensor

from raygen.core.errors import ConfigError
from raygen.core.no_effect import without_effect
from raygen.core.pixels import to_uint8
from raygen.core.precision import DTYPES, arithmetic, check_precision, set_deterministic_precision, tf32
from raygen.core.types import BoolArray, Precision, UInt8Array
from raygen.models import checkpoint, checkpoint_folder
from raygen.models.base import Model, Record
from raygen.models.compiled import compile_blocks, first_line, run_uncompiled
from raygen.models.conditions import Conditions
from raygen.models.recurrences import Sampler
from raygen.models.schedulers import build_sampler
from raygen.sampling.config import SampleConfig, check_guidance, shares_model
from raygen.sampling.cuda_graph import CudaGraphs
from raygen.sampling.guidance import GuidedDenoiser, Predictor, build_guidance
from raygen.sampling.influence import X0, InfluenceRecorder
from raygen.sampling.no_effect import SAMPLING
from raygen.sampling.noise import KeyedNoise, noise_key
from raygen.store.images import encode_image, picture_column
from raygen.store.lookup import RowLookup
from raygen.store.schemas import SAMPLES, SCORES, cast

__all__ = ["SampleWorker", "ScoreBatch", "check_sampling", "denoise", "pick_device", "to_host"]

#: (pictures uint8 [n, H, W, 3], their rows) -> SCORES rows.
ScoreBatch = Callable[[UInt8Array, pa.Table], pa.Table]
#: Gives the noise of step i, [B, C, h, w].
StepNoise = Callable[[int], Tensor]

JOINT: Final = "joint"


# --- the loop -----------------------------------------------------------------------------------------------


def denoise(
    model: Model,
    guided: Predictor,
    zt: Tensor,
    sampler: Sampler,
    *,
    step_noise: StepNoise | None = None,
    unguided: Predictor | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
    record: Record | None = None,
) -> Iterator[Tensor]:
    """zt after each step, the last one being z. `zt` [B, C, h, w] starts as standard normal noise.

    `guided` is used in the steps i of n whose i / n is in `interval` [low, high), `unguided` in the others. When zt is
    yielded, a `record` holds the model's record of that step and its estimate of z as `x0`. All that the steps need is
    on the device when this call returns; none of them waits for the device.
    """
    times, trajectory = sampler.times(len(zt), zt.device), sampler.start()

    def steps(zt: Tensor) -> Iterator[Tensor]:
        for i, t in enumerate(times):
            inside = interval[0] <= i / len(times) < interval[1]
            predictor = guided if inside or unguided is None else unguided
            output = predictor(model, zt, t, record)
            output, variance = output.chunk(2, dim=1) if model.learns_variance else (output, None)
            if record is not None:
                record[X0] = model.schedule.x0_from(output, zt, t)
            zt = trajectory.advance(zt, output, None if step_noise is None else step_noise(i), variance)
            yield zt

    return steps(zt)


# --- the worker ---------------------------------------------------------------------------------------------


def pick_device(name: str) -> torch.device:
    """`auto` is the accelerator if there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def compute_environment(device: torch.device, precision: Precision) -> dict[str, str]:
    """What numbers depend on besides settings and library versions: device, CPU threads, precision."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    with arithmetic(precision):
        return {"device": name, "threads": str(torch.get_num_threads()), "precision": precision, "tf32": tf32()}


def check_sampling(config: SampleConfig) -> None:
    """`ConfigError` where the model of `config.checkpoint` cannot be sampled so, without loading it."""
    reads = checkpoint_folder.modalities(config.checkpoint)
    if unknown := sorted(set(config.use_conditions or ()) - reads):
        takes = ", ".join(sorted(reads)) or "no conditions"
        raise ConfigError(f"use_conditions: {', '.join(unknown)}: the model takes {takes}")
    check_guidance(reads, config.guidance, config.guidance_parametrization, config.negative_keeps)
    if problem := without_effect(config, SAMPLING):
        raise ConfigError(problem)
    checkpoint.check_sampler(config.checkpoint, config.sampler)
    if config.mixing is not None:
        checkpoint_folder.check_mixing(config.checkpoint, config.mixing)


class SampleWorker:
    """CONDITIONS rows -> SAMPLES rows (and `scores` of an observer). Keeps nothing between batches.

    An out-of-memory error is raised: it fails the attempt of a shard and never becomes a row.
    """

    def __init__(
        self,
        config: SampleConfig,
        *,
        model: Model | None = None,
        observe: ScoreBatch | None = None,
        threads: int | None = None,
        references: RowLookup | None = None,
        tuned: bool = False,
    ) -> None:
        """`references`: look-up of the faces that styles are taken from.

        `tuned`: the model will be tuned, so its weights stay float32: in half precision, small updates would be lost.
        """
        set_deterministic_precision(threads)
        self.config, self.observe, self.references, self.tuned = config, observe, references, tuned
        self.device = pick_device(config.device)
        check_precision(config.precision, self.device)
        self.digest = "" if model is not None else checkpoint_folder.digest(config.checkpoint)
        loaded = checkpoint.load(config.checkpoint) if model is None else model
        self.model = loaded.to(self.device, torch.float32 if tuned else DTYPES[config.precision]).eval()
        if self.device.type == "cuda":
            self.model = self.model.to(memory_format=torch.channels_last)
        if config.mixing is not None:
            self.model.mix(config.mixing)
        self.compiled = "off" if config.compile == "off" else self._compile()
        self.graphs = self._capture() if config.cuda_graph else None

    @torch.inference_mode()
    def _compile(self) -> str:
        """Compile, with a step and a decoding as warm-up. How, or why not: then all goes on without."""
        networks = [*self.model.networks, *([self.model.first_stage.net] if self.model.first_stage.net else [])]
        problem = compile_blocks(networks, self.config.compile, self.device)
        if problem is None:
            try:
                n = self.config.batch
                zt = torch.zeros(n, *self.model.latent_shape, device=self.device)
                with self.arithmetic():
                    for guided in self._guidance(self.model.null(n)):
                        guided(self.model, zt, torch.zeros(n, dtype=torch.int64, device=self.device))
                    for part in torch.split(zt, self.config.decode_batch):
                        self._pictures_of(part)
                return self.config.compile
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # dynamo and its backends have no class in common
                run_uncompiled(networks)
                problem = f"compile: {self.config.compile} failed, and pictures are made without: {first_line(error)}"
        sys.stderr.write(f"{problem}\n")
        return f"off: {problem}"

    @torch.inference_mode()
    def _capture(self) -> CudaGraphs:
        """Graphs, with the one for rows without conditions as warm-up."""
        graphs, n = CudaGraphs(self.model), self.config.batch
        zt = torch.zeros(n, *self.model.latent_shape, device=self.device)
        with self.arithmetic():
            for guided in self._guidance(self.model.null(n)):
                record: Record | None = {} if self._records else None
                graphs.predict(guided, zt, torch.zeros(n, dtype=torch.int64, device=self.device), record)
        return graphs

    @property
    def _records(self) -> bool:
        """Whether each step's influence is kept."""
        return bool(self.model.mixes or self.config.influence_steps)

    def another(self, config: SampleConfig) -> "SampleWorker":
        """A worker for other settings of the same checkpoint, which is loaded once for both."""
        if not shares_model(config, self.config):
            raise ValueError("another checkpoint, precision, compilation, device or mixing needs a model of its own")
        worker = copy.copy(self)
        worker.config = config
        return worker

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Inside, the model computes in the precision of the config, also where its weights are kept in float32."""
        half = DTYPES[self.config.precision]
        with arithmetic(self.config.precision):
            if self.tuned and half != torch.float32:
                # Without its cache: that would keep what the weights were in half precision before a step of tuning.
                with torch.autocast(self.device.type, half, cache_enabled=False):
                    yield
            else:
                yield

    def environment(self) -> dict[str, str]:
        """What the bytes of pictures depend on except the config and library versions."""
        graph = "off" if self.graphs is None else (self.graphs.problem or "on")
        return {
            **compute_environment(self.device, self.config.precision),
            "compile": self.compiled,
            "cuda_graph": graph,
        }

    def __call__(self, rows: pa.Table) -> dict[str, pa.Table]:
        """`start(rows)()`."""
        return self.start(rows)()

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Make the pictures of at most `batch` rows now; the returned call scores, encodes and makes the tables.

        The device always works on `batch` slots. A row that is bad, or whose picture is not finite, becomes a
        row with `error`.
        """
        model = self.model
        required = model.modalities if self.config.missing == "quarantine" else model.required_conditions
        shapes = replace(model.shapes, references=self.references)
        conditions, errors = Conditions.from_rows(rows, model.modalities, required=required, shapes=shapes)
        ids = rows["sample_id"].to_pylist()
        groups = rows["group_id"].to_pylist() if self.config.noise == "group" else [None] * len(ids)
        keys: list[int | None] = [
            None if error else noise_key(self.config.seed, group or name, self.config.attempt)
            for name, group, error in zip(ids, groups, errors, strict=True)
        ]
        keys += [None] * (self.config.batch - len(keys))
        log = InfluenceRecorder(len(ids), self.config.influence_steps)
        images, finite = self._sample(conditions.pad(self.config.batch).to(self.device), keys, log)
        fetch = to_host(images[: len(ids)], finite[: len(ids)])
        return lambda: self.finish(rows, errors, log, *fetch())

    @torch.inference_mode()
    def _sample(
        self, conditions: Conditions, keys: Sequence[int | None], log: InfluenceRecorder
    ) -> tuple[Tensor, Tensor]:
        config, model = self.config, self.model
        if config.use_conditions is not None:
            model.must_do_without("some conditions of the rows are not used (`use_conditions`)")
            conditions = conditions.keep(config.use_conditions)
        guided, *unguided = self._guidance(conditions)
        return self.pictures(guided, keys, log, *unguided)

    def _guidance(self, conditions: Conditions) -> list[GuidedDenoiser]:
        """The guided prediction, and the other one where only a part of the steps is guided."""
        config, model = self.config, self.model
        with self.arithmetic():
            guided = build_guidance(
                model,
                conditions,
                config.guidance,
                parametrization=config.guidance_parametrization,
                against=config.negative_keeps,
            )
            partly = config.guidance_interval != (0.0, 1.0)
            return [guided, *([build_guidance(model, conditions, 1.0)] if partly else [])]

    @torch.inference_mode()
    def pictures(
        self,
        guided: GuidedDenoiser,
        keys: Sequence[int | None],
        log: InfluenceRecorder,
        unguided: GuidedDenoiser | None = None,
    ) -> tuple[Tensor, Tensor]:
        """uint8 [B, H, W, 3] and whether each picture is finite, bool [B]; both on the device.

        `keys`: of the noise of each slot, None for an unused one.
        """
        config, model = self.config, self.model
        predict: Callable[[GuidedDenoiser], Predictor]
        predict = (lambda one: one) if self.graphs is None else self.graphs.replayed
        noise = KeyedNoise(keys, model.latent_shape, self.device)
        z = noise(0)
        sampler = build_sampler(model.schedule, config.sampler)
        trajectory = denoise(
            model,
            predict(guided),
            z,
            sampler,
            step_noise=(lambda i: noise(1 + i)) if sampler.noisy else None,
            unguided=None if unguided is None else predict(unguided),
            interval=config.guidance_interval,
            record=log.record if self._records else None,
        )
        log.begin(sampler.timesteps, model.first_stage.decode)
        with self.arithmetic():
            for zt in trajectory:
                log.step()
                z = zt
            parts = [self._pictures_of(part) for part in torch.split(z, config.decode_batch)]
        images, finite = (torch.cat(values) for values in zip(*parts, strict=True))
        return images, finite

    def _pictures_of(self, z: Tensor) -> tuple[Tensor, Tensor]:
        pixels = self.model.first_stage.decode(z)
        return to_uint8(pixels), pixels.isfinite().flatten(1).all(dim=1)

    def finish(
        self,
        rows: pa.Table,
        errors: Sequence[str | None],
        log: InfluenceRecorder,
        images: UInt8Array,
        finite: BoolArray,
    ) -> dict[str, pa.Table]:
        """SAMPLES of pictures uint8 [n, H, W, 3] and their rows; SCORES and INFLUENCE where the config has them."""
        reasons = [
            error or (None if ok else "nonfinite: the picture has values that are not finite")
            for error, ok in zip(errors, finite, strict=True)
        ]
        encoded = [
            None if reason else encode_image(image, self.config.codec)
            for image, reason in zip(images, reasons, strict=True)
        ]
        tables = {"samples": self._samples(rows, reasons, encoded)}
        good = [i for i, reason in enumerate(reasons) if reason is None]
        ids = rows["sample_id"].to_pylist()
        scores = [log.scores(ids, good, run_id=self.config.run_id, attempt=self.config.attempt)]
        if self.observe is not None:
            scores.append(cast(self.observe(images[good], rows.take(good)), SCORES))
        if self.observe is not None or scores[0].num_rows:
            tables["scores"] = pa.concat_tables(scores)
        if self.config.influence_steps:
            tables["influence"] = log.maps(ids, good, self.config.codec)
        return tables

    def _samples(self, rows: pa.Table, reasons: Sequence[str | None], encoded: Sequence[bytes | None]) -> pa.Table:
        n, config = rows.num_rows, self.config
        weights = config.guidance if isinstance(config.guidance, dict) else {JOINT: config.guidance}
        weights = weights if self.model.modalities else {}  # nothing is guided without conditions
        columns: dict[str, Iterable[Any]] = {
            "attempt": [config.attempt] * n,
            "error": reasons,
            "run_id": [config.run_id] * n,
            "checkpoint": [self.digest] * n,
            "sampler": [config.sampler.name] * n,
            "steps": [config.sampler.steps] * n,
            "guidance": [weights] * n,
            "image_sha256": [None if data is None else hashlib.sha256(data).hexdigest() for data in encoded],
        }
        return pa.Table.from_arrays([_column(f, rows, columns, encoded) for f in SAMPLES], schema=SAMPLES)


def _column(
    field: pa.Field, rows: pa.Table, columns: Mapping[str, Iterable[Any]], encoded: Sequence[bytes | None]
) -> pa.Array | pa.ChunkedArray:
    """One column of SAMPLES: the picture, one of `columns`, or the column of CONDITIONS."""
    if field.name == "image":
        return picture_column(encoded)
    if field.name in columns:
        return pa.array(columns[field.name], field.type)
    if field.name in rows.column_names:
        return rows[field.name].cast(field.type)
    return pa.nulls(rows.num_rows, field.type)


def to_host(*tensors: Tensor) -> Callable[[], tuple[Any, ...]]:
    """Start the copy of `tensors` to arrays of the host.

    The returned call waits for it, not for work that was queued later.
    """
    if tensors[0].device.type != "cuda":
        return lambda: tuple(tensor.numpy() for tensor in tensors)
    hosts = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in tensors]
    for host, device in zip(hosts, tensors, strict=True):
        host.copy_(device, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def fetch() -> tuple[Any, ...]:
        done.synchronize()
        return tuple(host.numpy() for host in hosts)

    return fetch
