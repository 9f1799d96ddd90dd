"""The base class of export formats, and what a format works with: rows, packed shards, the assembly of pieces.

out/attempt-00/     plan, commits and EXPORTED rows, as in every run; pieces, until they are joined into files
out/dataset/        the data set; complete once README.md, the data card, exists. SHA256SUMS lists every other
                    file in the form that `sha256sum --check` reads
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, BinaryIO, ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from raygen.core.config import Config
from raygen.core.landmarks import ARCFACE_TEMPLATE
from raygen.core.types import Float64Array
from raygen.exports.croissant_nodes import DataSetParts, file_object
from raygen.exports.images import PictureCodec
from raygen.store.filesystem import FileStore
from raygen.store.run_store import RunStore

__all__ = [
    "CHUNK",
    "DATASET",
    "PIECES",
    "STAGING",
    "Assembly",
    "CountingWriter",
    "Export",
    "ExportRow",
    "IdentityRule",
    "PackedShard",
    "RecordLocation",
]


DATASET: Final = "dataset"
PIECES: Final = "attempt-00/pieces"
STAGING: Final = "attempt-00/staging"
#: Bytes of a file that are in memory at once while pieces are joined or files are checked.
CHUNK: Final = 4 << 20


@dataclass(frozen=True)
class ExportRow:
    """A row to export. `stem`: its path without extension. `label`: number of its identity, or -1.

    `row`: its columns but pictures. `image`, `mask`: encoded as the export has them.
    """

    stem: str
    label: int
    row: Mapping[str, Any]
    image: bytes = b""
    mask: bytes | None = None


@dataclass(frozen=True)
class RecordLocation:
    """Where the picture of a row is: `path` in the data set, and offset and size in that file or in the piece."""

    path: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class PackedShard:
    """One shard in an export format: the location of each row, files of the data set by path, a piece of a file."""

    locations: Sequence[RecordLocation]
    files: Mapping[str, bytes] = field(default_factory=dict)
    piece: bytes | None = None


class CountingWriter:
    """Counts and hashes the bytes that are written to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)

    def tell(self) -> int:
        """Number of bytes written so far."""
        return self.bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes written so far."""
        return self._hash.hexdigest()


class Assembly:
    """Joins the pieces of a committed export into files.

    `identities`: names in the order of labels. `written`: size and SHA-256 of each file written here; the files that
    shards wrote are in the committed table FILES.
    """

    def __init__(self, store: RunStore, storage: FileStore, identities: Sequence[str]) -> None:
        self.store, self.storage, self.identities = store, storage, identities
        self.written: dict[str, tuple[int, str]] = {}

    def tables(self) -> Iterator[pa.Table]:
        """EXPORTED rows, a table a shard, in the order of shards."""
        return self.store.tables("exported")

    def files(self) -> Iterator[tuple[str, int, str]]:
        """Path, size and SHA-256 of every file so far: those of shards, then those written here."""
        for table in self.store.tables("files"):
            for row in table.to_pylist():
                yield row["path"], row["bytes"], row["sha256"]
        for path, (size, sha256) in sorted(self.written.items()):
            yield path, size, sha256

    @contextmanager
    def building(self, name: str) -> Iterator[CountingWriter]:
        """A context to write the file `name` of the data set, which appears when it is complete."""
        with self.storage.building(f"{DATASET}/{name}", STAGING) as file:
            writer = CountingWriter(file)
            yield writer
        self.written[name] = writer.bytes, writer.sha256

    def join_pieces(self, name: str, head: bytes) -> None:
        """Write the file `name`: `head`, then all pieces in the order of shards. Memory: `CHUNK`."""
        with self.building(name) as file:
            file.write(head)
            for table in self.tables():
                for piece in table["piece"].unique().to_pylist():
                    size = self.storage.size(piece)
                    for at in range(0, size, CHUNK):
                        file.write(self.storage.get_range(piece, at, min(at + CHUNK, size)))


#: Left and right eye, nose, left and right corner of the mouth, as they lie in the picture.
FivePoints = Annotated[tuple[tuple[float, float], ...], Field(min_length=5, max_length=5)]
#: See `Export.identities`.
IdentityRule = Literal["required", "all_or_none", "optional"]


class Export(Config):
    """An export format. Subclasses set `kind: Literal[...]` and add their settings."""

    #: Whether rows need an identity: each of them, either all or none, or not.
    identities: ClassVar[IdentityRule] = "optional"
    #: Whether paths of rows are `identity/row`.
    identity_folders: ClassVar[bool] = False
    #: Whether dots in names are replaced: a reader of tar shards takes the part after the first dot for an extension.
    no_dots: ClassVar[bool] = False
    #: Whether the format holds pictures.
    pictures: ClassVar[bool] = True
    #: Pattern of the files that Hugging Face should load; None where it cannot load the format.
    hub_files: ClassVar[str | None] = None

    kind: str
    size: int | None = Field(
        None, ge=8, le=4096, description="side of the exported pictures, pixels; none keeps the stored size"
    )
    align: Literal["none", "arcface"] | FivePoints = Field(
        "none",
        description="crop each picture to its face, so that the eyes, the nose and the corners of the mouth lie where "
        "recognition networks expect them: arcface for the template of ArcFace, or five points [x, y] as fractions of "
        "the sides; takes the landmarks of the column `landmarks`, or else those of the mask",
    )
    codec: PictureCodec = Field("png", description="file format of the pictures; png and webp are lossless")
    quality: int = Field(95, ge=1, le=100, description="quality of jpeg")

    @model_validator(mode="after")
    def _aligned_pictures_have_a_size(self) -> "Export":
        if self.align == "none":
            return self
        if not self.pictures:
            raise ValueError("align: the format holds no pictures")
        if self.size is None:
            raise ValueError("align: crops need a `size`, such as 112")
        return self

    @property
    def template(self) -> Float64Array | None:
        """Where the landmarks of an aligned picture lie, fractions of its sides [5, 2]; None without alignment."""
        if self.align == "none":
            return None
        return ARCFACE_TEMPLATE if self.align == "arcface" else np.array(self.align, dtype=np.float64)

    @property
    def has_masks(self) -> bool:
        """Whether masks are exported."""
        return bool(getattr(self, "masks", False))

    @property
    def extension(self) -> str:
        """Extension of picture files."""
        return "jpg" if self.codec == "jpeg" else self.codec

    def check(self, rows: int, identities: int) -> None:
        """`ConfigError` where the format cannot hold so many rows or identities. Called before any work."""

    @abstractmethod
    def pack(self, part: int, parts: int, rows: Sequence[ExportRow]) -> PackedShard:
        """Shard number `part` of `parts` in this format; the same rows give the same bytes."""

    def assemble(self, assembly: Assembly) -> None:
        """Join pieces into files, where the format has pieces. Called once, when every shard is committed."""

    def warnings(self) -> tuple[str, ...]:
        """Readers of the format that cannot read it with these settings; the command prints them."""
        return ()

    def hub_features(self, *, masks: bool) -> list[dict[str, Any]] | None:
        """Types of the columns as `dataset_info.features` of the data card; None where the files say them.

        `masks`: whether any row has one.
        """
        return None

    def describe(self, assembly: Assembly, *, masks: bool) -> DataSetParts:
        """What `croissant.json` says of the files and their rows; by default a list of all files.

        `masks`: whether any row has one. Called after `assemble`.
        """
        return DataSetParts([file_object(*file) for file in assembly.files()])

    @abstractmethod
    def usage(self) -> str:
        """A paragraph of the data card, Markdown: the files, and how to load them."""
