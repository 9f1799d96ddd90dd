"""The reference of an evaluation: real pictures that are scored once, and the checks before samples are compared."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import pyarrow as pa

from raygen.core.documents import load_json
from raygen.core.errors import ConfigError, IntegrityError
from raygen.evaluation.config import MemorizationConfig
from raygen.store.filesystem import FileStore
from raygen.store.images import decode_image
from raygen.store.parquet import read_slice
from raygen.store.run_store import RunStore, open_input

__all__ = [
    "NETWORKS",
    "UNPAIRED",
    "ReferenceSet",
    "Stores",
    "UnpairedRows",
    "baseline_content",
    "check_held_out",
    "find_unpaired",
    "picture_size",
    "write_unpaired",
]


FILE: Final = "reference.json"
#: Pictures of a run whose sizes are looked at before anything is scored.
FIRST: Final = 64
#: Rows with a picture and no mask, or the reverse.
UNPAIRED: Final = "unpaired.json"
#: By set: the run with its pictures, their table, and the column of their ids.
Stores = Mapping[str, tuple[RunStore, str, str]]
SCORES: Final = "scores/reference"
#: Settings of a `ScoreConfig` that name networks.
NETWORKS: Final = ("parser", "features", "classifier", "face_features", "identity")


@dataclass(frozen=True)
class ReferenceSet:
    """FACES that samples are compared with: their digest, their ingest settings, the size of their pictures."""

    url: str
    content: str
    made: Mapping[str, Any]
    size: tuple[int, int]  # height, width
    scores: RunStore | None = None  # None: not scored yet
    score: Mapping[str, Any] | None = None  # the `ScoreConfig` of the scores, by content

    @staticmethod
    def open(url: str) -> "ReferenceSet":
        """The reference in `url`: an ingest run, or an earlier evaluation, whose scores are used again.

        `ConfigError` where it is neither, or has no pictures.
        """
        storage = FileStore(url)
        if storage.exists(FILE):
            store, _ = open_input(f"{url.rstrip('/')}/{SCORES}")
            try:
                record = load_json(storage.get(FILE))
                return ReferenceSet(url, record["faces"], record["made"], tuple(record["size"]), store, record["score"])
            except (ValueError, KeyError, TypeError) as error:
                raise IntegrityError(f"{url}/{FILE} is damaged; evaluate the reference again") from error
        store, content = open_input(url)
        size = picture_size(store, "faces")
        if size is None:
            raise ConfigError(f"{url}: holds no pictures to compare with")
        return ReferenceSet(url, content, store.plan().settings.get("data") or {}, size)

    def record(self, score: Mapping[str, Any], out: str) -> None:
        """Writes the file that `open` reads, for the evaluation in `out`, which scored these pictures with `score`."""
        record = {"faces": self.content, "made": self.made, "size": self.size, "score": score}
        FileStore(out).update(FILE, json.dumps(record, indent=1, sort_keys=True).encode())

    def tables(self) -> Iterator[pa.Table]:
        """SCORES of the reference; none where it is not scored yet."""
        return iter(()) if self.scores is None else self.scores.tables("scores")

    def check(self, score: Mapping[str, Any], samples: RunStore) -> None:
        """`ConfigError` where samples are not comparable: scored with other networks, or of another size.

        `score`: networks by content. Distances between pictures that were resized differently measure the resizing
        (protocols of FID differ by more than models do), so pictures are never resized here, only by an ingest run.
        """
        self.check_networks(score)
        if score.get("features") is None:
            return
        self.check_size(samples, "samples")

    def check_size(self, store: RunStore, table: str) -> None:
        """`ConfigError` where the pictures in `table` of a run have another size than the reference, or several."""
        sizes = list(dict.fromkeys(_first_sizes(store, table)))
        if len(sizes) > 1:
            sides = " and of ".join(f"{width} x {height} px" for height, width in sizes[:2])
            raise ConfigError(f"{store.url} has pictures of {sides}; ingest them with `data.size`, at one size")
        size = sizes[0] if sizes else None
        if size is not None and size != self.size:
            sides, own_sides = (f"{width} x {height} px" for height, width in (size, self.size))
            raise ConfigError(
                f"{store.url} has pictures of {sides}, the reference {self.url} of {own_sides}; "
                "ingest one at the other's size, so that the resize is on record"
            )

    def check_networks(self, score: Mapping[str, Any]) -> None:
        """`ConfigError` where the reference was scored with other networks than `score` names by content."""
        for name in NETWORKS if self.score is not None else ():
            assert self.score is not None
            if self.score.get(name) != score.get(name):
                scored, asked = (json.dumps(s.get(name), sort_keys=True) for s in (self.score, score))
                raise ConfigError(f"{self.url} was scored with {name} {scored}, this evaluation asks for {asked}")


def picture_size(store: RunStore, table: str) -> tuple[int, int] | None:
    """Height and width of the first picture in a run; None where it has none."""
    return next(_first_sizes(store, table), None)


def _first_sizes(store: RunStore, table: str) -> Iterator[tuple[int, int]]:
    """Height and width of the first pictures in a run, up to `FIRST`: to see more costs a read of all pictures."""
    for piece in store.slices(table):
        rows = read_slice(piece._replace(rows=min(piece.rows, FIRST)), ["image"])
        values = [value for value in rows["image"].to_pylist() if value is not None]
        for value in values:
            height, width = decode_image(value["bytes"]).shape[:2]
            yield int(height), int(width)
        if values:
            return


def check_held_out(config: MemorizationConfig, reference: ReferenceSet, split: str | None = None) -> None:
    """`ConfigError` where no face was trained on, or no face of the reference was held out; before any is scored.

    `split`: of the reference, where only one is compared with.
    """
    store, content = open_input(config.faces)
    splits = [split for table in store.tables("faces", ["split"]) for split in table["split"].to_pylist()]
    trained_on = sum(config.split in (None, split) for split in splits)
    if not trained_on:
        raise ConfigError(f"training: {config.faces} has no rows of split {config.split!r}")
    held_out = any(config.split not in (None, own) and split in (None, own) for own in splits)
    if content == reference.content and not held_out:
        raise ConfigError(f"reference: all of {reference.url} was trained on; nothing is held out")


def baseline_content(baseline: str | None, samples: str) -> str | None:
    """The content of the baseline of a run; `ConfigError` where it has other rows, or pictures of another size."""
    if baseline is None:
        return None
    own, (store, content) = open_input(samples)[0], open_input(baseline)
    ids = (set(table["sample_id"].to_pylist()) for table in store.tables("samples", ["sample_id"]))
    there: set[str] = set().union(*ids)
    for table in own.tables("samples", ["sample_id"]):
        if missing := next((name for name in table["sample_id"].to_pylist() if name not in there), None):
            raise ConfigError(f"pairwise.baseline: {baseline} has no sample {missing!r} of {samples}")
    sizes = picture_size(own, "samples"), picture_size(store, "samples")
    if None not in sizes and sizes[0] != sizes[1]:
        raise ConfigError(f"pairwise.baseline: {baseline} has pictures of another size than {samples}")
    return content


class UnpairedRows(NamedTuple):
    """Ids of rows without a mask and without a picture, of a table of `rows` rows with `masks` masks."""

    rows: int
    masks: int
    without_mask: Sequence[str]
    without_picture: Sequence[str]

    def counts(self) -> Mapping[str, int]:
        """Numbers of unpaired rows by kind; empty where every picture has a mask."""
        counts = {
            "pictures without a mask": len(self.without_mask),
            "masks without a picture": len(self.without_picture),
        }
        return {name: n for name, n in counts.items() if n}


def find_unpaired(store: RunStore, table: str, key: str) -> UnpairedRows | None:
    """Rows of FACES or SAMPLES with a picture and no mask, or the reverse; None where no row has a mask.

    A row with neither, such as a failed row of a model without masks, is in no list.
    """
    rows, masks = 0, 0
    lists: tuple[list[str], list[str]] = ([], [])
    for piece in store.slices(table):
        # `path` is null where the whole struct is, and much smaller than `bytes`.
        part = read_slice(piece, [key, "image.path", "mask.path"])
        ids, image = part[key].to_pylist(), part["image"].is_valid().to_pylist()
        mask = part["mask"].is_valid().to_pylist() if "mask" in part.column_names else [False] * len(ids)
        rows, masks = rows + len(ids), masks + sum(mask)
        for row_id, has_picture, has_mask in zip(ids, image, mask, strict=True):
            if has_picture != has_mask:
                lists[has_mask].append(row_id)
    return UnpairedRows(rows, masks, *lists) if masks else None


def write_unpaired(stores: Stores, protocols: dict[str, Mapping[str, Any]], folder: FileStore) -> dict[str, object]:
    """Count the rows with a picture and no mask, or the reverse, which mIoU leaves out.

    The counts are returned as facts to be printed, and added to `protocols`. The ids are in `unpaired.json`.
    """
    facts: dict[str, object] = {}
    lists = {}
    for where, (store, table, key) in stores.items():
        unpaired = find_unpaired(store, table, key)
        if unpaired is not None and (counts := unpaired.counts()):
            lists[table] = {"without_mask": unpaired.without_mask, "without_picture": unpaired.without_picture}
            protocols[f"unpaired/{where}"] = {"not_compared": counts}
            facts |= {f"{name} [{where}]": f"{n:,} of {unpaired.rows:,} rows" for name, n in counts.items()}
    if lists:
        folder.update(UNPAIRED, json.dumps(lists, indent=1).encode())
        facts["listed in"] = folder.address(UNPAIRED)
    elif folder.exists(UNPAIRED):
        folder.remove(UNPAIRED)
    return facts
