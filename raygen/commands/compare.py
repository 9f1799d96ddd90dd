"""`raygen compare`: METRICS of several evaluations as one table, if they were measured alike.

out/comparison.{json,csv,md}   the table
out/report.html                the same as a page, with pictures of the same rows
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from raygen.core.config import parse
from raygen.core.documents import load_json
from raygen.core.errors import ConfigError, IntegrityError
from raygen.core.location import Location
from raygen.evaluation.comparison import cell_of, variant_of
from raygen.evaluation.methods import MethodTable, Published, method_table
from raygen.evaluation.sample_facts import METHOD
from raygen.report.build import build_report
from raygen.report.run_folder import COMPARISON
from raygen.store.filesystem import FileStore
from raygen.store.parquet import from_parquet

__all__ = ["Evaluation", "compare", "print_comparison", "write_comparison"]


#: `NAME=FOLDER`; a folder may have an equals sign behind a slash.
NAMED: Final = re.compile(r"([^=/:]+)=(.+)", re.S)


class Evaluation(NamedTuple):
    """One method: its name, the folder of its evaluation, METRICS rows, published values, the run with its pictures."""

    name: str
    url: str
    rows: Sequence[dict[str, Any]]
    published: Sequence[Published]
    samples: str | None

    @staticmethod
    def open(word: str) -> "Evaluation":
        """The evaluation of `FOLDER` or `NAME=FOLDER`; without a name, that of the method, or of the folder."""
        named = NAMED.fullmatch(word)
        url: str = parse(Location, named[2] if named else word, "compare").rstrip("/")
        storage = FileStore(f"{url}/metrics")
        if not storage.exists("metrics.parquet"):
            raise ConfigError(f"{url}: holds no metrics/metrics.parquet; name the `out` of a `raygen evaluate`")
        rows = from_parquet(storage.get("metrics.parquet")).to_pylist()
        if not any(row["slice"] == "all" for row in rows):
            raise ConfigError(f"{url}: has no METRICS of samples; it was evaluated as a reference")
        if any(cell_of(row) or variant_of(row) for row in rows):
            raise ConfigError(f"{url}: has METRICS of several cells or variants; name the folder of one of them")
        methods = (json.loads(row["protocol"] or "{}").get(METHOD) for row in rows if row["slice"] == "all")
        name = named[1] if named else next(filter(None, methods), url.rpartition("/")[2])
        published = [
            Published(name, metric, value, entry["source"], entry["measured"])
            for entry in _json(storage, "published.json") or []
            for metric, value in entry["values"].items()
        ]
        samples = (_json(storage, "pictures.json") or {}).get("samples")
        return Evaluation(name, url, rows, published, samples)


def compare(words: Sequence[str]) -> tuple[MethodTable, list[Evaluation]]:
    """The table of the evaluations that `words` name, and the evaluations.

    `ConfigError` where there are fewer than two, two have one name, or they were not measured alike.
    """
    if len(words) < 2:
        raise ConfigError("compare: name at least two evaluations, such as `raygen compare ours=runs/a SEAN=runs/sean`")
    found = [Evaluation.open(word) for word in words]
    names = [evaluation.name for evaluation in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"compare: two methods are {twice[0]!r}; name them, such as {twice[0]}-2={found[-1].url}")
    published = [entry for evaluation in found for entry in evaluation.published]
    return method_table({evaluation.name: evaluation.rows for evaluation in found}, published), found


def print_comparison(words: Sequence[str], out: str | None) -> Iterator[str]:
    """The table in Markdown, and the address of the page if the comparison is written into `out`."""
    table, found = compare(words)
    yield table.markdown().rstrip()
    if out is not None:
        yield f"compare: {write_comparison(table, found, out)}"


def write_comparison(table: MethodTable, found: Sequence[Evaluation], out: str) -> str:
    """Write the table and its page into the folder `out`; the address of the page."""
    storage = FileStore(out)
    document = table.document() | {"pictures": {e.name: e.samples for e in found if e.samples}}
    storage.update(COMPARISON, json.dumps(document, indent=1).encode())
    storage.update("comparison.csv", table.csv().encode())
    storage.update("comparison.md", table.markdown().encode())
    return build_report(out)


def _json(storage: FileStore, name: str) -> Any:
    """A JSON file of an evaluation; None where there is none."""
    if not storage.exists(name):
        return None
    try:
        return load_json(storage.get(name))
    except ValueError as error:
        raise IntegrityError(f"{storage.address(name)} is damaged; evaluate again") from error
