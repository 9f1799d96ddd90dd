"""Noise schedule, its conversions, and the samplers built from it.

The forward process is zt = sqrt(abar) z + sqrt(1 - abar) eps. Samplers are diffusers schedulers. Step noise is always
an argument: a torch generator on a CPU uses 32 bits of its seed, too few for millions of rows.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
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


#: The largest number of steps of a sampler.
MOST_STEPS: Final = 1000
#: The end of the names of samplers with the noise levels of Karras et al. 2022, equation 5.
KARRAS: Final = "_karras"
#: Samplers by name. `fast` is the default of a job; `published` is the sampler of the released latent diffusion
#: models.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "fast": {"name": "unipc", "steps": 12},
    "published": {"name": "ddim", "steps": 50, "spacing": "leading"},
}


class SamplerConfig(Config):
    """A sampler by name.

    `spacing` none is `trailing`, except under Karras noise levels, which give the timesteps themselves.
    `ddim` with `leading` is the sampler of the released latent diffusion models, step for step: t = 1, 21, ..,
    981 for 50 steps, and it stops at abar[0] instead of 1. A name of `PRESETS` replaces all fields: `sampler: fast`;
    the name of a sampler alone takes the other defaults: `sampler: ddim`.
    """

    name: SamplerName = Field("unipc", description="name of the sampler")
    steps: int = Field(
        12, ge=1, le=MOST_STEPS, description="number of steps; each evaluates the network once per guidance term"
    )
    eta: float = Field(0.0, ge=0, le=1, description="ddim only: 0 is deterministic, 1 has the noise of ddpm")
    spacing: Spacing | None = Field(
        None,
        description="spacing of the timesteps, as in diffusers; default: trailing. Samplers with Karras noise levels "
        "have none",
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value in SAMPLERS:
            return {"name": value}
        if value not in PRESETS:
            known = (*PRESETS, *SAMPLERS)
            raise ValueError(f"{value!r} is none of {', '.join(known)}{nearest(value, known)}")
        return dict(PRESETS[value])

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> "SamplerConfig":
        if self.eta and self.name != "ddim":
            raise ValueError("eta is an option of ddim")
        if self.spacing is not None and self.name.endswith(KARRAS):
            raise ValueError(f"spacing has no effect with {self.name}, whose noise levels give the timesteps")
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


class _Interpolated:
    """The t of a noise level by numpy's interpolation; diffusers counts through the whole schedule for each."""

    def _sigma_to_t(self, sigma: Float64Array, log_sigmas: Float64Array) -> Float64Array:
        steps: Float64Array = np.arange(len(log_sigmas), dtype=np.float64)
        t: Float64Array = np.interp(np.log(np.maximum(sigma, 1e-10)), log_sigmas, steps)
        return t


class KarrasDPMSolverScheduler(_Interpolated, DPMSolverMultistepScheduler):  # type: ignore[misc]
    """`DPMSolverMultistepScheduler` with the noise levels of Karras et al. 2022."""


class KarrasUniPCScheduler(_Interpolated, UniPCMultistepScheduler):  # type: ignore[misc]
    """`UniPCMultistepScheduler` with the noise levels of Karras et al. 2022."""


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
    "dpmpp_2m_karras": _multistep(KarrasDPMSolverScheduler, karras=True),
    "unipc": _multistep(UniPCMultistepScheduler, karras=False),
    "unipc_karras": _multistep(KarrasUniPCScheduler, karras=True),
}


def build_sampler(schedule: NoiseSchedule, config: SamplerConfig) -> Any:
    """A fresh diffusers scheduler with its timesteps set, all on the CPU so that no step waits for the device.

    The first timestep lies in the noisiest tenth of the schedule, since sampling starts from pure noise, and timesteps
    fall strictly, since the network gives nothing new at one that it has seen. `ConfigError` names the nearest number
    of steps for which that holds. It also refuses Karras noise levels on a schedule with zero terminal SNR.
    """
    if config.name.endswith(KARRAS) and schedule.rescale_betas_zero_snr:
        raise ConfigError(
            f"sampler {config.name}: the noise schedule of the model ends in pure noise (rescale_betas_zero_snr), and "
            f"Karras noise levels put more than half of the steps next to it; use {config.name.removesuffix(KARRAS)}"
        )
    scheduler = SAMPLERS[config.name](schedule, config)
    if (problem := _set_timesteps(scheduler, config.steps)) is None:
        return scheduler
    spacing = f" {config.spacing}" if config.spacing else ""
    working = (steps for steps in _neighbours(config.steps) if _set_timesteps(scheduler, steps) is None)
    trailing = "" if config.spacing in (None, "trailing") else ", or use spacing 'trailing'"
    raise ConfigError(
        f"sampler {config.name} with {config.steps}{spacing} steps {problem}; the nearest number of steps that works "
        f"is {next(working)}{trailing}"
    )


def _set_timesteps(scheduler: Any, steps: int) -> str | None:
    """Set the timesteps of a number of steps; what is wrong with them, None where nothing is."""
    total = int(scheduler.config.num_train_timesteps)
    if steps > total:  # diffusers raises a ValueError for some schedulers, and repeats timesteps for others
        return f"has more steps than the schedule, which has {total}"
    scheduler.set_timesteps(steps, device="cpu")
    timesteps: list[int] = scheduler.timesteps.tolist()
    first = timesteps[0]
    if first >= total:
        return f"needs t = {first}, and the schedule ends at {total - 1}"
    if total - 1 - first >= total / 10:
        return f"begins at t = {first} of {total}, far from the pure noise that sampling starts from"
    if len(timesteps) != steps or timesteps[-1] < 0:  # rounding of diffusers
        return f"makes {len(timesteps)} timesteps, from {first} to {timesteps[-1]}"
    if twice := [t for t, after in pairwise(timesteps) if after >= t]:
        return f"visits t = {twice[0]} more than once"
    return None


def _neighbours(steps: int) -> Iterator[int]:
    """Numbers of steps by their distance, the smaller one first."""
    for distance in range(1, MOST_STEPS):
        yield from (n for n in (steps - distance, steps + distance) if 1 <= n <= MOST_STEPS)


def diffusers_scheduler(schedule: NoiseSchedule, config: SamplerConfig) -> Any:
    """The scheduler of a sampler as a class of diffusers, without timesteps; for files that others read."""
    scheduler = SAMPLERS[config.name](schedule, config)
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
