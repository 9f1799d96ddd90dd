"""Settings of sampling that have no effect beside others, and are refused.

Those of a sampler are refused by `SamplerConfig`.
"""

from typing import Any, Final

from raygen.core.no_effect import NoEffect

__all__ = ["SAMPLING"]


def _is_unguided(job: Any) -> bool:
    """Whether the prediction without conditions has no weight."""
    none = 1.0 if job.guidance_parametrization == "cfg" else 0.0
    return not isinstance(job.guidance, dict) and job.guidance == none


#: Every such setting of a job that samples. A job that has no such setting is not asked.
SAMPLING: Final = (
    NoEffect(
        "guidance_parametrization",
        lambda job: isinstance(job.guidance, dict),
        "weights by condition have one form, cfg; leave it out",
    ),
    NoEffect(
        "negative_keeps",
        _is_unguided,
        "with this guidance the unconditional prediction has no weight; leave it out, or set a guidance",
    ),
    NoEffect(
        "mixing.fading",
        lambda job: job.mixing.fading and job.mixing.schedule == "none",
        "mixing.schedule=none lets no expert fade; leave out one of the two",
    ),
    NoEffect("mixing.boost", lambda job: not job.mixing.boosted, "no expert is boosted; name some in mixing.boosted"),
)
