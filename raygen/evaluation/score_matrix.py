"""The vectors of one measurement, as evaluations and gates pass them on."""

from dataclasses import dataclass
from typing import Any, Final

__all__ = ["IDENTITY", "ScoreMatrix"]


@dataclass(frozen=True)
class ScoreMatrix:
    """All vectors [n, D] of one measurement, sorted by id, so that results do not depend on the order of arrival.

    Many features are a `VectorFile`, which is read in blocks.
    """

    ids: tuple[str, ...]
    vectors: Any


#: Prefix of the names of embeddings.
IDENTITY: Final = "identity:"
