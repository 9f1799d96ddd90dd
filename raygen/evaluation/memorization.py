"""What samples are compared with besides their reference: statistics of other tools, and faces that were trained on.

Knows which rows count as trained on and which as held out. Does not know how a distance is computed.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from raygen.core.config import Config
from raygen.core.errors import ConfigError
from raygen.evaluation.aggregate import FEATURES, MetricRows, ScoreMatrix, features_of
from raygen.evaluation.feature_metrics import add_memorization
from raygen.evaluation.reference import ReferenceSet
from raygen.evaluation.slices import column, select_ids
from raygen.extractors.base import FeatureExtractor
from raygen.store.run_store import open_input

__all__ = ["MemorizationConfig", "compare_to_training"]


Sets = Mapping[str, Mapping[str, ScoreMatrix]]


class MemorizationConfig(Config):
    """The training pictures. Where `reference` is the same data set, its other splits are what was held out."""

    faces: str = Field(..., description="folder of an ingest run")
    split: str | None = Field("train", description="rows that were trained on; none: all of them")
    q: float = Field(0.01, gt=0, lt=0.5, description="share of held-out faces that count as near to training")


def compare_to_training(
    config: MemorizationConfig,
    sets: Sets,
    training: Mapping[str, ScoreMatrix],
    reference: ReferenceSet,
    network: FeatureExtractor,
    rows: MetricRows,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Add to `rows` whether samples are copies of training faces; the nearest pairs of both, and those of two samples.

    `ConfigError` where nothing was trained on or nothing was held out.
    """
    name = f"{FEATURES}{network.name}"
    store, content = open_input(config.faces)
    splits = column(store, "faces", "face_id", "split")
    used = frozenset(one for one in training[name].ids if config.split is None or splits.get(one) == config.split)
    if not used:
        raise ConfigError(f"training: {config.faces} has no rows of split {config.split!r}")
    same = content == reference.content
    held = frozenset(one for one in sets["reference"][name].ids if not (same and one in used))
    if not held:
        raise ConfigError(f"reference: all of {reference.url} was trained on; nothing is held out")
    suffix = network.metric.removeprefix("fid").removeprefix("fd")
    made, trained = features_of(sets["all"][name]), features_of(select_ids(training, used)[name])
    rest = features_of(select_ids(sets["reference"], held)[name])
    return add_memorization(rows.add, "all", suffix, made, trained, rest, network.protocol(), config.q)
