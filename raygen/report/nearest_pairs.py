"""The nearest pairs of an evaluation as pictures: samples beside training faces, and samples beside each other.

Knows which files name the pairs, where their pictures lie and which distance counts as near. Computes no distance and
knows no HTML.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from raygen.core.errors import ConfigError
from raygen.report import pictures as picture_rows
from raygen.report.cards import GENERATED, Number
from raygen.report.run_folder import Stage
from raygen.store.filesystem import FileStore
from raygen.store.parquet import Slice
from raygen.store.run_store import RunStore, open_input

__all__ = ["ImagePair", "NearestPairs", "NearestPairsSection", "nearest_pairs_section"]


#: Pairs of each kind that are shown.
SHOWN: Final = 12


class ImagePair(NamedTuple):
    """Two pictures (None where one cannot be had), their ids, how far apart they are, and whether that is near."""

    left: str | None
    right: str | None
    name: str
    other: str
    distance: float
    near: bool


@dataclass(frozen=True)
class NearestPairs:
    """Couples by distance; what counts as near, and the share `q` of held-out faces that do."""

    couples: Sequence[ImagePair]
    threshold: float
    q: float


@dataclass(frozen=True)
class NearestPairsSection:
    """Both kinds of pairs; None for one that was not measured."""

    training: NearestPairs | None
    twins: NearestPairs | None


def nearest_pairs_section(
    root: str, samples: Stage | None, faces: Sequence[Slice], found: Sequence[Number]
) -> NearestPairsSection | None:
    """Of the evaluation in `root`; None where it did not ask for them.

    Pictures of samples are those of the run folder or of the run that was scored, those of training faces are where the
    evaluation read them, or among `faces`.
    """
    storage = FileStore(root)
    made = samples.slices("samples") if samples is not None else _scored(root, "samples")
    trained = [*_scored(root, "training"), *faces]
    closest = _pairs(storage, "closest.json", "face_id", (made, "sample_id"), (trained, "face_id"), "memorized", found)
    twins = _pairs(
        storage, "duplicates.json", "other_id", (made, "sample_id"), (made, "sample_id"), "duplicates", found
    )
    return NearestPairsSection(closest, twins) if closest or twins else None


def _scored(root: str, name: str) -> list[Slice]:
    """The rows that the evaluation compared: of the folder that it names, else those that its pass over them read."""
    storage = FileStore(root)
    if storage.exists("metrics/pictures.json"):
        try:
            url = json.loads(storage.get("metrics/pictures.json"))[name]
            return open_input(url)[0].slices({"training": "faces"}.get(name, name))
        except ConfigError:  # it was moved, or was named from another folder than this one
            pass
    store = RunStore(f"{root.rstrip('/')}/scores/{name}")
    if not store.storage.exists("plan.json"):
        return []
    return [piece for shard in store.plan().shards for piece in shard.inputs]


def _pairs(
    storage: FileStore,
    file: str,
    other: str,
    left: tuple[Sequence[Slice], str],
    right: tuple[Sequence[Slice], str],
    metric: str,
    found: Sequence[Number],
) -> NearestPairs | None:
    """The pairs in `file`, judged by the threshold that the METRICS row of `metric` says it was measured with."""
    said = next((n.protocol for n in found if n.base == metric and n.population == GENERATED and not n.part), None)
    if said is None or "threshold" not in said or not storage.exists(f"metrics/{file}"):
        return None
    rows = json.loads(storage.get(f"metrics/{file}"))[:SHOWN]
    threshold = float(said["threshold"])
    ones, others = _pictures(*left, [r["sample_id"] for r in rows]), _pictures(*right, [r[other] for r in rows])
    couples = [
        ImagePair(
            ones.get(r["sample_id"]),
            others.get(r[other]),
            r["sample_id"],
            r[other],
            r["distance"],
            r["distance"] < threshold,
        )
        for r in rows
    ]
    return NearestPairs(couples, threshold, float(said["q"])) if couples else None


def _pictures(pieces: Sequence[Slice], key: str, ids: Sequence[str]) -> Mapping[str, str | None]:
    rows: dict[str, dict[str, Any]] = {}
    for piece in pieces:
        if missing := set(ids) - set(rows):
            try:
                rows |= picture_rows.find([piece], key, missing, ["image"])
            except ConfigError:  # the files were moved or are not here
                continue
    return {one: picture_rows.image_thumb((row["image"] or {}).get("bytes")) for one, row in rows.items()}
