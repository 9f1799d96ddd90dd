"""InsightFace RecordIO without MXNet: `train.rec`, `train.idx`, `train.lst`, `property`.

Knows two layers, both little endian. dmlc's stream: word 0xced7230a, word of 3 bits (whole 0, first 1, middle 2, last
3) and 29 bits of length, payload, zeros to the next multiple of 4; where the payload holds the first word at a multiple
of 4, it is cut there and the word left out. MXNet's image record: uint32 flag, float32 label, uint64 id, uint64 id2,
then `flag` float32 labels, then the picture.

Record 0 has flag 2 and labels [n + 1, n + 1 + identities]: `MXFaceDataset` of arcface_torch takes keys from 1 to before
labels[0] for pictures; older InsightFace readers take labels[0] to before labels[1] for a record an identity, whose two
labels are the first key of its pictures and the one after the last.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from raygen.core.errors import ConfigError, IntegrityError
from raygen.exports.base import Assembly, CountingWriter, Export, Packed, Ready, RecordLocation
from raygen.exports.images import PictureCodec

__all__ = ["MAGIC", "RecordIOExport", "framed", "packed_record"]


MAGIC: Final = struct.pack("<I", 0xCED7230A)
LENGTH_BITS: Final = 29
#: Keys are written as float32 labels, which hold no larger whole number exactly.
MOST: Final = 1 << 24
#: Bytes of all windows together, and limits of one.
WINDOWS: Final = 64 << 20
SMALLEST: Final = 32 << 10
LARGEST: Final = 1 << 20
#: Names that are turned into strings at once.
NAMES: Final = 1 << 16
Ints = npt.NDArray[np.int64]


def packed_record(key: int, labels: float | tuple[float, ...], picture: bytes = b"") -> bytes:
    """An image record: one label in the header, or several behind it."""
    if isinstance(labels, tuple):
        return struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0.0, key, 0, *labels) + picture
    return struct.pack("<IfQQ", 0, labels, key, 0) + picture


def framed(payload: bytes) -> bytes:
    """The payload as dmlc writes it into a stream."""
    cuts, at = [], payload.find(MAGIC)
    while at >= 0:
        if at % 4 == 0:
            cuts.append(at)
        at = payload.find(MAGIC, at + (4 if at % 4 == 0 else 1))
    starts, ends = [0, *(at + 4 for at in cuts)], [*cuts, len(payload)]
    frames = []
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        part = 0 if not cuts else 1 if number == 0 else 3 if number == len(cuts) else 2
        frames.append(MAGIC + struct.pack("<I", part << LENGTH_BITS | (end - start)) + payload[start:end])
    return b"".join(frames) + b"\0" * (-len(payload) % 4)


class RecordIOExport(Export):
    """What `train_v2.py` of arcface_torch and the MXNet trainers read."""

    identities: ClassVar[Literal["all", "even", "any"]] = "all"
    people: ClassVar[bool] = True

    kind: Literal["recordio"] = "recordio"
    size: int = Field(112, ge=8, le=4096, description="side of pictures; InsightFace's networks take 112")
    codec: PictureCodec = Field("jpeg", description="jpeg is what published sets hold; png is lossless")

    def check(self, rows: int, people: int) -> None:
        """Keys of pictures and identities are labels, too; see `MOST`."""
        if rows + people + 1 >= MOST:
            raise ConfigError(
                f"format recordio: {rows:,} pictures of {people:,} identities are more than float32 labels can number "
                f"({MOST - 1:,}); export in parts, or as webdataset, huggingface or folder"
            )

    def pack(self, part: int, parts: int, rows: Sequence[Ready]) -> Packed:
        """Pictures one after the other, by identity; keys and labels come when all shards are known."""
        order = sorted(range(len(rows)), key=lambda i: rows[i].label)
        ends = dict(zip(order, accumulate(len(rows[i].image) for i in order), strict=True))
        places = [
            RecordLocation(f"{row.stem}.{self.ending}", ends[i] - len(row.image), len(row.image))
            for i, row in enumerate(rows)
        ]
        return Packed(places, piece=b"".join(rows[i].image for i in order))

    def assemble(self, assembly: Assembly) -> None:
        """The four files, pictures in the order of identities; they appear with the last, which is the index."""
        rows = _Rows(assembly)
        n, people = len(rows.label), len(assembly.people)
        counts = np.bincount(rows.label, minlength=people)
        ends = 1 + np.cumsum(counts)
        with (
            assembly.building("property") as about,
            assembly.building("train.idx") as index,
            assembly.building("train.lst") as listing,
            assembly.building("train.rec") as file,
        ):
            about.write(f"{people},{self.size},{self.size}".encode())
            _write(file, index, 0, packed_record(0, (n + 1.0, n + 1.0 + people)))
            order = np.argsort(rows.label, kind="stable")
            for key, (place, path) in enumerate(zip(order.tolist(), rows.paths(order), strict=True), 1):
                label = float(rows.label[place])
                _write(file, index, key, packed_record(key, label, rows.picture(place)))
                listing.write(f"{key}\t{label:f}\t{path}\n".encode())
            for number, end in enumerate(ends.tolist()):
                key = n + 1 + number
                _write(file, index, key, packed_record(key, (float(end - counts[number]), float(end))))

    def reading(self) -> str:
        """See `Export.reading`."""
        return (
            "`train.rec`, `train.idx`, `train.lst`, `property`: for InsightFace's arcface_torch set "
            "`config.rec` to this folder, "
            "`config.num_classes` to the number of identities and `config.num_image` to the number of pictures. "
            f"Records hold {self.codec.upper()} of {self.size} px"
            + (f", quality {self.quality}, 4:4:4" if self.codec == "jpeg" else "")
            + ". `train.idx` names every record. Record 0 and the last ones, a record an identity, hold labels and no "
            "picture, as in InsightFace's own sets: arcface_torch's `MXFaceDataset` knows them, but DALI's "
            "`readers.mxnet` hands all of them to its decoder, so give DALI an index of the keys in `train.lst` alone."
            " Pictures were resized, not aligned to landmarks: trainers expect five-point alignment, so align "
            "before training where faces are not already in place. Masks and attributes have no place in this format."
        )


def _write(file: CountingWriter, index: CountingWriter, key: int, payload: bytes) -> None:
    index.write(f"{key}\t{file.tell()}\n".encode())
    file.write(framed(payload))


class _Rows:
    """Labels, places and names of all pictures (about 70 bytes each), and a window into each piece.

    A piece holds its pictures by identity, so each is read from its beginning to its end, all of them side by side.
    """

    def __init__(self, assembly: Assembly) -> None:
        self._storage = assembly.storage
        self._pieces: list[str] = []
        parts, names = [np.empty((4, 0), np.int64)], []
        for table in assembly.tables():
            parts.append(self._part(table))
            names.append(table["path"].combine_chunks())
        self.label, self._piece, self._offset, self._bytes = np.concatenate(parts, axis=1)
        self._paths = pa.chunked_array(names, pa.string())
        self._window = min(max(WINDOWS // max(len(self._pieces), 1), SMALLEST), LARGEST)
        self._windows: dict[int, tuple[int, bytes]] = {}

    def _part(self, table: pa.Table) -> Ints:
        known = table["piece"].combine_chunks().dictionary_encode()
        piece = np.asarray(known.indices).astype(np.int64) + len(self._pieces)
        self._pieces += known.dictionary.to_pylist()
        label, offset, size = (np.asarray(table[name]).astype(np.int64) for name in ("label", "offset", "bytes"))
        return np.stack([label, piece, offset, size])

    def picture(self, place: int) -> bytes:
        """Bytes of the picture at `place`."""
        piece, start, size = int(self._piece[place]), int(self._offset[place]), int(self._bytes[place])
        first, data = self._windows.get(piece, (0, b""))
        if not first <= start <= start + size <= first + len(data):
            first = start
            data = self._storage.get_range(self._pieces[piece], start, start + max(size, self._window))
            self._windows[piece] = first, data
        found = data[start - first : start - first + size]
        if len(found) != size:
            raise IntegrityError(f"{self._pieces[piece]} is shorter than what was committed")
        return found

    def paths(self, order: Ints) -> Iterator[str]:
        """Names in that order."""
        for start in range(0, len(order), NAMES):
            yield from self._paths.take(pa.array(order[start : start + NAMES])).to_pylist()
