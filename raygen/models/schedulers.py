"""Noise schedule, its conversions, and the samplers built from it.

The forward process is zt = sqrt(abar) z + sqrt(1 - abar) eps. Samplers are diffusers schedulers. Step noise is always
an argument: a torch generator on a CPU uses 32 bits of its seed, too few for millions of rows.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from pydantic import Field, model_validator
from torch import Tensor

from raygen.core.config import Config, nearest
from raygen.core.errors import ConfigError
from raygen.core.types import Float64Array

__all__ = [
    "PRESETS",
    "SAMPLERS",
    "KeyedDDPMScheduler",
    "NeighbourDDIMScheduler",
    "NoiseSchedule",
    "PredictionType",
    "SamplerConfig",
    "SamplerName",
    "advance",
    "build_sampler",
    "diffusers_scheduler",
    "uses_step_noise",
]


PredictionType = Literal["epsilon", "v_prediction"]
BetaSchedule = Literal["scaled_linear", "linear"]
Spacing = Literal["leading", "trailing", "linspace"]
SamplerName = Literal["ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "unipc_karras"]


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

    def add_noise(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """zt of Ho et al. 2020, equation 4; `z` and `eps` [B, ...], `t` int64 [B]."""
        signal, noise = self._rates(t, z)
        return signal * z + noise * eps

    def target(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network is trained to predict: eps, or v = sqrt(abar) eps - sqrt(1 - abar) z."""
        if self.prediction_type == "epsilon":
            return eps
        signal, noise = self._rates(t, z)
        return signal * eps - noise * z

    def x0_from(self, output: Tensor, zt: Tensor, t: Tensor) -> Tensor:
        """The clean latent implied by a network output; infinite for eps where abar is 0."""
        signal, noise = self._rates(t, zt)
        if self.prediction_type == "epsilon":
            return (zt - noise * output) / signal
        return signal * zt - noise * output

    def eps_from(self, output: Tensor, zt: Tensor, t: Tensor) -> Tensor:
        """The noise implied by a network output."""
        if self.prediction_type == "epsilon":
            return output
        signal, noise = self._rates(t, zt)
        return signal * output + noise * zt

    def _rates(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
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
def _rate_tables(schedule: NoiseSchedule, device: torch.device) -> tuple[Tensor, Tensor]:
    abar = schedule.alphas_cumprod()
    signal, noise = np.sqrt(abar), np.sqrt(1 - abar)
    # The tables outlive the call that makes them; made under inference_mode they could not be trained with.
    with torch.inference_mode(False):
        return (
            torch.tensor(signal, dtype=torch.float32, device=device),
            torch.tensor(noise, dtype=torch.float32, device=device),
        )


# --- samplers -----------------------------------------------------------------------------------------------


#: Samplers by name. `fast` is the default of a job; `published` is the sampler of the released latent diffusion
#: models.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "fast": {"name": "unipc", "steps": 12},
    "published": {"name": "ddim", "steps": 50, "spacing": "leading"},
}


class SamplerConfig(Config):
    """A sampler by name.

    `spacing` none takes the sampler's own: `trailing`, except under Karras sigmas where it does not count.
    `ddim` with `leading` is the sampler of the released latent diffusion models, step for step: t = 1, 21, ..,
    981 for 50 steps, and it stops at abar[0] instead of 1. A name of `PRESETS` replaces all fields: `sampler: fast`.
    """

    name: SamplerName = Field("unipc", description="name of the sampler")
    steps: int = Field(
        12, ge=1, le=1000, description="number of steps; each evaluates the network once per guidance term"
    )
    eta: float = Field(0.0, ge=0, le=1, description="ddim only: 0 is deterministic, 1 has the noise of ddpm")
    spacing: Spacing | None = Field(
        None, description="spacing of the timesteps, as in diffusers; default: that of the sampler"
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in PRESETS:
            raise ValueError(f"{value!r} is no preset: {', '.join(PRESETS)}{nearest(value, PRESETS)}")
        return dict(PRESETS[value])

    @model_validator(mode="after")
    def _eta_is_for_ddim(self) -> "SamplerConfig":
        if self.eta and self.name != "ddim":
            raise ValueError("eta is an option of ddim")
        return self


class KeyedDDPMScheduler(DDPMScheduler):  # type: ignore[misc]
    """`DDPMScheduler` whose step noise is an argument: super's mean, plus the given noise at its variance."""

    _mean_only = False

    def _get_variance(self, t: int, *args: Any, **kwargs: Any) -> Tensor:
        variance: Tensor = super()._get_variance(t, *args, **kwargs)
        return torch.zeros_like(variance) if self._mean_only else variance

    def step(self, model_output: Tensor, timestep: int, sample: Tensor, variance_noise: Tensor) -> tuple[Tensor]:
        """One step; `variance_noise` like `sample`, unused at t = 0. Returns a tuple as diffusers does."""
        self._mean_only = True
        try:
            mean = super().step(model_output, timestep, sample, return_dict=False)[0]
        finally:
            self._mean_only = False
        if timestep > 0:
            mean = mean + self._get_variance(timestep) ** 0.5 * variance_noise
        return (mean,)


class NeighbourDDIMScheduler(DDIMScheduler):  # type: ignore[misc]
    """`DDIMScheduler` whose every step ends where the next one begins.

    diffusers takes T // steps off each t, which is the next t only where the number of steps divides T; with others the
    network is then asked at a noise level that the latent does not have. Song et al. 2021, equations 12 and 16, in the
    order of diffusers' operations: where the number divides T, bits are the same.
    """

    def step(
        self, model_output: Tensor, timestep: int, sample: Tensor, *, eta: float, variance_noise: Tensor | None
    ) -> tuple[Tensor]:
        """One step; `variance_noise` like `sample`, needed where `eta` is above 0. A tuple, as diffusers returns."""
        place = int((self.timesteps == timestep).nonzero()[0])
        before = int(self.timesteps[place + 1]) if place + 1 < len(self.timesteps) else -1
        abar = self.alphas_cumprod[timestep]
        abar_before = self.alphas_cumprod[before] if before >= 0 else self.final_alpha_cumprod
        signal, noise = abar**0.5, (1 - abar) ** 0.5
        if self.config.prediction_type == "epsilon":
            z, eps = (sample - noise * model_output) / signal, model_output
        else:
            z, eps = signal * sample - noise * model_output, signal * model_output + noise * sample
        deviation = eta * self._get_variance(timestep, before) ** 0.5
        mean = abar_before**0.5 * z + (1 - abar_before - deviation**2) ** 0.5 * eps
        return (mean if variance_noise is None or eta == 0 else mean + deviation * variance_noise,)


def _ddpm(schedule: NoiseSchedule, config: SamplerConfig) -> Any:
    return KeyedDDPMScheduler(
        **schedule.scheduler_config(), clip_sample=False, timestep_spacing=config.spacing or "trailing"
    )


def _ddim(schedule: NoiseSchedule, config: SamplerConfig) -> Any:
    leading = config.spacing == "leading"
    return NeighbourDDIMScheduler(
        **schedule.scheduler_config(),
        clip_sample=False,
        set_alpha_to_one=not leading,
        steps_offset=int(leading),
        timestep_spacing=config.spacing or "trailing",
    )


def _multistep(kind: Any, karras: bool) -> Callable[[NoiseSchedule, SamplerConfig], Any]:
    def build(schedule: NoiseSchedule, config: SamplerConfig) -> Any:
        return kind(
            **schedule.scheduler_config(),
            solver_order=2,
            use_karras_sigmas=karras,
            timestep_spacing=config.spacing or "trailing",
        )

    return build


#: Sampler name -> builder of its diffusers scheduler.
SAMPLERS: Final[Mapping[SamplerName, Callable[[NoiseSchedule, SamplerConfig], Any]]] = {
    "ddpm": _ddpm,
    "ddim": _ddim,
    "dpmpp_2m": _multistep(DPMSolverMultistepScheduler, karras=False),
    "dpmpp_2m_karras": _multistep(DPMSolverMultistepScheduler, karras=True),
    "unipc": _multistep(UniPCMultistepScheduler, karras=False),
    "unipc_karras": _multistep(UniPCMultistepScheduler, karras=True),
}


def build_sampler(schedule: NoiseSchedule, config: SamplerConfig) -> Any:
    """A fresh diffusers scheduler with its timesteps set, all on the CPU so that no step waits for the device.

    Raises `ConfigError` where the spacing asks for a timestep that does not exist (1000 `leading` steps), or leaves
    out more than a tenth of the schedule at its noisy end (600 `leading` steps begin at t = 600, out of pure noise).
    """
    scheduler = SAMPLERS[config.name](schedule, config)
    scheduler.set_timesteps(config.steps, device="cpu")
    highest = int(scheduler.timesteps.max())
    if highest >= schedule.timesteps:
        raise ConfigError(
            f"{config.name} with {config.steps} {config.spacing} steps needs t = {highest}; the schedule ends at "
            f"{schedule.timesteps - 1}; use fewer steps or spacing 'trailing'"
        )
    left_out = schedule.timesteps - config.steps * (schedule.timesteps // config.steps)
    if config.spacing == "leading" and left_out > schedule.timesteps / 10:
        raise ConfigError(
            f"{config.name} with {config.steps} leading steps begins at t = {highest} of {schedule.timesteps}, from "
            "pure noise; use a number of steps that divides the schedule, or spacing 'trailing'"
        )
    return scheduler


def diffusers_scheduler(scheduler: Any) -> Any:
    """The diffusers class that one of our schedulers extends, with the same config; for files that others read."""
    base: Any = next(kind for kind in type(scheduler).__mro__ if kind.__module__.startswith("diffusers."))
    return base.from_config(scheduler.config)


def uses_step_noise(config: SamplerConfig) -> bool:
    """Whether each step adds fresh noise."""
    return config.name == "ddpm" or (config.name == "ddim" and config.eta > 0)


def advance(scheduler: Any, output: Tensor, t: Tensor, zt: Tensor, *, eta: float, noise: Tensor | None) -> Tensor:
    """zt one step on; `noise` is the step's own, None for a deterministic sampler. `t` is a CPU scalar."""
    if isinstance(scheduler, KeyedDDPMScheduler):
        if noise is None:
            raise ValueError("ddpm needs step noise")
        result = scheduler.step(output, int(t), zt, noise)
    elif isinstance(scheduler, NeighbourDDIMScheduler):
        if eta > 0 and noise is None:
            raise ValueError("ddim with eta above 0 needs step noise")
        result = scheduler.step(output, int(t), zt, eta=eta, variance_noise=noise)
    else:
        result = scheduler.step(output, t, zt, return_dict=False)
    zt_next: Tensor = result[0]
    return zt_next
