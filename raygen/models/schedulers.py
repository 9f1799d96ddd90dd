"""The samplers of a noise schedule: timesteps and noise levels are those of diffusers, steps are recurrences over them.

The forward process is zt = sqrt(abar) z + sqrt(1 - abar) eps.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from raygen.core.errors import ConfigError
from raygen.core.types import Float64Array
from raygen.models.config.noise import NoiseSchedule
from raygen.models.config.sampler import KARRAS, MOST_STEPS, SamplerConfig, SamplerName
from raygen.models.recurrences import Levels, Sampler, ddim, dpm_solver, unipc

__all__ = ["SAMPLERS", "build_sampler", "diffusers_scheduler"]


# --- samplers -----------------------------------------------------------------------------------------------


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
    return DDPMScheduler(
        **schedule.scheduler_config(), clip_sample=False, timestep_spacing=config.spacing or "trailing"
    )


def _ddim(schedule: NoiseSchedule, config: SamplerConfig) -> Any:
    leading = config.spacing == "leading"
    return DDIMScheduler(
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


@lru_cache(maxsize=64)
def build_sampler(schedule: NoiseSchedule, config: SamplerConfig) -> Sampler:
    """The timesteps of a sampler and the numbers of its steps, made once for equal settings.

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
        return _sampler(scheduler, schedule, config)
    spacing = f" {config.spacing}" if config.spacing else ""
    working = (steps for steps in _neighbours(config.steps) if _set_timesteps(scheduler, steps) is None)
    nearest, trailing = next(working), ""
    if config.spacing not in (None, "trailing"):
        other = SAMPLERS[config.name](schedule, config.model_copy(update={"spacing": "trailing"}))
        if _set_timesteps(other, config.steps) is None:  # rounding of diffusers lacks some numbers there too
            trailing = ", or use spacing 'trailing'"
    raise ConfigError(
        f"sampler {config.name} with {config.steps}{spacing} steps {problem}; the nearest number of steps that works "
        f"is {nearest}{trailing}"
    )


def _sampler(scheduler: Any, schedule: NoiseSchedule, config: SamplerConfig) -> Sampler:
    """The recurrence over the timesteps that `scheduler` has, at the noise levels that it has for them."""
    timesteps: tuple[int, ...] = tuple(scheduler.timesteps.tolist())
    v = schedule.prediction_type == "v_prediction"
    if isinstance(scheduler, DDPMScheduler | DDIMScheduler):
        last = 1.0 if isinstance(scheduler, DDPMScheduler) else float(scheduler.final_alpha_cumprod)
        abar = [*scheduler.alphas_cumprod.double()[list(timesteps)].tolist(), last]
        eta = 1.0 if isinstance(scheduler, DDPMScheduler) else config.eta
        # Each step ends where the next one begins. The DDIM of diffusers takes T // steps off each t, which is the next
        # t only where the number of steps divides T; with others the network is asked at a noise level that the latent
        # does not have.
        return Sampler(timesteps, ddim([(a**0.5, (1 - a) ** 0.5) for a in abar], predicts_v=v, eta=eta))
    sigmas: list[float] = scheduler.sigmas.tolist()
    levels: Levels = [((1 + s * s) ** -0.5, s * (1 + s * s) ** -0.5) for s in sigmas]
    solver = dpm_solver if isinstance(scheduler, DPMSolverMultistepScheduler) else unipc
    return Sampler(timesteps, solver(levels, predicts_v=v))


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
