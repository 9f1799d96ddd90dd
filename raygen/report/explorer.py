"""The explorer: an offline page of all pictures of a run, which sorts, filters and enlarges them.

    explorer.html              the page, and every row without its picture
    explorer_files/t-0000.js   small pictures as data URLs, `CHUNK` rows a file
    explorer_files/m-0000.js   masks in the official colours, with a transparent background
    explorer_files/v-0000.js   larger pictures, `LARGE_CHUNK` rows a file; only where pictures are larger than `SIDE`

Beside a report of another name, such as ours.html, they are ours_explorer.html and ours_explorer_files.
The page loads the files that its visible part needs, as scripts: a page that is opened from a disk may load no data.
"""

import base64
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from PIL import Image

from raygen.core.errors import InputError
from raygen.core.face_labels import ATTRIBUTES, CLASSES, PALETTE
from raygen.core.location import redact
from raygen.metrics.registry import REGISTRY, lookup
from raygen.report.class_labels import LABELS
from raygen.report.run_folder import RunFolder, Stage
from raygen.store.filesystem import FileStore
from raygen.store.images import decode_image, decode_mask
from raygen.store.parquet import Slice, read_slice
from raygen.store.set_digest import KEYS

__all__ = ["explorer_name", "explorer_page", "explorer_rows", "write_explorer"]


#: Longest side of a picture in the grid, and of an enlarged one.
SIDE: Final = 128
LARGE_SIDE: Final = 512
#: Rows of a file of small pictures and masks, and of one of larger pictures.
CHUNK: Final = 256
LARGE_CHUNK: Final = 32
#: Codes of an attribute that was asked for and not measured; the others are those of `raygen.metrics.attributes`.
ASKED_ABSENT, ASKED_PRESENT = 5, 6
#: Titles of measurements whose row is one number, and which direction is better; others are in the registry.
TITLES: Final[Mapping[str, tuple[str, str]]] = {
    "segmentation": ("Mean IoU with the mask", "higher"),
    "condition": ("Pixels as the mask asks", "higher"),
    "attributes": ("Attributes as asked for", "higher"),
    "influence": ("Mean influence", ""),
}
PAGES: Final = Path(__file__).with_name("pages")
STYLES: Final = Path(__file__).with_name("templates") / "report.css"


@dataclass
class Rows:
    """The rows of the page by column, without their pictures."""

    ids: list[str] = field(default_factory=list)
    people: list[str | None] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    errors: list[str | None] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    large: bool = False
    masks: bool = False


def explorer_name(report: str) -> str:
    """The page beside the file `report`, without .html: reports in one folder have explorers of their own."""
    folder, slash, name = report.rpartition("/")
    stem = name.rpartition(".")[0] or name
    return folder + slash + ("explorer" if stem == "report" else f"{stem}_explorer")


def write_explorer(run: RunFolder, storage: FileStore, limit: int, *, report: str) -> str | None:
    """Write the page and its pictures to `storage`, beside the file `report`; its name, None for runs without pictures.

    At most `limit` rows, evenly spaced.
    """
    stage = run.main
    if stage is None or stage.table not in ("samples", "faces"):
        return None
    name = explorer_name(report)
    files = _Chunks(storage, f"{name}_files")
    rows = Rows()
    with ThreadPoolExecutor() as threads:
        for table in _tables(stage, limit):
            _take(rows, table, KEYS[stage.table][0])
            pictures = table.select([name for name in ("image", "mask") if name in table.column_names]).to_pylist()
            for thumb, mask, large, reason in threads.map(_encoded, pictures):
                place = files.add(thumb, mask, large)
                rows.errors[place] = rows.errors[place] or reason
    files.close()
    rows.large, rows.masks = files.has("v"), files.has("m")
    _add_scores(rows, run, stage)
    shown = explorer_rows(rows, run, stage) | {"link": quote(report), "folder": files.folder}
    storage.put(f"{name}.html", redact(explorer_page(shown)).encode())
    return f"{name}.html"


def _tables(stage: Stage, limit: int) -> Iterator[pa.Table]:
    """The rows of the page, a file of the run at once."""
    columns = [*KEYS[stage.table], "image", "mask", "error", "identity_id", "split", "text", "attributes"]
    pieces = stage.slices(stage.table)
    total = sum(piece.rows for piece in pieces)
    chosen = np.unique(np.floor((np.arange(min(limit, total)) + 0.5) * total / max(min(limit, total), 1)))
    start = 0
    for piece in pieces:
        inside = chosen[(chosen >= start) & (chosen < start + piece.rows)] - start
        start += piece.rows
        if len(inside):
            table = read_slice(piece, columns)
            yield table if len(inside) == piece.rows else table.take(pa.array(inside.astype(np.int64)))


def _take(rows: Rows, table: pa.Table, key: str) -> None:
    """Append the small columns of `table`."""

    def column(name: str) -> list[Any]:
        return table[name].to_pylist() if name in table.column_names else [None] * table.num_rows

    attempts = column("attempt") if "attempt" in table.column_names else [0] * table.num_rows
    rows.ids += [f"{name}\t{attempt}" for name, attempt in zip(column(key), attempts, strict=True)]
    rows.people += column("identity_id")
    rows.splits += column("split")
    rows.texts += column("text")
    rows.errors += column("error")
    for asked in column("attributes"):
        values = [0] * len(ATTRIBUTES) if asked is None else [asked.get(name) or 0 for name in ATTRIBUTES]
        rows.codes.append("".join("0" if v == 0 else str(ASKED_PRESENT if v > 0 else ASKED_ABSENT) for v in values))


def _encoded(row: Mapping[str, Any]) -> tuple[str | None, str | None, str | None, str | None]:
    """Small picture, mask and larger picture of a row as data URLs, and why it has no picture."""
    try:
        image = Image.fromarray(decode_image((row.get("image") or {}).get("bytes")))
    except InputError as error:
        return None, None, None, str(error)[:200]
    thumb = _webp(image, SIDE)
    large = _webp(image, LARGE_SIDE) if max(image.size) > SIDE else None
    try:
        mask = Image.fromarray(decode_mask((row.get("mask") or {}).get("bytes"))) if row.get("mask") else None
    except InputError:
        mask = None
    return thumb, None if mask is None else _coloured(mask), large, None


def _webp(image: Image.Image, side: int) -> str:
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=86, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _coloured(mask: Image.Image) -> str:
    """Class ids as a PNG with a palette, whose background is transparent."""
    if max(mask.size) > SIDE:
        mask = mask.copy()
        mask.thumbnail((SIDE, SIDE), Image.Resampling.NEAREST)
    coloured = Image.fromarray(np.asarray(mask))
    coloured.putpalette(PALETTE.tobytes())
    buffer = io.BytesIO()
    coloured.save(buffer, "PNG", transparency=0)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class _Chunks:
    """Files of data URLs, written as soon as they are full."""

    def __init__(self, storage: FileStore, folder: str) -> None:
        self.folder = folder
        self._storage = storage
        self._held: dict[str, list[str | None]] = {"t": [], "m": [], "v": []}
        self._written: dict[str, int] = dict.fromkeys(self._held, 0)
        self._filled: set[str] = set()
        self._names: set[str] = set()
        self._rows = 0

    def add(self, thumb: str | None, mask: str | None, large: str | None) -> int:
        """Append a row; its number."""
        for kind, value, size in (("t", thumb, CHUNK), ("m", mask, CHUNK), ("v", large, LARGE_CHUNK)):
            self._held[kind].append(value)
            if value is not None:
                self._filled.add(kind)
            if len(self._held[kind]) == size:
                self._write(kind)
        self._rows += 1
        return self._rows - 1

    def _write(self, kind: str) -> None:
        number, self._held[kind], values = self._written[kind], [], self._held[kind]
        self._written[kind] += 1
        if kind == "t" or any(values):  # of other kinds a missing file has no picture
            text = f"raygenChunk({json.dumps(kind)},{number},{json.dumps(values, separators=(',', ':'))});\n"
            name = f"{kind}-{number:04d}.js"
            self._storage.put(f"{self.folder}/{name}", text.encode())
            self._names.add(name)

    def close(self) -> None:
        """Write what is left, and remove the files of an earlier page that this one does not replace."""
        for kind, values in self._held.items():
            if values:
                self._write(kind)
        for name in set(self._storage.names(self.folder)) - self._names:
            if re.fullmatch(r"[tmv]-\d{4,}\.js", name):
                self._storage.remove(f"{self.folder}/{name}")

    def has(self, kind: str) -> bool:
        """Whether any row has such a picture."""
        return kind in self._filled


def _add_scores(rows: Rows, run: RunFolder, stage: Stage) -> None:
    """Fill `scores` and, where a classifier has judged, `codes`: the first one, as in the section of attributes."""
    folders = ("scores/samples", stage.folder) if stage.table == "samples" else ("scores/reference",)
    stored = [run.stages[name].slices("scores") for name in folders if name in run.stages]
    places = {name: place for place, name in enumerate(rows.ids)}
    judge = ""
    for piece in next((pieces for pieces in stored if pieces), list[Slice]()):
        table = read_slice(piece, ["sample_id", "attempt", "metric", "value", "vector"])
        keys = zip(table["sample_id"].to_pylist(), table["attempt"].to_pylist(), strict=True)
        found = [places.get(f"{name}\t{attempt}", -1) for name, attempt in keys]
        metrics = table["metric"].to_pylist()
        for place, metric, value in zip(found, metrics, table["value"].to_pylist(), strict=True):
            if place >= 0 and value is not None and np.isfinite(value):
                rows.scores.setdefault(metric, [None] * len(rows.ids))[place] = value
        judged = table.filter(pc.and_(pc.starts_with(table["metric"], "attributes:"), _of_width(table)))
        judge = judge or (judged["metric"][0].as_py() if judged.num_rows else "")
        judged = judged.filter(pc.equal(judged["metric"], judge))
        for name, attempt, codes in zip(
            *(judged[c].to_pylist() for c in ("sample_id", "attempt", "vector")), strict=True
        ):
            place = places.get(f"{name}\t{attempt}", -1)
            if place >= 0:
                rows.codes[place] = "".join(str(int(code)) for code in codes)


def _of_width(table: pa.Table) -> pa.ChunkedArray:
    return pc.equal(pc.list_value_length(table["vector"]), len(ATTRIBUTES))


def explorer_rows(rows: Rows, run: RunFolder, stage: Stage) -> dict[str, Any]:
    """What the page is told of the run, as plain values; equal words are stored once."""
    shown = [i for i in range(len(ATTRIBUTES)) if any(codes[i] != "0" for codes in rows.codes)]
    scores = []
    kinds = Counter(metric.partition(":")[0] for metric in rows.scores)
    for metric, values in sorted(rows.scores.items()):
        title, better, digits = _described(metric, alone=kinds[metric.partition(":")[0]] == 1)
        rounded = [None if value is None else float(f"{value:.5g}") for value in values]
        scores.append({"metric": metric, "title": title, "better": better, "digits": digits, "values": rounded})
    return {
        "name": run.name,
        "what": "generated" if run.generated else "faces",
        "total": stage.rows,
        "chunk": CHUNK,
        "largeChunk": LARGE_CHUNK,
        "large": rows.large,
        "masks": rows.masks,
        "classes": [[LABELS[name], "#{:02x}{:02x}{:02x}".format(*PALETTE[i])] for i, name in enumerate(CLASSES) if i],
        "ids": [name.partition("\t")[0] for name in rows.ids],
        "identities": _words(rows.people),
        "splits": _words(rows.splits),
        "texts": _words(rows.texts),
        "errors": _words(rows.errors),
        "scores": scores,
        "attributes": [ATTRIBUTES[i].replace("_", " ") for i in shown],
        "codes": ["".join(codes[i] for i in shown) for codes in rows.codes] if shown else [],
    }


def _described(metric: str, *, alone: bool) -> tuple[str, str, int]:
    """Title of a measurement of rows, with its network unless it is the only one; the better direction, and digits."""
    kind, _, network = metric.partition(":")
    record = lookup(metric) if kind in REGISTRY else None
    title, better = TITLES.get(kind) or ((record.title, record.better) if record else (kind, ""))
    return title if alone or not network else f"{title} ({network})", better, record.digits if record else 3


def _words(values: Sequence[str | None]) -> dict[str, Any] | None:
    """Different values, and the index of each row's (-1 for none); None where no row has one."""
    words = list(dict.fromkeys(value for value in values if value is not None))
    index = {word: i for i, word in enumerate(words)}
    return {"words": words, "rows": [-1 if v is None else index[v] for v in values]} if words else None


def explorer_page(rows: Mapping[str, Any]) -> str:
    """The page as HTML. It loads nothing but the files of its folder, and text of rows is never markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    css = STYLES.read_text(encoding="utf-8") + (PAGES / "explorer.css").read_text(encoding="utf-8")
    script = (PAGES / "explorer.js").read_text(encoding="utf-8")
    data = json.dumps(rows, separators=(",", ":")).replace("<", "\\u003c")
    environment = Environment(loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("explorer.html.j2").render(
        rows=rows,
        css=Markup(css),
        style_hash=_sha256(css),
        script=Markup(script),
        script_hash=_sha256(script),
        data=Markup(data),
    )


def _sha256(text: str) -> str:
    """The digest of a style or script, as a content security policy writes it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
