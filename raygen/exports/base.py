"""What every export has in common: finished rows in, files and pieces out, and what puts the pieces together.

Knows the contract. Knows no format, and not how rows are read or who hands them out.

    out/attempt-00/     plan, commits and EXPORTED rows, as of every run; pieces until they are put together
    out/dataset/        what a trainer reads: complete once README.md, the data card, is there; SHA256SUMS names every
                        other file as `sha256sum --check` reads it
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar, Final, Literal

import pyarrow as pa
from pydantic import Field

from raygen.core.config import Config
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
    "Packed",
    "Ready",
    "RecordLocation",
]


DATASET: Final = "dataset"
PIECES: Final = "attempt-00/pieces"
STAGING: Final = "attempt-00/staging"
#: Bytes of a file that are held at once while pieces are put together or files are checked.
CHUNK: Final = 4 << 20


@dataclass(frozen=True)
class Ready:
    """One row as it will be exported: `stem` its path without ending, `label` its identity's number or -1."""

    stem: str
    label: int
    row: Mapping[str, Any]
    image: bytes = b""
    mask: bytes | None = None


@dataclass(frozen=True)
class RecordLocation:
    """Where a row went: `path` in the data set, and offset and size there or in the piece."""

    path: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class Packed:
    """What one shard becomes: files of the data set by path, a piece of a file, and the place of every row."""

    places: Sequence[RecordLocation]
    files: Mapping[str, bytes] = field(default_factory=dict)
    piece: bytes | None = None


class CountingWriter:
    """A file that is being written: its bytes are counted and hashed on their way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)

    def tell(self) -> int:
        """Bytes so far."""
        return self.bytes

    @property
    def sha256(self) -> str:
        """Of the bytes so far."""
        return self._hash.hexdigest()


class Assembly:
    """What is committed, for the step that puts pieces together. Holds no pictures.

    `made`: bytes and SHA-256 of the files that are complete, by path; those that shards wrote are committed as FILES.
    """

    def __init__(self, store: RunStore, storage: FileStore, people: Sequence[str]) -> None:
        self.store, self.storage, self.people = store, storage, people
        self.made: dict[str, tuple[int, str]] = {}

    def tables(self) -> Iterator[pa.Table]:
        """EXPORTED rows, one shard at a time, in the order of shards."""
        return self.store.tables("exported")

    @contextmanager
    def building(self, name: str) -> Iterator[CountingWriter]:
        """Context of a file of the data set that appears when it is complete."""
        with self.storage.building(f"{DATASET}/{name}", STAGING) as file:
            written = CountingWriter(file)
            yield written
        self.made[name] = written.bytes, written.sha256

    def joined(self, name: str, head: bytes) -> None:
        """One file of all pieces in the order of shards, after `head`; a few megabytes at a time."""
        with self.building(name) as file:
            file.write(head)
            for table in self.tables():
                for piece in table["piece"].unique().to_pylist():
                    size = self.storage.size(piece)
                    for at in range(0, size, CHUNK):
                        file.write(self.storage.get_range(piece, at, min(at + CHUNK, size)))


class Export(Config):
    """One format. Subclasses add `kind: Literal[...]` and their own keys."""

    #: Whether rows have to belong to identities: `all` of them, all or none (`even`), or as they do (`any`).
    identities: ClassVar[Literal["all", "even", "any"]] = "any"
    #: A folder an identity, or one name a row; whether names may hold dots.
    people: ClassVar[bool] = False
    dotless: ClassVar[bool] = False
    pictures: ClassVar[bool] = True
    #: Files that are named where Hugging Face looks for them; none where the format is not one of theirs.
    hub_files: ClassVar[str | None] = None

    size: int | None = Field(None, ge=8, le=4096, description="side that pictures are brought to; none keeps theirs")
    codec: PictureCodec = Field("png", description="png and webp are lossless")
    quality: int = Field(95, ge=1, le=100, description="of jpeg")

    @property
    def takes_masks(self) -> bool:
        """Whether rows bring their masks."""
        return bool(getattr(self, "masks", False))

    @property
    def ending(self) -> str:
        """Of picture files."""
        return "jpg" if self.codec == "jpeg" else self.codec

    def check(self, rows: int, people: int) -> None:
        """`ConfigError` where so many rows of so many identities have no room in the format; asked before any work."""

    @abstractmethod
    def pack(self, part: int, parts: int, rows: Sequence[Ready]) -> Packed:
        """The files of shard `part` of `parts`; the same rows give the same bytes."""

    def assemble(self, assembly: Assembly) -> None:
        """Put pieces together, where there are any. Runs once, when every shard is committed."""

    @abstractmethod
    def reading(self) -> str:
        """Markdown: what is where, and what opens it."""
