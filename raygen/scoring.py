"""Pictures -> SCORES, and SCORES -> METRICS.

Knows which measurements a row gets, under which names, and how they become one number with its protocol. Knows
no network in particular and not where rows come from. Rows hold features and exact counts, never a mean, so any
subset can be computed again.
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
import torch
from pydantic import Field

from raygen.extractors.base import FeatureSpec, ParserSpec, Small, load_classifier, load_features, load_parser
from raygen.faces import ATTRIBUTE_INDEX, ATTRIBUTES, CAPTIONED, CLASSES
from raygen.metrics.attributes import Agreement, bootstrap_accuracy, codes, mean
from raygen.metrics.change import bootstrap, changed
from raygen.metrics.frechet import LOW_N, Moments, frechet_of_features, jackknife
from raygen.metrics.perceptual import ssim
from raygen.metrics.segmentation import Counts, bootstrap_miou, confusion
from raygen.models.conditions import References, fit_image
from raygen.spec import InputError, Spec
from raygen.tables import METRICS, SCORES, decode_image, decode_mask

__all__ = ["Observer", "ScoreSpec", "ScoreWorker", "Scored", "gather", "measure"]

UInt8Array = npt.NDArray[np.uint8]
#: Slice of the attributes that captions speak of.
CAPTIONS: Final = "captions"
#: Slice of the parts that are a few pixels each, and their classes.
SMALL_PARTS: Final = "small parts"
SMALL: Final = ("l_eye", "r_eye", "l_brow", "r_brow", "mouth", "u_lip", "l_lip")
#: What follows the name of features that were taken of the face alone, and the classes whose bounding box it is.
FACE: Final = "@face"
FACE_CLASSES: Final = range(1, 13)
#: Parts that the interval of a Fréchet distance is taken over.
PARTS: Final = 10


class ScoreSpec(Spec):
    """What to measure with. None leaves a measurement out."""

    parser: ParserSpec | None = Field(default_factory=Small)
    features: FeatureSpec | None = Field(default_factory=Small)
    classifier: Small | None = Field(default_factory=Small, description="of the 40 attributes")
    face_features: bool = Field(False, description="features of the face's bounding box in the wanted mask, too")
    similarity: bool = Field(False, description="SSIM to the face that a row's `source` names")


class Observer:
    """Measures pictures that are still pixels: one row a picture and measurement."""

    def __init__(self, spec: ScoreSpec, *, run_id: str, attempt: int = 0, sources: References | None = None) -> None:
        """`sources`: faces by id, for the similarity to them."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.spec = spec
        self.run_id, self.attempt, self.sources = run_id, attempt, sources if spec.similarity else None
        self.parser = None if spec.parser is None else load_parser(spec.parser, device)
        self.features = None if spec.features is None else load_features(spec.features, device)
        self.classifier = None if spec.classifier is None else load_classifier(spec.classifier, device)

    def __call__(self, images: UInt8Array, rows: pa.Table) -> pa.Table:
        """SCORES of pictures uint8 [n, H, W, 3]; `rows` brings ids and the masks that were wanted."""
        ids = rows[rows.column_names[0]].to_pylist()
        found: list[tuple[str, str, list[float]]] = []
        tensor = torch.from_numpy(np.ascontiguousarray(images))
        if self.features is not None and len(ids):
            name = f"features:{self.features.name}"
            found += [(i, name, v.tolist()) for i, v in zip(ids, self.features.features(tensor).numpy(), strict=True)]
            if self.spec.face_features and "mask" in rows.column_names:
                found += self._faces(ids, tensor, rows["mask"].to_pylist())
        if self.parser is not None and "mask" in rows.column_names and len(ids):
            found += self._segmentation(ids, tensor, rows["mask"].to_pylist())
        if self.classifier is not None and "attributes" in rows.column_names and len(ids):
            found += self._attributes(ids, tensor, rows["attributes"].to_pylist())
        if self.sources is not None and "source" in rows.column_names:
            found += self._similarity(ids, images, rows["source"].to_pylist())
        return self._table(found)

    def _faces(
        self, ids: Sequence[str], images: torch.Tensor, masks: Sequence[Mapping[str, Any] | None]
    ) -> list[tuple[str, str, list[float]]]:
        """Features of the part of each picture where its mask has the face, brought to the picture's size."""
        assert self.features is not None
        size = tuple(images.shape[1:3])
        cut, kept = [], []
        for i, mask in enumerate(masks):
            if mask is None or mask["bytes"] is None:
                continue
            face = np.isin(_resized(decode_mask(mask["bytes"]), size), FACE_CLASSES)
            if not face.any():
                continue
            y, x = (np.flatnonzero(face.any(axis=axis)) for axis in (1, 0))
            part = images[i, y[0] : y[-1] + 1, x[0] : x[-1] + 1].movedim(-1, 0)[None].float()
            whole = torch.nn.functional.interpolate(part, size, mode="bilinear", antialias=True)
            cut.append(whole[0].round().clamp(0, 255).to(torch.uint8).movedim(0, -1))
            kept.append(ids[i])
        if not cut:
            return []
        vectors = self.features.features(torch.stack(cut)).numpy()
        name = f"features:{self.features.name}{FACE}"
        return [(i, name, vector.tolist()) for i, vector in zip(kept, vectors, strict=True)]

    def _similarity(
        self, ids: Sequence[str], images: UInt8Array, names: Sequence[str | None]
    ) -> list[tuple[str, str, list[float]]]:
        assert self.sources is not None
        named = [(i, name) for i, name in enumerate(names) if name is not None]
        if not named:
            return []
        faces = self.sources([name for _, name in named])
        real = [fit_image(decode_image(faces[name]["image"]["bytes"]), images.shape[1]) for _, name in named]
        values = ssim(images[[i for i, _ in named]], np.stack(real))
        return [(ids[i], "ssim:source", [float(value)]) for (i, _), value in zip(named, values, strict=True)]

    def _segmentation(
        self, ids: Sequence[str], images: torch.Tensor, masks: Sequence[Mapping[str, Any] | None]
    ) -> list[tuple[str, str, list[float]]]:
        assert self.parser is not None
        wanted = [i for i, mask in enumerate(masks) if mask is not None and mask["bytes"] is not None]
        if not wanted:
            return []
        labels = self.parser.parse(images[wanted]).numpy()
        result = []
        for i, label in zip(wanted, labels, strict=True):
            target = _resized(decode_mask(masks[i]["bytes"]), label.shape)  # type: ignore[index]
            result.append((ids[i], f"segmentation:{self.parser.name}", Counts.of(confusion(target, label)).vector()))
        return result

    def _attributes(
        self, ids: Sequence[str], images: torch.Tensor, wanted: Sequence[Sequence[int] | None]
    ) -> list[tuple[str, str, list[float]]]:
        assert self.classifier is not None
        asked = [i for i, values in enumerate(wanted) if values is not None]
        if not asked:
            return []
        found = self.classifier.attributes(images[asked]).numpy()
        vectors = codes(np.array([wanted[i] for i in asked], dtype=np.int8), found).astype(float)
        name = f"attributes:{self.classifier.name}"
        return [(ids[i], name, vector.tolist()) for i, vector in zip(asked, vectors, strict=True)]

    def _table(self, found: Sequence[tuple[str, str, list[float]]]) -> pa.Table:
        columns = {
            "sample_id": [row[0] for row in found],
            "attempt": [self.attempt] * len(found),
            "metric": [row[1] for row in found],
            "run_id": [self.run_id] * len(found),
            "vector": [row[2] for row in found],
        }
        return pa.table({f.name: pa.array(columns[f.name], f.type) for f in SCORES}, schema=SCORES)

    def protocols(self) -> dict[str, Mapping[str, Any]]:
        """What the numbers depend on, by the network's name."""
        networks = [n for n in (self.parser, self.features, self.classifier) if n is not None]
        return {network.name: network.protocol() for network in networks}


def _resized(mask: UInt8Array, shape: tuple[int, ...]) -> UInt8Array:
    """Nearest neighbour; labels are never mixed."""
    if mask.shape == shape:
        return mask
    y = (np.arange(shape[0]) + 0.5) * mask.shape[0] / shape[0]
    x = (np.arange(shape[1]) + 0.5) * mask.shape[1] / shape[1]
    result: UInt8Array = mask[y.astype(int)[:, None], x.astype(int)[None, :]]
    return result


class ScoreWorker:
    """SAMPLES or FACES rows -> SCORES: what `Observer` does, on pictures that are stored."""

    def __init__(
        self,
        spec: ScoreSpec,
        *,
        run_id: str,
        threads: int,
        through: Callable[[UInt8Array], UInt8Array] | None = None,
        sources: References | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        self.observe = Observer(spec, run_id=run_id, sources=sources)
        self.through = through

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Measure now. Rows without a picture are left out; one that cannot be read is an `InputError`.

        Pictures were checked when they were committed, so a bad one here is damage, not data.
        """
        good = rows.filter(rows["image"].is_valid())
        images = [decode_image(value["bytes"]) for value in good["image"].to_pylist()]
        parts = [self._same_size(images, good, shape) for shape in dict.fromkeys(i.shape for i in images)]
        table = pa.concat_tables(parts) if parts else SCORES.empty_table()
        return lambda: {"scores": table}

    def _same_size(self, images: Sequence[UInt8Array], rows: pa.Table, shape: tuple[int, ...]) -> pa.Table:
        index = [i for i, image in enumerate(images) if image.shape == shape]
        batch = np.stack([images[i] for i in index])
        return self.observe(batch if self.through is None else self.through(batch), rows.take(index))


# --- SCORES -> METRICS --------------------------------------------------------------------------------------


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
    return Scored(ids, np.stack([row[1] for row in rows]))


class _Table:
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


def measure(
    sets: Mapping[str, Mapping[str, Scored]],
    *,
    run_id: str,
    reference: str | None,
    protocols: Mapping[str, Mapping[str, Any]],
    frechet_name: str,
) -> pa.Table:
    """METRICS of sets of scores: `all` (what is judged), `reference`, and any other such as `roundtrip`.

    Segmentation gets a row a set, and a row a class with the slice `all/hair`; attributes likewise. The Fréchet
    distance compares every other set with `reference`; it is a `fid` only where `frechet_name` says so.
    """
    table = _Table(run_id, reference)
    for where, scores in sets.items():
        for name, scored in scores.items():
            kind, _, network = name.partition(":")
            if kind == "segmentation":
                _segmentation(table, where, network, scored, protocols.get(network, {}))
            if kind == "attributes":
                _agreement(table, where, network, scored, protocols.get(network, {}))
            if kind == "influence":
                _influence(table, where, name, scored)
            if kind == "ssim":
                value = float(scored.vectors[:, 0].astype(np.float64).mean())
                table.add("ssim", where, value, len(scored.ids), {"against": "the face that `source` names"})
            if kind == "change":
                _changes(table, where, scored, protocols.get("relate", {}))
            if kind == "diversity":
                total = scored.vectors.astype(np.float64).sum(axis=0)
                said = {"distance": network.replace("ssim", "1 - ssim"), "level": "mean over pairs of a group"}
                table.add(name, where, float(total[0] / total[1]), int(total[1]), said)
            if kind == "edit":
                _edits(table, where, network, scored, protocols.get("edit", {}))
    real = sets.get("reference", {})
    for where, scores in sets.items():
        for name, scored in scores.items():
            if name.startswith("features:") and where != "reference" and name in real:
                part = FACE if name.endswith(FACE) else ""
                protocol = {**protocols.get(name.partition(":")[2].removesuffix(FACE), {})}
                protocol |= {"region": "bounding box of the face in the mask"} if part else {}
                _frechet(table, where, frechet_name + part, scored, real[name], protocol)
    return pa.Table.from_pylist(table.rows, METRICS)


def _segmentation(table: _Table, where: str, network: str, scored: Scored, protocol: Mapping[str, Any]) -> None:
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


def _agreement(table: _Table, where: str, network: str, scored: Scored, protocol: Mapping[str, Any]) -> None:
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


def _influence(table: _Table, where: str, name: str, scored: Scored) -> None:
    """The mean share of an expert over pixels and steps, and over each third of the steps, noise first."""
    steps = scored.vectors.shape[1] // 2
    means, n = scored.vectors[:, :steps], len(scored.ids)
    protocol = {"level": "mean over rows, steps and pixels", "steps": steps}
    table.add(name, where, float(means.mean()), n, protocol)
    for third, part in zip(("first", "second", "last"), np.array_split(means, 3, axis=1), strict=True):
        if part.size:
            table.add(name, f"{where}/{third} third", float(part.mean()), n, protocol)


def _edits(table: _Table, where: str, similarity: str, scored: Scored, judges: Mapping[str, Any]) -> None:
    """Means of the chosen pictures, and of all at each alpha: how much of the change is there, and of the input."""
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


def _changes(table: _Table, where: str, scored: Scored, protocol: Mapping[str, Any]) -> None:
    """Against the baseline, in parts of the largest difference there can be; leakage where something lies outside."""
    found, n = changed(scored.vectors), len(scored.ids)
    protocol = {**protocol, "level": "mean absolute difference over pixels, 0..1"}
    for name, value in (("inside", found.inside), ("outside", found.outside)):
        if np.isfinite(value):
            table.add("change", f"{where}/{name}", value, n, protocol)
    if np.isfinite(found.leakage):
        table.add("leakage", where, found.leakage, n, protocol, bootstrap(scored.vectors))


def _frechet(table: _Table, where: str, name: str, made: Scored, real: Scored, protocol: Mapping[str, Any]) -> None:
    n, m, width = len(made.ids), len(real.ids), made.vectors.shape[1]
    if min(n, m) < 2:  # one picture has no spread
        return
    distance = frechet_of_features(made.vectors, real.vectors)
    interval: tuple[float, float] | tuple[None, None] = (None, None)
    if min(n, m) > 2 * width:
        parts = [Moments.of(part) for part in np.array_split(made.vectors, PARTS)]
        interval = jackknife(parts, Moments.of(real.vectors))
    protocol = {
        **protocol, "n_reference": m, "low_n": min(n, m) < LOW_N, "clipped": distance.clipped,
        "interval": f"delete-1/{PARTS} jackknife" if interval[0] is not None else "none: too few rows",
    }  # fmt: skip
    table.add(name, where, distance.value, n, protocol, interval)
