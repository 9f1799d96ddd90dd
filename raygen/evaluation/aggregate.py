"""SCORES -> METRICS: many rows become one number with its protocol.

Knows which numbers each measurement gives and what is said beside them. Knows no network and no pictures.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raygen.core.errors import InputError
from raygen.core.face_labels import ATTRIBUTE_INDEX, ATTRIBUTES, CAPTIONED, CLASSES
from raygen.evaluation.feature_metrics import (
    ALONE,
    FeatureMetricsConfig,
    FeatureSet,
    Grouping,
    ReferenceCache,
    add_frechet,
)
from raygen.evaluation.feature_metrics import compare as more
from raygen.evaluation.scoring import FACE
from raygen.metrics.attributes import Agreement, bootstrap_accuracy, mean
from raygen.metrics.image_similarity import PSNR, SSIM, bootstrap_mean
from raygen.metrics.inception_score import inception_score
from raygen.metrics.leakage import bootstrap, changed, of_groups
from raygen.metrics.segmentation import Counts, bootstrap_miou
from raygen.store.filesystem import FileStore
from raygen.store.parquet import to_parquet
from raygen.store.schemas import METRICS

__all__ = ["FEATURES", "MetricRows", "ScoreMatrix", "aggregate", "features_of", "gather_scores", "write_metrics"]


#: Begin of the names of features.
FEATURES: Final = "features:"
#: Begin of the names of distances within groups.
DIVERSITY: Final = "diversity:"
#: Measurements of which every value is a number; an edit's fidelity may be none.
FINITE: Final = frozenset({"features", "logits", "clip", "ssim", "psnr", "lpips", "influence"})

#: What numbers depend on, by the name of a network or of another measure.
Protocols = Mapping[str, Mapping[str, Any]]
#: Slice of the attributes that captions speak of.
CAPTIONS: Final = "captions"
#: Slice of the parts that are a few pixels each, and their classes.
SMALL_PARTS: Final = "small parts"
SMALL: Final = ("l_eye", "r_eye", "l_brow", "r_brow", "mouth", "u_lip", "l_lip")
#: Of the inception score, as its first paper has them.
SPLITS: Final = 10


@dataclass(frozen=True)
class ScoreMatrix:
    """All vectors of one measurement, by sorted id, so that order of arrival cannot change a bit."""

    ids: tuple[str, ...]
    vectors: npt.NDArray[np.float32]


def gather_scores(tables: Iterable[pa.Table]) -> dict[str, ScoreMatrix]:
    """SCORES of one set -> measurement name -> vectors; `InputError` where a row is there twice."""
    parts: dict[str, list[tuple[list[str], npt.NDArray[np.float32]]]] = {}
    for table in tables:
        for name in table["metric"].unique().to_pylist():
            rows = table.filter(pc.equal(table["metric"], name)).combine_chunks()
            vectors = rows["vector"].combine_chunks()
            values = vectors.flatten().to_numpy().reshape(rows.num_rows, -1)
            parts.setdefault(name, []).append((rows["sample_id"].to_pylist(), values))
    return {name: _sorted(name, parts.pop(name)) for name in list(parts)}


def _sorted(name: str, parts: list[tuple[list[str], npt.NDArray[np.float32]]]) -> ScoreMatrix:
    found = [one for ids, _ in parts for one in ids]
    order = sorted(range(len(found)), key=found.__getitem__)
    ids = tuple(found[i] for i in order)
    if len(set(ids)) != len(ids):
        raise InputError(f"{name}: a row is scored twice", reason="duplicate")
    vectors = np.empty((len(ids), parts[0][1].shape[1]), np.float32)
    place, start = np.empty(len(order), np.int64), 0
    place[order] = np.arange(len(order))
    while parts:  # each part goes as soon as it is copied
        values = parts.pop(0)[1]
        if values.shape[1] != vectors.shape[1]:
            raise InputError(f"{name}: vectors of {values.shape[1]} and of {vectors.shape[1]} values", reason="width")
        vectors[place[start : start + len(values)]] = values
        start += len(values)
    bad = [ids[i] for i in np.flatnonzero(~np.isfinite(vectors).all(axis=1))]
    if name.partition(":")[0] in FINITE and bad:
        raise InputError(f"{name}: not finite for {len(bad)} rows, first {bad[0]}", reason="nonfinite")
    return ScoreMatrix(ids, vectors)


class MetricRows:
    """METRICS rows in the making."""

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
        """All of them."""
        return pa.Table.from_pylist(self.rows, METRICS)


#: Turns one measurement of one set into numbers.
Finish = Callable[[MetricRows, str, str, ScoreMatrix, Protocols], None]


def aggregate(
    sets: Mapping[str, Mapping[str, ScoreMatrix]],
    *,
    run_id: str,
    reference: str | None,
    protocols: Protocols,
    frechet_name: str,
    compare: FeatureMetricsConfig | None = None,
    kin: Grouping = ALONE,
    prepared: ReferenceCache | None = None,
) -> pa.Table:
    """METRICS of sets of scores: `all` (what is judged), `reference`, and any other such as `roundtrip`.

    Segmentation gets a row a set, and a row a class with the slice `all/hair`; attributes likewise. The Fréchet
    distance compares every other set with `reference`; it is a `fid` only where `frechet_name` says so. `compare`
    asks for more of such numbers. `kin` tells which rows are no draws of their own. `prepared` keeps what a reference
    costs from one call to the next. `InputError` (`nonfinite`) names a row whose features are not finite.
    """
    table, ready = MetricRows(run_id, reference), prepared or ReferenceCache()
    for where, scores in sets.items():
        for name, scored in scores.items():
            finish = KINDS.get(name.partition(":")[0])
            if finish is not None:
                finish(table, where, name, scored, protocols)
            elif name.startswith(DIVERSITY):
                _diversity(table, where, name, scored, protocols, kin)
    real = sets.get("reference", {})
    for where, scores in sets.items():
        for name, scored in scores.items():
            if name.startswith(FEATURES) and where != "reference" and name in real:
                part = FACE if name.endswith(FACE) else ""
                protocol = {**protocols.get(name.partition(":")[2].removesuffix(FACE), {})}
                protocol |= {"region": "bounding box of the face in the mask"} if part else {}
                protocol |= {"reference": protocols["reference"]} if "reference" in protocols else {}
                beside = MetricRows(run_id, reference)
                if compare is not None:
                    network = frechet_name.removeprefix("fid").removeprefix("fd") + part
                    made, others = features_of(scored), features_of(real[name])
                    factored = partial(ready.of, name, others)
                    left_out = more(beside.add, where, network, made, others, protocol, compare, factored)
                    protocol |= {"left_out": left_out} if left_out else {}
                if min(len(scored.ids), len(real[name].ids)) > 1:  # one picture has no spread
                    against = ready.of(name, features_of(real[name]))
                    add_frechet(table.add, where, frechet_name + part, features_of(scored), against, protocol, kin)
                table.rows += beside.rows
    return table.table()


def features_of(scored: ScoreMatrix) -> FeatureSet:
    """Scores that are features, as what compares them takes them."""
    return FeatureSet(scored.ids, scored.vectors)


def _segmentation(table: MetricRows, where: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    network, protocol = _network(name, protocols)
    counts = Counts.from_vectors(scored.vectors)
    total, n = counts.total(), len(scored.ids)
    scores = total.scores()
    protocol = {**protocol, "level": "data set", "classes": int(scores["classes"]), "compare": "picture size, nearest"}
    protocol |= protocols.get(f"unpaired/{where}", {})
    table.add(f"miou:{network}", where, scores["miou"], n, protocol, bootstrap_miou(counts))
    for name in ("pixel_accuracy", "class_accuracy", "frequency_iou"):
        table.add(f"{name}:{network}", where, scores[name], n, protocol)
    each = dict(zip(CLASSES, total.iou(), strict=True))
    small = [value for name in SMALL if np.isfinite(value := each[name])]
    if small:
        level = {**protocol, "classes": len(small), "level": f"data set, mean over {', '.join(SMALL)}"}
        table.add(f"miou:{network}", f"{where}/{SMALL_PARTS}", float(np.mean(small)), n, level)
    for name, value in each.items():
        if np.isfinite(value):
            table.add(f"iou:{network}", f"{where}/{name}", float(value), n, protocol)


def _agreement(table: MetricRows, where: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    network, protocol = _network(name, protocols)
    agreement, n = Agreement.of(scored.vectors), len(scored.ids)
    accuracy, balanced = agreement.accuracy(), agreement.balanced()
    protocol = {**protocol, "attributes": int(np.isfinite(balanced).sum()), "level": "mean over attributes"}
    if np.isfinite(accuracy).any():
        table.add(f"attribute_accuracy:{network}", where, mean(accuracy), n, protocol)
    if np.isfinite(balanced).any():
        interval = bootstrap_accuracy(scored.vectors)
        table.add(f"attribute_balanced:{network}", where, mean(balanced), n, protocol, interval)
    said = balanced[[ATTRIBUTE_INDEX[name] for name in (*CAPTIONED, "Male")]]
    if np.isfinite(said).any():
        protocol_said = {**protocol, "attributes": int(np.isfinite(said).sum())}
        table.add(f"attribute_balanced:{network}", f"{where}/{CAPTIONS}", mean(said), n, protocol_said)
    for name, value in zip(ATTRIBUTES, balanced, strict=True):
        if np.isfinite(value):
            table.add(f"attribute_balanced:{network}", f"{where}/{name}", float(value), n, protocol)


def _influence(table: MetricRows, where: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    """The mean share of an expert over pixels and steps, and over each third of the steps, noise first."""
    steps = scored.vectors.shape[1] // 2
    means, n = scored.vectors[:, :steps], len(scored.ids)
    protocol = {"level": "mean over rows, steps and pixels", "steps": steps}
    table.add(name, where, float(means.mean()), n, protocol)
    for third, part in zip(("first", "second", "last"), np.array_split(means, 3, axis=1), strict=True):
        if part.size:
            table.add(name, f"{where}/{third} third", float(part.mean()), n, protocol)


def _edits(table: MetricRows, where: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    """Means of the chosen pictures, and of all at each alpha: how much of the change is there, and of the input."""
    similarity, judges = name.partition(":")[2], protocols.get("edit", {})
    protocol = {**judges, "chosen": f"highest harmonic mean of fidelity and {similarity}", "level": "mean over edits"}
    rows = scored.vectors.astype(np.float64)
    slices = {where: rows[rows[:, 3] > 0]}
    slices |= {f"{where}/alpha {alpha:g}": rows[rows[:, 0] == alpha] for alpha in np.unique(rows[:, 0])}
    for name, part in slices.items():
        judged = part[~np.isnan(part[:, 1]), 1]
        if len(judged):
            table.add("edit_fidelity", name, float(judged.mean()), len(judged), protocol)
        if len(part):
            table.add(f"edit_similarity:{similarity}", name, float(part[:, 2].mean()), len(part), protocol)


def _changes(table: MetricRows, where: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    """Against the baseline, in parts of the largest difference there can be; leakage where something lies outside."""
    found, n = changed(scored.vectors), len(scored.ids)
    protocol = {**protocols.get("pairwise", {}), "level": "mean absolute difference over pixels, 0..1"}
    for part, value in (("inside", found.inside), ("outside", found.outside)):
        if np.isfinite(value):
            table.add("change", f"{where}/{part}", value, n, protocol)
    if np.isfinite(found.leakage):
        table.add("leakage", where, found.leakage, n, protocol, bootstrap(scored.vectors))


def _condition(table: MetricRows, where: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    """Mask accuracy in the way of Collaborative Diffusion: pixels that fit the mask as the model was given it."""
    network, _, side = name.partition(":")[2].rpartition("@")
    total = Counts.from_vectors(scored.vectors).total()
    said = {
        **protocols.get(network, {}),
        **protocols.get(f"unpaired/{where}", {}),
        "level": "data set, all 19 classes",
        "compare": f"{side} x {side}: the mask and the parsed picture, both brought there by nearest neighbour",
    }
    pixels = total.wanted.sum()
    each = scored.vectors[:, : len(CLASSES)].astype(np.float64).sum(axis=1) * (len(scored.ids) / pixels)
    value = float(total.both.sum() / pixels)
    table.add(f"mask_accuracy@{side}:{network}", where, value, len(scored.ids), said, bootstrap_mean(each))


def _to_real(table: MetricRows, where: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    """How like its own real picture each one is: `ssim`, `psnr`, `lpips:vgg`."""
    kind, _, network = name.replace(":source", "").partition(":")
    values = scored.vectors[:, 0].astype(np.float64)
    metric = f"{kind}:{network}" if network else kind
    against = "what went into the first stage" if where.startswith("roundtrip") else "the face that `source` names"
    said = {"ssim": SSIM, "psnr": PSNR}.get(kind, protocols.get(metric, {}))
    said = {**said, "against": f"{against}, brought to the picture's size", "interval": "bootstrap over pictures"}
    table.add(metric, where, float(values.mean()), len(values), said, bootstrap_mean(values))


def _diversity(
    table: MetricRows, where: str, name: str, scored: ScoreMatrix, protocols: Protocols, kin: Grouping
) -> None:
    """Rows hold sums over pairs, so that a group that shards divide counts each pair once; n is that of groups."""
    found = of_groups(scored.vectors, [kin.groups.get(one, "") for one in scored.ids])
    said = {
        **protocols.get(name, {}),
        "distance": name.partition(":")[2].replace("ssim", "1 - ssim"),
        "level": "mean over groups of the mean over pairs",
        "counts": "groups",
        "groups": len(found.means),
        "pairs": found.pairs,
        "pictures_a_group": found.pictures,
        "interval": "bootstrap over groups",
    }
    table.add(name, where, float(found.means.mean()), len(found.means), said, bootstrap_mean(found.means))


def _cosines(table: MetricRows, where: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    values, n = scored.vectors[:, 0].astype(np.float64), len(scored.ids)
    mean_ = float(values.mean())
    error = 1.96 * float(values.std(ddof=1)) / n**0.5 if n > 1 else None
    said = {**protocols.get(name, {}), "level": "mean cosine of picture and text, neither clipped nor scaled"}
    interval = (None, None) if error is None else (mean_ - error, mean_ + error)
    table.add(f"clip_score:{name.partition(':')[2]}", where, mean_, n, said, interval)


def _logits(table: MetricRows, where: str, name: str, scored: ScoreMatrix, protocols: Protocols) -> None:
    if len(scored.ids) >= SPLITS:
        value, deviation = inception_score(scored.vectors, splits=SPLITS)
        said = {**_network(name, protocols)[1], "splits": SPLITS, "seed": 2020, "deviation": deviation}
        table.add("inception_score", where, value, len(scored.ids), said)


def _network(name: str, protocols: Protocols) -> tuple[str, Mapping[str, Any]]:
    """What measured it, and the protocol of that."""
    network = name.partition(":")[2]
    return network, protocols.get(network, {})


#: What becomes of each kind of measurement; features become numbers only beside a reference.
KINDS: Final[Mapping[str, Finish]] = {
    "segmentation": _segmentation,
    "condition": _condition,
    "attributes": _agreement,
    "influence": _influence,
    "ssim": _to_real,
    "psnr": _to_real,
    "lpips": _to_real,
    "clip": _cosines,
    "logits": _logits,
    "change": _changes,
    "edit": _edits,
}


def write_metrics(folder: FileStore, rows: Sequence[Mapping[str, Any]], name: str = "metrics") -> None:
    """METRICS as `NAME.parquet`, and as `NAME.json` for people."""
    folder.put(f"{name}.parquet", to_parquet(pa.Table.from_pylist(list(rows), METRICS)))
    readable = [{**r, "protocol": json.loads(r["protocol"]), "created": r["created"].isoformat()} for r in rows]
    folder.put(f"{name}.json", json.dumps(readable, indent=1).encode())
