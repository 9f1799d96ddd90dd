"""`raygen export`: committed SAMPLES or FACES -> a data set in the format of a trainer, with a data card.

Shards become files or pieces of files in parallel; a short final step joins the pieces and writes the check sums and
the card. Needs no torch.

    out/dataset/        the data set, with its data card README.md, croissant.json and SHA256SUMS
    out/attempt-00/     the run: plan, commits, and a row per exported picture
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from raygen.commands.base import (
    Estimate,
    PreparedRun,
    ProgressCallback,
    Result,
    ShardedJob,
    Throughput,
    extrapolate,
    noise_facts,
    outcome_facts,
    run_sharded,
)
from raygen.commands.inputs import check_conditions_of_faces, check_splits, keep_listings, listing_inputs, plan_run
from raygen.core.errors import ConfigError
from raygen.core.hashing import canonical, digest
from raygen.core.location import Location
from raygen.execution.executor import amend_record
from raygen.exports import AnyExport
from raygen.exports.base import DATASET
from raygen.exports.columns import NamingScheme
from raygen.exports.credentials import C2PAConfig, Credentials, ProvenanceConfig, key_warning, read_credentials
from raygen.exports.croissant import croissant_document
from raygen.exports.croissant_nodes import DataSetParts
from raygen.exports.data_card import CardConfig, ExportTotals, write_card
from raygen.exports.finalize import CARD, finish
from raygen.exports.row_scan import ExportListing, ExportSource, scan
from raygen.exports.worker import ExportConfig, ExportWorker
from raygen.store.filesystem import FileStore
from raygen.store.parquet import from_parquet
from raygen.store.run_store import RunStore

__all__ = ["JOB", "ExportJob"]


#: METRICS of an evaluation, in its folder.
METRICS: Final = "metrics/metrics.parquet"
#: Rows that a dry run exports in memory to estimate the time of all of them.
TIMED_ROWS: Final = 64


#: `true`, `false`, or settings; told apart by their form, so that an error speaks of what was meant.
Provenance = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[ProvenanceConfig, Tag("settings")],
    Discriminator(lambda value: "settings" if isinstance(value, dict | ProvenanceConfig) else "switch"),
]


class ExportJob(ShardedJob):
    """SAMPLES or FACES -> a data set."""

    kind: Literal["export"] = "export"
    samples: Location | None = Field(
        None, description="folder of a generate, edit or select run, whose SAMPLES are exported; or name `faces`"
    )
    faces: Location | None = Field(
        None, description="folder of an ingest run, whose FACES are exported; photographs are not marked as synthetic"
    )
    format: AnyExport = Field(description="file format of the data set, chosen by its `kind`")
    scores: Location | None = Field(
        None, description="folder of an evaluate run of these samples, whose numbers the data card shows; default none"
    )
    provenance: Provenance = Field(
        True,
        description="write into each generated picture that it is synthetic, and how it was generated; settings, "
        "such as c2pa, also sign it",
    )
    selected: bool = Field(
        True, description="of a run with a SELECTION, export only the accepted rows; false exports all rows"
    )
    splits: tuple[str, ...] = Field(
        (), description="with `faces`: export only these splits, such as [train]; empty exports all"
    )
    min_pictures: int | None = Field(
        None, ge=1, description="leave out identities that have fewer pictures than this; default none are left out"
    )
    text: str = Field("overall", description="name of the text in `texts` that is exported as the caption of a face")
    card: CardConfig = Field(
        default_factory=CardConfig, description="texts of the data card that cannot be derived from the run"
    )

    @model_validator(mode="after")
    def _require_one_source(self) -> "ExportJob":
        if (self.samples is None) == (self.faces is None):
            raise ValueError("name either `samples` or `faces`")
        if self.splits and self.faces is None:
            raise ValueError("`splits` can only be used with `faces`")
        if self._c2pa is not None and not self.format.pictures:
            raise ValueError(f"provenance.c2pa: format {self.format.kind} holds no pictures to sign")
        return self

    @property
    def _c2pa(self) -> C2PAConfig | None:
        return self.provenance.c2pa if isinstance(self.provenance, ProvenanceConfig) else None

    def prepare(self, *, write: bool) -> PreparedRun:
        """Plan the shards of the data set."""
        source = self._source()
        return self._prepared(source, self._listing(source), write=write)

    def run(self, report: ProgressCallback) -> Result:
        """Export every shard, then join the pieces and write the card."""
        source, scores = self._source(), self._scores()
        listing = self._listing(source)
        noise = str(noise_facts(source.store).get("warning", "")) if self.format.pictures else ""
        warnings = [*self.format.warnings(), *filter(None, [noise])]
        work = self._prepared(source, listing, write=True)
        if self._c2pa is not None:
            warnings += filter(None, [key_warning(self._c2pa)])
        outcome = run_sharded(work, self.resources, report)

        signed_by = work.plan.settings["provenance"]["c2pa"]["certificate_sha256"] if self._c2pa is not None else None

        def card(totals: ExportTotals) -> str:
            return write_card(
                self.card,
                self.format,
                source,
                listing,
                totals,
                scores,
                marks=self._marks(source),
                signed_by=signed_by,
                warning=noise,
                job=self.public_document(source),
            )

        def croissant(totals: ExportTotals, parts: DataSetParts) -> Mapping[str, Any]:
            return croissant_document(self.card, self.format, source, listing, totals, scores, parts)

        began = time.time()
        try:
            data_set = finish(self.format, work.store, listing.identities, outcome.manifest, card, croissant)
        except BaseException as error:
            with suppress(Exception):
                amend_record(work.store, error)
            raise
        amend_record(work.store, None)
        left_out = {
            "failed before": listing.failed,
            "not selected": listing.unselected,
            "in other splits": listing.other_splits,
            "of identities with too few pictures": listing.too_few,
            "could not be exported": data_set["bad"],
        }
        identities = f" of {len(listing.identities):,} identities" if listing.identities else ""
        facts, plural = outcome_facts(outcome), "s" * (data_set["files"] != 1)
        return Result(
            self.out,
            {
                "pictures": f"{data_set['rows']:,}{identities}",
                "left out": ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count) or "none",
                "data set": f"{self.out}/{DATASET}: {data_set['files']:,} file{plural}, {data_set['bytes']:,} bytes",
                "data card": f"{self.out}/{DATASET}/{CARD}",
                "finish_s": round(time.time() - began, 1),
                **{name: facts[name] for name in ("shards", "rows_per_s", "run_id", "set_digest") if name in facts},
                **({"warning": "; ".join(warnings)} if warnings else {}),
            },
        )

    def estimate(self) -> Estimate:
        """Export a few rows in memory, and scale up."""
        source = self._source()
        listing = self._listing(source)
        work = self._prepared(source, listing, write=False)
        work.store.check(work.plan)
        worker, rows = work.build(), listing.rows.slice(0, TIMED_ROWS)
        worker.start(rows.slice(0, 1))()  # the first call pays for lazy imports
        began = time.perf_counter()
        exported = worker.start(rows)()["exported"]
        seconds = (time.perf_counter() - began) / rows.num_rows
        size = sum(value or 0 for key in ("bytes", "mask_bytes") for value in exported[key].to_pylist()) / rows.num_rows
        notes = [f"timed on {rows.num_rows} rows with one worker on this machine", *self.format.warnings()]
        if listing.failed or listing.unselected:
            notes.append(f"left out: {listing.failed:,} failed before, {listing.unselected:,} not selected")
        if listing.too_few:
            notes.append(f"left out: {listing.too_few:,} of identities with fewer than {self.min_pictures} pictures")
        return extrapolate(work, self.resources, Throughput(seconds, size, rows.num_rows), tuple(notes))

    def _source(self) -> ExportSource:
        if self.samples is not None:
            return ExportSource.open(self.samples, "samples")
        assert self.faces is not None
        check_splits(self.faces, self.splits, "splits")
        if "text" in self.model_fields_set:
            check_conditions_of_faces(self.faces, ["text"], self.splits, key="text", caption=("text", self.text))
        return ExportSource.open(self.faces, "faces")

    def _listing(self, source: ExportSource) -> ExportListing:
        naming = NamingScheme(source.key, identity_folders=self.format.identity_folders, no_dots=self.format.no_dots)
        listing = scan(
            source,
            naming,
            self.format.identities,
            part_rows=self.shard_rows,
            selected=self.selected,
            splits=self.splits,
            min_pictures=self.min_pictures,
        )
        self.format.check(listing.rows.num_rows, len(listing.identities))
        return listing

    def _prepared(self, source: ExportSource, listing: ExportListing, *, write: bool) -> PreparedRun:
        """Store the listing as input; a shard of it is one part of the data set, and one batch."""
        settings = self.settings(exclude={"samples", "faces", "scores", "shard_rows", "max_error_fraction"})
        # Evaluating again gives the same numbers at another time, and must not make it another export.
        scores = [{key: value for key, value in row.items() if key != "created"} for row in self._scores()]
        settings["scores"] = digest(canonical(scores))
        settings["table"] = source.table
        settings["provenance"] = bool(self.provenance)
        credentials = self._credentials(source)
        if credentials is not None:
            settings["provenance"] = {"c2pa": credentials.identity}
            if write and not FileStore(self.out).creates_once():
                raise ConfigError(f"{self.out}: provenance.c2pa needs storage that creates a file only once")
        inputs = listing_inputs(listing.rows, self.out, source.digest, write=write)
        seed = source.settings.get("seed")
        config = ExportConfig(
            self.format,
            self.out,
            tuple(piece.path for piece in source.slices),
            -(-listing.rows.num_rows // self.shard_rows),
            listing.naming,
            source.made_by,
            self._marks(source),
            (("noise_seed", seed),) if isinstance(seed, int) else (),  # a row's own `seed` is that of its plan
            self.text,
            write,
            credentials,
        )
        plan = plan_run("export", settings, inputs, batch=self.shard_rows, shard_rows=self.shard_rows)
        build, store = partial(ExportWorker, config), RunStore(self.out)
        if write:
            keep_listings(store, plan, inputs)
        return PreparedRun(store, plan, self.max_error_fraction, build=build, first=listing.rows)

    def _marks(self, source: ExportSource) -> bool:
        """Whether pictures are marked as synthetic."""
        return bool(self.provenance) and source.made_by is not None and self.format.pictures

    def _credentials(self, source: ExportSource) -> Credentials | None:
        """Certificate and place of the key where pictures are signed; `ConfigError` where they cannot be."""
        if self._c2pa is None:
            return None
        if source.made_by is None:
            raise ConfigError(
                f"provenance.c2pa: {source.url} holds photographs, or pictures of unknown origin; a credential says "
                "how a picture was made, so only generated and drawn ones are signed"
            )
        return read_credentials(self._c2pa)

    def _scores(self) -> list[dict[str, Any]]:
        """METRICS of the evaluation; `ConfigError` where it has none, or is of other rows."""
        if self.scores is None:
            return []
        try:
            table = from_parquet(FileStore(self.scores).get(METRICS))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(f"scores: {self.scores} has no {METRICS}; name an evaluation") from error
        rows: list[dict[str, Any]] = table.to_pylist()
        exported = self._source().store.plan().run_id
        if others := sorted({row["run_id"] for row in rows} - {exported}):
            raise ConfigError(f"scores: {self.scores} judged run {others[0]}; the rows to export are of run {exported}")
        return rows

    def public_document(self, source: ExportSource) -> dict[str, Any]:
        """This job as the data card prints it: without defaults, and without paths of this machine."""
        settings = self.model_dump(
            mode="json",
            exclude={"kind", "resources", "out", "card", "samples", "faces", "scores"},
            exclude_defaults=True,
        )
        form = {"kind": self.format.kind, **self.format.model_dump(mode="json", exclude_defaults=True)}
        scores = {} if self.scores is None else {"scores": "runs/evaluation"}
        if self._c2pa is not None:
            stamps = {} if self._c2pa.time_stamps is None else {"time_stamps": self._c2pa.time_stamps}
            settings["provenance"] = {"c2pa": {"certificate": "certificate.pem", "key": "key.pem", **stamps}}
        settings = {source.table: f"runs/{source.store.plan().run_id}", **settings, "format": form, **scores}
        return {"kind": "export", **settings, "out": "runs/export"}


JOB = ExportJob
