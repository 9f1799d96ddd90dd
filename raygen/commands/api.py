"""raygen from Python: run a job, read the tables of a run, score a folder of pictures."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, Literal, get_args, overload

import pyarrow as pa

from raygen.commands.base import ProgressCallback, Result
from raygen.commands.registry import load, make
from raygen.core.config import Resources, nearest, override, parse
from raygen.core.errors import ConfigError
from raygen.core.location import Location, RelativeLocation
from raygen.execution.executor import execute, local_runner
from raygen.store.filesystem import FileStore
from raygen.store.parquet import from_parquet
from raygen.store.run_store import Plan, RunStore, make_shards, open_input
from raygen.store.schemas import SAMPLES, SCHEMAS, cast

__all__ = ["evaluate", "load_dataset", "run"]

#: The table of a run that is read where none is named: the first one that exists.
MAIN_TABLES: Final = ("samples", "faces", "conditions", "latents", "selection", "scores")
Format = Literal["arrow", "pandas", "datasets"]


def run(job: str | Path | Mapping[str, Any], *overrides: str, progress: ProgressCallback = lambda _: None) -> Result:
    """Run a job: a YAML file or a dictionary with the same keys, with `a.b=c` overrides.

    Finished shards are kept: a second call continues where the first one stopped. Returns the folder and facts about
    the run. `progress` is called with a `Progress` after each shard. Raises the errors of `raygen.core.errors`.
    """
    if isinstance(job, Mapping):
        return make(override(job, overrides)).start(progress)
    return load(parse(RelativeLocation, str(job), "job"), overrides).start(progress)


@overload
def load_dataset(
    folder: str | Path,
    table: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    format: Literal["arrow"] = ...,
) -> pa.Table: ...


@overload
def load_dataset(
    folder: str | Path, table: str | None = None, *, columns: Sequence[str] | None = None, format: Format
) -> Any: ...


def load_dataset(
    folder: str | Path,
    table: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    format: Format = "arrow",
) -> Any:
    """The committed rows of a finished run, local or behind a URL.

    `table` is one of faces, conditions, samples, scores, selection, latents, influence, or `metrics` of an evaluation;
    without it the run's main table is read. `format`: a `pyarrow.Table`, a pandas data frame, or a
    `datasets.Dataset` whose picture columns decode to Pillow pictures.
    `ConfigError` where the run is not finished or has no such table or columns.
    """
    url: str = parse(Location, str(folder), "folder")
    formats = get_args(Format)
    if format not in formats:
        raise ConfigError(f"format: must be one of {', '.join(formats)} (got {format!r})")
    name = table
    if name == "metrics":
        rows = _metrics(url)
    else:
        if table is not None and table not in SCHEMAS:
            known = tuple(SCHEMAS)
            raise ConfigError(f"table: must be one of {', '.join(known)} (got {table!r}){nearest(table, known)}")
        store, _ = open_input(url)
        name = table or next((name for name in MAIN_TABLES if store.has(name)), None)
        if name is None or not store.has(name):
            raise ConfigError(f"{url}: the run of `raygen {store.plan().kind}` has no table {name or 'with rows'}")
        rows = pa.concat_tables(store.tables(name, columns))
    if columns is not None:
        if unknown := [column for column in columns if column not in rows.column_names]:
            there = SCHEMAS[str(name)].names
            raise ConfigError(f"columns: {url} has no {unknown[0]!r}{nearest(unknown[0], there)}")
        rows = rows.select(list(columns))
    if format == "arrow":
        return rows
    if format == "pandas":
        return rows.to_pandas()
    try:
        from datasets import Dataset
        from datasets.table import InMemoryTable
    except ImportError as error:
        raise ConfigError("format='datasets' needs the package `datasets`: pip install datasets") from error
    return Dataset(InMemoryTable(rows))


def _metrics(url: str) -> pa.Table:
    for name in ("metrics/metrics.parquet", "metrics.parquet"):
        if FileStore(url).exists(name):
            return from_parquet(FileStore(url).get(name))
    raise ConfigError(f"{url}: no metrics.parquet here; name the folder of an evaluation")


def evaluate(
    samples: str | Path,
    reference: str | Path,
    *,
    out: str | Path | None = None,
    size: int = 64,
    progress: ProgressCallback = lambda _: None,
    **settings: Any,
) -> dict[str, float]:
    """Score pictures against real ones; the metrics of the whole set by name, such as `fd:raygen-parser`.

    Each of `samples` and `reference` is a folder of pictures (cropped to squares of `size` pixels) or the folder of a
    finished run. `settings` are those of `raygen evaluate` (`score`, `compare`, `slices` …). With `out` the results are
    kept there: METRICS with protocols and confidence intervals, and the scores of each picture. Raises the errors of
    `raygen evaluate`.
    """
    samples, reference = parse(Location, str(samples), "samples"), parse(Location, str(reference), "reference")
    kept: str = "" if out is None else parse(Location, str(out), "out")
    with tempfile.TemporaryDirectory() if out is None else nullcontext(kept) as folder:
        job = {
            "kind": "evaluate",
            "samples": samples_run(samples, f"{folder}/pictures", size, progress),
            "reference": _faces_run(reference, f"{folder}/reference_pictures", size, progress),
            **settings,
            "out": folder,
        }
        make(job).start(progress)
        rows = _metrics(str(folder)).to_pylist()
    return {row["metric"]: row["value"] for row in rows if row["slice"] == "all"}


def samples_run(url: str, out: str, size: int, progress: ProgressCallback) -> str:
    """Folder of a run with SAMPLES: `url` itself, or a run in `out` with the pictures of a folder or of FACES."""
    if _is_run(url) and open_input(url)[0].has("samples"):
        return url
    faces, content = open_input(_faces_run(url, f"{out}/faces", size, progress))
    shards = make_shards(faces.slices("faces"), 1024)
    plan = Plan("samples", content[:16], {"faces": content}, 1024, shards)
    store = RunStore(f"{out}/samples")
    execute(store, plan, FacesAsSamples, Resources(), local_runner, max_error_fraction=0.0)
    return f"{out}/samples"


def _faces_run(url: str, out: str, size: int, progress: ProgressCallback) -> str:
    """Folder of a run with FACES: `url` itself, or an ingest run in `out` of a folder of pictures."""
    if _is_run(url) or FileStore(url).exists("reference.json"):
        return url
    data = {"kind": "folder", "root": url, "size": size, "crop": "center"}
    make({"kind": "ingest", "data": data, "out": out}).start(progress)
    return out


def _is_run(url: str) -> bool:
    return any(FileStore(url).exists(f"{folder}plan.json") for folder in ("attempt-00/", ""))


class FacesAsSamples:
    """Worker that turns FACES into SAMPLES, so that any set of pictures can be evaluated."""

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """See `Worker.start`."""
        table = rows.rename_columns(["sample_id" if name == "face_id" else name for name in rows.column_names])
        for field in SAMPLES:
            if field.name not in table.column_names:
                # These pictures were not generated here: they have no sampler, checkpoint or seed.
                blank = None if field.nullable else "" if pa.types.is_string(field.type) else 0
                table = table.append_column(field, pa.array([blank] * rows.num_rows, field.type))
        return lambda: {"samples": cast(table.select(SAMPLES.names), SAMPLES)}
