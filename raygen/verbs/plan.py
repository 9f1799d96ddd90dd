"""`raygen plan`: FACES, or nothing, -> CONDITIONS.

Knows where a planning function's input comes from. Knows no particular experiment.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field

from raygen.planning import AnyPlanning, EditLine, Edits, PlanWorker, Unconditional, columns_needed
from raygen.references import StoredRows
from raygen.spec import ConfigError, parse
from raygen.storage import RANGE, Slice
from raygen.verbs.base import Inputs, Prepared, ShardedJob, ShardedWhat, inputs, listed, prepared

__all__ = ["PlanJob", "PlanWhat"]


class PlanWhat(ShardedWhat):
    """Which experiment, over which faces."""

    planning: AnyPlanning
    faces: str | None = Field(None, description="folder of an ingest run")


class PlanJob(ShardedJob):
    """FACES -> CONDITIONS."""

    kind: Literal["plan"] = "plan"
    what: PlanWhat

    def prepare(self, *, write: bool) -> Prepared:
        """Plan the shards of condition rows."""
        planning = self.what.planning
        columns: tuple[str, ...] | None
        first, faces = None, None
        if isinstance(planning, Unconditional):
            given, columns = Inputs([Slice(RANGE, 0, planning.count)], f"{RANGE}{planning.count}"), None
        elif self.what.faces is None:
            raise ConfigError(f"what.faces: planning {planning.kind!r} needs the folder of an ingest run")
        elif isinstance(planning, Edits):
            first, columns = _lines(planning.file), None
            given = listed(first, self.out, inputs(self.what.faces, "faces").digest, write=write)
            faces = StoredRows(self.what.faces, ("mask", "texts", "attributes"))
        else:
            given, columns = inputs(self.what.faces, "faces"), tuple(columns_needed(planning))
        rows = max(2, self.what.shard_rows // planning.factor)  # partners come from the same piece
        sharding = self.what.model_copy(update={"shard_rows": rows})
        work = prepared(
            self, "plan", {"planning": planning}, given, lambda _: partial(PlanWorker, planning, faces),
            batch=min(rows, 1024), sharding=sharding, columns=columns,
        )  # fmt: skip
        return replace(work, first=first)


def _lines(path: str) -> pa.Table:
    """The lines of a file of edits, each checked; `ConfigError` names the line."""
    try:
        texts = [text for text in Path(path).read_text(encoding="utf-8").split("\n") if text.strip()]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
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
