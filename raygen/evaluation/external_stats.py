"""Fréchet distance of samples to reference statistics of other tools: torch-fidelity, clean-fid, ADM."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from raygen.core.errors import ConfigError, InputError
from raygen.evaluation.aggregate import FEATURES, MetricRows, features_of
from raygen.evaluation.feature_metrics import Grouping, add_frechet
from raygen.evaluation.protocols import FeatureNetwork
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.extractors.base import load_features
from raygen.extractors.config import FeatureConfig
from raygen.metrics.frechet_stats import WIDEST, Statistics, checked, read_statistics
from raygen.store.weight_file import open_weights

__all__ = ["check_statistics", "compare_to_statistics", "statistics_in"]


def check_statistics(path: str, config: FeatureConfig) -> None:
    """`ConfigError` where the statistics in `path` cannot be read, or have another width than features of `config`.

    It needs no pictures, so that an evaluation is refused before anything is scored.
    """
    network = load_features(config, torch.device("cpu"))
    width = network.features(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape[1]
    try:
        values = statistics_in(path).mean.size
    except (OSError, ValueError) as error:
        raise ConfigError(f"reference_stats: {path}: {error}") from error
    if values != width:
        raise ConfigError(
            f"reference_stats: {path} has statistics of {values:,} values; {network.name} (`score.features`) computes "
            f"{width:,}. Statistics compare only with features of the network that they were computed with"
        )


def compare_to_statistics(
    path: str, scores: Mapping[str, ScoreMatrix], network: FeatureNetwork, run_id: str, grouping: Grouping
) -> Any:
    """METRICS with the Fréchet distance to the mean and covariance in `path`, as the slice `all/statistics`.

    Such a file names neither its network and resize, which must be those of `network`, nor its number of rows, so
    `low_n` refers to the generated rows alone. `ConfigError` where it cannot be read or has another width.
    """
    features = scores[f"{FEATURES}{network.name}"]
    try:
        sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        rows, protocol = MetricRows(run_id, sha256), {**network.protocol(), "statistics": Path(path).name}
        reference = statistics_in(path).reference()
        add_frechet(rows.add, "all/statistics", network.metric, features_of(features), reference, protocol, grouping)
    except (OSError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"reference_stats: {path}: {error}") from error
    return rows.table()


def statistics_in(path: str | Path) -> Statistics:
    """Statistics of an .npz, or of a file that torch saved, such as the cache of torch-fidelity.

    A pickle is read as data and never run. `ValueError` for another file, one that calls code, or one without a
    covariance; `OSError` where there is no file.
    """
    with Path(path).open("rb") as file:
        pickled = file.read(1) == b"\x80"
        file.seek(0)
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                pickled = any(name.endswith("/data.pkl") for name in archive.namelist())
    if not pickled:
        return read_statistics(path)
    try:
        tensors = open_weights(path).tensors
    except (InputError, ConfigError) as error:
        raise ValueError(str(error)) from error
    for name, sides in (("mu", 1), ("sigma", 2)):
        if name not in tensors:
            raise ValueError(f"{path}: has no {name} (it has {', '.join(sorted(tensors)[:8])})")
        entry = tensors[name]
        if len(entry.shape) != sides or max(entry.shape, default=0) > WIDEST or not entry.dtype.startswith("float"):
            raise ValueError(f"{path}: {name} of {entry.dtype} and shape {entry.shape}, not of statistics")
    mean, covariance = (tensors[name].read().double().numpy() for name in ("mu", "sigma"))
    return checked(mean, covariance, str(path))
