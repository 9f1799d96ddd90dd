"""`raygen plan`: FACES, or nothing, -> CONDITIONS.

Knows where a planning function's input comes from. Knows no particular experiment.
"""

import json
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field

from raygen.commands.base import Inputs, PreparedRun, ShardedJob, open_inputs, plan_run, store_listing
from raygen.core.config import parse
from raygen.core.errors import ConfigError
from raygen.planning import AnyPlanning, EditLine, EditsFromFile, Identities, PlanWorker, Unconditional
from raygen.store.lookup import InMemoryRows, RowLookup, StoredRows
from raygen.store.parquet import RANGE, Slice
from raygen.store.run_store import RunStore, make_shards

__all__ = ["JOB", "PlanJob"]


#: Faces that are looked at together where the driver looks at all of them.
PIECE = 256


class PlanJob(ShardedJob):
    """FACES -> CONDITIONS.

    Which experiment, over which faces.
    """

    kind: Literal["plan"] = "plan"
    planning: AnyPlanning
    faces: str | None = Field(None, description="folder of an ingest run")

    def prepare(self, *, write: bool) -> PreparedRun:
        """Plan the shards of condition rows."""
        planning = self.planning
        columns: tuple[str, ...] | None
        first: pa.Table | None = None
        lookup: RowLookup | None = None
        notes: tuple[str, ...] = ()
        if isinstance(planning, Unconditional):
            given, columns = Inputs([Slice(RANGE, 0, planning.count)], f"{RANGE}{planning.count}"), None
        elif self.faces is None:
            raise ConfigError(f"faces: planning {planning.kind!r} needs the folder of an ingest run")
        elif isinstance(planning, EditsFromFile):
            first, columns = _lines(planning.file), None
            given = store_listing(first, self.out, open_inputs(self.faces, "faces").digest, write=write)
            lookup = StoredRows(self.faces, ("mask", "texts", "attributes"))
        elif isinstance(planning, Identities):
            columns = None
            given, lookup, first, notes = self._people(planning, self.faces, write=write)
        else:
            given, columns = open_inputs(self.faces, "faces"), planning.columns
        rows = max(2, self.shard_rows // planning.factor)  # partners come from the same piece
        plan = plan_run("plan", {"planning": planning}, given, batch=min(rows, 1024), shard_rows=rows)
        build = partial(PlanWorker, planning, lookup)
        store, allowed = RunStore(self.out), self.max_error_fraction
        return PreparedRun(store, plan, allowed, columns, build=build, first=first, notes=notes)

    def _people(
        self, planning: Identities, faces: str, *, write: bool
    ) -> tuple[Inputs, InMemoryRows, pa.Table, tuple[str, ...]]:
        """A row for each identity, and the faces that lend; both stored, so that actors read what was chosen here.

        Reads every face once, a few at a time, and the masks that are used once more.
        """
        source = open_inputs(faces, "faces")
        chosen = planning.choose(
            (piece.read(planning.columns) for piece in make_shards(source.slices, PIECE)), _names(planning.names)
        )
        stored = StoredRows(faces, ("mask",))
        listing, bank = (
            _masked(table, stored) if chosen.without_masks == name else table
            for name, table in (("listing", chosen.listing), ("donors", chosen.donors))
        )
        held = store_listing(bank, self.out, write=write)
        given = store_listing(listing, self.out, source.digest, held.digest, write=write)
        return given, InMemoryRows(held.slices[0] if write else bank), listing, chosen.notes


def _masked(rows: pa.Table, faces: StoredRows) -> pa.Table:
    """`rows` with the masks of their faces."""
    ids = rows["face_id"].to_pylist()
    found = faces(ids)
    masks = pa.array([found[name]["mask"] for name in ids], rows.schema.field("mask").type)
    return rows.set_column(rows.column_names.index("mask"), rows.schema.field("mask"), masks)


def _names(path: str | None) -> list[str] | None:
    """The lines of a file of names; they are checked with the plan."""
    return None if path is None else [line.strip() for line in _text(path).splitlines() if line.strip()]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _lines(path: str) -> pa.Table:
    """The lines of a file of edits, each checked; `ConfigError` names the line."""
    texts = [text for text in _text(path).split("\n") if text.strip()]
    names: dict[str, int] = {}
    for number, text in enumerate(texts, 1):
        try:
            document = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path}: line {number} is not JSON: {error}") from error
        line: EditLine = parse(EditLine, document, f"{path}: line {number}")
        if line.edit_id in names:
            raise ConfigError(f"{path}: lines {names[line.edit_id]} and {number} are both {line.edit_id!r}")
        names[line.edit_id] = number
    if not texts:
        raise ConfigError(f"{path}: no edits")
    return pa.table({"line": texts})


JOB = PlanJob
