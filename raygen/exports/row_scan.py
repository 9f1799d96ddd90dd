"""The rows of an export: which of a run's rows go in, and what they are called.

Only the small columns of SAMPLES, FACES and SELECTION are read; about 30 bytes a row stay in memory.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raygen.core.errors import ConfigError, InputError
from raygen.exports.columns import Naming
from raygen.store.filenames import name_key, safe_name, twins
from raygen.store.parquet import Slice, read_slice
from raygen.store.run_store import RunStore, open_input
from raygen.store.schemas import REFUSED
from raygen.store.set_digest import KEYS

__all__ = ["GATES_FILE", "Listing", "Source", "scan"]


#: Columns whose different values the data card names.
MAKING: Final = ("plan", "checkpoint", "sampler", "steps")
#: Code of a row without an identity.
UNNAMED: Final = -1
#: File in a selection's attempt folder that describes its gates.
GATES_FILE: Final = "gates.json"
Identities = Literal["all", "even", "any"]


@dataclass(frozen=True)
class Source:
    """A complete run whose pictures are exported: SAMPLES, made by a model, or FACES."""

    url: str
    table: Literal["samples", "faces"]
    store: RunStore
    digest: str

    @staticmethod
    def open(url: str, table: Literal["samples", "faces"]) -> "Source":
        """`ConfigError` where no complete run with such rows is at `url`."""
        store, digest = open_input(url)
        if not store.has(table):
            raise ConfigError(f"{url}: holds what `raygen {store.plan().kind}` makes, and no rows of {table.upper()}")
        return Source(url, table, store, digest)

    @property
    def key(self) -> str:
        """Column of the rows' names."""
        return KEYS[self.table][0]

    @cached_property
    def slices(self) -> list[Slice]:
        """Committed files in the order of shards."""
        return self.store.slices(self.table)

    @cached_property
    def plan_settings(self) -> Mapping[str, Any]:
        """What made the rows, as its plan says."""
        return self.store.plan().settings

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the run that made the pictures: of a selection those of its attempts."""
        said = self.plan_settings.get("generate")
        return {**self.plan_settings, **said} if isinstance(said, Mapping) else self.plan_settings

    @cached_property
    def gates(self) -> Sequence[Mapping[str, Any]]:
        """Gates of a selection: `description`, and `refuses_real_people`; empty for any other run."""
        storage = self.store.storage
        return json.loads(storage.get(GATES_FILE)) if storage.exists(GATES_FILE) else []

    @property
    def planned_pictures(self) -> int | None:
        """Pictures of each identity as they were planned, where the run says so."""
        planning = self.plan_settings.get("planning")
        count = planning.get("pictures") if isinstance(planning, Mapping) else None
        return count if isinstance(count, int) else None

    @property
    def made_by(self) -> Literal["model", "program"] | None:
        """Who drew the pictures; None for photographs, and for pictures that nobody said anything of."""
        if self.table == "samples":
            return "model"
        data = self.plan_settings.get("data")
        drawn = isinstance(data, Mapping) and str(data.get("kind")).startswith("procedural")
        return "program" if drawn else None


@dataclass(frozen=True)
class Listing:
    """Rows to export in their order: `part`, `file` (number of the slice), `row` in it, `label` or -1."""

    rows: pa.Table
    people: tuple[str, ...]
    naming: Naming
    failed: int = 0
    unselected: int = 0
    other_splits: int = 0
    too_few: int = 0
    unlabelled: int = 0
    making: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    @cached_property
    def each(self) -> npt.NDArray[np.int64]:
        """Pictures of each of `people`."""
        label = self.rows["label"].to_numpy()
        return np.bincount(label[label >= 0], minlength=len(self.people))


def scan(
    source: Source,
    naming: Naming,
    identities: Identities,
    *,
    part_rows: int,
    selected: bool,
    splits: tuple[str, ...],
    min_pictures: int | None = None,
) -> Listing:
    """Every row with a picture that counts; failed ones and those that a SELECTION refuses are counted, and those of
    identities with fewer than `min_pictures` of them.

    `InputError`: `bad_id` for an id that is no safe name, `twin` where two rows would be one file somewhere.
    `ConfigError` where identities are missing, and where nothing is left.
    """
    chosen = _selected(source.store) if selected else None
    found = _Found(source, naming, splits, None if chosen is None else chosen[0])
    for number in range(len(source.slices)):
        found.add(number)
    if chosen is not None and source.table == "faces":  # tried once, and a refused face is no row any more
        found.counts["unselected"] += chosen[1] - len(chosen[0])
    return found.listing(identities, part_rows, min_pictures or 0)


def _selected(store: RunStore) -> tuple[frozenset[int], int] | None:
    """Keys of the rows that a SELECTION takes, and the number of its tries; None where the run has none."""
    taken, tries = set[int](), 0
    for table in store.tables("selection", ["sample_id", "accepted"]):
        tries += table.num_rows
        taken |= {name_key(name) for name in table.filter(table["accepted"])["sample_id"].to_pylist()}
    return (frozenset(taken), tries) if tries else None


class _Found:
    """What a scan has seen so far, as arrays a file."""

    def __init__(
        self, source: Source, naming: Naming, splits: tuple[str, ...], accepted: frozenset[int] | None
    ) -> None:
        self.source, self.naming, self.splits, self.accepted = source, naming, splits, accepted
        self.people: dict[str, int] = {}
        self.making: dict[str, set[object]] = {name: set() for name in MAKING}
        self.counts = {"failed": 0, "unselected": 0, "other_splits": 0, "too_few": 0}
        self.arrays: list[dict[str, npt.NDArray[Any]]] = []
        self.variants = naming.people

    def add(self, number: int) -> None:
        """The rows of one file."""
        names = [self.source.key, "error", "identity_id", "variant", "split", *MAKING]
        table = read_slice(self.source.slices[number], names)
        for name in MAKING:
            if name in table.column_names:
                self.making[name] |= set(table[name].unique().to_pylist()) - {None}
        columns = {name: table[name].to_pylist() for name in names[:5] if name in table.column_names}
        empty = [None] * table.num_rows
        rows = [
            (i, {"identity_id": person, "variant": variant, self.source.key: name})
            for i, (name, error, person, variant, split) in enumerate(
                zip(*(columns.get(name, empty) for name in names[:5]), strict=True)
            )
            if self._counts(error, split, name)
        ]
        self.variants = self.variants and all(row["variant"] is not None for _, row in rows)
        code = [self._code(row["identity_id"]) for _, row in rows]
        by_id = [name_key(self.naming.stem(row)) for _, row in rows]
        numbered = replace(self.naming, by_variant=True)
        by_variant = [name_key(numbered.stem(row)) for _, row in rows] if self.variants else by_id
        self.arrays.append(
            {
                "file": np.full(len(rows), number, np.int32),
                "row": np.array([i for i, _ in rows], np.int32),
                "code": np.array(code, np.int32),
                "by_id": np.array(by_id, np.uint64),
                "by_variant": np.array(by_variant, np.uint64),
            }
        )

    def _counts(self, error: str | None, split: str | None, name: str) -> bool:
        """Whether a row goes in; if not, why not is counted."""
        if error is not None and error.startswith(REFUSED):
            self.counts["unselected"] += 1
        elif error is not None:
            self.counts["failed"] += 1
        elif self.splits and split not in self.splits:
            self.counts["other_splits"] += 1
        elif self.accepted is not None and name_key(name) not in self.accepted:
            self.counts["unselected"] += 1
        else:
            return True
        return False

    def _code(self, person: str | None) -> int:
        return UNNAMED if person is None else self.people.setdefault(safe_name(person), len(self.people))

    def listing(self, identities: Identities, part_rows: int, least: int) -> Listing:
        """All of them, of people with `least` or more, labels in the order of the identities' names."""
        joined, people = self._joined(least)
        if not len(joined["row"]):
            why = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.counts.items())
            raise ConfigError(f"{self.source.url}: no row to export ({why})")
        self._refuse_missing(joined["code"], identities)
        self._refuse_twins(np.array([name_key(name) for name in people], np.uint64), lambda i: people[i], "identities")
        named = self.naming.people and bool(people)
        by_variant = named and self.variants and twins(joined["by_variant"]) is None
        if not by_variant:
            self._refuse_twins(joined["by_id"], lambda i: self._name(joined, i), "rows")
        order = np.argsort(np.array(people, dtype=np.str_)) if people else np.empty(0, np.int64)
        rank = np.empty(len(people) + 1, np.int64)
        rank[order], rank[-1] = np.arange(len(people)), -1  # the last place is that of code -1
        label = rank[joined["code"]]
        rows = {
            "part": np.arange(len(label)) // part_rows,
            "file": joined["file"],
            "row": joined["row"],
            "label": label,
        }
        table = pa.table({name: pa.array(values, pa.int32()) for name, values in rows.items()})
        making = {name: tuple(sorted(values, key=str)) for name, values in self.making.items() if values}
        return Listing(
            table,
            tuple(people[i] for i in order),
            replace(self.naming, by_variant=by_variant),
            **self.counts,
            unlabelled=int((label < 0).sum()),
            making=making,
        )

    def _joined(self, least: int) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
        """All arrays as one, and people in the order of their codes."""
        joined = {name: np.concatenate([part[name] for part in self.arrays]) for name in self.arrays[0]}
        code, people = joined["code"], list(self.people)
        there = np.bincount(code[code >= 0], minlength=len(people))
        kept = np.flatnonzero(there >= max(least, 1))
        number = np.full(len(people) + 1, UNNAMED, np.int32)  # the last place is that of code -1
        number[kept] = np.arange(len(kept))
        rows = (code < 0) | (number[code] >= 0)
        self.counts["too_few"] = int((~rows).sum())
        joined = {name: values[rows] for name, values in joined.items()}
        return {**joined, "code": number[joined["code"]]}, [people[i] for i in kept]

    def _refuse_missing(self, code: npt.NDArray[np.int32], identities: Identities) -> None:
        missing = int((code < 0).sum())
        if missing and (identities == "all" or (identities == "even" and missing < len(code))):
            some = "" if missing == len(code) else f" {missing} of {len(code)}"
            raise ConfigError(
                f"{self.source.url}:{some} rows have no identity_id, and this format labels pictures with it; "
                "plan with identities, or export as webdataset, huggingface or csv"
            )

    def _refuse_twins(self, keys: npt.NDArray[np.uint64], name: Callable[[int], str], what: str) -> None:
        if (pair := twins(keys)) is not None:
            a, b = (name(place) for place in pair)
            same = f"{a!r} twice" if a == b else f"{a!r} and {b!r}"
            raise InputError(f"{self.source.url}: {what} {same} would be one file on some systems", reason="twin")

    def _name(self, joined: Mapping[str, npt.NDArray[Any]], place: int) -> str:
        """What the row at `place` is called; it is read once more, because names are not kept."""
        piece = self.source.slices[int(joined["file"][place])]
        row = read_slice(piece._replace(start=int(joined["row"][place]), rows=1), [self.source.key])
        return str(row[self.source.key][0].as_py())
