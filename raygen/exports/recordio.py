"""InsightFace RecordIO without MXNet: `train.rec`, `train.idx`, `train.lst`, `property`.

There are two layers, both little endian. dmlc's stream: word 0xced7230a; word of 3 bits (whole 0, first 1, middle 2,
last 3) and 29 bits of length; payload; zeros to the next multiple of 4. Where the payload holds the first word at a
multiple of 4, it is cut there and the word is left out. MXNet's image record: uint32 flag, float32 label, uint64 id,
uint64 id2, then `flag` float32 labels, then the picture.

Record 0 has flag 2 and labels [n + 1, n + 1 + identities]. `MXFaceDataset` of arcface_torch takes keys from 1 to below
labels[0] for pictures. Older InsightFace readers take keys from labels[0] to below labels[1] for a record an identity,
whose two labels are the first key of its pictures and the one after the last.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from raygen.core.errors import ConfigError, IntegrityError
from raygen.core.types import Int64Array
from raygen.exports.base import (
    Assembly,
    CountingWriter,
    Export,
    ExportRow,
    IdentityRule,
    PackedShard,
    RecordLocation,
)
from raygen.exports.images import PictureCodec

__all__ = ["MAGIC", "RecordIOExport", "framed", "packed_record"]


MAGIC: Final = struct.pack("<I", 0xCED7230A)
LENGTH_BITS: Final = 29
#: Keys are written as float32 labels, which represent no larger whole number exactly.
MAX_KEY: Final = 1 << 24
#: Bytes of all read buffers together, and limits of one.
ALL_BUFFERS: Final = 64 << 20
MIN_BUFFER: Final = 32 << 10
MAX_BUFFER: Final = 1 << 20
#: Measured with the record files of this module.
WEBP: Final = "MXNet 1.9.1's own decoders refuse WebP, DALI 2.4 reads it; codec jpeg or png is read by both"
#: Paths that are converted to Python strings at once.
PATHS_AT_ONCE: Final = 1 << 16


def packed_record(key: int, labels: float | tuple[float, ...], picture: bytes = b"") -> bytes:
    """MXNet's image record: one label in the header, or several after it."""
    if isinstance(labels, tuple):
        return struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0.0, key, 0, *labels) + picture
    return struct.pack("<IfQQ", 0, labels, key, 0) + picture


def framed(payload: bytes) -> bytes:
    """The payload as a record of dmlc's stream."""
    cuts, position = [], payload.find(MAGIC)
    while position >= 0:
        if position % 4 == 0:
            cuts.append(position)
        position = payload.find(MAGIC, position + (4 if position % 4 == 0 else 1))
    starts, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(payload)]
    frames = []
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        part = 0 if not cuts else 1 if number == 0 else 3 if number == len(cuts) else 2
        frames.append(MAGIC + struct.pack("<I", part << LENGTH_BITS | (end - start)) + payload[start:end])
    return b"".join(frames) + b"\0" * (-len(payload) % 4)


class RecordIOExport(Export):
    """The format that `train_v2.py` of arcface_torch and the MXNet trainers read."""

    identities: ClassVar[IdentityRule] = "required"
    identity_folders: ClassVar[bool] = True

    kind: Literal["recordio"] = "recordio"
    size: int = Field(
        112, ge=8, le=4096, description="side in pixels that pictures are resized to; InsightFace's networks take 112"
    )
    codec: PictureCodec = Field(
        "jpeg",
        description="file format of the pictures: jpeg is usual, png is lossless, webp is refused by MXNet's decoders",
    )

    def check(self, rows: int, identities: int) -> None:
        """See `Export.check` and `MAX_KEY`: keys of pictures and identities are stored as labels."""
        if rows + identities + 1 >= MAX_KEY:
            raise ConfigError(
                f"format recordio: {rows:,} pictures of {identities:,} identities are more than float32 labels can "
                f"number ({MAX_KEY - 1:,}); export in parts, or as webdataset, huggingface or folder"
            )

    def warnings(self) -> tuple[str, ...]:
        """See `Export.warnings`."""
        return (WEBP,) if self.codec == "webp" else ()

    def pack(self, part: int, parts: int, rows: Sequence[ExportRow]) -> PackedShard:
        """The pictures, by identity; keys and labels follow when all shards are known."""
        order = sorted(range(len(rows)), key=lambda i: rows[i].label)
        ends = dict(zip(order, accumulate(len(rows[i].image) for i in order), strict=True))
        locations = [
            RecordLocation(f"{row.stem}.{self.extension}", ends[i] - len(row.image), len(row.image))
            for i, row in enumerate(rows)
        ]
        return PackedShard(locations, piece=b"".join(rows[i].image for i in order))

    def assemble(self, assembly: Assembly) -> None:
        """The four files, pictures in the order of identities."""
        pictures = _PieceReader(assembly)
        n, identities = len(pictures.label), len(assembly.identities)
        counts = np.bincount(pictures.label, minlength=identities)
        ends = 1 + np.cumsum(counts)
        with (
            assembly.building("property") as properties,
            assembly.building("train.idx") as index,
            assembly.building("train.lst") as listing,
            assembly.building("train.rec") as file,
        ):
            properties.write(f"{identities},{self.size},{self.size}".encode())
            _write(file, index, 0, packed_record(0, (n + 1.0, n + 1.0 + identities)))
            order = np.argsort(pictures.label, kind="stable")
            for key, (row, path) in enumerate(zip(order.tolist(), pictures.paths(order), strict=True), 1):
                label = float(pictures.label[row])
                _write(file, index, key, packed_record(key, label, pictures.read(row)))
                listing.write(f"{key}\t{label:f}\t{path}\n".encode())
            for number, end in enumerate(ends.tolist()):
                key = n + 1 + number
                _write(file, index, key, packed_record(key, (float(end - counts[number]), float(end))))

    def usage(self) -> str:
        """See `Export.usage`."""
        return (
            "`train.rec`, `train.idx`, `train.lst`, `property`: for InsightFace's arcface_torch set "
            "`config.rec` to this folder, "
            "`config.num_classes` to the number of identities and `config.num_image` to the number of pictures. "
            f"Records hold {self.codec.upper()} of {self.size} px"
            + (f", quality {self.quality}, 4:4:4" if self.codec == "jpeg" else "")
            + ". `train.idx` names every record. Record 0 and the last ones, a record an identity, hold labels and no "
            "picture, as in InsightFace's own sets: arcface_torch's `MXFaceDataset` skips them. Other readers do not. "
            "MXNet's `mx.io.ImageRecordIter` stops with an error at record 0; Gluon's `ImageRecordDataset` counts "
            "them as pictures, each an error; DALI's `readers.mxnet` hands all of them to its decoder, so give DALI an "
            "index of the keys in `train.lst` alone, and read by these keys (`MXIndexedRecordIO.read_idx`) with MXNet. "
            + "".join(f"{warning}. " for warning in self.warnings())
            + (
                "Pictures were resized, not aligned to landmarks: trainers expect five-point alignment, so export with "
                "`format.align: arcface` where faces are not aligned yet. "
                if self.align == "none"
                else ""
            )
            + "This format has no masks and no attributes."
        )


def _write(file: CountingWriter, index: CountingWriter, key: int, payload: bytes) -> None:
    index.write(f"{key}\t{file.tell()}\n".encode())
    file.write(framed(payload))


class _PieceReader:
    """Labels, paths and pictures of all rows, in the order of shards. About 70 bytes a row, and a buffer a piece.

    A piece holds its pictures by identity. Read in the order of identities, each piece is read once from its beginning
    to its end, all pieces in parallel.
    """

    def __init__(self, assembly: Assembly) -> None:
        self._storage = assembly.storage
        self._pieces: list[str] = []
        columns, paths = [np.empty((4, 0), np.int64)], []
        for table in assembly.tables():
            pieces = table["piece"].combine_chunks().dictionary_encode()
            piece = np.asarray(pieces.indices).astype(np.int64) + len(self._pieces)
            self._pieces += pieces.dictionary.to_pylist()
            label, offset, size = (np.asarray(table[name]).astype(np.int64) for name in ("label", "offset", "bytes"))
            columns.append(np.stack([label, piece, offset, size]))
            paths.append(table["path"].combine_chunks())
        self.label, self._piece, self._offset, self._bytes = np.concatenate(columns, axis=1)
        self._paths = pa.chunked_array(paths, pa.string())
        self._buffer_size = min(max(ALL_BUFFERS // max(len(self._pieces), 1), MIN_BUFFER), MAX_BUFFER)
        self._buffers: dict[int, tuple[int, bytes]] = {}  # by piece: offset of the first byte, and the bytes

    def read(self, row: int) -> bytes:
        """Bytes of the picture of a row."""
        piece, start, size = int(self._piece[row]), int(self._offset[row]), int(self._bytes[row])
        first, data = self._buffers.get(piece, (0, b""))
        if not first <= start <= start + size <= first + len(data):
            first = start
            data = self._storage.get_range(self._pieces[piece], start, start + max(size, self._buffer_size))
            self._buffers[piece] = first, data
        picture = data[start - first : start - first + size]
        if len(picture) != size:
            raise IntegrityError(f"{self._pieces[piece]} is shorter than committed")
        return picture

    def paths(self, order: Int64Array) -> Iterator[str]:
        """Paths of the rows of `order`."""
        for start in range(0, len(order), PATHS_AT_ONCE):
            yield from self._paths.take(pa.array(order[start : start + PATHS_AT_ONCE])).to_pylist()
