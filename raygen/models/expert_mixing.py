"""How much each expert of a collaboration says: learned, learned and re-weighted by time, or fixed.

Knows shares of experts at every pixel, and the two ways of composing without any learning. Knows neither experts nor
how their raw influence is made.

Sources: Huang et al. 2023 (Collaborative Diffusion), equations 3 and 4; Liu et al. 2022 (composable diffusion).
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from math import pi
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from raygen.core.config import Config
from raygen.core.errors import ConfigError

__all__ = ["AnyMixing", "ConstantMixing", "DifferenceMixing", "Mixing", "PaperMixing", "ReleasedMixing", "need_nulls"]


Shares = Mapping[str, Tensor]


class Mixing(Config):
    """One way to make a prediction of those of several experts. Subclasses add `kind: Literal[...]`."""

    @property
    @abstractmethod
    def learned(self) -> bool:
        """Whether dynamic diffusers are asked."""

    def check(self, experts: Collection[str], nulls: Collection[str]) -> None:
        """`ConfigError` where it speaks of experts that are not there. `nulls`: those that can do without."""
        if unknown := sorted(set(self.named()) - set(experts)):
            raise ConfigError(f"mixing {self.kind!r}: no expert {unknown}; there are {sorted(experts)}")  # type: ignore[attr-defined]

    def named(self) -> Collection[str]:
        """The experts it speaks of."""
        return ()


class PaperMixing(Mixing):
    """The influence as the dynamic diffusers have it: their softmax at every pixel, as in training."""

    kind: Literal["paper"] = "paper"

    @property
    def learned(self) -> bool:
        """Always."""
        return True

    def shares(self, raw: Shares, t: Tensor, timesteps: int) -> Shares:
        """`raw` [B, 1, h, w] an expert, whose sum is 1 -> the same."""
        return raw


class ReleasedMixing(Mixing):
    """The published sampler: the mask's influence fades out with time and is then boosted; neither is in the paper.

    1. I_m *= s(t) for the `fading` experts, s(t) = (cos(pi (1 - t / T)) + 1) / 2 or t / T; the others take the rest,
       each in proportion to its raw influence.
    2. I_m *= boost for the `boosted` experts, and all are divided by their sum.
    """

    kind: Literal["released"] = "released"
    fading: tuple[str, ...] = Field(("mask",), description="experts that count less and less as a picture gets clearer")
    schedule: Literal["cosine_decay", "linear_decay", "none"] = "cosine_decay"
    boosted: tuple[str, ...] = Field(("mask",), description="experts that count `boost` times as much afterwards")
    boost: float = Field(2.0, gt=0)

    @property
    def learned(self) -> bool:
        """Always."""
        return True

    def named(self) -> Collection[str]:
        """The fading and the boosted ones."""
        return (*self.fading, *self.boosted)

    def check(self, experts: Collection[str], nulls: Collection[str]) -> None:
        """See `Mixing.check`; somebody has to take what fades."""
        super().check(experts, nulls)
        if not set(experts) - set(self.fading):
            raise ConfigError(f"mixing 'released': all experts fade ({sorted(experts)}); none takes their place")

    def shares(self, raw: Shares, t: Tensor, timesteps: int) -> Shares:
        """`raw` [B, 1, h, w] an expert, whose sum is 1 -> the re-weighted, whose sum is 1."""
        rate = self._rate(t, timesteps).view(-1, 1, 1, 1)
        faded = {name: raw[name] * rate for name in raw if name in self.fading}
        gone = sum((value for value in faded.values()), torch.zeros_like(next(iter(raw.values()))))
        others = {name: value for name, value in raw.items() if name not in self.fading}
        total = torch.stack(list(others.values())).sum(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
        rest = {name: (1 - gone) * value / total for name, value in others.items()}
        now = {**faded, **rest}
        boosted = {name: self.boost * now[name] if name in self.boosted else now[name] for name in raw}
        whole = torch.stack(list(boosted.values())).sum(dim=0)
        return {name: value / whole for name, value in boosted.items()}

    def _rate(self, t: Tensor, timesteps: int) -> Tensor:
        left = t.double() / timesteps
        if self.schedule == "cosine_decay":
            return ((torch.cos(pi * (1 - left)) + 1) / 2).float()
        return left.float() if self.schedule == "linear_decay" else torch.ones_like(left).float()


class ConstantMixing(Mixing):
    """Composable diffusion as a fixed weighted mean: the same share at every pixel and step.

    Without weights all count the same; with some, the others count nothing and are not evaluated.
    """

    kind: Literal["constant"] = "constant"
    weights: dict[str, float] = Field(default_factory=dict, description="expert -> weight; divided by their sum")

    @property
    def learned(self) -> bool:
        """Never."""
        return False

    def named(self) -> Collection[str]:
        """Those with a weight."""
        return self.weights

    def check(self, experts: Collection[str], nulls: Collection[str]) -> None:
        """See `Mixing.check`; weights are not negative and not all 0."""
        super().check(experts, nulls)
        if self.weights and (min(self.weights.values()) < 0 or sum(self.weights.values()) <= 0):
            raise ConfigError(f"mixing 'constant': weights {self.weights} are no shares; use 'difference' for others")

    def of(self, experts: Collection[str]) -> dict[str, float]:
        """The share of every expert that counts."""
        weights = self.weights or dict.fromkeys(experts, 1.0)
        total = sum(weights[name] for name in sorted(weights))  # sums round alike however a file orders them
        return {name: weights[name] / total for name in sorted(weights) if weights[name]}


class DifferenceMixing(Mixing):
    """Composable diffusion of Liu et al. 2022, equation 11: e0 + sum of w_m (e_m - e0_m).

    Every expert brings its own prediction without conditions e0_m, which it must have been trained for; e0 is their
    mean.
    """

    kind: Literal["difference"] = "difference"
    weights: dict[str, float] = Field(default_factory=dict, description="expert -> weight, 1 where it is not named")

    @property
    def learned(self) -> bool:
        """Never."""
        return False

    def check(self, experts: Collection[str], nulls: Collection[str]) -> None:
        """See `Mixing.check`; every expert needs a prediction without conditions."""
        super().check(experts, nulls)
        need_nulls(experts, nulls, "mixing 'difference' subtracts what experts say without conditions")

    def named(self) -> Collection[str]:
        """Those with a weight."""
        return self.weights


def need_nulls(experts: Collection[str], nulls: Collection[str], why: str) -> None:
    """`ConfigError` naming the experts that were not trained to do without their condition."""
    if missing := [name for name in experts if name not in nulls]:
        raise ConfigError(f"{why}, and these experts were not trained without theirs: {', '.join(missing)}")


AnyMixing = Annotated[PaperMixing | ReleasedMixing | ConstantMixing | DifferenceMixing, Field(discriminator="kind")]
