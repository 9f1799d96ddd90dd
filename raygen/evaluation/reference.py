"""The reference of an evaluation: real pictures, scored once, and what must fit before anything is compared with them.

Knows what a prepared reference says of itself (`reference.json` beside its scores). Does not know how anything is
measured.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import pyarrow as pa

from raygen.core.errors import ConfigError
from raygen.store.filesystem import FileStore
from raygen.store.images import decode_image
from raygen.store.parquet import read_slice
from raygen.store.run_store import RunStore, open_input

__all__ = ["NETWORKS", "ReferenceSet", "Unpaired", "picture_size", "unpaired"]


FILE: Final = "reference.json"
SCORES: Final = "scores/reference"
#: Settings of a score that say with which networks pictures are looked at.
NETWORKS: Final = ("parser", "features", "classifier", "face_features", "identity")


@dataclass(frozen=True)
class ReferenceSet:
    """FACES that samples are compared with: their digest, how they were made, the size of their pictures."""

    url: str
    content: str
    made: Mapping[str, Any]
    size: tuple[int, int]  # height, width
    scores: RunStore | None = None  # where they are scored already
    score: Mapping[str, Any] | None = None  # and with what

    @staticmethod
    def open(url: str) -> "ReferenceSet":
        """Of an ingest run, or of an earlier evaluation, whose scores are used again.

        `ConfigError` where neither is at `url`, or where it holds no pictures.
        """
        storage = FileStore(url)
        if storage.exists(FILE):
            said = json.loads(storage.get(FILE))
            store, _ = open_input(f"{url.rstrip('/')}/{SCORES}")
            return ReferenceSet(url, said["faces"], said["made"], tuple(said["size"]), store, said["score"])
        store, content = open_input(url)
        size = picture_size(store, "faces")
        if size is None:
            raise ConfigError(f"{url}: holds no pictures to compare with")
        return ReferenceSet(url, content, store.plan().settings.get("data") or {}, size)

    def record(self, score: Mapping[str, Any], out: str) -> None:
        """Write what `open` reads of the evaluation in `out`, which scored these pictures with `score`."""
        said = {"faces": self.content, "made": self.made, "size": self.size, "score": score}
        FileStore(out).put(FILE, json.dumps(said, indent=1, sort_keys=True).encode())

    def tables(self) -> Iterator[pa.Table]:
        """SCORES of a prepared reference."""
        return iter(()) if self.scores is None else self.scores.tables("scores")

    def check(self, score: Mapping[str, Any], samples: RunStore) -> None:
        """`ConfigError` where samples cannot be compared: scored with other networks, or of another size.

        `score`: networks by their content. A distance over pictures that were resized differently measures the
        resizing (evaluation protocols of FID differ by more than models do), so sizes are brought together on purpose,
        by an ingest run, or not at all.
        """
        self.check_networks(score)
        if score.get("features") is None:
            return
        self.check_size(samples, "samples")

    def check_size(self, store: RunStore, table: str) -> None:
        """`ConfigError` where the pictures of a run have another size."""
        size = picture_size(store, table)
        if size is not None and size != self.size:
            raise ConfigError(
                f"{store.url} has pictures of {_words(size)}, the reference {self.url} of {_words(self.size)}; "
                "ingest one at the other's size, so that the resize is on record"
            )

    def check_networks(self, score: Mapping[str, Any]) -> None:
        """`ConfigError` where this was scored with others, both named by their content."""
        for name in NETWORKS if self.score is not None else ():
            assert self.score is not None
            if self.score.get(name) != score.get(name):
                theirs, ours = (json.dumps(s.get(name), sort_keys=True) for s in (self.score, score))
                raise ConfigError(f"{self.url} was scored with {name} {theirs}, this evaluation asks for {ours}")


def picture_size(store: RunStore, table: str) -> tuple[int, int] | None:
    """Height and width of the first picture in a run; None where it has none."""
    for piece in store.slices(table):
        rows = read_slice(piece._replace(rows=min(piece.rows, 64)), ["image"])
        for value in rows["image"].to_pylist():
            if value is not None:
                shape = decode_image(value["bytes"]).shape
                return int(shape[0]), int(shape[1])
    return None


def _words(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} px"


class Unpaired(NamedTuple):
    """Ids by what is missing, of a table with `rows` rows, `masks` of them with a mask."""

    rows: int
    masks: int
    without_mask: Sequence[str]
    without_picture: Sequence[str]

    def counts(self) -> Mapping[str, int]:
        """How many there are of each kind, in words; empty where every picture has its mask."""
        found = {
            "pictures without a mask": len(self.without_mask),
            "masks without a picture": len(self.without_picture),
        }
        return {name: n for name, n in found.items() if n}


def unpaired(store: RunStore, table: str, key: str) -> Unpaired | None:
    """Of the FACES or SAMPLES in `store`; None where no row has a mask, because then none was wanted.

    A row with neither, such as a failed one of a model without masks, is in no list.
    """
    rows, masks = 0, 0
    lists: tuple[list[str], list[str]] = ([], [])
    for piece in store.slices(table):
        # The small field of the two says as well whether the pair of them is null.
        part = read_slice(piece, [key, "image.path", "mask.path"])
        ids, image = part[key].to_pylist(), part["image"].is_valid().to_pylist()
        mask = part["mask"].is_valid().to_pylist() if "mask" in part.column_names else [False] * len(ids)
        rows, masks = rows + len(ids), masks + sum(mask)
        for one, picture, wanted in zip(ids, image, mask, strict=True):
            if picture != wanted:
                lists[wanted].append(one)
    return Unpaired(rows, masks, *lists) if masks else None
