"""Samplers as linear recurrences: what each step does with the latent and the network's outputs is known beforehand.

With zt the latent, e the network's output, n fresh noise and x a mixture that is kept for two more steps, a step is

    x   = zt + r e                                 (multistep solvers; x = e for the others)
    zt' = a zt + b x + c x_(i-1) + d x_(i-2) + s n

The numbers follow from the noise levels alone and are computed in float64. x is the solver's estimate of the clean
latent up to a factor; the equations of the papers are in these estimates, and a recurrence in e alone would need every
earlier zt. The corrector of UniPC works on the latent before the network's output was known. Its linear part is that
of the predictor which made zt, so it cancels: what is left is a mixture of x, x_(i-1) and x_(i-2).

Sources: Ho et al. 2020 (DDPM); Song et al. 2021 (DDIM), equations 12 and 16; Lu et al. 2022 (DPM-Solver++),
algorithm 2; Zhao et al. 2023 (UniPC), with B(h) = exp(h) - 1 and data prediction.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

__all__ = ["Levels", "Sampler", "Step", "ddim", "dpm_solver", "unipc"]

#: alpha and sigma of zt = alpha z + sigma eps at every step, and after the last one: n + 1 pairs.
Levels = Sequence[tuple[float, float]]
#: How many mixtures x are kept: those of the two steps before.
KEPT: Final = 2


@dataclass(frozen=True)
class Step:
    """The numbers of one step; see the head of this file."""

    zt: float
    x: float
    #: Of x of the step before, and of the one before that.
    past: tuple[float, ...] = ()
    noise: float = 0.0
    #: r, None where x is the network's output.
    mix: float | None = None
    #: Bounds of the log variance of the noise, between which a network may choose; None where it may not.
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Sampler:
    """Timesteps, from noise to picture, and a recurrence over them. Holds no state: it may be used again."""

    timesteps: tuple[int, ...]
    steps: tuple[Step, ...]

    @property
    def noisy(self) -> bool:
        """Whether some step adds fresh noise."""
        return any(step.noise for step in self.steps)

    def times(self, n: int, device: torch.device) -> Tensor:
        """t of every step for `n` latents, int64 [steps, n]."""
        return torch.tensor(self.timesteps, dtype=torch.int64, device=device).repeat(n, 1).T.contiguous()

    def start(self) -> "Trajectory":
        """A new trajectory, at its first step."""
        return Trajectory(self.steps)


class Trajectory:
    """The way of one batch of latents. A step is at most five operations and never waits for the device."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = iter(steps)
        self._past: deque[Tensor] = deque(maxlen=KEPT)

    def advance(
        self, zt: Tensor, output: Tensor, noise: Tensor | None = None, variance: Tensor | None = None
    ) -> Tensor:
        """The latent after the next step, of float tensors of one shape; `noise` is the step's own.

        `variance`, -1 to 1: where the log variance of the noise lies between the bounds of a ddpm step. `ValueError`
        where a step needs noise and gets none.
        """
        step = next(self._steps)
        if step.noise and noise is None:
            raise ValueError("this sampler needs noise for each step")
        x = output if step.mix is None else torch.add(zt, output, alpha=step.mix)
        after = torch.mul(zt, step.zt).add_(x, alpha=step.x)
        for factor, kept in zip(step.past, self._past, strict=False):
            after.add_(kept, alpha=factor)
        if step.mix is not None:
            self._past.appendleft(x)
        if noise is None or not step.noise:
            return after
        if variance is None or step.bounds is None:
            return after.add_(noise, alpha=step.noise)
        low, high = step.bounds
        # Half of the log variance is the log deviation.
        return after.addcmul_(noise, torch.exp((variance + 1) * ((high - low) / 4) + low / 2))


# --- one step at a time ---------------------------------------------------------------------------------------


def ddim(levels: Levels, *, predicts_v: bool, eta: float) -> tuple[Step, ...]:
    """DDIM; with `eta` 1 and a last level of (1, 0) it is DDPM with the posterior's variance (section 4.1).

    The bounds of a learned variance are that and beta, of the steps that are taken (Nichol and Dhariwal 2021, section
    4).
    """
    steps = []
    for (alpha, sigma), (alpha_next, sigma_next) in pairwise(levels):
        deviation = eta * sigma_next / sigma * math.sqrt(max(0.0, 1 - (alpha / alpha_next) ** 2))
        direction = math.sqrt(max(0.0, sigma_next**2 - deviation**2))
        if predicts_v:  # z = alpha zt - sigma v, eps = sigma zt + alpha v
            own = alpha_next * alpha + direction * sigma
            of_output = direction * alpha - alpha_next * sigma
        else:  # z = (zt - sigma eps) / alpha
            own = alpha_next / alpha
            of_output = direction - alpha_next * sigma / alpha
        bounds = None
        if eta == 1 and deviation:
            bounds = (2 * math.log(deviation), math.log(1 - (alpha / alpha_next) ** 2))
        steps.append(Step(own, of_output, noise=deviation, bounds=bounds))
    return tuple(steps)


# --- several steps at a time ----------------------------------------------------------------------------------


def _orders(n: int) -> list[int]:
    """1 for the first step, which has no past, and for the last, which ends at sigma = 0; 2 for the others."""
    return [2 if 0 < i < n - 1 else 1 for i in range(n)]


def _exponents(levels: Levels) -> list[float]:
    """log(alpha / sigma) of each level, in which the solvers' steps are measured; infinite for sigma = 0."""
    return [math.log(alpha / sigma) if sigma else math.inf for alpha, sigma in levels]


def _in_mixtures(levels: Levels, zts: Sequence[float], estimates: Sequence[Sequence[float]], v: bool) -> list[Step]:
    """Steps in x of steps in the estimates of the clean latent, m = f (zt + r e), the newest first in `estimates`."""
    factors = [alpha if v else 1 / alpha for alpha, _ in levels]
    steps = []
    for i, (zt, (newest, *past)) in enumerate(zip(zts, estimates, strict=True)):
        alpha, sigma = levels[i]
        mix = -sigma / alpha if v else -sigma
        earlier = tuple(number * factors[i - 1 - j] for j, number in enumerate(past))
        steps.append(Step(zt, newest * factors[i], earlier, mix=mix))
    return steps


def dpm_solver(levels: Levels, *, predicts_v: bool) -> tuple[Step, ...]:
    """DPM-Solver++ 2M; the first and the last step are of first order."""
    exponents, orders = _exponents(levels), _orders(len(levels) - 1)
    zts, estimates = [], []
    for i, order in enumerate(orders):
        h = exponents[i + 1] - exponents[i]
        alpha_next, sigma_next = levels[i + 1]
        whole = -alpha_next * math.expm1(-h)
        slope = 0.5 * whole * h / (exponents[i] - exponents[i - 1]) if order == 2 else 0.0
        zts.append(sigma_next / levels[i][1])
        estimates.append([whole + slope, -slope] if order == 2 else [whole])
    return tuple(_in_mixtures(levels, zts, estimates, predicts_v))


def unipc(levels: Levels, *, predicts_v: bool) -> tuple[Step, ...]:
    """UniPC of order 2 with its corrector; the first and the last step are of first order.

    A predictor's step and the correction of its end are one step of the recurrence: zt is corrected once the output at
    zt is known, and then goes on.
    """
    exponents, orders = _exponents(levels), _orders(len(levels) - 1)
    zts, estimates = [], []
    for i, order in enumerate(orders):
        h = exponents[i + 1] - exponents[i]
        alpha_next, sigma_next = levels[i + 1]
        ratio = sigma_next / levels[i][1]
        numbers = [ratio * number for number in _correction(levels, exponents, i, orders)]
        whole = -alpha_next * math.expm1(-h)
        slope = 0.5 * whole * h / (exponents[i] - exponents[i - 1]) if order == 2 else 0.0
        numbers[0] += whole + slope
        numbers[1] -= slope
        zts.append(ratio)
        estimates.append(numbers[: i + 1])
    return tuple(_in_mixtures(levels, zts, estimates, predicts_v))


def _correction(levels: Levels, exponents: Sequence[float], i: int, orders: Sequence[int]) -> list[float]:
    """What the corrector adds to zt of step i, in the estimates of steps i, i - 1 and i - 2."""
    if i == 0:
        return [0.0, 0.0, 0.0]
    h = exponents[i] - exponents[i - 1]
    whole = -levels[i][0] * math.expm1(-h)
    if orders[i - 1] == 1:
        return [0.5 * whole, -0.5 * whole, 0.0]
    back = (exponents[i - 2] - exponents[i - 1]) / h
    first = -math.expm1(-h) / h - 1  # (e^-h - 1) / -h - 1, and its like of the next order
    second = first / -h - 0.5
    known = (first - 2 * second) / math.expm1(-h) / (1 - back)
    newest = first / math.expm1(-h) - known
    # The predictor had 0.5 where the corrector has `known`.
    earlier = (known - 0.5) / back
    return [whole * newest, -whole * (newest + earlier), whole * earlier]
