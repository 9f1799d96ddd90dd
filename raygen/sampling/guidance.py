"""Classifier-free guidance: a weighted sum of predictions under several conditions."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raygen.core.errors import ConfigError
from raygen.models.base import Context, Model, Record, concatenate
from raygen.models.conditions import Conditions

__all__ = ["Guidance", "GuidanceParametrization", "GuidedDenoiser", "build_guidance", "check_guidance"]

#: One weight for all conditions together, or a weight a modality; 1 is no guidance.
Guidance = float | dict[str, float]
#: `cfg`: e0 + w (e - e0), 1 is none. `cfg_minus_one`: e + s (e - e0), 0 is none; s = w - 1.
GuidanceParametrization = Literal["cfg", "cfg_minus_one"]


@dataclass(frozen=True)
class GuidedDenoiser:
    """A weighted sum of predictions under several conditions, evaluated in one forward pass."""

    ctx: Context
    weights: tuple[float, ...]
    #: Whether the first term has all conditions; only then is its record kept.
    whole: bool = True

    def __call__(self, model: Model, zt: Tensor, t: Tensor, record: Record | None = None) -> Tensor:
        """The combined prediction for zt [B, C, h, w] at t [B]."""
        terms = len(self.weights)
        output = model.predict(zt.repeat(terms, 1, 1, 1), t.repeat(terms), self.ctx, record if self.whole else None)
        if terms == 1:
            return output * self.weights[0] if self.weights[0] != 1 else output
        weights = torch.tensor(self.weights, device=output.device).view(-1, 1, 1, 1, 1)
        return (output.view(terms, *zt.shape) * weights).sum(dim=0)


def build_guidance(
    model: Model,
    conditions: Conditions,
    guidance: Guidance,
    *,
    parametrization: GuidanceParametrization = "cfg",
    against: Collection[str] = (),
) -> GuidedDenoiser:
    """The terms of classifier-free guidance, those of weight 0 left out.

    A number w: e0 + w (e_all - e0), or with `cfg_minus_one`, e_all + w (e_all - e0), where 0 is no guidance. A mapping:
    e0 + sum of w_m (e_m - e0), e_m conditioned on m and on `against`. e0 is conditioned on `against` alone. A joint
    weight that adds nothing is one evaluation. `ConfigError` names a modality the model does not take.
    """
    check_guidance(model.modalities, guidance, parametrization, against)
    if isinstance(guidance, Mapping):
        terms = [(conditions.keep({name, *against}), float(weight)) for name, weight in sorted(guidance.items())]
    else:
        scale = float(guidance) + (1.0 if parametrization == "cfg_minus_one" else 0.0)
        terms = [(conditions, scale)]
    terms.append((conditions.keep(against), 1.0 - sum(weight for _, weight in terms)))
    used = [(c, w) for c, w in terms if w != 0]
    if len(used) > 1 or isinstance(guidance, Mapping):
        model.must_do_without("guidance subtracts predictions without conditions")
    ctx = concatenate([model.prepare(model.embed(c)) for c, _ in used]) if model.modalities else {}
    return GuidedDenoiser(ctx, tuple(w for _, w in used), whole=not isinstance(guidance, Mapping))


def check_guidance(
    modalities: Collection[str],
    guidance: Guidance,
    parametrization: GuidanceParametrization = "cfg",
    against: Collection[str] = (),
) -> None:
    """`ConfigError` where a model that takes the conditions `modalities` cannot be guided so."""
    takes = f"the model takes {', '.join(sorted(modalities)) or 'no conditions'}"
    if unknown := sorted(set(against) - set(modalities)):
        raise ConfigError(f"negative_keeps: {', '.join(unknown)}: {takes}")
    if isinstance(guidance, Mapping):
        if unknown := sorted(set(guidance) - set(modalities)):
            raise ConfigError(f"guidance: {', '.join(unknown)}: {takes}")
        if parametrization != "cfg":
            raise ConfigError(f"guidance: a weight per condition has the parametrization cfg, not {parametrization}")
    elif not modalities and guidance != (1.0 if parametrization == "cfg" else 0.0):
        raise ConfigError(f"guidance: {guidance:g} has no effect: {takes}; leave it out")
