"""Collaborative Diffusion: frozen experts, each with a dynamic diffuser that weights it by pixel and timestep.

    raw_m = diffuser_m(zt, t, c_m)            [B, 1, h, w]
    I     = softmax over experts of raw       at every pixel, equation 3
    eps   = sum of I_m * expert_m(zt, t, c_m) equation 4

Source: Huang et al., CVPR 2023. Predictions of v mix like those of eps: both are linear, and shares add up to 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from raygen.core.config import Config
from raygen.core.errors import ConfigError
from raygen.models.attention import own_cross_attention
from raygen.models.autoencoder import FirstStage, require_same_stage, same_stage
from raygen.models.base import Context, Model, Record, Tokens
from raygen.models.batched_unets import SideBySide
from raygen.models.checkpoint_documents import FORMAT, OpenedCheckpoint
from raygen.models.checkpoint_files import (
    OWN_WEIGHTS,
    Writing,
    fill,
    read_diffusers,
    write_diffusers,
    write_json,
    write_weights,
)
from raygen.models.conditions import Conditions
from raygen.models.config.collaborative import CollaborativeConfig, diffuser_config
from raygen.models.config.ldm import LDMConfig
from raygen.models.config.mixing import (
    ConstantMixing,
    DifferenceMixing,
    Mixing,
    PaperMixing,
    ReleasedMixing,
    need_nulls,
)
from raygen.models.expert_mixing import mixed_shares
from raygen.models.ldm import LDM, build_unet, prepared_context, run_unet
from raygen.models.ldm import NETWORKS as LDM_NETWORKS
from raygen.models.networks import BuildInputs, CountInputs, Networks
from raygen.models.text import Tokenizer

__all__ = ["INFLUENCE", "NETWORKS", "Collaborative", "DynamicDiffuser"]


#: Names of influence maps in a record: `influence/<expert>`.
INFLUENCE: Final = "influence/"


class DynamicDiffuser(nn.Module):
    """Predicts the influence of its expert from the expert's inputs, one number a pixel."""

    def __init__(
        self, config: LDMConfig, latent_shape: tuple[int, int, int], vector_width: int, unet: Any = None
    ) -> None:
        """`vector_width`: width of the vector that the expert adds to its time embedding; 0 if there is none."""
        super().__init__()
        self.unet = own_cross_attention(build_unet(config, latent_shape, 1) if unet is None else unet)
        self.vector = nn.Linear(vector_width, config.vector_width) if vector_width else None

    def prepare(self, tokens: Tokens) -> Context:
        """The expert's tokens -> the context of `forward`."""
        own = dict(tokens)
        if self.vector is not None:
            own["vector"] = self.vector(own["vector"])
        return prepared_context(self.unet, own)

    def forward(self, zt: Tensor, t: Tensor, ctx: Context) -> Tensor:
        """zt [B, C, h, w], t [B] -> [B, 1, h, w]."""
        return run_unet(self.unet, zt, t, ctx)


class Collaborative(Model):
    """Several frozen denoisers of one latent space, combined into one; only the dynamic diffusers train.

    `mixing` is the rule by which they are combined; `mix` changes it, for inference.
    """

    config: CollaborativeConfig
    mixes = True

    def __init__(
        self,
        config: CollaborativeConfig,
        experts: Mapping[str, LDM],
        *,
        nulls: Sequence[str] = (),
        diffusers: Mapping[str, DynamicDiffuser] | None = None,
    ) -> None:
        """`nulls`: experts that were trained to do without their condition.

        `ConfigError` where experts differ in latents, schedule, first stage or tokenizer, naming them.
        """
        super().__init__()
        experts = {name: experts[name] for name in config.experts}
        first = next(iter(experts.values()))
        for name, expert in experts.items():
            _check_compatible(next(iter(experts)), first, name, expert)
            expert.first_stage = first.first_stage
        self.config = config
        self.schedule, self.first_stage = first.schedule, first.first_stage
        self.modalities = frozenset().union(*(expert.modalities for expert in experts.values()))
        if unknown := sorted(set(nulls) - set(experts)):
            raise ConfigError(f"nulls: no expert {unknown}; there are {sorted(experts)}")
        self.nulls = tuple(name for name in experts if name in nulls)
        needed = (e.required_conditions if n in self.nulls else e.modalities for n, e in experts.items())
        self.required_conditions = frozenset().union(*needed)
        self.tokenizer = _one_tokenizer(experts)
        self.experts = nn.ModuleDict(experts).requires_grad_(False)
        if diffusers is None:
            diffusers = {
                name: DynamicDiffuser(
                    diffuser_config(config, expert.config), self.latent_shape, expert.config.vector_width
                )
                for name, expert in experts.items()
            }
        self.diffusers = nn.ModuleDict(diffusers)
        self.mixing: Mixing = PaperMixing()
        self.side_by_side = SideBySide()

    def mix(self, mixing: Config) -> None:
        """See `Model.mix`; `ConfigError` where it does not fit these experts."""
        if not isinstance(mixing, Mixing):
            raise ConfigError(f"{type(mixing).__name__} does not mix experts")
        mixing.check(self.experts.keys(), self.nulls)
        self.mixing = mixing

    def must_do_without(self, why: str) -> None:
        """See `Model.must_do_without`."""
        need_nulls(self.experts.keys(), self.nulls, why)

    @property
    def networks(self) -> Sequence[nn.Module]:
        """The UNets of experts and diffusers."""
        return [self.expert(n).unet for n in self.experts] + [self.diffuser(n).unet for n in self.experts]

    @property
    def editable(self) -> Mapping[str, Model]:
        """The experts."""
        return {f"{name}/given/": self.expert(name) for name in self.experts}

    def trainable(self) -> Iterator[nn.Parameter]:
        """The dynamic diffusers'."""
        return self.diffusers.parameters()

    def train(self, mode: bool = True) -> "Collaborative":
        """The experts stay in evaluation mode."""
        super().train(mode)
        self.experts.eval()
        return self

    @torch.no_grad()
    def embed(self, conditions: Conditions) -> Tokens:
        """The tokens of every expert as `<expert>/given/…`, and `<expert>/null/…` where the mixing subtracts them."""
        kinds = {"given": conditions}
        if isinstance(self.mixing, DifferenceMixing):
            kinds["null"] = conditions.keep(())
        return _flat({n: {k: self.expert(n).embed(c) for k, c in kinds.items()} for n in self.experts})

    def prepare(self, tokens: Tokens) -> Context:
        """The contexts of experts and diffusers, as `<expert>/given/…`, `<expert>/null/…`, `<expert>/diffuser/…`."""
        contexts: dict[str, Any] = {}
        for name in self.experts:
            own = {kind: _part(tokens, f"{name}/{kind}/") for kind in ("given", "null")}
            with torch.no_grad():
                contexts[name] = {kind: self.expert(name).prepare(part) for kind, part in own.items() if part}
            if self.mixing.learned:
                contexts[name]["diffuser"] = self.diffuser(name).prepare(own["given"])
        return _flat(contexts)

    def predict(self, zt: Tensor, t: Tensor, ctx: Context, record: Record | None = None) -> Tensor:
        """See `Model.predict`. Records the weight of every expert, [B, 1, h, w], as `influence/<expert>`."""
        if isinstance(self.mixing, DifferenceMixing):
            return self._difference(self.mixing, zt, t, ctx)
        shares, predictions = self._step(zt, t, ctx)
        if record is not None:
            shape = (len(zt), 1, *zt.shape[2:])
            record.update({f"{INFLUENCE}{n}": torch.as_tensor(s).expand(shape) for n, s in shares.items()})
        total: Tensor | None = None
        for name, share in shares.items():
            part = share * predictions[name]
            total = part if total is None else total + part
        assert total is not None
        return total

    def influence(self, zt: Tensor, t: Tensor, ctx: Context) -> dict[str, Tensor]:
        """The weight of every expert that is evaluated: [B, 1, h, w], or a scalar where it is constant."""
        if isinstance(self.mixing, ConstantMixing):
            return {n: torch.full((), s, device=zt.device) for n, s in self.mixing.of(self.experts.keys()).items()}
        diffusers = {name: self.diffuser(name).unet for name in self.experts}
        contexts = {name: _part(ctx, f"{name}/diffuser/") for name in diffusers}
        return self._shares(self.side_by_side(diffusers, contexts, zt, t), t)

    def _step(self, zt: Tensor, t: Tensor, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights of the experts that are evaluated, and their predictions; without gradients, all at once."""
        if torch.is_grad_enabled() or isinstance(self.mixing, ConstantMixing):
            shares = self.influence(zt, t, ctx)
            return shares, self._predictions({name: _part(ctx, f"{name}/given/") for name in shares}, zt, t)
        unets = {f"{name}/given/": self.expert(name).unet for name in self.experts}
        unets |= {f"{name}/diffuser/": self.diffuser(name).unet for name in self.experts}
        made = self.side_by_side(unets, {place: _part(ctx, place) for place in unets}, zt, t)
        raw, predictions = ({n: made[f"{n}/{kind}/"] for n in self.experts} for kind in ("diffuser", "given"))
        return self._shares(raw, t), predictions

    def _shares(self, raw: Mapping[str, Tensor], t: Tensor) -> dict[str, Tensor]:
        shares = dict(zip(raw, torch.stack(list(raw.values())).softmax(dim=0), strict=True))
        assert isinstance(self.mixing, PaperMixing | ReleasedMixing)
        return dict(mixed_shares(self.mixing, shares, t, self.schedule.timesteps))

    def _difference(self, mixing: DifferenceMixing, zt: Tensor, t: Tensor, ctx: Context) -> Tensor:
        """Both predictions of an expert in one pass: their shapes are the same."""
        total = torch.zeros_like(zt, dtype=torch.float32)
        both: dict[str, Context] = {}
        for name in self.experts:
            full, null = (_part(ctx, f"{name}/{kind}/") for kind in ("given", "null"))
            both[name] = {key: torch.cat([full[key], null[key]]) for key in full}
        predictions = self._predictions(both, zt.repeat(2, 1, 1, 1), t.repeat(2))
        for name, prediction in predictions.items():
            e, e0 = prediction.chunk(2)
            total = total + e0 / len(self.experts) + mixing.weights.get(name, 1.0) * (e - e0)
        return total

    def _predictions(self, contexts: Mapping[str, Context], zt: Tensor, t: Tensor) -> dict[str, Tensor]:
        """The predictions of experts. They are frozen, so nothing is kept for a backward pass."""
        with torch.no_grad():
            return self.side_by_side({name: self.expert(name).unet for name in contexts}, contexts, zt, t)

    def expert(self, name: str) -> LDM:
        """The expert of that name."""
        return cast(LDM, self.experts[name])

    def diffuser(self, name: str) -> DynamicDiffuser:
        """The dynamic diffuser of that expert."""
        return cast(DynamicDiffuser, self.diffusers[name])


# --- compatibility ------------------------------------------------------------------------------------------


def _check_compatible(first_name: str, first: LDM, name: str, other: LDM) -> None:
    """`ConfigError` where two experts cannot denoise the same latents."""
    pair = f"experts {first_name!r} and {name!r}"
    if first.latent_shape != other.latent_shape:
        raise ConfigError(f"{pair}: latents {first.latent_shape} and {other.latent_shape}")
    if first.schedule != other.schedule:
        a, b = first.schedule.model_dump(), other.schedule.model_dump()
        unlike = ", ".join(f"{key} {a[key]} and {b[key]}" for key in a if a[key] != b[key])
        raise ConfigError(f"{pair}: different noise schedules ({unlike})")
    if not same_stage(first.first_stage, other.first_stage):
        raise ConfigError(f"{pair}: different first stages, so their latents mean different pictures")


def _one_tokenizer(experts: Mapping[str, LDM]) -> Tokenizer | None:
    """The tokenizer of the experts that read texts: texts become ids once."""
    readers = {name: e.tokenizer for name, e in experts.items() if e.tokenizer is not None}
    if not readers:
        return None
    first, tokenizer = next(iter(readers.items()))
    for name, other in readers.items():
        if not tokenizer.same_as(other):
            raise ConfigError(f"experts {first!r} and {name!r}: different vocabularies or text lengths")
    return tokenizer


# --- names --------------------------------------------------------------------------------------------------


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Nested names joined by `/`."""
    flat: dict[str, Tensor] = {}
    for name, value in tree.items():
        flat |= {f"{prefix}{name}": value} if isinstance(value, Tensor) else _flat(value, f"{prefix}{name}/")
    return flat


def _part(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The values under a prefix, by name without it."""
    return {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}


# --- networks -------------------------------------------------------------------------------------------------


def _build(config: CollaborativeConfig, inputs: BuildInputs) -> Collaborative:
    for name, expert in inputs.parts.items():
        require_same_stage(inputs.first_stage, expert.first_stage, f"expert {name!r}")
    nulls = config.nulls
    if nulls is None:  # as the experts' recipes say
        extra = {name: opened.document.get("extra", {}) for name, opened in inputs.opened.items()}
        dropout = {name: facts.get("recipe", {}).get("dropout", {}) for name, facts in extra.items()}
        nulls = tuple(name for name, rates in dropout.items() if float(rates.get("null", 0.0)) > 0)
    return Collaborative(config, inputs.parts, nulls=nulls)


def _save(model: Collaborative, folder: Path, writing: Writing, index: dict[str, Any]) -> dict[str, Any]:
    """Experts and diffusers; paths of the config become those inside the folder."""
    first_stage = model.first_stage.config.model_dump(mode="json")
    for name in model.experts:
        inside = folder / "experts" / name
        document = LDM_NETWORKS.save(model.expert(name), inside, writing, {})
        write_json(inside / "raygen.json", {"format": FORMAT, "first_stage": first_stage, **document})
    for name in model.experts:
        diffuser, inside = model.diffuser(name), folder / "diffusers" / name
        write_diffusers(diffuser.unet, inside, writing, {})
        if diffuser.vector is not None:
            write_weights(diffuser.vector, inside / OWN_WEIGHTS, writing)
    experts = {name: f"experts/{name}" for name in model.experts}
    config = model.config.model_copy(update={"experts": experts, "nulls": model.nulls})
    return {"model": config.model_dump(mode="json")}


def _load(
    opened: OpenedCheckpoint, config: CollaborativeConfig, first_stage: FirstStage, parts: Mapping[str, Any]
) -> Collaborative:
    diffusers = {}
    for name, expert in parts.items():
        folder, width = opened.root / "diffusers" / name, expert.config.vector_width
        shape = diffuser_config(config, expert.config)
        diffuser = DynamicDiffuser(shape, expert.latent_shape, width, read_diffusers(folder))
        if diffuser.vector is not None:
            fill(diffuser.vector, folder / OWN_WEIGHTS)
        diffusers[name] = diffuser
    return Collaborative(config, parts, nulls=config.nulls or (), diffusers=diffusers)


def _count(config: CollaborativeConfig, inputs: CountInputs) -> dict[str, nn.Module]:
    return {
        f"diffuser of {name}": DynamicDiffuser(
            diffuser_config(config, expert), inputs.latent_shape, expert.vector_width
        )
        for name, expert in inputs.parts.items()
    }


NETWORKS: Final = Networks(
    build=_build,
    save=_save,
    load=_load,
    count=_count,
)
