"""Settings of sampling that have no effect beside others, and are refused.

Those of a sampler are refused by `SamplerConfig`, forms of guidance by `check_guidance`.
"""

from typing import Any, Final

from raygen.core.no_effect import NoEffect

__all__ = ["EDITING", "SAMPLING"]


def _is_unguided(config: Any) -> bool:
    """Whether the prediction without conditions has no weight."""
    none = 1.0 if config.guidance_parametrization == "cfg" else 0.0
    return not isinstance(config.guidance, dict) and config.guidance == none


def _guides_what_is_left_out(config: Any) -> bool:
    """Whether the guidance is about conditions that `use_conditions` leaves out."""
    if config.use_conditions is None:
        return False
    if isinstance(config.guidance, dict):
        return not set(config.guidance) <= set(config.use_conditions)
    return not config.use_conditions and not _is_unguided(config)


#: Every such setting of a `SampleConfig`.
SAMPLING: Final = (
    NoEffect(
        "guidance",
        _guides_what_is_left_out,
        "use_conditions leaves out the conditions that it is about; use them, or leave it out",
    ),
    NoEffect(
        "negative_keeps",
        _is_unguided,
        "with this guidance the unconditional prediction has no weight; leave it out, or set a guidance",
    ),
    NoEffect("guidance_interval", _is_unguided, "no step is guided; leave it out, or set a guidance"),
    NoEffect(
        "mixing.fading",
        lambda config: config.mixing.fading and config.mixing.schedule == "none",
        "mixing.schedule=none lets no expert fade; leave out one of the two",
    ),
    NoEffect(
        "mixing.boost", lambda config: not config.mixing.boosted, "no expert is boosted; name some in mixing.boosted"
    ),
)
#: Every such setting of an `ImagicConfig`.
EDITING: Final = (
    NoEffect(
        "rank", lambda config: config.tuning == "full", "tuning=full changes all weights; leave it out, or set low_rank"
    ),
)
