"""SCORES -> METRICS: many rows become one number with its protocol.

Knows which numbers each measurement gives and what is said beside them. Knows no network and no pictures.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raygen.comparisons import CompareSpec, Features, too_few
from raygen.comparisons import compare as more
from raygen.faces import ATTRIBUTE_INDEX, ATTRIBUTES, CAPTIONED, CLASSES
from raygen.metrics.attributes import Agreement, bootstrap_accuracy, mean
from raygen.metrics.change import bootstrap, changed
from raygen.metrics.frechet import LOW_N, Moments, frechet_of_features, jackknife
from raygen.metrics.inception_score import inception_score
from raygen.metrics.segmentation import Counts, bootstrap_miou
from raygen.scoring import FACE
from raygen.spec import InputError
from raygen.storage import Storage
from raygen.tables import METRICS, to_parquet

__all__ = ["FEATURES", "MetricRows", "Scored", "features_of", "gather", "measure", "write_metrics"]

#: Begin of the names of features.
FEATURES: Final = "features:"

#: What numbers depend on, by the name of a network or of another measure.
Protocols = Mapping[str, Mapping[str, Any]]
#: Slice of the attributes that captions speak of.
CAPTIONS: Final = "captions"
#: Slice of the parts that are a few pixels each, and their classes.
SMALL_PARTS: Final = "small parts"
SMALL: Final = ("l_eye", "r_eye", "l_brow", "r_brow", "mouth", "u_lip", "l_lip")
#: Of the inception score, as its first paper has them.
SPLITS: Final = 10
#: Parts that the interval of a Fréchet distance is taken over.
PARTS: Final = 10


@dataclass(frozen=True)
class Scored:
    """All vectors of one measurement, by sorted id, so that order of arrival cannot change a bit."""

    ids: tuple[str, ...]
    vectors: npt.NDArray[np.float32]


def gather(tables: Iterable[pa.Table]) -> dict[str, Scored]:
    """SCORES of one set -> measurement name -> vectors; `InputError` where a row is there twice."""
    parts: dict[str, list[tuple[str, npt.NDArray[np.float32]]]] = {}
    for table in tables:
        for name in table["metric"].unique().to_pylist():
            rows = table.filter(pc.equal(table["metric"], name)).combine_chunks()
            vectors = rows["vector"].combine_chunks()
            values = vectors.flatten().to_numpy().reshape(rows.num_rows, -1)
            parts.setdefault(name, []).extend(zip(rows["sample_id"].to_pylist(), values, strict=True))
    return {name: _sorted(name, rows) for name, rows in parts.items()}


def _sorted(name: str, rows: list[tuple[str, npt.NDArray[np.float32]]]) -> Scored:
    rows.sort(key=lambda row: row[0])
    ids = tuple(row[0] for row in rows)
    if len(set(ids)) != len(ids):
        raise InputError(f"{name}: a row is scored twice", reason="duplicate")
    vectors = np.stack([row[1] for row in rows])
    bad = [ids[i] for i in np.flatnonzero(~np.isfinite(vectors).all(axis=1))]
    if name.startswith(FEATURES) and bad:
        raise InputError(f"{name}: not finite for {len(bad)} rows, first {bad[0]}", reason="nonfinite")
    return Scored(ids, vectors)


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
                "run_id": self.run_id, "metric": metric, "slice": slice_, "value": value, "n": n,
                "ci_low": interval[0], "ci_high": interval[1], "reference": self.reference,
                "protocol": json.dumps(protocol, sort_keys=True), "created": datetime.now(UTC),
            }
        )  # fmt: skip

    def table(self) -> pa.Table:
        """All of them."""
        return pa.Table.from_pylist(self.rows, METRICS)


#: Turns one measurement of one set into numbers.
Finish = Callable[[MetricRows, str, str, Scored, Protocols], None]


def measure(
    sets: Mapping[str, Mapping[str, Scored]],
    *,
    run_id: str,
    reference: str | None,
    protocols: Protocols,
    frechet_name: str,
    compare: CompareSpec | None = None,
) -> pa.Table:
    """METRICS of sets of scores: `all` (what is judged), `reference`, and any other such as `roundtrip`.

    Segmentation gets a row a set, and a row a class with the slice `all/hair`; attributes likewise. The Fréchet
    distance compares every other set with `reference`; it is a `fid` only where `frechet_name` says so. `compare`
    asks for more of such numbers. `InputError` (`nonfinite`) names a row whose features are not finite.
    """
    table = MetricRows(run_id, reference)
    for where, scores in sets.items():
        for name, scored in scores.items():
            finish = KINDS.get(name.partition(":")[0])
            if finish is not None:
                finish(table, where, name, scored, protocols)
    real = sets.get("reference", {})
    for where, scores in sets.items():
        for name, scored in scores.items():
            if name.startswith(FEATURES) and where != "reference" and name in real:
                part = FACE if name.endswith(FACE) else ""
                protocol = {**protocols.get(name.partition(":")[2].removesuffix(FACE), {})}
                protocol |= {"region": "bounding box of the face in the mask"} if part else {}
                protocol |= {"reference": protocols["reference"]} if "reference" in protocols else {}
                if compare is not None:
                    few = too_few(compare, len(scored.ids), len(real[name].ids), scored.vectors.shape[1])
                    protocol |= {"left_out": few} if few else {}
                _frechet(table, where, frechet_name + part, scored, real[name], protocol)
                if compare is not None:
                    network = frechet_name.removeprefix("fid").removeprefix("fd") + part
                    more(table.add, where, network, features_of(scored), features_of(real[name]), protocol, compare)
    return table.table()


def features_of(scored: Scored) -> Features:
    """Scores that are features, as what compares them takes them."""
    return Features(scored.ids, scored.vectors)


def _segmentation(table: MetricRows, where: str, name: str, scored: Scored, protocols: Protocols) -> None:
    network, protocol = _network(name, protocols)
    counts = Counts.from_vectors(scored.vectors)
    total, n = counts.total(), len(scored.ids)
    scores = total.scores()
    protocol = {**protocol, "level": "data set", "classes": int(scores["classes"]), "compare": "picture size, nearest"}
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


def _agreement(table: MetricRows, where: str, name: str, scored: Scored, protocols: Protocols) -> None:
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


def _influence(table: MetricRows, where: str, name: str, scored: Scored, protocols: Protocols) -> None:
    """The mean share of an expert over pixels and steps, and over each third of the steps, noise first."""
    steps = scored.vectors.shape[1] // 2
    means, n = scored.vectors[:, :steps], len(scored.ids)
    protocol = {"level": "mean over rows, steps and pixels", "steps": steps}
    table.add(name, where, float(means.mean()), n, protocol)
    for third, part in zip(("first", "second", "last"), np.array_split(means, 3, axis=1), strict=True):
        if part.size:
            table.add(name, f"{where}/{third} third", float(part.mean()), n, protocol)


def _edits(table: MetricRows, where: str, name: str, scored: Scored, protocols: Protocols) -> None:
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


def _changes(table: MetricRows, where: str, name: str, scored: Scored, protocols: Protocols) -> None:
    """Against the baseline, in parts of the largest difference there can be; leakage where something lies outside."""
    found, n = changed(scored.vectors), len(scored.ids)
    protocol = {**protocols.get("relate", {}), "level": "mean absolute difference over pixels, 0..1"}
    for part, value in (("inside", found.inside), ("outside", found.outside)):
        if np.isfinite(value):
            table.add("change", f"{where}/{part}", value, n, protocol)
    if np.isfinite(found.leakage):
        table.add("leakage", where, found.leakage, n, protocol, bootstrap(scored.vectors))


def _similarity(table: MetricRows, where: str, name: str, scored: Scored, protocols: Protocols) -> None:
    value = float(scored.vectors[:, 0].astype(np.float64).mean())
    table.add("ssim", where, value, len(scored.ids), {"against": "the face that `source` names"})


def _diversity(table: MetricRows, where: str, name: str, scored: Scored, protocols: Protocols) -> None:
    """Rows hold sums over pairs, so that a group that shards divide counts each pair once."""
    total = scored.vectors.astype(np.float64).sum(axis=0)
    said = {"distance": name.partition(":")[2].replace("ssim", "1 - ssim"), "level": "mean over pairs of a group"}
    table.add(name, where, float(total[0] / total[1]), int(total[1]), said)


def _cosines(table: MetricRows, where: str, name: str, scored: Scored, protocols: Protocols) -> None:
    values, n = scored.vectors[:, 0].astype(np.float64), len(scored.ids)
    mean_ = float(values.mean())
    error = 1.96 * float(values.std(ddof=1)) / n**0.5 if n > 1 else None
    said = {**protocols.get(name, {}), "level": "mean cosine of picture and text, neither clipped nor scaled"}
    interval = (None, None) if error is None else (mean_ - error, mean_ + error)
    table.add(f"clip_score:{name.partition(':')[2]}", where, mean_, n, said, interval)


def _logits(table: MetricRows, where: str, name: str, scored: Scored, protocols: Protocols) -> None:
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
    "segmentation": _segmentation, "attributes": _agreement, "influence": _influence, "ssim": _similarity,
    "clip": _cosines, "logits": _logits, "change": _changes, "diversity": _diversity, "edit": _edits,
}  # fmt: skip


def _frechet(table: MetricRows, where: str, name: str, made: Scored, real: Scored, protocol: Mapping[str, Any]) -> None:
    n, m, width = len(made.ids), len(real.ids), made.vectors.shape[1]
    if min(n, m) < 2:  # one picture has no spread
        return
    distance = frechet_of_features(made.vectors, real.vectors)
    interval: tuple[float, float] | tuple[None, None] = (None, None)
    if min(n, m) > 2 * width:
        parts = [Moments.of(part) for part in np.array_split(made.vectors, PARTS)]
        interval = jackknife(parts, Moments.of(real.vectors))
    protocol = {
        **protocol, "n_reference": m, "low_n": min(n, m) < LOW_N,
        "fewer_rows_than_values": min(n, m) <= width, "clipped": distance.clipped,
        "interval": f"delete-1/{PARTS} jackknife" if interval[0] is not None else "none: too few rows",
    }  # fmt: skip
    table.add(name, where, distance.value, n, protocol, interval)


def write_metrics(folder: Storage, rows: Sequence[Mapping[str, Any]]) -> None:
    """METRICS as `metrics.parquet`, and as `metrics.json` for people."""
    folder.put("metrics.parquet", to_parquet(pa.Table.from_pylist(list(rows), METRICS)))
    readable = [{**r, "protocol": json.loads(r["protocol"]), "created": r["created"].isoformat()} for r in rows]
    folder.put("metrics.json", json.dumps(readable, indent=1).encode())
