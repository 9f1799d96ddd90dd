"""Records of a run as its files hold them: the plan with its shards, and commits. Both carry their check sums."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import pyarrow as pa

from raygen.core.errors import ConfigError, IntegrityError
from raygen.store.parquet import Slice, read_slice
from raygen.store.sealed import open_record, read_record, to_bytes
from raygen.store.set_digest import SetDigest

__all__ = ["COMMIT_NAME", "FORMAT", "Commit", "Plan", "Shard", "check_format", "make_shards"]


#: Form of the files of a run; 2 since tables have names in place of maps and positions, 3 since digests of rows are
#: made of `row_bytes`.
FORMAT: Final = 3
#: Fields of a plan and their types.
PLAN_TYPES: Final = {
    "format": int,
    "kind": str,
    "run_id": str,
    "settings": dict,
    "batch": int,
    "files": list,
    "shards": list,
    "create_only": bool,
}
#: Names of commits: the shard, and digits of the content where the storage has no create-only writes.
COMMIT_NAME: Final = re.compile(r"shard-(\d{5,})(?:-[0-9a-f]{12})?\.json")
#: Fields of a commit, of each of its files, and their types.
COMMIT_TYPES: Final[Mapping[str, type | tuple[type, ...]]] = {
    "shard": int,
    "files": list,
    "state": str,
    "quarantined": dict,
    "timings": dict,
    "environment": dict,
    "created": (int, float),
}
FILE_TYPES: Final = {"table": str, "path": str, "sha256": str, "rows": int, "bytes": int}


@dataclass(frozen=True)
class Shard:
    """The unit of work, retry and commit: slices of the input, in order."""

    index: int
    inputs: tuple[Slice, ...]

    @property
    def rows(self) -> int:
        """Number of input rows."""
        return sum(piece.rows for piece in self.inputs)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The input rows as one table."""
        return pa.concat_tables([read_slice(piece, columns) for piece in self.inputs]).combine_chunks()


def make_shards(pieces: Iterable[Slice], shard_rows: int) -> list[Shard]:
    """Consecutive shards of `shard_rows` rows (the last may have fewer) over the rows of `pieces` in order."""
    shards: list[Shard] = []
    current: list[Slice] = []
    room = shard_rows
    for piece in pieces:
        start, left = piece.start, piece.rows
        while left:
            take = min(room, left)
            current.append(Slice(piece.path, start, take))
            start, left, room = start + take, left - take, room - take
            if room == 0:
                shards.append(Shard(len(shards), tuple(current)))
                current, room = [], shard_rows
    if current:
        shards.append(Shard(len(shards), tuple(current)))
    return shards


class Plan(NamedTuple):
    """The settings and inputs that determine the rows of a run, and how its work is cut into shards and batches."""

    kind: str
    run_id: str
    settings: Mapping[str, Any]
    batch: int
    shards: Sequence[Shard]
    #: Whether the storage has create-only writes. Decides the names of commits, so it is fixed with the plan.
    create_only: bool = True

    @property
    def rows(self) -> int:
        """Number of input rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    def to_json(self) -> bytes:
        """Canonical JSON with its check sum; input files are listed once and referred to by number."""
        files = list(dict.fromkeys(piece.path for shard in self.shards for piece in shard.inputs))
        number = {path: i for i, path in enumerate(files)}
        shards = [[[number[p.path], p.start, p.rows] for p in shard.inputs] for shard in self.shards]
        head = {
            "format": FORMAT,
            "kind": self.kind,
            "run_id": self.run_id,
            "settings": self.settings,
            "batch": self.batch,
            "create_only": self.create_only,
        }
        return to_bytes({**head, "files": files, "shards": shards})

    @staticmethod
    def from_json(data: bytes, url: str = "") -> "Plan":
        """Reads `to_json`; `IntegrityError` where the data is damaged, `ConfigError` for a run of another raygen."""
        check_format(read_record(data, "plan.json"), url)
        raw = open_record(data, "plan.json")
        try:
            for key, kind in PLAN_TYPES.items():
                if not isinstance(raw[key], kind):
                    raise TypeError(f"{key} cannot be read")
            pieces = [tuple(Slice(str(raw["files"][f]), int(s), int(n)) for f, s, n in part) for part in raw["shards"]]
            shards = [Shard(i, inputs) for i, inputs in enumerate(pieces)]
            return Plan(raw["kind"], raw["run_id"], raw["settings"], raw["batch"], shards, raw["create_only"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise IntegrityError(f"plan.json is damaged: {error}") from error


class Commit(NamedTuple):
    """The record that makes the rows of a shard visible."""

    shard: int
    files: list[dict[str, Any]]
    state: str
    quarantined: dict[str, int]
    timings: dict[str, float]
    environment: dict[str, Any]
    created: float

    @staticmethod
    def from_json(data: bytes, name: str) -> "Commit":
        """The commit in the file `name`; `IntegrityError` where it is damaged."""
        raw = open_record(data, name)
        if unlike := sorted({*COMMIT_TYPES} ^ {*raw}):
            raise IntegrityError(f"{name} is damaged: unknown or missing fields {', '.join(unlike)}")
        wrong = [key for key, kind in COMMIT_TYPES.items() if not isinstance(raw[key], kind)]
        if not wrong:
            typed = [
                isinstance(e, dict) and all(isinstance(e.get(k), t) for k, t in FILE_TYPES.items())
                for e in raw["files"]
            ]
            wrong = [] if all(typed) else ["files"]
            wrong += [] if re.fullmatch("[0-9a-f]+", raw["state"]) else ["state"]
            wrong += [] if all(isinstance(count, int) for count in raw["quarantined"].values()) else ["quarantined"]
        if wrong:
            raise IntegrityError(f"{name} is damaged: {', '.join(wrong)} cannot be read")
        return Commit(**raw)

    @property
    def digest(self) -> SetDigest:
        """Digest of the rows of all tables of this shard."""
        return SetDigest(int(self.state, 16))

    def rows(self, table: str) -> int:
        """Committed rows of `table`."""
        return sum(int(entry["rows"]) for entry in self.files if entry["table"] == table)


def check_format(record: Mapping[str, Any], url: str) -> None:
    """`ConfigError` where a plan or a manifest is of a raygen whose files have another form."""
    found = record.get("format", FORMAT)
    if isinstance(found, int) and found != FORMAT:
        raise ConfigError(
            f"{url} has files of format {found}, and this raygen reads {FORMAT}; make the run again, or read it with "
            "the raygen that made it"
        )
