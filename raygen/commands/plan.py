"""`raygen plan`: FACES, or nothing -> CONDITIONS, the rows that say which pictures to generate.

out/attempt-00/data/conditions/     CONDITIONS
out/listing-*.parquet               input rows that the driver made: edits of a file, the chosen identities
"""

import json
from functools import partial
from typing import Final, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from raygen.commands.base import PreparedRun, ShardedJob
from raygen.commands.inputs import (
    Inputs,
    check_conditions_of_faces,
    check_splits,
    keep_listings,
    listing_inputs,
    open_inputs,
    plan_run,
)
from raygen.core.config import parse
from raygen.core.errors import ConfigError, InputError
from raygen.core.location import Location
from raygen.datasets.annotations import RepeatedKey, parse_json
from raygen.datasets.files import read
from raygen.planning import AnyPlanning, EditLine, EditsFromFile, FromFaces, Identities, PlanWorker, Unconditional
from raygen.store.lookup import InMemoryRows, RowLookup, StoredRows
from raygen.store.parquet import RANGE, Slice
from raygen.store.run_store import RunStore, make_shards

__all__ = ["JOB", "PlanJob"]


#: Faces that the driver reads at once where it has to read all of them.
FACES_AT_ONCE: Final = 256


class PlanJob(ShardedJob):
    """FACES -> CONDITIONS: the rows of one experiment."""

    kind: Literal["plan"] = "plan"
    planning: AnyPlanning = Field(description="experiment that writes the rows, chosen by its `kind`")
    faces: Location | None = Field(
        None, description="folder of an ingest run, which the rows are made from; not needed by `unconditional`"
    )

    @model_validator(mode="after")
    def _require_faces(self) -> "PlanJob":
        if self.faces is None and not isinstance(self.planning, Unconditional):
            raise ValueError(f"planning {self.planning.kind!r} needs `faces`, the folder of an ingest run")
        return self

    def prepare(self, *, write: bool) -> PreparedRun:
        """Plan the shards of condition rows."""
        planning = self.planning
        columns: tuple[str, ...] | None = None
        first: pa.Table | None = None
        lookup: RowLookup | None = None
        notes: tuple[str, ...] = ()
        own: list[Inputs] = []  # listings beside the inputs
        faces = self.faces or ""
        rows = max(2, self.shard_rows // planning.factor)  # a face and its partner are rows of the same shard
        splits = getattr(planning, "splits", ())
        check_splits(faces, splits, "planning.splits")
        if isinstance(planning, FromFaces):
            chosen = (
                planning.conditions if "conditions" in planning.model_fields_set else {"text"} & {*planning.conditions}
            )
            caption = "planning.caption", planning.caption
            check_conditions_of_faces(faces, chosen, splits, key="planning.conditions", caption=caption)
        if isinstance(planning, Unconditional):
            inputs = Inputs([Slice(RANGE, 0, planning.count)], f"{RANGE}{planning.count}")
        elif isinstance(planning, EditsFromFile):
            first = read_edits(planning.file)
            inputs = listing_inputs(first, self.out, open_inputs(faces, "faces").digest, write=write)
            lookup = StoredRows(faces, ("mask", "texts", "attributes"))
        elif isinstance(planning, Identities):
            (inputs, *own), lookup, first, notes = self._choose_identities(planning, faces, rows, write=write)
        else:
            inputs, columns = open_inputs(faces, "faces"), planning.columns
        plan = plan_run("plan", {"planning": planning}, inputs, batch=min(rows, 1024), shard_rows=rows)
        build = partial(PlanWorker, planning, lookup)
        store, max_errors = RunStore(self.out), self.max_error_fraction
        if write:
            keep_listings(store, plan, *own, inputs)
        without_rows = f"no face of {faces} has what planning {planning.kind!r} needs"
        return PreparedRun(store, plan, max_errors, columns, without_rows, build=build, first=first, notes=notes)

    def _choose_identities(
        self, planning: Identities, faces: str, rows: int, *, write: bool
    ) -> tuple[tuple[Inputs, Inputs], InMemoryRows, pa.Table, tuple[str, ...]]:
        """One input row per identity, and the donors; both are listings, so that actors read what was chosen.

        `rows`: identities of a shard.
        Every face is read once, a few at a time, and the masks that are used are read once more.
        """
        source = open_inputs(faces, "faces")
        names = None
        if planning.names is not None:
            names = [line.strip() for line in _read_text(planning.names).splitlines() if line.strip()]
        tables = (shard.read(planning.columns) for shard in make_shards(source.slices, FACES_AT_ONCE))
        chosen = planning.choose(tables, names)
        listing, donors = chosen.listing, chosen.donors
        if chosen.without_masks == "listing":
            listing = with_masks(listing, StoredRows(faces, ("mask",)))
        elif chosen.without_masks == "donors":
            donors = with_masks(donors, StoredRows(faces, ("mask",)))
        stored_donors = listing_inputs(donors, self.out, write=write)
        contents = source.digest, stored_donors.digest
        inputs = listing_inputs(listing, self.out, *contents, write=write, group_rows=rows)
        lookup = InMemoryRows(stored_donors.slices[0] if write else donors)
        return (inputs, stored_donors), lookup, listing, chosen.notes


def with_masks(rows: pa.Table, faces: StoredRows) -> pa.Table:
    """`rows` with the masks of the faces named in `face_id`."""
    ids = rows["face_id"].to_pylist()
    by_id = faces(ids)
    masks = pa.array([by_id[face_id]["mask"] for face_id in ids], rows.schema.field("mask").type)
    return rows.set_column(rows.column_names.index("mask"), rows.schema.field("mask"), masks)


def read_edits(path: str) -> pa.Table:
    """The lines of a JSON Lines file of edits, each validated; `ConfigError` names the line that is wrong."""
    lines = []
    numbers: dict[str, int] = {}
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        lines.append(line)
        try:
            document = parse_json(line)
            json.dumps(document, ensure_ascii=False).encode()  # fails for half of a surrogate pair
        except ValueError as error:
            raise ConfigError(f"{path}: line {number} is not JSON: {error}") from error
        if isinstance(document, RepeatedKey):
            raise ConfigError(f"{path}: line {number}: {document.key[:40]!r} is there twice")
        edit: EditLine = parse(EditLine, document, f"{path}: line {number}")
        if edit.edit_id in numbers:
            raise ConfigError(f"{path}: lines {numbers[edit.edit_id]} and {number} both have edit_id {edit.edit_id!r}")
        numbers[edit.edit_id] = number
    if not lines:
        raise ConfigError(f"{path}: no edits")
    return pa.table({"line": lines})


def _read_text(path: str) -> str:
    """The content of a text file, local or behind a URL."""
    try:
        return read(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


JOB = PlanJob
