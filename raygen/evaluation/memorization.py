"""Memorization: which faces were trained on, which were held out, and the comparison of samples with both."""

from collections.abc import Mapping
from typing import Any

from raygen.core.errors import ConfigError
from raygen.evaluation.aggregate import FEATURES, MetricRows, features_of
from raygen.evaluation.config import MemorizationConfig
from raygen.evaluation.feature_metrics import add_memorization
from raygen.evaluation.protocols import FeatureNetwork
from raygen.evaluation.reference import ReferenceSet
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.evaluation.slices import column, select_ids
from raygen.store.run_store import open_input

__all__ = ["ScoreSets", "compare_to_training"]


#: Scores by slice (`all`, `reference` …) and measurement.
ScoreSets = Mapping[str, Mapping[str, ScoreMatrix]]


def compare_to_training(
    config: MemorizationConfig,
    sets: ScoreSets,
    training: Mapping[str, ScoreMatrix],
    reference: ReferenceSet,
    network: FeatureNetwork,
    rows: MetricRows,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Adds the metrics of memorization to `rows`.

    Returns the closest pairs of a sample and a training face, and of two samples. `ConfigError` where no face was
    trained on or none is held out.
    """
    name = f"{FEATURES}{network.name}"
    store, content = open_input(config.faces)
    splits = column(store, "faces", "face_id", "split")
    trained_on = frozenset(
        face for face in training[name].ids if config.split is None or splits.get(face) == config.split
    )
    if not trained_on:
        raise ConfigError(f"training: {config.faces} has no rows of split {config.split!r}")
    same = content == reference.content
    held_out = frozenset(face for face in sets["reference"][name].ids if not (same and face in trained_on))
    if not held_out:
        raise ConfigError(f"reference: all of {reference.url} was trained on; nothing is held out")
    suffix = network.metric.removeprefix("fid").removeprefix("fd")
    generated, training_set = features_of(sets["all"][name]), features_of(select_ids(training, trained_on)[name])
    held_out_set = features_of(select_ids(sets["reference"], held_out)[name])
    return add_memorization(
        rows.add, "all", suffix, generated, training_set, held_out_set, network.protocol(), config.q
    )
