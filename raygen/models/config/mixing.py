"""The weight of each expert of a collaboration: learned, learned and re-weighted by time, or fixed.

Sources: Huang et al. 2023 (Collaborative Diffusion), equations 3 and 4; Liu et al. 2022 (composable diffusion).
"""

from abc import abstractmethod
from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field

from raygen.core.config import Config
from raygen.core.errors import ConfigError

__all__ = ["AnyMixing", "ConstantMixing", "DifferenceMixing", "Mixing", "PaperMixing", "ReleasedMixing", "need_nulls"]


class Mixing(Config):
    """How the predictions of several experts become one. Subclasses add `kind: Literal[...]`."""

    @property
    @abstractmethod
    def learned(self) -> bool:
        """Whether it uses the dynamic diffusers."""

    def check(self, experts: Collection[str], nulls: Collection[str]) -> None:
        """`ConfigError` where it names unknown experts. `nulls`: experts that were trained with condition dropout."""
        if unknown := sorted(set(self.named()) - set(experts)):
            raise ConfigError(f"mixing {self.kind!r}: no expert {unknown}; there are {sorted(experts)}")  # type: ignore[attr-defined]

    def named(self) -> Collection[str]:
        """The experts that it names."""
        return ()


class PaperMixing(Mixing):
    """The influence that the dynamic diffusers predict: their softmax at every pixel, as in training."""

    kind: Literal["paper"] = "paper"

    @property
    def learned(self) -> bool:
        """Always."""
        return True


class ReleasedMixing(Mixing):
    """The published sampler: the mask's influence fades out with time and is then boosted; neither is in the paper.

    1. I_m *= s(t) for the `fading` experts, s(t) = (cos(pi (1 - t / T)) + 1) / 2 or t / T; the others take the rest,
       each in proportion to its raw influence.
    2. I_m *= boost for the `boosted` experts, and all are divided by their sum.
    """

    kind: Literal["released"] = "released"
    fading: tuple[str, ...] = Field(("mask",), description="experts whose influence fades out during sampling")
    schedule: Literal["cosine_decay", "linear_decay", "none"] = Field(
        "cosine_decay", description="how the influence fades out over the steps"
    )
    boosted: tuple[str, ...] = Field(
        ("mask",), description="experts whose influence is multiplied by `boost` afterwards"
    )
    boost: float = Field(2.0, gt=0, description="factor of the boosted experts")

    @property
    def learned(self) -> bool:
        """Always."""
        return True

    def named(self) -> Collection[str]:
        """The fading and the boosted ones."""
        return (*self.fading, *self.boosted)

    def check(self, experts: Collection[str], nulls: Collection[str]) -> None:
        """See `Mixing.check`; at least one expert must not fade."""
        super().check(experts, nulls)
        if not set(experts) - set(self.fading):
            raise ConfigError(f"mixing 'released': all experts fade ({sorted(experts)}); none takes their place")


class ConstantMixing(Mixing):
    """Composable diffusion as a fixed weighted mean: the same share at every pixel and step.

    Without weights all are equal; with weights, experts that are not named have none and are not evaluated.
    """

    kind: Literal["constant"] = "constant"
    weights: dict[str, float] = Field(
        default_factory=dict, description="weights of the experts by name; they are divided by their sum"
    )

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
        """The share of every expert with a weight."""
        weights = self.weights or dict.fromkeys(experts, 1.0)
        total = sum(weights[name] for name in sorted(weights))  # sums round alike however a file orders them
        return {name: weights[name] / total for name in sorted(weights) if weights[name]}


class DifferenceMixing(Mixing):
    """Composable diffusion of Liu et al. 2022, equation 11: e0 + sum of w_m (e_m - e0_m).

    Every expert brings its own prediction without conditions e0_m, which it must have been trained for; e0 is their
    mean.
    """

    kind: Literal["difference"] = "difference"
    weights: dict[str, float] = Field(
        default_factory=dict, description="weights of the experts by name; 1 for experts that are not named"
    )

    @property
    def learned(self) -> bool:
        """Never."""
        return False

    def check(self, experts: Collection[str], nulls: Collection[str]) -> None:
        """See `Mixing.check`; every expert needs a prediction without conditions."""
        super().check(experts, nulls)
        need_nulls(experts, nulls, "mixing 'difference' subtracts predictions without conditions")

    def named(self) -> Collection[str]:
        """Those with a weight."""
        return self.weights


def need_nulls(experts: Collection[str], nulls: Collection[str], why: str) -> None:
    """`ConfigError` naming the experts that were not trained to do without their condition."""
    if missing := [name for name in experts if name not in nulls]:
        raise ConfigError(f"{why}, and these experts were not trained without theirs: {', '.join(missing)}")


AnyMixing = Annotated[PaperMixing | ReleasedMixing | ConstantMixing | DifferenceMixing, Field(discriminator="kind")]
