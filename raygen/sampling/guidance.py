"""Classifier-free guidance: a weighted sum of predictions under several conditions."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from raygen.models.base import Context, Model, Record, concatenate
from raygen.models.conditions import Conditions
from raygen.sampling.config import Guidance, GuidanceParametrization, check_guidance

__all__ = ["GuidedDenoiser", "Predictor", "build_guidance"]


class Predictor(Protocol):
    """The network's output for zt [B, C, h, w] at t [B]."""

    def __call__(self, model: Model, zt: Tensor, t: Tensor, record: Record | None = None) -> Tensor:
        """See `Model.predict`."""
        ...


@dataclass(frozen=True)
class GuidedDenoiser:
    """A weighted sum of predictions under several conditions, evaluated in one forward pass."""

    ctx: Context
    weights: tuple[float, ...]
    #: Whether the first term has all conditions; only then is its record kept.
    whole: bool = True

    def __call__(self, model: Model, zt: Tensor, t: Tensor, record: Record | None = None) -> Tensor:
        """The combined prediction for zt [B, C, h, w] at t [B].

        A variance that the model learned is that of the first term, which has conditions, as in SDM.
        """
        terms = len(self.weights)
        if terms > 1:
            zt, t = zt.repeat(terms, 1, 1, 1), t.repeat(terms)
        output = model.outputs(zt, t, self.ctx, record if self.whole else None)
        if self.weights == (1.0,):
            return output
        output, *variance = output.chunk(2, dim=1) if model.learns_variance else (output,)
        # Weights are arguments of the operations: made into a tensor, they would be copied to the device at each step.
        first, *others = output.chunk(terms)
        total = first * self.weights[0]
        for weight, term in zip(self.weights[1:], others, strict=True):
            total.add_(term, alpha=weight)
        return torch.cat([total, variance[0].chunk(terms)[0]], dim=1) if variance else total


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
