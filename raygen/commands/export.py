"""`raygen export`: committed SAMPLES or FACES -> a data set in a trainer's format, with its data card.

Knows which rows, which format, and that a pass over shards is followed by a small finish. Knows no format, and needs no
torch.
"""

import time
from functools import partial
from typing import Any, Literal

from pydantic import Field, model_validator

from raygen.commands.base import (
    Estimate,
    PreparedRun,
    ProgressCallback,
    Result,
    ShardedJob,
    outcome_facts,
    plan_run,
    run_sharded,
    store_listing,
)
from raygen.core.errors import ConfigError
from raygen.core.hashing import canonical, digest
from raygen.exports import AnyExport
from raygen.exports.base import DATASET, Export
from raygen.exports.columns import NamingScheme
from raygen.exports.data_card import CardConfig, ExportTotals, write_card
from raygen.exports.finalize import finish
from raygen.exports.row_scan import ExportListing, ExportSource, scan
from raygen.exports.worker import ExportConfig, ExportWorker
from raygen.store.filesystem import FileStore
from raygen.store.parquet import from_parquet
from raygen.store.run_store import RunStore

__all__ = ["JOB", "ExportJob"]


METRICS = "metrics/metrics.parquet"
#: Rows that a dry run exports, into nothing, to say how long all of them take.
PROBED = 64


class ExportJob(ShardedJob):
    """SAMPLES or FACES -> a data set.

    Which rows, in which format, and what is said of them.
    """

    kind: Literal["export"] = "export"
    samples: str | None = Field(None, description="folder of a run with SAMPLES: generate, edit or a selection")
    faces: str | None = Field(None, description="folder of an ingest run; photographs are not marked as synthetic")
    format: AnyExport
    scores: str | None = Field(None, description="folder of an evaluation of these samples, for the card")
    provenance: bool = Field(True, description="pictures that a model made say so themselves, and how they were made")
    selected: bool = Field(True, description="of a run with a SELECTION only what it accepts")
    splits: tuple[str, ...] = Field((), description="of `faces`: only these; empty takes all")
    min_pictures: int | None = Field(None, ge=1, description="leave out identities with fewer pictures than this")
    text: str = Field("overall", description="which of a face's texts is its caption")
    card: CardConfig = Field(default_factory=CardConfig)

    @model_validator(mode="after")
    def _names_one_source(self) -> "ExportJob":
        if (self.samples is None) == (self.faces is None):
            raise ValueError("name either `samples` or `faces`")
        if self.splits and self.faces is None:
            raise ValueError("`splits` belongs to `faces`")
        return self

    def prepare(self, *, write: bool) -> PreparedRun:
        """Plan the shards of the data set."""
        source = self._source()
        return self._prepared(source, self._listing(source), write=write)

    def run(self, report: ProgressCallback) -> Result:
        """Every shard, then the finish."""
        source, scores = self._source(), self._scores()
        listing = self._listing(source)
        work = self._prepared(source, listing, write=True)
        outcome = run_sharded(work, self.resources, report)

        def card(totals: ExportTotals) -> str:
            return write_card(
                self.card,
                self.format,
                source,
                listing,
                totals,
                scores,
                marks=self._marks(source),
                job=self._public(source),
            )

        began = time.time()
        made = finish(self.format, work.store, listing.identities, outcome.manifest, card)
        left_out = {
            "failed before": listing.failed,
            "not selected": listing.unselected,
            "other splits": listing.other_splits,
            "of people with too few": listing.too_few,
            "could not be exported": made["bad"],
        }
        facts = outcome_facts(outcome)
        return Result(
            self.out,
            {
                "pictures": f"{made['rows']:,}"
                + (f" of {len(listing.identities):,} identities" if listing.identities else ""),
                "left out": ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count) or "none",
                "data set": f"{self.out}/{DATASET}: {made['files']:,} files, {made['bytes']:,} bytes, and README.md",
                "finish_s": round(time.time() - began, 1),
                **{name: facts[name] for name in ("shards", "rows_per_s", "run_id", "set_digest")},
            },
        )

    def estimate(self) -> Estimate:
        """Export a few rows into nothing, and scale up."""
        source = self._source()
        listing = self._listing(source)
        work = self._prepared(source, listing, write=False)
        worker, rows = work.build(), listing.rows.slice(0, PROBED)
        worker.start(rows.slice(0, 1))()
        began = time.perf_counter()
        made = worker.start(rows)()["exported"]
        each = (time.perf_counter() - began) / rows.num_rows
        size = sum(value or 0 for name in ("bytes", "mask_bytes") for value in made[name].to_pylist()) / rows.num_rows
        done, count = len(work.store.committed()), listing.rows.num_rows
        left = count * (1 - done / len(work.plan.shards))
        notes = [f"timed on {rows.num_rows} rows with one worker on this machine"]
        if listing.failed or listing.unselected:
            notes.append(f"left out: {listing.failed:,} failed before, {listing.unselected:,} not selected")
        if listing.too_few:
            notes.append(f"left out: {listing.too_few:,} of people with fewer than {self.min_pictures} pictures")
        return Estimate(
            count, len(work.plan.shards), done, int(size * count), each * left / self.resources.workers, tuple(notes)
        )

    def _source(self) -> ExportSource:
        if self.samples is not None:
            return ExportSource.open(self.samples, "samples")
        assert self.faces is not None
        return ExportSource.open(self.faces, "faces")

    def _listing(self, source: ExportSource) -> ExportListing:
        form = self.format
        naming = NamingScheme(source.key, identity_folders=form.identity_folders, no_dots=form.no_dots)
        found = scan(
            source,
            naming,
            form.identities,
            part_rows=self.shard_rows,
            selected=self.selected,
            splits=self.splits,
            min_pictures=self.min_pictures,
        )
        form.check(found.rows.num_rows, len(found.identities))
        return found

    def _prepared(self, source: ExportSource, listing: ExportListing, *, write: bool) -> PreparedRun:
        """The listing as stored input; a shard of it is one part of the data set, and one batch."""
        settings = self.settings(exclude={"samples", "faces", "scores", "shard_rows", "max_error_fraction"})
        settings["scores"] = digest(canonical([_plain(row) for row in self._scores()]))
        settings["table"] = source.table
        given = store_listing(listing.rows, self.out, source.digest, write=write)
        parts = -(-listing.rows.num_rows // self.shard_rows)
        config = ExportConfig(
            self.format,
            self.out,
            tuple(piece.path for piece in source.slices),
            parts,
            listing.naming,
            source.made_by,
            self._marks(source),
            _constants(source),
            self.text,
            write,
        )
        plan = plan_run("export", settings, given, batch=self.shard_rows, shard_rows=self.shard_rows)
        build = partial(ExportWorker, config)
        return PreparedRun(RunStore(self.out), plan, self.max_error_fraction, build=build, first=listing.rows)

    def _marks(self, source: ExportSource) -> bool:
        form: Export = self.format
        return self.provenance and source.made_by is not None and form.pictures

    def _scores(self) -> list[dict[str, Any]]:
        """METRICS of the evaluation; `ConfigError` where it has none, or judged other rows."""
        if self.scores is None:
            return []
        try:
            table = from_parquet(FileStore(self.scores).get(METRICS))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(f"scores: {self.scores} holds no {METRICS}; name an evaluation") from error
        rows: list[dict[str, Any]] = table.to_pylist()
        mine = self._source().store.plan().run_id
        if others := sorted({row["run_id"] for row in rows} - {mine}):
            raise ConfigError(f"scores: {self.scores} judged run {others[0]}, and these rows are of {mine}")
        return rows

    def _public(self, source: ExportSource) -> dict[str, Any]:
        """This job as the card prints it: what was chosen, but no path of this machine."""
        settings = self.model_dump(
            mode="json",
            exclude={"kind", "resources", "out", "card", "samples", "faces", "scores"},
            exclude_defaults=True,
        )
        form = {"kind": self.format.kind, **self.format.model_dump(mode="json", exclude_defaults=True)}
        scores = {} if self.scores is None else {"scores": "runs/evaluation"}
        settings = {source.table: f"runs/{source.store.plan().run_id}", **settings, "format": form, **scores}
        return {"kind": "export", **settings, "out": "runs/export"}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A METRICS row without the time it was computed at."""
    return {name: value for name, value in row.items() if name != "created"}


def _constants(source: ExportSource) -> tuple[tuple[str, Any], ...]:
    """What is the same for all rows: the seed of their noise; a row's own `seed` is that of its plan."""
    seed = source.settings.get("seed")
    return (("noise_seed", seed),) if isinstance(seed, int) else ()


JOB = ExportJob
