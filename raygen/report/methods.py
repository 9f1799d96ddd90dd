"""Section: several methods side by side, as `raygen compare` wrote them: numbers, published values, pictures."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from raygen.core.errors import ConfigError
from raygen.evaluation.methods import MethodTable
from raygen.report.images import find_rows, image_thumb, mask_thumb
from raygen.report.run_folder import COMPARISON, RunFolder
from raygen.report.section import Section
from raygen.store.lookup import evenly
from raygen.store.run_store import open_input

__all__ = ["PictureRow", "section"]


#: Rows whose pictures are shown.
MAX_ROWS: Final = 12


class PictureRow(NamedTuple):
    """Thumbnails of one row: its mask, and the picture of each method; None where there is none."""

    id: str
    mask: str | None
    images: tuple[str | None, ...]


def section(run: RunFolder) -> Section | None:
    """The table and pictures of the same rows; None for a folder without a comparison."""
    document = run.json(COMPARISON)
    if document is None:
        return None
    table = MethodTable.of(document)
    pictures = {name: url for name, url in document.get("pictures", {}).items() if name in table.methods}
    variables = {"table": table, "shown": tuple(pictures), "rows": list(_rows(pictures))}
    return Section("methods", "Methods side by side", "methods.html.j2", variables)


def _rows(pictures: Mapping[str, str]) -> Iterator[PictureRow]:
    """Evenly spaced rows of the first method, with the pictures of all; none where its run is gone."""
    found: list[Mapping[str, Mapping[str, Any]]] = []
    ids: list[str] = []
    for url in pictures.values():
        try:
            pieces = open_input(url)[0].slices("samples")
        except ConfigError:
            found.append({})  # the table is here, the pictures are not
            continue
        ids = ids or [row["sample_id"] for row in evenly(pieces, MAX_ROWS, ["sample_id"])]
        found.append(find_rows(pieces, "sample_id", ids, ("image", "mask")))
    for row_id in ids:
        masks = (mask_thumb(rows[row_id].get("mask")) for rows in found if row_id in rows)
        images = tuple(image_thumb(rows.get(row_id, {}).get("image")) for rows in found)
        yield PictureRow(row_id, next(filter(None, masks), None), images)
