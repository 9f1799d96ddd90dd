"""The one denoising loop, a generator of zt; guidance; and the worker that makes pictures of rows.

Knows how the noise of a sample follows from its key, how predictions under several conditions become one, and
how a batch of CONDITIONS rows becomes SAMPLES rows. Knows neither model families nor where tables come from.

A picture's noise depends on (seed, sample_id, attempt) alone. Its bytes depend besides on the batch shape, the
device class, the number of threads and the versions of the libraries.
"""

import copy
import hashlib
import platform
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from raygen.influence import X0, InfluenceLog
from raygen.models import checkpoint
from raygen.models.autoencoder import to_uint8
from raygen.models.base import Context, Model, Record, concatenate
from raygen.models.conditions import Conditions, References
from raygen.models.mixing import AnyMixing
from raygen.models.schedule import SamplerSpec, advance, build_sampler, uses_step_noise
from raygen.precision import settle, tf32
from raygen.spec import ConfigError, Spec
from raygen.tables import SAMPLES, SCORES, Codec, cast, encode_image, picture_column

__all__ = [
    "Guidance",
    "GuidanceForm",
    "Guide",
    "Observe",
    "SampleSpec",
    "SampleWorker",
    "denoise",
    "guide",
    "keyed_normal",
    "noise_key",
    "pick_device",
    "shares_model",
    "to_host",
]

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]
#: One weight for all conditions together, or a weight a modality; 1 is no guidance.
Guidance = float | dict[str, float]
#: `scale`: e0 + w (e - e0), 1 is none. `extra`: e + s (e - e0), 0 is none; s = w - 1. Papers use both and call both s.
GuidanceForm = Literal["scale", "extra"]
#: (pictures uint8 [n, H, W, 3], their rows) -> SCORES rows.
Observe = Callable[[UInt8Array, pa.Table], pa.Table]
#: Gives the noise of step i, [B, C, h, w].
StepNoise = Callable[[int], Tensor]

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
JOINT: Final = "joint"


# --- keyed noise --------------------------------------------------------------------------------------------


def noise_key(seed: int, sample_id: str, attempt: int) -> int:
    """128 bits from (seed, sample_id, attempt): BLAKE2b, so near inputs have unrelated keys."""
    text = f"{seed}\0{attempt}\0{sample_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16, person=b"raygen-noise-1").digest(), "little")


def keyed_normal(key: int, stream: int, shape: tuple[int, ...]) -> Float32Array:
    """Standard normal float32 of `shape`; stream 0 is the first latent, 1 + i the noise of step i.

    Philox counts blocks in 256 bits; the stream is the highest 64 of them, so streams never overlap.
    """
    random = np.random.Generator(np.random.Philox(key=key, counter=stream << 192))
    return random.standard_normal(shape, dtype=np.float32)


def _batch_noise(keys: Sequence[int | None], stream: int, shape: tuple[int, ...]) -> Tensor:
    """Noise of each slot [B, ...]; a slot without a key (a bad row, padding) gets zeros."""
    zeros = np.zeros(shape, dtype=np.float32)
    return torch.from_numpy(np.stack([zeros if k is None else keyed_normal(k, stream, shape) for k in keys]))


# --- guidance -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guide:
    """A weighted sum of predictions under several conditions, evaluated in one forward pass."""

    ctx: Context
    weights: tuple[float, ...]
    #: Whether the first term has all conditions, so that its record says what the model makes of them.
    whole: bool = True

    def __call__(self, model: Model, zt: Tensor, t: Tensor, record: Record | None = None) -> Tensor:
        """The combined prediction for zt [B, C, h, w] at t [B]."""
        terms = len(self.weights)
        kept = record if self.whole else None
        output = model.predict(zt.repeat(terms, 1, 1, 1), t.repeat(terms), self.ctx, kept)
        if terms == 1:
            return output * self.weights[0] if self.weights[0] != 1 else output
        weights = torch.tensor(self.weights, device=output.device).view(-1, 1, 1, 1, 1)
        return (output.view(terms, *zt.shape) * weights).sum(dim=0)


def guide(
    model: Model,
    conditions: Conditions,
    guidance: Guidance,
    *,
    form: GuidanceForm = "scale",
    against: Collection[str] = (),
) -> Guide:
    """The terms of classifier-free guidance, those of weight 0 left out.

    A number w: e0 + w (e_all - e0), or in the form `extra`, e_all + w (e_all - e0), where 0 is no guidance. A mapping:
    e0 + sum of w_m (e_m - e0), e_m conditioned on m and on `against`. e0 is conditioned on `against` alone. A joint
    weight that adds nothing is one evaluation. `ConfigError` names a modality the model does not take.
    """
    if unknown := sorted(set(against) - model.modalities):
        raise ConfigError(f"guidance against {unknown}: the model takes {sorted(model.modalities) or 'no conditions'}")
    if isinstance(guidance, Mapping):
        if unknown := sorted(set(guidance) - model.modalities):
            raise ConfigError(f"guidance of {unknown}: the model takes {sorted(model.modalities) or 'no conditions'}")
        if form != "scale":
            raise ConfigError(f"guidance by modality has the form 'scale', not {form!r}")
        terms = [(conditions.keep({name, *against}), float(weight)) for name, weight in sorted(guidance.items())]
    else:
        # A model without conditions has one prediction, whatever the weight.
        scale = float(guidance) + (1.0 if form == "extra" else 0.0)
        terms = [(conditions, scale if model.modalities else 1.0)]
    terms.append((conditions.keep(against), 1.0 - sum(weight for _, weight in terms)))
    used = [(c, w) for c, w in terms if w != 0]
    if len(used) > 1 or isinstance(guidance, Mapping):
        model.must_do_without("guidance subtracts what experts say without conditions")
    ctx = concatenate([model.prepare(model.embed(c)) for c, _ in used]) if model.modalities else {}
    return Guide(ctx, tuple(w for _, w in used), whole=not isinstance(guidance, Mapping))


# --- the loop -----------------------------------------------------------------------------------------------


def denoise(
    model: Model,
    guided: Guide,
    zt: Tensor,
    scheduler: Any,
    *,
    eta: float = 0.0,
    step_noise: StepNoise | None = None,
    unguided: Guide | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
    record: Record | None = None,
) -> Iterator[Tensor]:
    """zt after each step, the last one being z. `zt` [B, C, h, w] starts as standard normal noise.

    `guided` counts in the steps whose place i / n lies in `interval` [low, high); elsewhere `unguided` does. The
    scheduler is one of `build_sampler`, and is used up: its solvers keep history. A `record` holds, when zt is
    yielded, what the model said of that step and its estimate of z as `x0`.
    """
    steps = scheduler.timesteps
    zt = zt * scheduler.init_noise_sigma
    for i, t in enumerate(steps):
        inside = interval[0] <= i / len(steps) < interval[1]
        predictor = guided if inside or unguided is None else unguided
        times = torch.full((len(zt),), int(t), dtype=torch.int64, device=zt.device)
        output = predictor(model, scheduler.scale_model_input(zt, t), times, record)
        if record is not None:
            record[X0] = model.schedule.x0_from(output, zt, times)
        noise = None if step_noise is None else step_noise(i)
        zt = advance(scheduler, output, t, zt, eta=eta, noise=noise)
        yield zt


# --- the worker ---------------------------------------------------------------------------------------------


class SampleSpec(Spec):
    """Everything a picture depends on, besides its row."""

    checkpoint: str
    sampler: SamplerSpec = Field(default_factory=SamplerSpec)
    guidance: Guidance = 1.0
    guidance_form: GuidanceForm = "scale"
    guidance_against: tuple[str, ...] = ()
    guidance_interval: tuple[float, float] = Field((0.0, 1.0), description="part of the steps that is guided")
    mixing: AnyMixing | None = Field(None, description="of the experts of a collaboration; none is `paper`")
    only: tuple[str, ...] | None = None
    missing: Literal["null", "quarantine"] = "null"
    influence_steps: int = Field(0, ge=0, le=1000)
    seed: int = Field(0, ge=0)
    noise: Literal["sample", "group"] = "sample"
    attempt: int = Field(0, ge=0)
    batch: int = Field(32, ge=1, le=4096)
    codec: Codec = "webp"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    run_id: str = ""


def pick_device(name: str) -> torch.device:
    """`auto` is the accelerator if there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def shares_model(one: SampleSpec, other: SampleSpec) -> bool:
    """Whether pictures of both come from the same weights in memory."""
    names = ("checkpoint", "dtype", "device", "mixing")
    return all(getattr(one, name) == getattr(other, name) for name in names)


class SampleWorker:
    """CONDITIONS rows -> SAMPLES rows (and `scores` of an observer). Keeps nothing between batches.

    An out-of-memory is raised as it comes: it fails the try of a shard, never a row.
    """

    def __init__(
        self,
        spec: SampleSpec,
        *,
        model: Model | None = None,
        observe: Observe | None = None,
        threads: int | None = None,
        references: References | None = None,
    ) -> None:
        """`references`: of the faces that styles are taken from."""
        settle(threads)
        self.spec, self.observe, self.references = spec, observe, references
        self.device = pick_device(spec.device)
        self.digest = "" if model is not None else checkpoint.digest(spec.checkpoint)
        loaded = checkpoint.load(spec.checkpoint) if model is None else model
        self.model = loaded.to(self.device, DTYPES[spec.dtype]).eval()
        if self.device.type == "cuda":
            self.model = self.model.to(memory_format=torch.channels_last)
        if spec.mixing is not None:
            self.model.mix(spec.mixing)

    def another(self, spec: SampleSpec) -> "SampleWorker":
        """A worker for other settings of the same checkpoint, which is loaded once for both."""
        if not shares_model(spec, self.spec):
            raise ValueError("another checkpoint, precision, device or mixing needs a model of its own")
        made = copy.copy(self)
        made.spec = spec
        return made

    def environment(self) -> dict[str, str]:
        """What bytes depend on besides the spec and the versions."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()
        return {"device": name, "threads": str(torch.get_num_threads()), "dtype": self.spec.dtype, "tf32": tf32()}

    def __call__(self, rows: pa.Table) -> dict[str, pa.Table]:
        """`start(rows)()`."""
        return self.start(rows)()

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Make the pictures of at most `batch` rows now; the returned call scores, encodes and tabulates.

        The device always works on `batch` slots. A row that is bad, or whose picture is not finite, becomes a
        row with `error`.
        """
        model = self.model
        required = model.modalities if self.spec.missing == "quarantine" else model.required_conditions
        shapes = replace(model.shapes, references=self.references)
        conditions, errors = Conditions.from_rows(rows, model.modalities, required=required, shapes=shapes)
        ids = rows["sample_id"].to_pylist()
        groups = rows["group_id"].to_pylist() if self.spec.noise == "group" else [None] * len(ids)
        keys: list[int | None] = [
            None if error else noise_key(self.spec.seed, group or name, self.spec.attempt)
            for name, group, error in zip(ids, groups, errors, strict=True)
        ]
        keys += [None] * (self.spec.batch - len(keys))
        log = InfluenceLog(len(ids), self.spec.influence_steps)
        images, finite = self._conditioned(conditions.pad(self.spec.batch).to(self.device), keys, log)
        fetch = to_host(images[: len(ids)], finite[: len(ids)])
        return lambda: self.finish(rows, errors, log, *fetch())

    @torch.inference_mode()
    def _conditioned(
        self, conditions: Conditions, keys: Sequence[int | None], log: InfluenceLog
    ) -> tuple[Tensor, Tensor]:
        spec, model = self.spec, self.model
        if spec.only is not None:
            model.must_do_without("some conditions of the rows are left aside (`only`)")
            conditions = conditions.keep(spec.only)
        unguided = guide(model, conditions, 1.0) if spec.guidance_interval != (0.0, 1.0) else None
        guided = guide(model, conditions, spec.guidance, form=spec.guidance_form, against=spec.guidance_against)
        return self.pictures(guided, keys, log, unguided)

    @torch.inference_mode()
    def pictures(
        self, guided: Guide, keys: Sequence[int | None], log: InfluenceLog, unguided: Guide | None = None
    ) -> tuple[Tensor, Tensor]:
        """uint8 [B, H, W, 3] and whether each picture is finite, bool [B]; both on the device.

        `keys`: of the noise of each slot, None for one that does not count.
        """
        settle()  # also where whoever uses this as a library has changed it since
        spec, model, shape = self.spec, self.model, self.model.latent_shape
        z = _batch_noise(keys, 0, shape).to(self.device)
        noisy = uses_step_noise(spec.sampler)
        scheduler = build_sampler(model.schedule, spec.sampler)
        trajectory = denoise(
            model,
            guided,
            z,
            scheduler,
            eta=spec.sampler.eta,
            step_noise=(lambda i: _batch_noise(keys, 1 + i, shape).to(self.device)) if noisy else None,
            unguided=unguided,
            interval=spec.guidance_interval,
            record=log.record if model.mixes or spec.influence_steps else None,
        )
        log.begin([int(t) for t in scheduler.timesteps], model.first_stage.decode)
        for zt in trajectory:
            log.step()
            z = zt
        pixels = model.first_stage.decode(z)
        return to_uint8(pixels), pixels.isfinite().flatten(1).all(dim=1)

    def finish(
        self,
        rows: pa.Table,
        errors: Sequence[str | None],
        log: InfluenceLog,
        images: UInt8Array,
        finite: npt.NDArray[np.bool_],
    ) -> dict[str, pa.Table]:
        """SAMPLES of pictures uint8 [n, H, W, 3] and their rows, with SCORES and INFLUENCE where they are wanted."""
        reasons = [
            error or (None if ok else "nonfinite: the picture has values that are not finite")
            for error, ok in zip(errors, finite, strict=True)
        ]
        encoded = [
            None if reason else encode_image(image, self.spec.codec)
            for image, reason in zip(images, reasons, strict=True)
        ]
        tables = {"samples": self._samples(rows, reasons, encoded)}
        good = [i for i, reason in enumerate(reasons) if reason is None]
        ids = rows["sample_id"].to_pylist()
        scores = [log.scores(ids, good, run_id=self.spec.run_id, attempt=self.spec.attempt)]
        if self.observe is not None:
            scores.append(cast(self.observe(images[good], rows.take(good)), SCORES))
        if self.observe is not None or scores[0].num_rows:
            tables["scores"] = pa.concat_tables(scores)
        if self.spec.influence_steps:
            tables["influence"] = log.maps(ids, good, self.spec.codec)
        return tables

    def _samples(self, rows: pa.Table, reasons: Sequence[str | None], encoded: Sequence[bytes | None]) -> pa.Table:
        n, spec = rows.num_rows, self.spec
        weights = spec.guidance if isinstance(spec.guidance, dict) else {JOINT: spec.guidance}
        own: dict[str, Iterable[Any]] = {
            "attempt": [spec.attempt] * n,
            "error": reasons,
            "run_id": [spec.run_id] * n,
            "checkpoint": [self.digest] * n,
            "sampler": [spec.sampler.name] * n,
            "steps": [spec.sampler.steps] * n,
            "guidance": [list(weights.items())] * n,
            "image_sha256": [None if data is None else hashlib.sha256(data).hexdigest() for data in encoded],
        }
        return pa.Table.from_arrays([_column(f, rows, own, encoded) for f in SAMPLES], schema=SAMPLES)


def _column(
    field: pa.Field, rows: pa.Table, own: Mapping[str, Iterable[Any]], encoded: Sequence[bytes | None]
) -> pa.Array | pa.ChunkedArray:
    """One column of SAMPLES: the picture, our own values, or what the row brought."""
    if field.name == "image":
        return picture_column(encoded)
    if field.name in own:
        return pa.array(own[field.name], field.type)
    if field.name in rows.column_names:
        return rows[field.name].cast(field.type)
    return pa.nulls(rows.num_rows, field.type)


def to_host(images: Tensor, finite: Tensor) -> Callable[[], tuple[UInt8Array, npt.NDArray[np.bool_]]]:
    """Start the copy to the host; the returned call waits for it, and for nothing that was queued later."""
    if images.device.type != "cuda":
        return lambda: (images.numpy(), finite.numpy())
    hosts = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in (images, finite)]
    for host, device in zip(hosts, (images, finite), strict=True):
        host.copy_(device, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def fetch() -> tuple[UInt8Array, npt.NDArray[np.bool_]]:
        done.synchronize()
        return hosts[0].numpy(), hosts[1].numpy()

    return fetch
