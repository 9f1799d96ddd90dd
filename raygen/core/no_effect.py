"""Settings that have no effect beside other settings of a job: tables of them, and the check that refuses them.

A part of a model that is switched off (a condition that is not among its modalities, a term whose weight is 0) keeps
its settings: ablations switch parts on and off. What is refused are settings that another one overrides, or that belong
to another kind.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from raygen.core.config import Config

__all__ = ["NoEffect", "without_effect"]


class NoEffect(NamedTuple):
    """A setting by its dotted path, the configs in which it has no effect, and why: the end of a sentence.

    `when` is asked only where the setting is there and differs from its default.
    """

    setting: str
    when: Callable[[Any], bool]
    why: str


def without_effect(config: Config, table: Sequence[NoEffect]) -> str:
    """A sentence for each setting of `config` that has no effect, for an error message; empty where all have one."""
    problems = (
        f"{rule.setting} has no effect: {rule.why}"
        for rule in table
        if _is_set(config, rule.setting) and rule.when(config)
    )
    return "; ".join(problems)


def _is_set(config: Config, path: str) -> bool:
    """Whether a config has the setting, with another value than its default."""
    *groups, name = path.split(".")
    group: Any = config
    for part in groups:
        group = getattr(group, part, None)
    field = type(group).model_fields.get(name) if isinstance(group, Config) else None
    return field is not None and getattr(group, name) != field.get_default(call_default_factory=True)
