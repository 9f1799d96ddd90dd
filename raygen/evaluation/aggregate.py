"""SCORES -> METRICS: the rows of each measurement become numbers with their protocols."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa

from raygen.core.errors import InputError
from raygen.core.face_labels import ATTRIBUTE_INDEX, ATTRIBUTES, CAPTIONED, CLASSES
from raygen.evaluation.config import FeatureMetricsConfig
from raygen.evaluation.feature_metrics import (
    UNGROUPED,
    FeatureSet,
    Grouping,
    ReferenceCache,
    add_feature_metrics,
    add_frechet,
)
from raygen.evaluation.gather import EDIT, FACE, FEATURES, gather_scores
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.metrics.attributes import Agreement, bootstrap_accuracy, mean
from raygen.metrics.image_similarity import PSNR, SSIM, bootstrap_mean
from raygen.metrics.leakage import bootstrap_leakage, group_distances, mean_change
from raygen.metrics.registry import lookup
from raygen.metrics.segmentation import Counts, bootstrap_miou
from raygen.store.filesystem import FileStore
from raygen.store.parquet import from_parquet, to_parquet
from raygen.store.schemas import METRICS

__all__ = ["FEATURES", "MetricRows", "aggregate", "features_of", "gather_scores", "write_metrics"]


#: Prefix of the names of distances within groups.
DIVERSITY: Final = "diversity:"

#: What numbers depend on, by the name of a network or measurement.
Protocols = Mapping[str, Mapping[str, Any]]
#: Slice of the attributes that captions mention.
CAPTIONS: Final = "captions"
#: Slice of the small parts of a face, and their classes.
SMALL_PARTS: Final = "small parts"
SMALL: Final = ("l_eye", "r_eye", "l_brow", "r_brow", "mouth", "u_lip", "l_lip")
#: Splits of the inception score, as in Salimans et al. 2016.
SPLITS: Final = 10


class MetricRows:
    """Collects METRICS rows of one run against one reference."""

    def __init__(self, run_id: str, reference: str | None) -> None:
        self.run_id, self.reference = run_id, reference
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        metric: str,
        slice_: str,
        value: float,
        n: int,
        protocol: Mapping[str, Any],
        interval: tuple[float, float] | tuple[None, None] = (None, None),
    ) -> None:
        """Adds a number over `n` rows, with its 95 % interval where there is one."""
        self.rows.append(
            {
                "run_id": self.run_id,
                "metric": metric,
                "slice": slice_,
                "value": value,
                "n": n,
                "ci_low": interval[0],
                "ci_high": interval[1],
                "reference": self.reference,
                "protocol": json.dumps(protocol, sort_keys=True),
                "created": datetime.now(UTC),
            }
        )

    def table(self) -> pa.Table:
        """The rows as METRICS."""
        return pa.Table.from_pylist(self.rows, METRICS)


#: Turns one measurement of one set into METRICS rows.
Finish = Callable[[MetricRows, str, str, ScoreMatrix, Protocols], None]


def aggregate(
    sets: Mapping[str, Mapping[str, ScoreMatrix]],
    *,
    run_id: str,
    reference: str | None,
    protocols: Protocols,
    frechet_name: str,
    compare: FeatureMetricsConfig | None = None,
    grouping: Grouping = UNGROUPED,
    cache: ReferenceCache | None = None,
) -> pa.Table:
    """METRICS of sets of scores by slice: `all` (the samples), `reference`, and others such as `roundtrip`.

    Segmentation has a row a set, and a row a class with a slice such as `all/hair`; attributes likewise. Features of
    every other set are compared with those of `reference`: by the Fréchet distance, whose name `frechet_name` gives
    (`fid` only for the published Inception), and by the metrics of `compare`. `grouping` tells which rows are not
    independent draws. `cache` keeps factored references between calls.
    """
    table, cache = MetricRows(run_id, reference), cache or ReferenceCache()
    for slice_, scores in sets.items():
        for name, scored in scores.items():
            finish = FINISHERS.get(name.partition(":")[0])
            if finish is not None:
                finish(table, slice_, name, scored, protocols)
            elif lookup(name).per_image:
                _mean_over_images(table, slice_, name, scored, protocols)
            elif name.startswith(DIVERSITY):
                _diversity(table, slice_, name, scored, protocols, grouping)
    real = {name: features_of(s) for name, s in sets.get("reference", {}).items() if name.startswith(FEATURES)}
    others = [(slice_, name, s) for slice_, scores in sets.items() for name, s in scores.items() if name in real]
    for slice_, name, scored in others:
        if slice_ == "reference":
            continue
        part = FACE if name.endswith(FACE) else ""
        protocol = {**protocols.get(name.partition(":")[2].removesuffix(FACE), {})}
        protocol |= {"region": "bounding box of the face in the mask"} if part else {}
        protocol |= {"reference": protocols["reference"]} if "reference" in protocols else {}
        generated, more = features_of(scored), MetricRows(run_id, reference)
        if compare is not None:
            network = frechet_name.removeprefix("fid").removeprefix("fd") + part
            factored = partial(cache.of, name, real[name])
            left_out = add_feature_metrics(
                more.add, slice_, network, generated, real[name], protocol, compare, factored
            )
            protocol |= {"left_out": left_out} if left_out else {}
        if min(len(generated.ids), len(real[name].ids)) > 1:  # one picture has no covariance
            factored_reference = cache.of(name, real[name])
            add_frechet(table.add, slice_, frechet_name + part, generated, factored_reference, protocol, grouping)
        table.rows += more.rows
    return table.table()


def features_of(scored: ScoreMatrix) -> FeatureSet:
    """Scores that are features, as a `FeatureSet`."""
    return FeatureSet(scored.ids, scored.vectors)


def _segmentation(table: MetricRows, slice_: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    network, protocol = _network(name, protocols)
    counts = Counts.from_vectors(scored.vectors)
    total, n = counts.total(), len(scored.ids)
    scores = total.scores()
    protocol = {**protocol, "level": "data set", "classes": int(scores["classes"]), "compare": "picture size, nearest"}
    protocol |= protocols.get(f"unpaired/{slice_}", {})
    table.add(f"miou:{network}", slice_, scores["miou"], n, protocol, bootstrap_miou(counts))
    for name in ("pixel_accuracy", "class_accuracy", "frequency_iou"):
        table.add(f"{name}:{network}", slice_, scores[name], n, protocol)
    each = dict(zip(CLASSES, total.iou(), strict=True))
    small = [value for name in SMALL if np.isfinite(value := each[name])]
    if small:
        level = {**protocol, "classes": len(small), "level": f"data set, mean over {', '.join(SMALL)}"}
        table.add(f"miou:{network}", f"{slice_}/{SMALL_PARTS}", float(np.mean(small)), n, level)
    for name, value in each.items():
        if np.isfinite(value):
            table.add(f"iou:{network}", f"{slice_}/{name}", float(value), n, protocol)


def _agreement(table: MetricRows, slice_: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    network, protocol = _network(name, protocols)
    agreement, n = Agreement.of(scored.vectors), len(scored.ids)
    accuracy, balanced = agreement.accuracy(), agreement.balanced()
    protocol = {**protocol, "attributes": int(np.isfinite(balanced).sum()), "level": "mean over attributes"}
    if np.isfinite(accuracy).any():
        table.add(f"attribute_accuracy:{network}", slice_, mean(accuracy), n, protocol)
    if np.isfinite(balanced).any():
        interval = bootstrap_accuracy(scored.vectors)
        table.add(f"attribute_balanced:{network}", slice_, mean(balanced), n, protocol, interval)
    captioned = balanced[[ATTRIBUTE_INDEX[name] for name in (*CAPTIONED, "Male")]]
    if np.isfinite(captioned).any():
        of_captions = {**protocol, "attributes": int(np.isfinite(captioned).sum())}
        table.add(f"attribute_balanced:{network}", f"{slice_}/{CAPTIONS}", mean(captioned), n, of_captions)
    for name, value in zip(ATTRIBUTES, balanced, strict=True):
        if np.isfinite(value):
            table.add(f"attribute_balanced:{network}", f"{slice_}/{name}", float(value), n, protocol)


def _influence(table: MetricRows, slice_: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    """The mean share of an expert over pixels and steps, and over each third of the steps, from noise to picture."""
    steps = scored.vectors.shape[1] // 2
    means, n = scored.vectors[:, :steps], len(scored.ids)
    protocol = {"level": "mean over rows, steps and pixels", "steps": steps}
    table.add(name, slice_, float(means.mean()), n, protocol)
    for third, part in zip(("first", "second", "last"), np.array_split(means, 3, axis=1), strict=True):
        if part.size:
            table.add(name, f"{slice_}/{third} third", float(part.mean()), n, protocol)


def _edits(table: MetricRows, slice_: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    """Fidelity to the edit and similarity to the input: means over the chosen pictures, and over all at each alpha."""
    similarity, judges = name.partition(":")[2], protocols.get("edit", {})
    protocol = {**judges, "chosen": f"highest harmonic mean of fidelity and {similarity}", "level": "mean over edits"}
    rows = scored.vectors.astype(np.float64)
    slices = {slice_: rows[rows[:, 3] > 0]}
    slices |= {f"{slice_}/alpha {alpha:g}": rows[rows[:, 0] == alpha] for alpha in np.unique(rows[:, 0])}
    for name, part in slices.items():
        judged = part[~np.isnan(part[:, 1]), 1]
        if len(judged):
            table.add("edit_fidelity", name, float(judged.mean()), len(judged), protocol)
        if len(part):
            table.add(f"edit_similarity:{similarity}", name, float(part[:, 2].mean()), len(part), protocol)


def _changes(table: MetricRows, slice_: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    """Mean change against the baseline, 0..1, inside and outside of the edited parts; leakage where there is both."""
    difference, n = mean_change(scored.vectors), len(scored.ids)
    protocol = {**protocols.get("pairwise", {}), "level": "mean absolute difference over pixels, 0..1"}
    for part, value in (("inside", difference.inside), ("outside", difference.outside)):
        if np.isfinite(value):
            table.add("change", f"{slice_}/{part}", value, n, protocol)
    if np.isfinite(difference.leakage):
        table.add("leakage", slice_, difference.leakage, n, protocol, bootstrap_leakage(scored.vectors))


def _condition(table: MetricRows, slice_: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    """Mask accuracy as in Collaborative Diffusion: share of correct pixels at the size the model was given the mask."""
    network, _, side = name.partition(":")[2].rpartition("@")
    total = Counts.from_vectors(scored.vectors).total()
    protocol = {
        **protocols.get(network, {}),
        **protocols.get(f"unpaired/{slice_}", {}),
        "level": "data set, all 19 classes",
        "compare": f"{side} x {side}: the mask and the parsed picture, both brought there by nearest neighbour",
    }
    pixels = total.wanted.sum()
    # Shares of all pixels, scaled so that their mean is the value.
    each = scored.vectors[:, : len(CLASSES)].astype(np.float64).sum(axis=1) * (len(scored.ids) / pixels)
    value = float(total.both.sum() / pixels)
    table.add(f"mask_accuracy@{side}:{network}", slice_, value, len(scored.ids), protocol, bootstrap_mean(each))


def _mean_over_images(table: MetricRows, slice_: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    """The mean of a score of single pictures such as `ssim:source` or `lpips:source:vgg`, with a bootstrap interval."""
    metric = name.replace(":source", "")
    protocol = {"ssim": SSIM, "psnr": PSNR}.get(metric) or protocols.get(metric) or _network(metric, protocols)[1]
    if metric != name:
        source = "what went into the first stage" if slice_.startswith("roundtrip") else "the face that `source` names"
        protocol = {**protocol, "against": f"{source}, brought to the picture's size"}
    values = scored.vectors[:, 0].astype(np.float64)
    protocol = {**protocol, "interval": "bootstrap over pictures"}
    table.add(metric, slice_, float(values.mean()), len(values), protocol, bootstrap_mean(values))


def _diversity(
    table: MetricRows, slice_: str, name: str, scored: ScoreMatrix, protocols: Protocols, grouping: Grouping
) -> None:
    """Mean distance within groups; n is the number of groups. Rows hold sums over pairs, so each pair counts once."""
    distances = group_distances(scored.vectors, [grouping.groups.get(row_id, "") for row_id in scored.ids])
    means = distances.means
    protocol = {
        **protocols.get(name, {}),
        "distance": name.partition(":")[2].replace("ssim", "1 - ssim"),
        "level": "mean over groups of the mean over pairs",
        "counts": "groups",
        "groups": len(means),
        "pairs": distances.pairs,
        "pictures_a_group": distances.pictures,
        "interval": "bootstrap over groups",
    }
    table.add(name, slice_, float(means.mean()), len(means), protocol, bootstrap_mean(means))


def _cosines(table: MetricRows, slice_: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    """The CLIP score, with a normal interval."""
    values, n = scored.vectors[:, 0].astype(np.float64), len(scored.ids)
    mean_ = float(values.mean())
    error = 1.96 * float(values.std(ddof=1)) / n**0.5 if n > 1 else None
    protocol = {**protocols.get(name, {}), "level": "mean cosine of picture and text, neither clipped nor scaled"}
    interval = (None, None) if error is None else (mean_ - error, mean_ + error)
    table.add(f"clip_score:{name.partition(':')[2]}", slice_, mean_, n, protocol, interval)


def _logits(table: MetricRows, slice_: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    if len(scored.ids) >= SPLITS:
        from raygen.metrics.inception_score import inception_score  # imports torch

        value, deviation = inception_score(scored.vectors, splits=SPLITS)
        protocol = {**_network(name, protocols)[1], "splits": SPLITS, "seed": 2020, "deviation": deviation}
        table.add("inception_score", slice_, value, len(scored.ids), protocol)


def _network(name: str, protocols: Protocols) -> tuple[str, Mapping[str, Any]]:
    """The network in the name of a measurement, and its protocol."""
    network = name.partition(":")[2]
    return network, protocols.get(network, {})


#: By the kind of a measurement. Features are compared with a reference instead; see also `Metric.per_image`.
FINISHERS: Final[Mapping[str, Finish]] = {
    "segmentation": _segmentation,
    "condition": _condition,
    "attributes": _agreement,
    "influence": _influence,
    "clip": _cosines,
    "logits": _logits,
    "change": _changes,
    EDIT: _edits,
}


def write_metrics(folder: FileStore, rows: Sequence[Mapping[str, Any]], name: str = "metrics") -> None:
    """Writes METRICS rows as `NAME.parquet`, and as a readable `NAME.json`.

    Where the same rows are there already, they keep the time at which they were made.
    """
    table = pa.Table.from_pylist(list(rows), METRICS)
    with suppress(FileNotFoundError, InputError):  # a damaged file is replaced
        before = from_parquet(folder.get(f"{name}.parquet"))
        if before.schema.names == table.schema.names and before.drop(["created"]).equals(table.drop(["created"])):
            table = before
    folder.update(f"{name}.parquet", to_parquet(table))
    readable = [
        {**row, "protocol": json.loads(row["protocol"]), "created": row["created"].isoformat()}
        for row in table.to_pylist()
    ]
    folder.update(f"{name}.json", json.dumps(readable, indent=1).encode())
