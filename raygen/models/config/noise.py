"""The noise schedule of the forward process, and its conversions."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

from functools import lru_cache
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from raygen.core.config import Config
from raygen.core.types import Float64Array

__all__ = ["NoiseSchedule", "PredictionType"]


PredictionType = Literal["epsilon", "v_prediction"]


BetaSchedule = Literal["scaled_linear", "linear"]


class NoiseSchedule(Config):
    """The forward process and what the network predicts of it.

    The defaults are those of the latent diffusion face models: 1000 steps, linear in sqrt(beta).
    `rescale_betas_zero_snr` makes the last step pure noise (Lin et al. 2023, algorithm 1); it needs
    `v_prediction`, since eps says nothing about a picture that is not there.
    """

    timesteps: int = Field(1000, ge=2, le=100_000, description="number of steps T of the forward process")
    beta_start: float = Field(0.0015, gt=0, lt=1, description="noise variance beta of the first step")
    beta_end: float = Field(0.0195, gt=0, lt=1, description="noise variance beta of the last step")
    beta_schedule: BetaSchedule = Field(
        "scaled_linear", description="how beta grows; scaled_linear is linear in sqrt(beta)"
    )
    prediction_type: PredictionType = Field(
        "epsilon", description="what the network predicts: the noise (epsilon), v, or the clean sample"
    )
    rescale_betas_zero_snr: bool = Field(
        False, description="rescale beta so that the last step is pure noise (zero terminal SNR)"
    )

    @model_validator(mode="after")
    def _zero_snr_needs_v(self) -> "NoiseSchedule":
        if self.rescale_betas_zero_snr and self.prediction_type != "v_prediction":
            raise ValueError("rescale_betas_zero_snr needs prediction_type v_prediction")
        return self

    def alphas_cumprod(self) -> Float64Array:
        """abar_t for t = 0 .. T-1, float64 [T]; do not write into it."""
        return _alphas_cumprod(self)

    def snr(self) -> Float64Array:
        """abar / (1 - abar), float64 [T]."""
        abar = self.alphas_cumprod()
        return abar / (1 - abar)

    def add_noise(self, z: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """zt of Ho et al. 2020, equation 4; `z` and `eps` [B, ...], `t` int64 [B]."""
        signal, noise = self._rates(t, z)
        return signal * z + noise * eps

    def target(self, z: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """What the network is trained to predict: eps, or v = sqrt(abar) eps - sqrt(1 - abar) z."""
        if self.prediction_type == "epsilon":
            return eps
        signal, noise = self._rates(t, z)
        return signal * eps - noise * z

    def x0_from(self, output: "Tensor", zt: "Tensor", t: "Tensor") -> "Tensor":
        """The clean latent implied by a network output; infinite for eps where abar is 0."""
        signal, noise = self._rates(t, zt)
        if self.prediction_type == "epsilon":
            return (zt - noise * output) / signal
        return signal * zt - noise * output

    def eps_from(self, output: "Tensor", zt: "Tensor", t: "Tensor") -> "Tensor":
        """The noise implied by a network output."""
        if self.prediction_type == "epsilon":
            return output
        signal, noise = self._rates(t, zt)
        return signal * output + noise * zt

    def _rates(self, t: "Tensor", like: "Tensor") -> "tuple[Tensor, Tensor]":
        signal, noise = _rate_tables(self, like.device)
        shape = (-1,) + (1,) * (like.ndim - 1)
        return signal[t].view(shape), noise[t].view(shape)

    def scheduler_config(self) -> dict[str, Any]:
        """The keyword arguments all diffusers schedulers share."""
        return {
            "num_train_timesteps": self.timesteps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": self.beta_schedule,
            "prediction_type": self.prediction_type,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr,
        }


@lru_cache(maxsize=64)
def _alphas_cumprod(schedule: NoiseSchedule) -> Float64Array:
    start, end, count = schedule.beta_start, schedule.beta_end, schedule.timesteps
    if schedule.beta_schedule == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, count, dtype=np.float64) ** 2
    else:
        betas = np.linspace(start, end, count, dtype=np.float64)
    abar: Float64Array = np.cumprod(1 - betas, dtype=np.float64)
    if schedule.rescale_betas_zero_snr:
        root: Float64Array = np.sqrt(abar)
        shifted: Float64Array = (root - root[-1]) * root[0] / (root[0] - root[-1])
        abar = np.square(shifted)
    abar.setflags(write=False)
    return abar


@lru_cache(maxsize=64)
def _rate_tables(schedule: NoiseSchedule, device: "torch.device") -> "tuple[Tensor, Tensor]":
    import torch  # only where a schedule is applied to tensors

    abar = schedule.alphas_cumprod()
    signal, noise = np.sqrt(abar), np.sqrt(1 - abar)
    # The tables outlive the call that makes them; made under inference_mode they could not be trained with.
    with torch.inference_mode(False):
        return (
            torch.tensor(signal, dtype=torch.float32, device=device),
            torch.tensor(noise, dtype=torch.float32, device=device),
        )
