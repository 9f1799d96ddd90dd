"""Samplers by name."""

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from pydantic import Field, model_validator

from raygen.core.config import Config, nearest

__all__ = ["PRESETS", "SamplerConfig", "SamplerName", "Spacing"]


Spacing = Literal["leading", "trailing", "linspace"]


SamplerName = Literal["ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "unipc_karras"]


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
        if value in get_args(SamplerName):
            return {"name": value}
        if value not in PRESETS:
            known = (*PRESETS, *get_args(SamplerName))
            raise ValueError(f"{value!r} is none of {', '.join(known)}{nearest(value, known)}")
        return dict(PRESETS[value])

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> "SamplerConfig":
        if self.eta and self.name != "ddim":
            raise ValueError("eta is an option of ddim")
        if self.spacing is not None and self.name.endswith(KARRAS):
            raise ValueError(f"spacing has no effect with {self.name}, whose noise levels give the timesteps")
        return self
