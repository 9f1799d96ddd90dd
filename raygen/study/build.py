"""The folder of a study: pages, pictures without names, and the key, which lies elsewhere.

OUT/form-01.html ...          the pages
OUT/pictures/0a1b....webp     pictures and masks; with `embed` they are in the pages
KEY.json                      which method is where: never beside the pages
"""

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from raygen.core.documents import load_json
from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import PALETTE
from raygen.core.hashing import canonical, digest
from raygen.core.location import folder_and_name
from raygen.core.types import UInt8Array
from raygen.store.filesystem import FileStore
from raygen.store.images import decode_image, decode_mask, fit_image, fit_mask
from raygen.store.lookup import StoredRows
from raygen.store.run_store import open_input
from raygen.study.design import Form, random_of, token

__all__ = ["KEY_FORMAT", "Page", "common_rows", "content_of", "read_key", "write_study"]


#: Changes where keys have another form.
KEY_FORMAT: Final = 1
#: Rows of each method that are in memory at once.
AT_ONCE: Final = 64
#: Columns of the condition, by the name under which it is shown.
CONDITIONS: Final = ("mask", "attributes", "text")
PAGES: Final = Path(__file__).with_name("pages")
STYLES: Final = Path(__file__).parent.parent / "report" / "templates" / "report.css"


@dataclass(frozen=True)
class Page:
    """What all pages of a study have in common. `size`: side of the pictures, by default the smallest of all."""

    question: str
    instructions: str
    show: Sequence[str]
    ties: bool
    size: int | None
    embed: bool


def read_key(place: str) -> Mapping[str, Any]:
    """The key of a study; `ConfigError` where `place` holds none."""
    folder, name = folder_and_name(place)
    try:
        key = load_json(FileStore(folder).get(name))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{place}: no such file; `raygen study` has written the key of the study") from None
    except IsADirectoryError:
        raise ConfigError(f"{place}: is a folder; the key of a study is one file") from None
    except ValueError:
        key = None
    if not isinstance(key, dict) or key.get("format") != KEY_FORMAT or not isinstance(key.get("forms"), list):
        raise ConfigError(f"{place}: is not the key of a study of this version")
    return key


def content_of(methods: Mapping[str, str]) -> str:
    """A digest of the SAMPLES of all methods, `methods` being their folders by name."""
    return digest(canonical([open_input(url)[1] for url in methods.values()]))


def common_rows(methods: Mapping[str, str]) -> list[str]:
    """Ids of the rows that all methods have a picture of, in the order of the first one.

    `methods`: folders of SAMPLES by name. `ConfigError` where a folder has no complete run of SAMPLES.
    """
    ids: list[list[str]] = []
    for name, url in methods.items():
        store, _ = open_input(url)
        if not store.has("samples"):
            raise ConfigError(f"methods.{name}: {url} is the result of `raygen {store.plan().kind}`, without SAMPLES")
        made: list[str] = []
        for table in store.tables("samples", ["sample_id", "error"]):
            made += [
                i
                for i, error in zip(table["sample_id"].to_pylist(), table["error"].to_pylist(), strict=True)
                if not error
            ]
        ids.append(made)
    others = [set(names) for names in ids[1:]]
    return [name for name in ids[0] if all(name in other for other in others)]


def write_study(
    methods: Mapping[str, str], forms: Sequence[Form], page: Page, *, out: str, key: str, seed: int
) -> Mapping[str, Any]:
    """Write pages and pictures into `out`, and the key into the file `key`; the key.

    Files are written in the order of their names, which are random: neither names, nor times, nor what is beside the
    pixels tells a method. `ConfigError` where the condition of a row differs between methods, a picture cannot be
    shown, or `key` or `out` hold another study.
    """
    document = _key(methods, forms, page, seed)
    folder, file = folder_and_name(key)
    keys = FileStore(folder)
    if keys.exists(file) and read_key(key)["study"] != document["study"]:
        raise ConfigError(f"{key}: is the key of another study, whose answers it is needed for; choose another `key`")
    storage = FileStore(out)
    if storage.exists("form-01.html") and document["study"].encode() not in storage.get("form-01.html"):
        raise ConfigError(f"{out}: holds the pages of another study; choose another `out`")
    random = random_of(seed, f"names {content_of(methods)}", 0)
    rows = list(dict.fromkeys(trial.sample_id for form in forms for trial in form.trials))
    names = {(method, row): token(random) for row in rows for method in methods}
    masks = {row: token(random) for row in rows}
    files, conditions = _files(methods, rows, names, masks, page)
    keys.put(file, json.dumps(document, indent=1).encode())  # first: pages without it are of no use
    if not page.embed:
        for name in sorted(files):
            storage.put(f"pictures/{name}.webp", files[name])
    for form in forms:
        trials = [_trial(trial, names, masks, conditions[trial.sample_id], page.show, files) for trial in form.trials]
        data = {
            "study": document["study"],
            "form": form.number,
            "question": page.question,
            "instructions": page.instructions,
            "ties": page.ties,
            "trials": trials,
            "pictures": _embedded(trials, files) if page.embed else None,
        }
        storage.put(f"form-{form.number:02d}.html", _html(data).encode())
    return document


def _files(
    methods: Mapping[str, str],
    rows: Sequence[str],
    names: Mapping[tuple[str, str], str],
    masks: Mapping[str, str],
    page: Page,
) -> tuple[dict[str, bytes], dict[str, Mapping[str, Any]]]:
    """Encoded pictures and masks by their names, and what each row asked for."""
    held = {method: StoredRows(url, ["image", *CONDITIONS], table="samples") for method, url in methods.items()}
    files: dict[str, bytes] = {}
    conditions: dict[str, Mapping[str, Any]] = {}
    first = {method: lookup(rows[:1])[rows[0]]["image"] for method, lookup in held.items()}
    # By default the smallest: enlarged ones would tell their method.
    size = page.size or min(len(_pixels(image, method, rows[0])) for method, image in first.items())
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            found = {method: lookup(part) for method, lookup in held.items()}
            for row in part:
                conditions[row] = _condition(row, {method: found[method][row] for method in methods})
            wanted = [(method, row) for row in part for method in methods]
            stored = [found[method][row]["image"] for method, row in wanted]
            encode = partial(_picture, size=size, enlarge=page.size is not None)
            encoded = threads.map(encode, stored, *zip(*wanted, strict=True))
            files |= {names[place]: data for place, data in zip(wanted, encoded, strict=True)}
            if "mask" in page.show:
                files |= {masks[row]: _mask(conditions[row]["mask"], size) for row in part if conditions[row]["mask"]}
    return files, conditions


def _condition(row: str, found: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """What a row asked for; `ConfigError` where the methods were not asked for the same."""
    (first, own), *others = found.items()
    for name in CONDITIONS:
        for method, other in others:
            if own[name] is not None and other[name] is not None and own[name] != other[name]:
                raise ConfigError(
                    f"methods: row {row} has another {name} in {method} than in {first}; compare samples of the same "
                    "conditions"
                )
    return {name: next((r[name] for r in found.values() if r[name] is not None), None) for name in CONDITIONS}


def _pixels(image: Mapping[str, Any] | None, method: str, row: str) -> UInt8Array:
    """A square picture; `ConfigError` where it is none, or does not open."""
    try:
        pixels = decode_image((image or {}).get("bytes"))
        return fit_image(pixels, len(pixels))
    except InputError as error:
        raise ConfigError(
            f"methods.{method}: row {row}: {error}; a study needs square pictures that open, of every row that all "
            "methods have made"
        ) from None


def _picture(image: Mapping[str, Any] | None, method: str, row: str, *, size: int, enlarge: bool) -> bytes:
    """A picture as lossless WebP of `size` pixels, with nothing in it but pixels."""
    pixels = _pixels(image, method, row)
    if len(pixels) < size and not enlarge:
        raise ConfigError(
            f"methods.{method}: row {row} is {len(pixels)} px wide, and others are {size} px: enlarged, it would tell "
            f"its method; set size={len(pixels)}"
        )
    return _webp(Image.fromarray(fit_image(pixels, size)))


def _mask(value: Mapping[str, Any], size: int) -> bytes:
    """A mask in the official colours."""
    return _webp(Image.fromarray(PALETTE[fit_mask(decode_mask(value["bytes"]), size)]))


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, method=2, exact=True)
    return buffer.getvalue()


def _trial(
    trial: Any,
    names: Mapping[tuple[str, str], str],
    masks: Mapping[str, str],
    condition: Mapping[str, Any],
    show: Sequence[str],
    files: Mapping[str, bytes],
) -> Mapping[str, Any]:
    """What a page is told of a trial: its id, names of pictures, and the condition. No row and no method."""
    asked = condition["attributes"] if "attributes" in show else None
    mask = masks[trial.sample_id]
    return {
        "id": trial.id,
        "pictures": [names[method, trial.sample_id] for method in trial.sides],
        "mask": mask if "mask" in show and mask in files else None,
        "attributes": [name.replace("_", " ") for name, value in (asked or {}).items() if value and value > 0],
        "text": condition["text"] if "text" in show else None,
    }


def _embedded(trials: Sequence[Mapping[str, Any]], files: Mapping[str, bytes]) -> Mapping[str, str]:
    """Pictures of a page by name, as base64."""
    used = {name for trial in trials for name in (*trial["pictures"], trial["mask"]) if name}
    return {name: base64.b64encode(files[name]).decode() for name in sorted(used)}


def _key(methods: Mapping[str, str], forms: Sequence[Form], page: Page, seed: int) -> dict[str, Any]:
    """Which method is where. The name of the study is a digest of all of it."""
    document = {
        "format": KEY_FORMAT,
        "question": page.question,
        "show": list(page.show),
        "ties": page.ties,
        "size": page.size,
        "seed": seed,
        "methods": {name: {"samples": url, "digest": open_input(url)[1]} for name, url in methods.items()},
        "forms": [{"form": form.number, "trials": [trial.document() for trial in form.trials]} for form in forms],
    }
    return {"study": digest(canonical(document))[:12], **document}


def _html(data: Mapping[str, Any]) -> str:
    css = STYLES.read_text(encoding="utf-8") + (PAGES / "study.css").read_text(encoding="utf-8")
    script = (PAGES / "study.js").read_text(encoding="utf-8")
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, script)]
    environment = Environment(loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("study.html.j2").render(
        css=Markup(css),
        script=Markup(script),
        style_hash=hashes[0],
        script_hash=hashes[1],
        question=data["question"],
        data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
    )
