"""Edits of real pictures: Imagic for any condition, and collaborative editing of several at once.

    1. e_opt: the embedding, optimised from e_tgt to reconstruct the picture          (frozen denoiser)
    2. the denoiser is tuned to reconstruct the picture with e_opt                    (frozen embedding)
    3. a picture of alpha e_tgt + (1 - alpha) e_opt for every alpha, from the same noise

Afterwards the denoiser has its old weights again.

Sources: Kawar et al. 2023 (Imagic), section 3; Huang et al. 2023 (Collaborative Diffusion), section 4.3 and its
published scripts. There every expert is tuned to its own target; the dynamic diffusers do not change.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
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
from raygen.models.collaborative import Collaborative
from raygen.models.conditions import Conditions
from raygen.sampling.config import EditJudgeConfig, ImagicConfig, SampleConfig
from raygen.sampling.edit_judge import EditJudge, best_alpha
from raygen.sampling.guidance import GuidedDenoiser
from raygen.sampling.influence import InfluenceRecorder
from raygen.sampling.low_rank import LowRankWeights
from raygen.sampling.noise import keyed_normal, noise_key
from raygen.sampling.worker import SampleWorker, to_host
from raygen.store.images import decode_mask, images_from_rows
from raygen.store.lookup import RowLookup
from raygen.store.schemas import SELECTION, reason_of

__all__ = ["EditWorker", "embed", "fit", "restored", "tune"]

#: Streams of noise that fitting uses; sampling has 0 for zT and 1 + i for step i.
POSTERIOR, EMBEDDING, TUNING = 1 << 40, 1 << 41, 1 << 42


# --- fitting ------------------------------------------------------------------------------------------------


def fit(model: Model, z: Tensor, target: Tokens, config: ImagicConfig, key: int) -> Tokens:
    """e_opt of `target` (each [1, ...]) for the latent z [1, C, h, w]; `model` is tuned to it and stays so.

    Noise and timesteps follow from `key`. Only the parts that run once a step are tuned.
    """
    optimum = embed(model, z, target, config, [key])
    parameters = [p for network in model.networks for p in network.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    tune(model, z, optimum, config, [key], parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return optimum


def embed(model: Model, z: Tensor, target: Tokens, config: ImagicConfig, keys: Sequence[int]) -> Tokens:
    """e_opt of several edits at once: `target` (each [E, ...]) for the latents z [E, C, h, w], a key an edit.

    The denoiser is frozen and Adam works value by value, so an edit is what it is alone, up to rounding.
    """
    tokens = {n: v.detach().clone().requires_grad_() for n, v in target.items() if v.is_floating_point()}
    fixed = {n: v for n, v in target.items() if n not in tokens}
    if tokens and config.embedding_steps:
        optimizer = torch.optim.Adam(tokens.values(), lr=config.embedding_lr)
        _descend(model, z, {**tokens, **fixed}, optimizer, config.embedding_steps, config.batch, keys, EMBEDDING)
    return {n: v.detach() for n, v in tokens.items()} | fixed


def tune(
    model: Model, z: Tensor, tokens: Tokens, config: ImagicConfig, keys: Sequence[int], weights: Sequence[nn.Parameter]
) -> None:
    """Tune `weights`, those of the model or the low-rank ones of each edit, so that it reconstructs z with `tokens`."""
    if config.tuning_steps:
        optimizer = torch.optim.Adam(weights, lr=config.tuning_lr)
        _descend(model, z, tokens, optimizer, config.tuning_steps, config.batch, keys, TUNING)


def _descend(
    model: Model,
    z: Tensor,
    tokens: Tokens,
    optimizer: torch.optim.Optimizer,
    steps: int,
    batch: int,
    keys: Sequence[int],
    at: int,
) -> None:
    """`steps` of mean square error on the latent of each edit, with noise of stream `at`."""
    randoms = [np.random.Generator(np.random.Philox(key=key, counter=at << 192)) for key in keys]
    zs = z.repeat_interleave(batch, dim=0)
    for _ in range(steps):
        drawn = [
            (r.standard_normal((batch, *z.shape[1:]), dtype=np.float32), r.integers(0, model.schedule.timesteps, batch))
            for r in randoms
        ]
        eps, t = (torch.from_numpy(np.concatenate(values)).to(z.device) for values in zip(*drawn, strict=True))
        ctx = model.prepare({name: value.repeat_interleave(batch, dim=0) for name, value in tokens.items()})
        output = model.predict(model.schedule.add_noise(zs, eps, t), t, ctx)
        squared = (output - model.schedule.target(zs, eps, t)).square()
        loss = torch.unflatten(squared, 0, (len(keys), batch)).flatten(1).mean(dim=1).sum()
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


@dataclass(frozen=True)
class Edit:
    """One edit: its rows, an alpha each, its noise, its input, and its target."""

    rows: pa.Table
    key: int
    #: uint8 [S, S, 3], and its own mask and attributes if it has some.
    source: UInt8Array
    own_mask: UInt8Array | None
    own_attributes: Sequence[int] | None
    conditions: Conditions


class EditWorker:
    """CONDITIONS rows of some edits, an alpha each -> SAMPLES, SCORES `edit:…` and SELECTION.

    A batch is at most `edits` edits. SCORES vectors are [alpha, fidelity (nan: not measured), similarity, 1 if chosen].
    """

    def __init__(
        self,
        sample: SampleConfig,
        imagic: ImagicConfig,
        judge: EditJudgeConfig,
        faces: RowLookup,
        *,
        threads: int,
        edits: int = 1,
    ) -> None:
        self.sampler = SampleWorker(sample, threads=threads, tuned=True)
        self.config, self.imagic, self.faces, self.edits = sample, imagic, faces, edits
        self.model, self.device = self.sampler.model.requires_grad_(False), self.sampler.device
        self.judge = EditJudge(judge, self.device)
        if imagic.tuning == "low_rank" and isinstance(self.model, Collaborative):
            self.model.side_by_side.grouped = False  # each expert has low-rank weights of its own

    def environment(self) -> dict[str, str]:
        """See `SampleWorker.environment`."""
        return self.sampler.environment()

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Fit and sample all alphas now; the returned call scores them. `ConfigError` for rows of too many edits."""
        names = list(zip(rows["edit_id"].to_pylist(), rows["source"].to_pylist(), strict=True))
        starts = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
        if len(starts) > self.edits or any(None in name for name in names):
            shown = sorted({str(name) for name, _ in names})[:3]
            raise ConfigError(
                f"a batch holds the alphas of {self.edits} edits, not of {len(starts)} ({', '.join(shown)} …)"
            )
        parts = [rows.slice(i, end - i) for i, end in zip(starts, [*starts[1:], len(names)], strict=True)]
        opened = [self._open(part) for part in parts]
        good = [edit for edit in opened if isinstance(edit, Edit)]
        with self.sampler.arithmetic():
            made = iter(self._edited(good) if good else [])
        calls = [next(made) if isinstance(edit, Edit) else edit for edit in opened]
        return lambda: _joined([call() for call in calls])

    def _open(self, rows: pa.Table) -> Edit | Callable[[], dict[str, pa.Table]]:
        """An edit, or a call that makes the rows of one that failed."""
        try:
            source, own_mask, own_attributes = self._source(str(rows["source"][0].as_py()))
        except InputError as error:
            return self._failed(rows, reason_of(error))
        required = self.model.modalities if self.config.missing == "quarantine" else self.model.required_conditions
        conditions, errors = Conditions.from_rows(
            rows.slice(0, 1), self.model.modalities, required=required, shapes=self.model.shapes
        )
        if errors[0] is not None:
            return self._failed(rows, errors[0])
        key = noise_key(self.config.seed, str(rows["edit_id"][0].as_py()), self.config.attempt)
        return Edit(rows, key, source, own_mask, own_attributes, conditions.to(self.device))

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

    def _edited(self, edits: Sequence[Edit]) -> list[Callable[[], dict[str, pa.Table]]]:
        """The embeddings of all edits, then what tunes and samples them; a call an edit, which scores."""
        keys = [edit.key for edit in edits]
        with torch.no_grad():
            targets = [self.model.embed(edit.conditions) for edit in edits]
            target = {name: torch.cat([one[name] for one in targets]) for name in targets[0]}
            pictures = torch.from_numpy(np.stack([edit.source for edit in edits])).to(self.device)
            moments = self.model.first_stage.encode(to_pixels(pictures))
            noise = np.concatenate([keyed_normal(key, POSTERIOR, (1, *self.model.latent_shape)) for key in keys])
            z = self.model.first_stage.sample(moments, torch.from_numpy(noise).to(self.device))
        optimum = dict(target)
        for prefix, part in self.model.editable.items():
            own = embed(part, z, _under(target, prefix), self.imagic, keys)
            optimum |= {f"{prefix}{name}": value for name, value in own.items()}
        if self.imagic.tuning == "low_rank":
            return self._tuned_together(edits, z, target, optimum)

        def of(tokens: Tokens, i: int) -> Tokens:
            return {name: value[i : i + 1] for name, value in tokens.items()}

        return [self._tuned(edit, z[i : i + 1], of(target, i), of(optimum, i)) for i, edit in enumerate(edits)]

    def _tuned(self, edit: Edit, z: Tensor, target: Tokens, optimum: Tokens) -> Callable[[], dict[str, pa.Table]]:
        """Tune all weights to one edit, and sample it; afterwards they are as they were."""
        parts = self.model.editable
        with restored([network for part in parts.values() for network in part.networks]):
            for prefix, part in parts.items():
                parameters = [p for network in part.networks for p in network.parameters()]
                for parameter in parameters:
                    parameter.requires_grad_(True)
                tune(part, z, _under(optimum, prefix), self.imagic, [edit.key], parameters)
                for parameter in parameters:
                    parameter.requires_grad_(False)
            return self._sampled([edit], target, optimum)[0]

    def _tuned_together(
        self, edits: Sequence[Edit], z: Tensor, target: Tokens, optimum: Tokens
    ) -> list[Callable[[], dict[str, pa.Table]]]:
        """Tune low-rank weights of each edit, all edits at once, and sample them at once."""
        keys, alphas = [edit.key for edit in edits], max(edit.rows.num_rows for edit in edits)
        with ExitStack() as stack:
            for prefix, part in self.model.editable.items():
                own = LowRankWeights(part.networks, keys, self.imagic.rank)
                with own.active(self.imagic.batch):
                    tune(part, z, _under(optimum, prefix), self.imagic, keys, own.parameters())
                stack.enter_context(own.active(alphas))
            return self._sampled(edits, target, optimum)

    def _sampled(
        self, edits: Sequence[Edit], target: Tokens, optimum: Tokens
    ) -> list[Callable[[], dict[str, pa.Table]]]:
        """Pictures of all alphas of `edits` in one batch; a call an edit, which scores."""
        most = max(edit.rows.num_rows for edit in edits)
        listed = [edit.rows["alpha"].to_pylist() for edit in edits]
        alphas = torch.tensor([[*own, *own[-1:] * (most - len(own))] for own in listed], device=self.device)
        with torch.no_grad():
            tokens = {name: _interpolate(optimum[name], target[name], alphas) for name in target}
            ctx = self.model.prepare(tokens)
        log = InfluenceRecorder(alphas.numel(), self.config.influence_steps)
        keys = [edit.key for edit in edits for _ in range(most)]
        fetch = to_host(*self.sampler.pictures(GuidedDenoiser(ctx, (1.0,)), keys, log))
        calls: list[Callable[[], dict[str, pa.Table]]] = []
        for i, edit in enumerate(edits):
            part = slice(i * most, i * most + edit.rows.num_rows)
            calls.append(partial(self._finish, edit, log.part(part), fetch, part))
        return calls

    def _finish(
        self, edit: Edit, log: InfluenceRecorder, fetch: Callable[[], tuple[UInt8Array, BoolArray]], part: slice
    ) -> dict[str, pa.Table]:
        rows = edit.rows
        images, finite = fetch()
        images, finite = images[part], finite[part]
        tables = self.sampler.finish(rows, [None] * rows.num_rows, log, images, finite)
        good = np.flatnonzero(finite)
        if not len(good):
            return tables
        size = images.shape[1]
        fidelity = self.judge.fidelity(
            images[good],
            edit.source,
            mask=_mask(rows["mask"][0].as_py(), size),
            own_mask=edit.own_mask,
            attributes=attribute_list(rows["attributes"][0].as_py()),
            own_attributes=edit.own_attributes,
        )
        similarity = self.judge.similarity(images[good], edit.source)
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


def _joined(parts: Sequence[dict[str, pa.Table]]) -> dict[str, pa.Table]:
    """The tables of several edits as one of each name."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: pa.concat_tables([part[name] for part in parts if name in part]) for name in names}


def _under(tokens: Tokens, prefix: str) -> Tokens:
    """The tokens whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: value for name, value in tokens.items() if name.startswith(prefix)}


def _interpolate(optimum: Tensor, target: Tensor, alphas: Tensor) -> Tensor:
    """alpha e_tgt + (1 - alpha) e_opt for the alphas [E, K] of each edit: [E, ...] twice -> [E * K, ...]."""
    optima, targets = (value.repeat_interleave(alphas.shape[1], dim=0) for value in (optimum, target))
    if not target.is_floating_point():
        return targets
    weight = alphas.flatten().view(-1, *(1,) * (target.ndim - 1)).to(target.dtype)
    return weight * targets + (1 - weight) * optima


def _mask(value: Mapping[str, Any] | None, size: int) -> UInt8Array | None:
    """A stored mask at the size of the pictures, nearest neighbour."""
    if value is None or value.get("bytes") is None:
        return None
    mask = decode_mask(value["bytes"])
    y, x = (((np.arange(size) + 0.5) * side / size).astype(int) for side in mask.shape)
    fitted: UInt8Array = mask[np.ix_(y, x)]
    return fitted
