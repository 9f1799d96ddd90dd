"""The part of the hybrid loss that trains a learned variance: the variational bound of one step.

Source: Nichol and Dhariwal 2021 (improved DDPM), equations 4 to 7, 15 and 16: L_simple + 0.001 L_vlb, where L_vlb is
the sum over all T steps. With one t a picture its estimate is T times the term of that t.
"""

import math
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raygen.models.config.noise import NoiseSchedule

__all__ = ["HYBRID", "variational_bound"]


#: Weight of the whole bound in the hybrid loss.
HYBRID: Final = 0.001
#: Half a step of an 8-bit value, in -1..1.
HALF_STEP: Final = 1 / 255
SMALLEST: Final = 1e-12


class _Tables(NamedTuple):
    """By t: factors of z and zt in the mean of the posterior, and the bounds of its log variance; [T]."""

    of_z: Tensor
    of_zt: Tensor
    low: Tensor
    high: Tensor


@lru_cache(maxsize=16)
def _tables(schedule: NoiseSchedule, device: torch.device) -> _Tables:
    abar = schedule.alphas_cumprod()
    before = np.concatenate([[1.0], abar[:-1]])
    beta = 1 - abar / before
    posterior = beta * (1 - before) / (1 - abar)
    posterior[0] = posterior[1]  # that of the last step to the picture is 0
    of_z = beta * np.sqrt(before) / (1 - abar)
    of_zt = np.sqrt(abar / before) * (1 - before) / (1 - abar)
    values = (of_z, of_zt, np.log(posterior), np.log(beta))
    return _Tables(*(torch.tensor(value, dtype=torch.float32, device=device) for value in values))


def variational_bound(
    schedule: NoiseSchedule, z: Tensor, zt: Tensor, t: Tensor, output: Tensor, variance: Tensor
) -> Tensor:
    """The term of step t of the bound, in bits a value [B]; its gradient is that of `variance` alone.

    `z`, `zt`, `output` and `variance` [B, C, h, w]: the picture, its noisy form, what the network predicts, and where
    the log variance lies between its bounds, -1 to 1. For t = 0 the term is the likelihood of 8-bit values.
    """
    tables, shape = _tables(schedule, z.device), (-1, 1, 1, 1)
    of_z, of_zt, low, high = (table[t].view(shape) for table in tables)
    predicted = of_z * schedule.x0_from(output.detach(), zt, t) + of_zt * zt
    log_variance = low + (variance + 1) / 2 * (high - low)
    difference = (of_z * z + of_zt * zt - predicted).square()
    divergence = 0.5 * (log_variance - low - 1 + (low - log_variance).exp() + difference * (-log_variance).exp())
    likelihood = _log_likelihood(z, predicted, log_variance)
    each = torch.where(t.view(shape) == 0, -likelihood, divergence)
    return each.flatten(1).mean(dim=1) / math.log(2)


def _log_likelihood(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log of the share of a normal distribution within half a step of `z`; the outer values have the tails."""
    inverse = (-0.5 * log_variance).exp()
    above = torch.special.ndtr((z + HALF_STEP - mean) * inverse)
    below = torch.special.ndtr((z - HALF_STEP - mean) * inverse)
    share = torch.where(z < -0.999, above, torch.where(z > 0.999, 1 - below, above - below))
    return share.clamp(min=SMALLEST).log()
