"""The vectors of one measurement, as evaluations and gates pass them on."""

from dataclasses import dataclass
from typing import Final

from raygen.core.types import Float32Array

__all__ = ["IDENTITY", "ScoreMatrix"]


@dataclass(frozen=True)
class ScoreMatrix:
    """All vectors [n, D] of one measurement, sorted by id, so that results do not depend on the order of arrival."""

    ids: tuple[str, ...]
    vectors: Float32Array


#: Prefix of the names of embeddings.
IDENTITY: Final = "identity:"
