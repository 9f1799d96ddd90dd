"""The report page: one offline HTML file of a run folder, put together from sections.

A section is a module with `section(run: RunFolder) -> Section | None` and a template in `report/templates`. To add
one, write both and name the module's function in `SECTIONS`.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from raygen.core.errors import ConfigError
from raygen.core.face_labels import PALETTE
from raygen.core.location import folder_and_name, redact
from raygen.report import (
    attributes,
    best_worst,
    cards,
    classes,
    contact_sheet,
    contents,
    edits,
    failed_rows,
    identities,
    influence,
    landmarks,
    methods,
    nearest_pairs,
    provenance,
    reproduce,
    selection,
    slices,
    styles,
    sweep,
    throughput,
    training,
    variants,
    verification,
)
from raygen.report.class_labels import LABELS
from raygen.report.explorer import write_explorer
from raygen.report.overview import overview
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section
from raygen.report.timeline import clock
from raygen.store.filesystem import FileStore

__all__ = ["SECTIONS", "build_report"]


#: Sections in the order of the page.
SECTIONS: Sequence[Callable[[RunFolder], Section | None]] = (
    methods.section,
    cards.section,
    sweep.section,
    selection.section,
    verification.section,
    identities.section,
    variants.section,
    edits.section,
    styles.section,
    contact_sheet.section,
    landmarks.section,
    classes.section,
    attributes.section,
    slices.section,
    best_worst.section,
    nearest_pairs.section,
    influence.section,
    failed_rows.section,
    training.section,
    throughput.section,
    contents.section,
    reproduce.section,
    provenance.section,
)
#: Folders of the style sheet and of templates.
STYLES: Final = Path(__file__).with_name("templates") / "report.css"
TEMPLATES: Sequence[Path] = (Path(__file__).with_name("templates"),)


def build_report(
    root: str, out: str | None = None, *, command: str | None = None, faces: str | None = None, explore: int = 0
) -> str:
    """Write the report of the run folder `root` (path or URL) and return its address.

    `out` is the file to write (default: `report.html` in `root`), `command` the command line that makes the run, and
    `faces` the ingest run that rows refer to, where it does not lie in `root`. With `explore` the report links to a
    page of at most so many pictures beside it, see `raygen.report.explorer`. Raises `ConfigError` where `root` holds no
    run, or no pictures to explore, or `faces` no faces.
    """
    run = RunFolder.open(root, faces=faces, command=command)
    folder, name = folder_and_name(out or f"{run.url}/report.html")
    storage = FileStore(folder)
    explorer = write_explorer(run, storage, explore, report=name) if explore else None
    if explore and explorer is None:
        raise ConfigError(f"{root}: has no SAMPLES or FACES, so there are no pictures to explore; leave --explore out")
    page = redact(_page(run, explorer)).encode()  # older versions let settings have URLs with passwords
    storage.put(name, page)
    return storage.address(name)


def _page(run: RunFolder, explorer: str | None) -> str:
    """The page as HTML. It needs no network and no script, and text of data rows is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(clock=clock, count=_count, size=_size, number=_number, label=LABELS.get)
    sections = [section for make in SECTIONS if (section := make(run)) is not None]
    bodies = [Markup(environment.get_template(s.template).render(s.variables)) for s in sections]
    # One rule for each class colour, so that nothing on the page needs a style attribute.
    fills = (f".k{i}{{fill:rgb({r},{g},{b});background:rgb({r},{g},{b})}}" for i, (r, g, b) in enumerate(PALETTE))
    css = STYLES.read_text(encoding="utf-8") + "".join(fills)
    policy = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return environment.get_template("base.html.j2").render(
        css=Markup(css),
        policy=policy,
        head=overview(run),
        explorer=quote(explorer or ""),
        sections=list(zip(sections, bodies, strict=True)),
    )


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _size(value: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _number(value: float | None, digits: int = 2) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
