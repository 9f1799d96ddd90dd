"""Edits of real pictures: Imagic for any condition, and collaborative editing of several at once.

    1. e_opt: the embedding, optimised from e_tgt to reconstruct the picture          (frozen denoiser)
    2. the denoiser is tuned to reconstruct the picture with e_opt                    (frozen embedding)
    3. a picture of alpha e_tgt + (1 - alpha) e_opt for every alpha, from the same noise

Afterwards the denoiser has its old weights again.

Sources: Kawar et al. 2023 (Imagic), section 3; Huang et al. 2023 (Collaborative Diffusion), section 4.3 and its
published scripts. There every expert is tuned to its own target; the dynamic diffusers do not change.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import attribute_list
from raygen.core.pixels import to_pixels
from raygen.core.types import BoolArray, UInt8Array
from raygen.metrics.score_rows import score_table
from raygen.models.base import Model, Tokens
from raygen.models.conditions import Conditions
from raygen.sampling.config import EditJudgeConfig, ImagicConfig, SampleConfig
from raygen.sampling.edit_judge import EditJudge, best_alpha
from raygen.sampling.guidance import GuidedDenoiser
from raygen.sampling.influence import InfluenceRecorder
from raygen.sampling.noise import keyed_normal, noise_key
from raygen.sampling.worker import SampleWorker, to_host
from raygen.store.images import decode_mask, images_from_rows
from raygen.store.lookup import RowLookup
from raygen.store.schemas import SELECTION, reason_of

__all__ = ["EditWorker", "fit", "restored"]

#: Streams of noise that fitting uses; sampling has 0 for zT and 1 + i for step i.
POSTERIOR, EMBEDDING, TUNING = 1 << 40, 1 << 41, 1 << 42


# --- fitting ------------------------------------------------------------------------------------------------


def fit(model: Model, z: Tensor, target: Tokens, config: ImagicConfig, key: int) -> Tokens:
    """e_opt of `target` (each [1, ...]) for the latent z [1, C, h, w]; `model` is tuned to it and stays so.

    Noise and timesteps follow from `key`. Only the parts that run once a step are tuned.
    """
    tokens = {n: v.detach().clone().requires_grad_() for n, v in target.items() if v.is_floating_point()}
    fixed = {n: v for n, v in target.items() if n not in tokens}
    if tokens and config.embedding_steps:
        optimizer = torch.optim.Adam(tokens.values(), lr=config.embedding_lr)
        _descend(model, z, {**tokens, **fixed}, optimizer, config.embedding_steps, config.batch, key, EMBEDDING)
    optimum = {n: v.detach() for n, v in tokens.items()} | fixed
    if config.tuning_steps:
        parameters = [p for network in model.networks for p in network.parameters()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(parameters, lr=config.tuning_lr)
        _descend(model, z, optimum, optimizer, config.tuning_steps, config.batch, key, TUNING)
        for parameter in parameters:
            parameter.requires_grad_(False)
    return optimum


def _descend(
    model: Model, z: Tensor, tokens: Tokens, optimizer: torch.optim.Optimizer, steps: int, batch: int, key: int, at: int
) -> None:
    """`steps` of mean square error on one latent, with noise of stream `at`."""
    random = np.random.Generator(np.random.Philox(key=key, counter=at << 192))
    zs = z.expand(batch, -1, -1, -1)
    for _ in range(steps):
        noise = random.standard_normal(tuple(zs.shape), dtype=np.float32)
        eps = torch.from_numpy(noise).to(z.device)
        t = torch.from_numpy(random.integers(0, model.schedule.timesteps, batch)).to(z.device)
        ctx = model.prepare({name: value.expand(batch, *value.shape[1:]) for name, value in tokens.items()})
        output = model.predict(model.schedule.add_noise(zs, eps, t), t, ctx)
        loss = (output - model.schedule.target(zs, eps, t)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@contextmanager
def restored(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Restore the weights of `networks` after the block, bit for bit, also where it raises."""
    tensors = [p for network in networks for p in network.parameters()]
    saved = [p.detach().clone() for p in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(tensors, saved, strict=True):
                parameter.copy_(value)
                parameter.grad = None
                parameter.requires_grad_(False)


# --- the worker ---------------------------------------------------------------------------------------------


class EditWorker:
    """CONDITIONS rows of one edit, an alpha each -> SAMPLES, SCORES `edit:…` and SELECTION.

    A batch is one edit. SCORES vectors are [alpha, fidelity (nan: not measured), similarity, 1 if chosen].
    """

    def __init__(
        self, sample: SampleConfig, imagic: ImagicConfig, judge: EditJudgeConfig, faces: RowLookup, *, threads: int
    ) -> None:
        self.sampler = SampleWorker(sample, threads=threads)
        self.config, self.imagic, self.faces = sample, imagic, faces
        self.model, self.device = self.sampler.model, self.sampler.device
        self.judge = EditJudge(judge, self.device)

    def environment(self) -> dict[str, str]:
        """See `SampleWorker.environment`."""
        return self.sampler.environment()

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Fit and sample all alphas now; the returned call scores them. `ConfigError` for rows of several edits."""
        edits = set(zip(rows["edit_id"].to_pylist(), rows["source"].to_pylist(), strict=True))
        if len(edits) != 1 or None in next(iter(edits)):
            names = sorted(str(name) for name, _ in edits)[:3]
            raise ConfigError(f"a batch holds the alphas of one edit, not {len(edits)} ({', '.join(names)} …)")
        try:
            source, own_mask, own_attributes = self._source(str(next(iter(edits))[1]))
        except InputError as error:
            return self._failed(rows, reason_of(error))
        required = self.model.modalities if self.config.missing == "quarantine" else self.model.required_conditions
        conditions, errors = Conditions.from_rows(
            rows.slice(0, 1), self.model.modalities, required=required, shapes=self.model.shapes
        )
        if errors[0] is not None:
            return self._failed(rows, errors[0])
        log = InfluenceRecorder(rows.num_rows, self.config.influence_steps)
        images, finite = self._edited(rows, conditions.to(self.device), source, log)
        return lambda: self._finish(rows, log, source, own_mask, own_attributes, images, finite)

    def _source(self, name: str) -> tuple[UInt8Array, UInt8Array | None, Sequence[int] | None]:
        """The picture to edit at the model's size, uint8 [S, S, 3], and its own mask and attributes if it has some."""
        row = self.faces([name])[name]
        size = self.model.first_stage.config.image_size
        images, errors = images_from_rows(pa.Table.from_pylist([{"image": row["image"]}]), size)
        if errors[0] is not None:
            raise InputError(errors[0], reason="source")
        named = row.get("attributes")
        return images[0], _mask(row.get("mask"), size), None if named is None else attribute_list(named)

    def _failed(self, rows: pa.Table, reason: str) -> Callable[[], dict[str, pa.Table]]:
        n, size = rows.num_rows, self.model.first_stage.config.image_size
        blank = np.zeros((n, size, size, 3), np.uint8)
        log = InfluenceRecorder(n, 0)
        return lambda: self.sampler.finish(rows, [reason] * n, log, blank, np.ones(n, dtype=np.bool_))

    def _edited(
        self, rows: pa.Table, conditions: Conditions, source: UInt8Array, log: InfluenceRecorder
    ) -> tuple[UInt8Array, BoolArray]:
        key = noise_key(self.config.seed, str(rows["edit_id"][0].as_py()), self.config.attempt)
        parts = self.model.editable
        with restored([network for part in parts.values() for network in part.networks]):
            with torch.no_grad():
                target = self.model.embed(conditions)
                stage = self.model.first_stage
                moments = stage.encode(to_pixels(torch.from_numpy(source[None].copy()).to(self.device)))
                noise = keyed_normal(key, POSTERIOR, (1, *self.model.latent_shape))
                z = stage.sample(moments, torch.from_numpy(noise).to(self.device))
            optimum = dict(target)
            for prefix, part in parts.items():
                own = {n[len(prefix) :]: v for n, v in target.items() if n.startswith(prefix)}
                optimum |= {f"{prefix}{n}": v for n, v in fit(part, z, own, self.imagic, key).items()}
            alphas = torch.tensor(rows["alpha"].to_pylist(), dtype=torch.float32, device=self.device)
            with torch.no_grad():
                ctx = self.model.prepare({n: _interpolate(optimum[n], target[n], alphas) for n in target})
            images, finite = self.sampler.pictures(GuidedDenoiser(ctx, (1.0,)), [key] * len(alphas), log)
            return to_host(images, finite)()

    def _finish(
        self,
        rows: pa.Table,
        log: InfluenceRecorder,
        source: UInt8Array,
        own_mask: UInt8Array | None,
        own_attributes: Sequence[int] | None,
        images: UInt8Array,
        finite: BoolArray,
    ) -> dict[str, pa.Table]:
        tables = self.sampler.finish(rows, [None] * rows.num_rows, log, images, finite)
        good = np.flatnonzero(finite)
        if not len(good):
            return tables
        size = images.shape[1]
        fidelity = self.judge.fidelity(
            images[good],
            source,
            mask=_mask(rows["mask"][0].as_py(), size),
            own_mask=own_mask,
            attributes=attribute_list(rows["attributes"][0].as_py()),
            own_attributes=own_attributes,
        )
        similarity = self.judge.similarity(images[good], source)
        alphas = [rows["alpha"][int(i)].as_py() for i in good]
        chosen = best_alpha(fidelity, similarity, alphas)
        ids = [rows["sample_id"][int(i)].as_py() for i in good]
        judged = np.full(len(ids), np.nan) if fidelity is None else fidelity
        vectors = [
            [a, f, s, float(i == chosen)] for i, (a, f, s) in enumerate(zip(alphas, judged, similarity, strict=True))
        ]
        metric = f"edit:{self.judge.name}"
        rows_of_scores = [(name, metric, vector) for name, vector in zip(ids, vectors, strict=True)]
        scores = score_table(rows_of_scores, self.config.run_id, self.config.attempt)
        tables["scores"] = pa.concat_tables([tables["scores"], scores]) if "scores" in tables else scores
        tables["selection"] = self._selection(ids, vectors, chosen)
        return tables

    def _selection(self, ids: Sequence[str], vectors: Sequence[Sequence[float]], chosen: int) -> pa.Table:
        """SELECTION rows: the chosen alpha is accepted, the others are not."""
        alpha, fidelity, similarity, _ = vectors[chosen]
        measured = "fidelity not measured" if np.isnan(fidelity) else f"fidelity {fidelity:.3f}"
        reason = f"alpha {alpha:g}: {measured}, {self.judge.name} {similarity:.3f}"
        rows = [
            {
                "sample_id": name,
                "attempt": self.config.attempt,
                "accepted": i == chosen,
                "reason": reason if i == chosen else f"alpha {alpha:g} was chosen",
            }
            for i, name in enumerate(ids)
        ]
        return pa.Table.from_pylist(rows, SELECTION)


def _interpolate(optimum: Tensor, target: Tensor, alphas: Tensor) -> Tensor:
    """alpha e_tgt + (1 - alpha) e_opt for each alpha: [1, ...] twice -> [K, ...]."""
    if not target.is_floating_point():
        return target.expand(len(alphas), *target.shape[1:])
    weight = alphas.view(-1, *(1,) * (target.ndim - 1)).to(target.dtype)
    return weight * target + (1 - weight) * optimum


def _mask(value: Mapping[str, Any] | None, size: int) -> UInt8Array | None:
    """A stored mask at the size of the pictures, nearest neighbour."""
    if value is None or value.get("bytes") is None:
        return None
    mask = decode_mask(value["bytes"])
    y, x = (((np.arange(size) + 0.5) * side / size).astype(int) for side in mask.shape)
    fitted: UInt8Array = mask[np.ix_(y, x)]
    return fitted
