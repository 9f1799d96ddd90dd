"""Which rows of a run are exported, and their names and labels.

Only small columns of SAMPLES, FACES and SELECTION are read: about 30 bytes a row stay in memory, and no pictures.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raygen.core.errors import ConfigError, InputError
from raygen.core.types import AnyArray, Int64Array
from raygen.exports.base import IdentityRule
from raygen.exports.columns import NamingScheme
from raygen.store.filenames import first_duplicate, name_key, safe_name
from raygen.store.parquet import Slice, read_slice
from raygen.store.run_store import RunStore, open_input
from raygen.store.schemas import REFUSED
from raygen.store.sealed import open_record
from raygen.store.set_digest import KEYS

__all__ = ["GATES_FILE", "ExportListing", "ExportSource", "scan"]


#: Columns whose distinct values the data card lists.
DISTINCT: Final = ("method", "plan", "checkpoint", "sampler", "steps")
#: Number of the identity, and label, of a row without one.
NO_IDENTITY: Final = -1
#: File in a selection's attempt folder that describes its gates.
GATES_FILE: Final = "gates.json"


@dataclass(frozen=True)
class ExportSource:
    """A complete run whose SAMPLES or FACES are exported."""

    url: str
    table: Literal["samples", "faces"]
    store: RunStore
    digest: str

    @staticmethod
    def open(url: str, table: Literal["samples", "faces"]) -> "ExportSource":
        """`ConfigError` where `url` is no complete run with such rows."""
        store, digest = open_input(url)
        if not store.has(table):
            raise ConfigError(f"{url}: holds what `raygen {store.plan().kind}` makes, and no rows of {table.upper()}")
        return ExportSource(url, table, store, digest)

    @property
    def key(self) -> str:
        """The column with the ids of the rows."""
        return KEYS[self.table][0]

    @cached_property
    def slices(self) -> list[Slice]:
        """Committed files in the order of shards."""
        return self.store.slices(self.table)

    @cached_property
    def plan_settings(self) -> Mapping[str, Any]:
        """The settings in the plan of the run."""
        return self.store.plan().settings

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the run that made the pictures; for a selection, those of its attempts."""
        generate = self.plan_settings.get("generate")
        return {**self.plan_settings, **generate} if isinstance(generate, Mapping) else self.plan_settings

    @cached_property
    def gates(self) -> Sequence[Mapping[str, Any]]:
        """Gates of a selection: `description`, and `refuses_real_people`; empty for any other run."""
        storage = self.store.storage
        if not storage.exists(GATES_FILE):
            return []
        gates: list[Mapping[str, Any]] = open_record(storage.get(GATES_FILE), f"{storage.url}/{GATES_FILE}")["gates"]
        return gates

    @property
    def planned_pictures(self) -> int | None:
        """Planned number of pictures of each identity; None where the run does not record it."""
        planning = self.plan_settings.get("planning")
        count = planning.get("pictures") if isinstance(planning, Mapping) else None
        return count if isinstance(count, int) else None

    @property
    def made_by(self) -> Literal["model", "program"] | None:
        """Origin of synthetic pictures; None for photographs and pictures of unknown origin."""
        if self.table == "samples":
            return "model"
        data = self.plan_settings.get("data")
        drawn = isinstance(data, Mapping) and str(data.get("kind")).startswith("procedural")
        return "program" if drawn else None


@dataclass(frozen=True)
class ExportListing:
    """The rows to export, in their order, and the numbers of rows that are left out.

    `rows` has the columns `part` (shard of the export), `file` (number of the stored table), `row` in it, and `label`
    or -1. `identities`: names in the order of labels. `distinct`: values of the columns `DISTINCT`.
    """

    rows: pa.Table
    identities: tuple[str, ...]
    naming: NamingScheme
    failed: int = 0
    unselected: int = 0
    other_splits: int = 0
    too_few: int = 0
    unlabelled: int = 0
    distinct: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    @cached_property
    def pictures_each(self) -> Int64Array:
        """Number of pictures of each identity."""
        label = self.rows["label"].to_numpy()
        return np.bincount(label[label >= 0], minlength=len(self.identities))


def scan(
    source: ExportSource,
    naming: NamingScheme,
    identities: IdentityRule,
    *,
    part_rows: int,
    selected: bool,
    splits: tuple[str, ...],
    min_pictures: int | None = None,
) -> ExportListing:
    """List the rows to export.

    Left out and counted are failed rows, with `selected` those that a SELECTION rejects, rows of other splits than
    `splits` (if any are named), and identities with fewer than `min_pictures` pictures.

    `InputError`: `bad_id` for an id that is no safe file name, `twin` where two rows would be one file on some system.
    `ConfigError` where identities are missing, and where no row is left.
    """
    accepted, attempts = set[int](), 0
    for table in source.store.tables("selection", ["sample_id", "accepted"]) if selected else ():
        attempts += table.num_rows
        accepted |= {name_key(name) for name in table.filter(table["accepted"])["sample_id"].to_pylist()}
    rows = _RowScan(source, naming, splits, accepted if attempts else None)
    for number in range(len(source.slices)):
        rows.add_file(number)
    if attempts and source.table == "faces":  # a selection of faces stores only the accepted ones
        rows.counts["unselected"] += attempts - len(accepted)
    return rows.listing(identities, part_rows, min_pictures or 0)


class _RowScan:
    """The rows seen so far, as arrays for each file."""

    def __init__(
        self, source: ExportSource, naming: NamingScheme, splits: tuple[str, ...], accepted: Set[int] | None
    ) -> None:
        self.source, self.naming, self.splits, self.accepted = source, naming, splits, accepted
        self.identities: dict[str, int] = {}  # numbers, in the order of appearance
        self.distinct: dict[str, set[object]] = {name: set() for name in DISTINCT}
        self.counts = {"failed": 0, "unselected": 0, "other_splits": 0, "too_few": 0}
        self.arrays: list[dict[str, AnyArray]] = []
        self.variants = naming.identity_folders  # whether all rows have a variant

    def add_file(self, number: int) -> None:
        """Add the rows of one stored table."""
        names = [self.source.key, "error", "identity_id", "variant", "split", *DISTINCT]
        table = read_slice(self.source.slices[number], names)
        for name in DISTINCT:
            if name in table.column_names:
                self.distinct[name] |= set(table[name].unique().to_pylist()) - {None}
        columns = {name: table[name].to_pylist() for name in names[:5] if name in table.column_names}
        empty = [None] * table.num_rows
        rows, identities = [], []
        for i, (name, error, identity, variant, split) in enumerate(
            zip(*(columns.get(name, empty) for name in names[:5]), strict=True)
        ):
            if reason := self._left_out(error, split, name):
                self.counts[reason] += 1
                continue
            rows.append((i, {"identity_id": identity, "variant": variant, self.source.key: name}))
            if identity is None:
                identities.append(NO_IDENTITY)
            else:
                identities.append(self.identities.setdefault(safe_name(identity), len(self.identities)))
        self.variants = self.variants and all(row["variant"] is not None for _, row in rows)
        by_id = [name_key(self.naming.stem(row)) for _, row in rows]
        numbered = replace(self.naming, by_variant=True)
        by_variant = [name_key(numbered.stem(row)) for _, row in rows] if self.variants else by_id
        self.arrays.append(
            {
                "file": np.full(len(rows), number, np.int32),
                "row": np.array([i for i, _ in rows], np.int32),
                "identity": np.array(identities, np.int32),
                "by_id": np.array(by_id, np.uint64),
                "by_variant": np.array(by_variant, np.uint64),
            }
        )

    def _left_out(self, error: str | None, split: str | None, name: str) -> str | None:
        """The name of the count of a row that is not exported; None for one that is."""
        if error is not None:
            return "unselected" if error.startswith(REFUSED) else "failed"
        if self.splits and split not in self.splits:
            return "other_splits"
        return "unselected" if self.accepted is not None and name_key(name) not in self.accepted else None

    def listing(self, rule: IdentityRule, part_rows: int, min_pictures: int) -> ExportListing:
        """The listing of all rows; labels are in the order of the identities' names."""
        columns, identities = self._with_enough_pictures(min_pictures)
        count = len(columns["row"])
        if not count:
            why = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.counts.items())
            raise ConfigError(f"{self.source.url}: no row to export ({why})")
        missing = int((columns["identity"] < 0).sum())
        if missing and (rule == "required" or (rule == "all_or_none" and missing < count)):
            some = "" if missing == count else f" {missing} of {count}"
            raise ConfigError(
                f"{self.source.url}:{some} rows have no identity_id, and this format labels pictures with it; "
                "plan with identities, or export as webdataset, huggingface or csv"
            )
        keys = np.array([name_key(name) for name in identities], np.uint64)
        self._refuse_duplicates(keys, lambda i: identities[i], "identities")
        by_variant = self.naming.identity_folders and bool(identities) and self.variants
        by_variant = by_variant and first_duplicate(columns["by_variant"]) is None
        if not by_variant:
            self._refuse_duplicates(columns["by_id"], lambda i: self._read_name(columns, i), "rows")
        order = np.argsort(np.array(identities, dtype=np.str_)) if identities else np.empty(0, np.int64)
        rank = np.empty(len(identities) + 1, np.int64)
        rank[order], rank[-1] = np.arange(len(identities)), -1  # the last element is that of NO_IDENTITY
        label = rank[columns["identity"]]
        table = {"part": np.arange(count) // part_rows, "file": columns["file"], "row": columns["row"], "label": label}
        return ExportListing(
            pa.table({name: pa.array(values, pa.int32()) for name, values in table.items()}),
            tuple(identities[i] for i in order),
            replace(self.naming, by_variant=by_variant),
            **self.counts,
            unlabelled=missing,
            distinct={name: tuple(sorted(values, key=str)) for name, values in self.distinct.items() if values},
        )

    def _with_enough_pictures(self, min_pictures: int) -> tuple[dict[str, AnyArray], list[str]]:
        """The arrays of all files joined, and identities by number, without those that have too few pictures."""
        columns = {name: np.concatenate([part[name] for part in self.arrays]) for name in self.arrays[0]}
        identity, names = columns["identity"], list(self.identities)
        pictures = np.bincount(identity[identity >= 0], minlength=len(names))
        kept = np.flatnonzero(pictures >= max(min_pictures, 1))
        number = np.full(len(names) + 1, NO_IDENTITY, np.int32)  # the last element is that of NO_IDENTITY
        number[kept] = np.arange(len(kept))
        rows = (identity < 0) | (number[identity] >= 0)
        self.counts["too_few"] = int((~rows).sum())
        columns = {name: values[rows] for name, values in columns.items()}
        return {**columns, "identity": number[columns["identity"]]}, [names[i] for i in kept]

    def _refuse_duplicates(self, keys: npt.NDArray[np.uint64], name: Callable[[int], str], kind: str) -> None:
        if (pair := first_duplicate(keys)) is not None:
            a, b = (name(index) for index in pair)
            same = f"{a!r} twice" if a == b else f"{a!r} and {b!r}"
            raise InputError(f"{self.source.url}: {kind} {same} would be one file on some systems", reason="twin")

    def _read_name(self, columns: Mapping[str, AnyArray], index: int) -> str:
        """The id of a row, read again: ids are not kept in memory."""
        piece = self.source.slices[int(columns["file"][index])]
        row = read_slice(piece._replace(start=int(columns["row"][index]), rows=1), [self.source.key])
        return str(row[self.source.key][0].as_py())
