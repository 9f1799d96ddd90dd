"""The worker of an export: rows of an `ExportListing` -> files of the data set, and EXPORTED rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Final

import pyarrow as pa

from raygen.core.errors import InputError
from raygen.core.hashing import digest
from raygen.core.landmarks import REASON, from_mask, stored_points
from raygen.core.types import UInt8Array
from raygen.exports.base import DATASET, PIECES, STAGING, Export, ExportRow, PackedShard
from raygen.exports.columns import FIELDS, NamingScheme
from raygen.exports.credentials import Credentials, PictureSigner, sign_once
from raygen.exports.images import SOURCE_TYPES, encode_picture, fit, recipe
from raygen.store.face_crop import crop
from raygen.store.filesystem import FileStore
from raygen.store.images import decode_image, decode_mask, encode_mask
from raygen.store.parquet import Slice, read_slice
from raygen.store.schemas import EXPORTED, FILES, reason_of, texts_by_name

__all__ = ["ExportConfig", "ExportWorker"]


#: Stored rows that are read at once.
ROWS_AT_ONCE: Final = 128
#: Columns that are read, where the table has them.
COLUMNS: Final = ("sample_id", "face_id", *FIELDS, "attributes", "texts", "image_sha256", "guidance", "method")
WITH_ERROR: Final = EXPORTED.append(pa.field("error", pa.string()))


@dataclass(frozen=True)
class ExportConfig:
    """Settings of an `ExportWorker`.

    `files`: stored tables, by the number that the listing has for them. `parts`: shards of the export. `made_by`: see
    `ExportSource.made_by`. `marks`: whether pictures are marked as synthetic. `constants`: columns with the same value
    in all rows. `text`: which of the texts of a face is exported. `write`: False for a dry run. `credentials`: of the
    one who signs the pictures, if any.
    """

    format: Export
    out: str
    files: tuple[str, ...]
    parts: int
    naming: NamingScheme
    made_by: str | None
    marks: bool
    constants: tuple[tuple[str, Any], ...] = ()
    text: str = "overall"
    write: bool = True
    credentials: Credentials | None = None


class ExportWorker:
    """Exports one shard a call of `start`; a picture or mask that cannot be read becomes a row with `error`."""

    def __init__(self, config: ExportConfig) -> None:
        self.config = config
        self.source_type = None if config.made_by is None else SOURCE_TYPES[config.made_by]
        self.signer = None if config.credentials is None else PictureSigner(config.credentials)

    def environment(self) -> dict[str, str]:
        """What commits record: the certificate and library of signed pictures."""
        if self.config.credentials is None:
            return {}
        return {"c2pa": version("c2pa-python"), "certificate_sha256": self.config.credentials.sha256}

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """No device work: the returned call does all."""
        return lambda: self._export(rows)

    def _export(self, listing: pa.Table) -> dict[str, pa.Table]:
        rows: list[ExportRow] = []
        failed: list[dict[str, Any]] = []
        for stored in self._read(listing):
            try:
                rows.append(self._encode(stored))
            except InputError as error:
                failed.append({"sample_id": stored["sample_id"], "path": "", "bytes": 0, "error": reason_of(error)})
        part = int(listing["part"][0].as_py()) if listing.num_rows else 0
        rows = self._signed(part, rows)
        packed = self.config.format.pack(part, self.config.parts, rows)
        piece = None if packed.piece is None else f"{PIECES}/{part:05d}-{digest(packed.piece)[:12]}"
        if self.config.write:
            self._write(packed, piece)
        exported = [
            {
                "sample_id": row.row["sample_id"],
                "path": location.path,
                "piece": piece,
                "offset": location.offset,
                "bytes": location.bytes,
                "mask_bytes": None if row.mask is None else len(row.mask),
                "label": row.label,
                "sha256": digest(row.image) if row.image else None,
            }
            for row, location in zip(rows, packed.locations, strict=True)
        ]
        tables = {"exported": pa.Table.from_pylist([*exported, *failed], WITH_ERROR)}
        if packed.files:
            files = [{"path": path, "bytes": len(data), "sha256": digest(data)} for path, data in packed.files.items()]
            tables["files"] = pa.Table.from_pylist(files, FILES)
        return tables

    def _signed(self, part: int, rows: list[ExportRow]) -> list[ExportRow]:
        """The rows of shard number `part` with signed pictures, where the export signs them."""
        if self.signer is None or self.source_type is None:
            return rows
        stored = (FileStore(self.config.out), f"{PIECES}/{part:05d}-signed") if self.config.write else None
        pictures = [(str(row.row["sample_id"]), row.image) for row in rows]
        method = rows[0].row.get("method") if rows else None  # a run of another method's pictures has no others
        signed = sign_once(self.signer, pictures, self.config.format.codec, self.source_type, stored, method)
        return [replace(row, image=image) for row, image in zip(rows, signed, strict=True)]

    def _write(self, packed: PackedShard, piece: str | None) -> None:
        storage = FileStore(self.config.out)
        files = {f"{DATASET}/{name}": data for name, data in packed.files.items()}
        if self.signer is None:
            storage.put_all(files, STAGING)
        else:  # an attempt that comes when the export has ended would have other signatures
            storage.put_all_once(files, STAGING)
        if piece is not None and packed.piece is not None:
            storage.put(piece, packed.piece)

    def _read(self, listing: pa.Table) -> Iterator[dict[str, Any]]:
        """The stored rows that `listing` names, in its order, with `label` and the constants.

        Columns of FACES are renamed to those of SAMPLES.
        """
        columns = [*COLUMNS, *(["image"] if self.config.format.pictures else [])]
        columns += ["mask"] if self.config.format.has_masks or self.config.format.template is not None else []
        columns += ["landmarks"] if self.config.format.template is not None else []
        synthetic = {"is_synthetic": self.source_type is not None, "digital_source_type": self.source_type}
        for file, numbers, labels in _runs(listing):
            piece = Slice(self.config.files[file], numbers[0], numbers[-1] - numbers[0] + 1)
            table = read_slice(piece, list(dict.fromkeys(columns))).take([row - numbers[0] for row in numbers])
            for row, label in zip(table.to_pylist(), labels, strict=True):
                if "face_id" in row:
                    row["sample_id"] = row["face_id"]
                    row["text"] = texts_by_name(row.pop("texts", None)).get(self.config.text)
                if row.get("guidance") is not None:
                    weights = row["guidance"].items()
                    row["guidance"] = {name: round(weight, 6) for name, weight in weights if weight is not None}
                yield {**dict(self.config.constants), **row, **synthetic, "label": label}

    def _encode(self, row: Mapping[str, Any]) -> ExportRow:
        """`InputError` where picture or mask cannot be decoded, resized or aligned."""
        stem, label, config = self.config.naming.stem(row), int(row["label"]), self.config.format
        if not config.pictures:
            return ExportRow(stem, label, row)
        pixels = decode_image((row["image"] or {}).get("bytes"))
        stored = (row.get("mask") or {}).get("bytes")
        mask = None if stored is None else decode_mask(stored)
        pixels, mask = _placed(config, pixels, mask, row.get("landmarks"))
        source_type = self.source_type if self.config.marks else None
        recipe_json = recipe(row) if source_type is not None else "{}"
        image = encode_picture(
            pixels, config.codec, quality=config.quality, source=source_type, recipe_json=recipe_json
        )
        encoded = encode_mask(mask) if mask is not None and config.has_masks else None
        columns = {name: value for name, value in row.items() if name not in ("image", "mask", "landmarks")}
        return ExportRow(stem, label, columns, image, encoded)


def _placed(
    config: Export, pixels: UInt8Array, mask: UInt8Array | None, landmarks: Mapping[str, Any] | None
) -> tuple[UInt8Array, UInt8Array | None]:
    """A picture and its mask in the size of the export, aligned where the export is; see `crop` and `fit`.

    `landmarks`: what the row has in that column; they are taken from the mask where it has none.
    """
    template = config.template
    if template is None or config.size is None:
        return fit(pixels, config.size), None if mask is None else fit(mask, config.size, mask=True)
    if landmarks is not None:
        points = stored_points(landmarks)
    elif mask is None:
        raise InputError("the row has no mask and no landmarks, so it cannot be aligned", reason=REASON)
    else:
        points = from_mask(mask)
    aligned = None if mask is None else crop(mask, points, template, config.size, mask=True)
    return crop(pixels, points, template, config.size), aligned


def _runs(listing: pa.Table) -> Iterator[tuple[int, Sequence[int], Sequence[int]]]:
    """Rows of `listing` that are read together, within `ROWS_AT_ONCE` rows of a file: file, rows in it, labels."""
    files, rows, labels = (listing[name].to_pylist() for name in ("file", "row", "label"))
    start = 0
    for end in range(1, len(files) + 1):
        if end == len(files) or files[end] != files[start] or rows[end] - rows[start] >= ROWS_AT_ONCE:
            yield files[start], rows[start:end], labels[start:end]
            start = end
