"""Dry runs of jobs whose networks are too large to be timed on a CPU: operations are counted instead."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from raygen.commands.base import Estimate, PreparedRun
from raygen.core.errors import RaygenError

if TYPE_CHECKING:
    from raygen.sampling.operations import Counted

__all__ = ["LARGEST_TIMED", "count_instead"]


#: A dry run on a CPU does not time networks with more parameters than this.
LARGEST_TIMED: Final = 50_000_000


def count_instead(work: PreparedRun, count: "Callable[[], Counted]") -> Estimate | None:
    """The estimate of a run by its operations; None where a batch can be timed, or nothing can be counted.

    `ConfigError` where its folder cannot hold it, as in a run.
    """
    import torch

    from raygen.models.operations import UNCOUNTABLE, hours_text

    if torch.cuda.is_available():
        return None
    try:
        counted = count()
    except RaygenError:  # the job itself says what is wrong with its checkpoint
        raise
    except UNCOUNTABLE:
        return None
    if counted.parameters <= LARGEST_TIMED:
        return None
    work.store.check(work.plan)
    done = len(work.store.committed())
    left = work.plan.rows * (1 - done / max(len(work.plan.shards), 1))
    notes = (
        f"{counted.operations:.3g} operations a row; in all {hours_text(counted.operations * left)}",
        f"time and bytes are not estimated: {counted.parameters:,} parameters are too many to time on a CPU",
    )
    return Estimate(work.plan.rows, len(work.plan.shards), done, 0, 0.0, (*work.notes, *notes))
