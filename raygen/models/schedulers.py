"""Noise schedule, its conversions, and the samplers built from it.

The forward process is zt = sqrt(abar) z + sqrt(1 - abar) eps. Samplers are diffusers schedulers. Step noise is always
an argument: a torch generator on a CPU uses 32 bits of its seed, too few for millions of rows.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from raygen.core.errors import ConfigError
from raygen.core.types import Float64Array
from raygen.models.config.noise import NoiseSchedule
from raygen.models.config.sampler import KARRAS, MOST_STEPS, SamplerConfig, SamplerName

__all__ = [
    "SAMPLERS",
    "KeyedDDPMScheduler",
    "NeighbourDDIMScheduler",
    "advance",
    "build_sampler",
    "diffusers_scheduler",
]


# --- samplers -----------------------------------------------------------------------------------------------


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
