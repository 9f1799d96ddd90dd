"""Section: samples and their nearest training faces, and samples and their nearest other samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from raygen.core.errors import ConfigError
from raygen.report.images import find_rows, image_thumb
from raygen.report.metric_rows import GENERATED
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section
from raygen.store.parquet import Slice
from raygen.store.run_store import RunStore, open_input

__all__ = ["ImagePair", "NearestPairs", "section"]


#: Pairs of each kind that are shown.
MAX_PAIRS: Final = 12


class ImagePair(NamedTuple):
    """Two thumbnails (None where the image is missing), their ids, their distance, and whether it counts as near."""

    left: str | None
    right: str | None
    left_id: str
    right_id: str
    distance: float
    near: bool


@dataclass(frozen=True)
class NearestPairs:
    """Pairs by distance; below `threshold` a pair is near, as the share `q` of held-out faces is."""

    pairs: Sequence[ImagePair]
    threshold: float
    q: float

    @property
    def near(self) -> int:
        """Number of the shown pairs that are near."""
        return sum(pair.near for pair in self.pairs)


def section(run: RunFolder) -> Section | None:
    """Pairs that an evaluation wrote, nearest first; None where it searched for none.

    Images of samples are those of the run folder or of the run that was scored; those of training faces lie where the
    evaluation read them, or among the faces of the run.
    """
    samples = run.images.slices("samples") if run.images is not None else _scored(run, "samples")
    training = [*_scored(run, "training"), *run.faces]
    variables = {
        "training": _pairs(run, "closest.json", "memorized", samples, training, "face_id"),
        "duplicates": _pairs(run, "duplicates.json", "duplicates", samples, samples, "other_id"),
    }
    if not any(variables.values()):
        return None
    return Section("nearest-pairs", "Nearest pairs", "nearest_pairs.html.j2", variables)


def _scored(run: RunFolder, name: str) -> list[Slice]:
    """The rows that the evaluation compared: of the folder that it names, else those that it scored."""
    folders = run.json("metrics/pictures.json") or {}
    if name in folders:
        try:
            return open_input(folders[name])[0].slices({"training": "faces"}.get(name, name))
        except ConfigError:  # it was moved, or was named from another folder than this one
            pass
    store = RunStore(f"{run.url}/scores/{name}")
    if not store.storage.exists("plan.json"):
        return []
    return [piece for shard in store.plan().shards for piece in shard.inputs]


def _pairs(
    run: RunFolder, file: str, metric: str, left: Sequence[Slice], right: Sequence[Slice], right_key: str
) -> NearestPairs | None:
    """The pairs in `file`; the protocol of `metric` has the threshold. `right_key` is the key of the other id."""
    protocols = (n.protocol for n in run.numbers if n.base == metric and n.population == GENERATED and not n.part)
    protocol = next(protocols, {})
    rows = run.json(f"metrics/{file}") if "threshold" in protocol else None
    if not rows:
        return None
    rows = rows[:MAX_PAIRS]
    threshold = float(protocol["threshold"])
    left_images = _thumbs(left, "sample_id", [row["sample_id"] for row in rows])
    column = "face_id" if right_key == "face_id" else "sample_id"
    right_images = _thumbs(right, column, [row[right_key] for row in rows])
    pairs = [
        ImagePair(
            left_images.get(row["sample_id"]),
            right_images.get(row[right_key]),
            row["sample_id"],
            row[right_key],
            row["distance"],
            row["distance"] < threshold,
        )
        for row in rows
    ]
    return NearestPairs(pairs, threshold, float(protocol["q"]))


def _thumbs(pieces: Sequence[Slice], key: str, ids: Sequence[str]) -> Mapping[str, str | None]:
    rows: dict[str, dict[str, Any]] = {}
    for piece in pieces:
        if missing := set(ids) - set(rows):
            try:
                rows |= find_rows([piece], key, missing, ["image"])
            except ConfigError:  # the files were moved or are not here
                continue
    return {name: image_thumb(row["image"]) for name, row in rows.items()}
