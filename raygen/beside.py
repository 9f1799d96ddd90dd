"""What samples are compared with besides their reference: statistics of other tools, and faces that were trained on.

Knows which rows count as trained on and which as held out. Does not know how a distance is computed.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from raygen.comparisons import copies
from raygen.distances import Kin, add_frechet
from raygen.extractors.base import Features
from raygen.measured import Reference
from raygen.measures import FEATURES, MetricRows, Scored, features_of
from raygen.metrics.frechet_statistics import WIDEST, Statistics, checked, read_statistics
from raygen.slices import column, taken
from raygen.spec import ConfigError, InputError, Spec
from raygen.store import open_input
from raygen.weights.files import open_weights

__all__ = ["TrainingSpec", "statistics_in", "to_statistics", "to_training"]

Sets = Mapping[str, Mapping[str, Scored]]


class TrainingSpec(Spec):
    """The training pictures. Where `reference` is the same data set, its other splits are what was held out."""

    faces: str = Field(..., description="folder of an ingest run")
    split: str | None = Field("train", description="rows that were trained on; none: all of them")
    q: float = Field(0.01, gt=0, lt=0.5, description="share of held-out faces that count as near to training")


def to_statistics(path: str, scores: Mapping[str, Scored], network: Features, run_id: str, kin: Kin) -> Any:
    """METRICS with the Fréchet distance to the mean and covariance in `path`, under a slice of its own.

    Nobody can know from such a file which network and which resize it is of: whoever names it says that they are this
    network's. How many rows it is of nobody says either, so `low_n` speaks of the generated ones alone.
    `ConfigError` where it cannot be read or has another width.
    """
    made = scores[f"{FEATURES}{network.name}"]
    try:
        sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        rows, said = MetricRows(run_id, sha256), {**network.protocol(), "statistics": Path(path).name}
        reference = statistics_in(path).reference()
        add_frechet(rows.add, "all/statistics", network.metric, features_of(made), reference, said, kin)
    except (OSError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"what.statistics: {path}: {error}") from error
    return rows.table()


def statistics_in(path: str | Path) -> Statistics:
    """Of an .npz, or of a file that torch saved, such as torch-fidelity's cache: a pickle, which is read as data.

    `ValueError` for what is no such file, asks for anything to be run, or holds no covariance; `OSError` where there is
    no file.
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
        there = open_weights(path).tensors
    except (InputError, ConfigError) as error:
        raise ValueError(str(error)) from error
    for name, sides in (("mu", 1), ("sigma", 2)):
        if name not in there:
            raise ValueError(f"{path}: has no {name} (it has {', '.join(sorted(there)[:8])})")
        entry = there[name]
        if len(entry.shape) != sides or max(entry.shape, default=0) > WIDEST or not entry.dtype.startswith("float"):
            raise ValueError(f"{path}: {name} of {entry.dtype} and shape {entry.shape}, not of statistics")
    mean, covariance = (there[name].read().double().numpy() for name in ("mu", "sigma"))
    return checked(mean, covariance, str(path))


def to_training(
    spec: TrainingSpec, sets: Sets, training: Mapping[str, Scored], reference: Reference, network: Features,
    rows: MetricRows,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:  # fmt: skip
    """Add to `rows` whether samples are copies of training faces; the nearest pairs of both, and those of two samples.

    `ConfigError` where nothing was trained on or nothing was held out.
    """
    name = f"{FEATURES}{network.name}"
    store, content = open_input(spec.faces)
    splits = column(store, "faces", "face_id", "split")
    used = frozenset(one for one in training[name].ids if spec.split is None or splits.get(one) == spec.split)
    if not used:
        raise ConfigError(f"what.training: {spec.faces} has no rows of split {spec.split!r}")
    same = content == reference.content
    held = frozenset(one for one in sets["reference"][name].ids if not (same and one in used))
    if not held:
        raise ConfigError(f"what.reference: all of {reference.url} was trained on; nothing is held out")
    suffix = network.metric.removeprefix("fid").removeprefix("fd")
    made, trained = features_of(sets["all"][name]), features_of(taken(training, used)[name])
    rest = features_of(taken(sets["reference"], held)[name])
    return copies(rows.add, "all", suffix, made, trained, rest, network.protocol(), spec.q)
