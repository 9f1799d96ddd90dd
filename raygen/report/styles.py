"""What a report shows of styles: references, mask and results of a few rows, side by side.

Knows SAMPLES rows that take styles from faces. Reads the few rows it shows. Knows no HTML and no model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from raygen.core.face_labels import CLASSES
from raygen.report import pictures as picture_rows
from raygen.store.parquet import Slice

__all__ = ["StyledRow", "StylesSection", "styles_section"]


ROWS: Final = 8
#: Pictures of one group that are shown.
MOST: Final = 8
COLUMNS: Final = (
    "sample_id",
    "source",
    "image",
    "mask",
    "style_reference_a",
    "style_reference_b",
    "style_parts",
    "style_mix",
    "variant",
)


class StyledRow(NamedTuple):
    """One group: named references with their pictures, its mask, and what was made, each with its caption."""

    name: str
    references: Sequence[tuple[str, str]]
    mask: str | None
    results: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class StylesSection:
    """A few groups of a run with styles, and the parts that it changes."""

    parts: Sequence[str]
    rows: Sequence[StyledRow]


def styles_section(samples: Sequence[Slice], faces: Sequence[Slice]) -> StylesSection | None:
    """What SAMPLES slices say of styles; None where no row takes one. `faces`: of the references."""
    groups = dict.fromkeys(row["group_id"] for row in picture_rows.evenly(samples, MOST * ROWS, ["group_id"]))
    chosen = list(groups)[:: max(1, len(groups) // ROWS)][:ROWS]
    found = [group for name in chosen if (group := _of(samples, name))]
    found = [group for group in found if any(row["style_reference_a"] or row["style_reference_b"] for row in group)]
    if not found:
        return None
    names = {name for group in found for row in group for name in _names(row).values()}
    pictures = picture_rows.find(faces, "face_id", names, ["image"])
    parts = [CLASSES[part] for part in found[0][0]["style_parts"] or ()]
    return StylesSection(parts, [_row(group, pictures) for group in found])


def _of(samples: Sequence[Slice], group: str | None) -> list[dict[str, Any]]:
    """The first rows of one group that have a picture."""
    rows = [] if group is None else picture_rows.together(samples, "group_id", group, COLUMNS)
    return [row for row in rows if row["image"] is not None][:MOST]


def _names(row: Mapping[str, Any]) -> dict[str, str]:
    """The faces that a row refers to, by what they are for."""
    named = {"the face": row["source"]}
    named |= {
        label: (row[c] or {}).get("face_id")
        for label, c in (("style", "style_reference_a"), ("other", "style_reference_b"))
    }
    return {label: name for label, name in named.items() if name}


def _row(group: Sequence[Mapping[str, Any]], pictures: Mapping[str, Mapping[str, Any]]) -> StyledRow:
    names = _names(group[0])
    if names.get("style") == names.get("the face"):
        names.pop("style", None)
    references = list(_shown((label, pictures[name]["image"]) for label, name in names.items() if name in pictures))
    results = list(_shown((_caption(row, len(group)), row["image"]) for row in group))
    mask = group[0]["mask"]
    return StyledRow(
        str(group[0]["group_id"]), references, None if mask is None else picture_rows.mask_thumb(mask["bytes"]), results
    )


def _shown(pairs: Any) -> Iterator[tuple[str, str]]:
    for label, value in pairs:
        thumb = None if value is None else picture_rows.image_thumb(value["bytes"])
        if thumb is not None:
            yield label, thumb


def _caption(row: Mapping[str, Any], of: int) -> str:
    if of == 1:
        return "result"
    mix = row["style_mix"]
    return f"{mix:.2f}" if mix is not None and row["style_reference_b"] else str(row["variant"])
