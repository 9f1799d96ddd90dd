"""Listing rows -> files of the data set and EXPORTED rows: the worker of an export.

Knows how pictures are read a hundred at a time, brought to size, marked and handed to a format. A picture or mask that
cannot be read is a row with `error`, and the rest goes on. Knows no format.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from raygen.core.errors import InputError
from raygen.core.hashing import digest
from raygen.exports.base import DATASET, PIECES, STAGING, Export, Packed, Ready
from raygen.exports.columns import FIELDS, Naming
from raygen.exports.images import SOURCE_TYPES, encode_picture, fit, recipe
from raygen.store.filesystem import FileStore
from raygen.store.images import decode_image, decode_mask, encode_mask
from raygen.store.parquet import Slice, read_slice
from raygen.store.schemas import EXPORTED, FILES, reason_of

__all__ = ["ExportConfig", "ExportWorker"]


#: Rows whose stored pictures are in memory at once.
AT_ONCE: Final = 128
#: What a row brings; a table has those that it knows.
COLUMNS: Final = ("sample_id", "face_id", *FIELDS, "attributes", "texts", "image_sha256", "guidance")
WITH_ERROR: Final = EXPORTED.append(pa.field("error", pa.string()))


@dataclass(frozen=True)
class ExportConfig:
    """What a worker is told. `files`: paths that the listing numbers; `write` is False for a dry run."""

    format: Export
    out: str
    files: tuple[str, ...]
    parts: int
    naming: Naming
    made_by: str | None
    marks: bool
    constants: tuple[tuple[str, Any], ...] = ()
    text: str = "overall"
    write: bool = True


class ExportWorker:
    """One shard of an export. Holds no state between shards."""

    def __init__(self, config: ExportConfig) -> None:
        self.config = config
        self.source = None if config.made_by is None else SOURCE_TYPES[config.made_by]

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """No device work: all of it happens in the returned call."""
        return lambda: self._export(rows)

    def _export(self, listing: pa.Table) -> dict[str, pa.Table]:
        ready: list[Ready] = []
        failed: list[dict[str, Any]] = []
        for row in self._rows(listing):
            try:
                ready.append(self._ready(row))
            except InputError as error:
                failed.append({"sample_id": row["sample_id"], "path": "", "bytes": 0, "error": reason_of(error)})
        part = int(listing["part"][0].as_py()) if listing.num_rows else 0
        packed = self.config.format.pack(part, self.config.parts, ready)
        piece = None if packed.piece is None else f"{PIECES}/{part:05d}-{digest(packed.piece)[:12]}"
        if self.config.write:
            self._write(packed, piece)
        done = [self._done(row, place, piece) for row, place in zip(ready, packed.places, strict=True)]
        tables = {"exported": pa.Table.from_pylist([*done, *failed], WITH_ERROR)}
        if packed.files:
            files = [{"path": path, "bytes": len(data), "sha256": digest(data)} for path, data in packed.files.items()]
            tables["files"] = pa.Table.from_pylist(files, FILES)
        return tables

    def _write(self, packed: Packed, piece: str | None) -> None:
        storage = FileStore(self.config.out)
        storage.put_all({f"{DATASET}/{name}": data for name, data in packed.files.items()}, STAGING)
        if piece is not None and packed.piece is not None:
            storage.put(piece, packed.piece)

    def _done(self, row: Ready, place: Any, piece: str | None) -> dict[str, Any]:
        return {
            "sample_id": row.row["sample_id"],
            "path": place.path,
            "piece": piece,
            "offset": place.offset,
            "bytes": place.bytes,
            "mask_bytes": None if row.mask is None else len(row.mask),
            "label": row.label,
            "sha256": digest(row.image) if row.image else None,
        }

    def _rows(self, listing: pa.Table) -> Iterator[dict[str, Any]]:
        """The rows that `listing` names, in its order, with `label` beside what is stored."""
        columns = [*COLUMNS, *(["image"] if self.config.format.pictures else [])]
        columns += ["mask"] if self.config.format.takes_masks else []
        for file, wanted, labels in _runs(listing):
            piece = Slice(self.config.files[file], wanted[0], wanted[-1] - wanted[0] + 1)
            table = read_slice(piece, list(dict.fromkeys(columns))).take([row - wanted[0] for row in wanted])
            for row, label in zip(table.to_pylist(), labels, strict=True):
                yield self._complete(row, label)

    def _complete(self, row: dict[str, Any], label: int) -> dict[str, Any]:
        """What a row of FACES calls otherwise, what is the same for all, and what says that it is synthetic."""
        if "face_id" in row:
            row["sample_id"] = row["face_id"]
            row["text"] = dict(row.pop("texts", None) or ()).get(self.config.text)
        if row.get("guidance") is not None:
            row["guidance"] = {name: round(weight, 6) for name, weight in row["guidance"]}
        said = {"is_synthetic": self.source is not None, "digital_source_type": self.source}
        return {**dict(self.config.constants), **row, **said, "label": label}

    def _ready(self, row: Mapping[str, Any]) -> Ready:
        stem, label, config = self.config.naming.stem(row), int(row["label"]), self.config.format
        if not config.pictures:
            return Ready(stem, label, row)
        pixels = fit(decode_image((row["image"] or {}).get("bytes")), config.size)
        source = self.source if self.config.marks else None
        said = recipe(row) if source is not None else "{}"
        image = encode_picture(pixels, config.codec, quality=config.quality, source=source, said=said)
        mask = (row.get("mask") or {}).get("bytes") if config.takes_masks else None
        if mask is not None:
            mask = encode_mask(fit(decode_mask(mask), config.size, mask=True))
        kept = {name: value for name, value in row.items() if name not in ("image", "mask")}
        return Ready(stem, label, kept, image, mask)


def _runs(listing: pa.Table) -> Iterator[tuple[int, Sequence[int], Sequence[int]]]:
    """Consecutive rows of one file, at most `AT_ONCE`: file, rows in it, labels."""
    files, rows, labels = (listing[name].to_pylist() for name in ("file", "row", "label"))
    start = 0
    for end in range(1, len(files) + 1):
        if end == len(files) or files[end] != files[start] or rows[end] - rows[start] >= AT_ONCE:
            yield files[start], rows[start:end], labels[start:end]
            start = end
