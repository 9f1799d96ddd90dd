"""Section: style references, mask and results of a few rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from raygen.core.face_labels import CLASSES
from raygen.report.images import find_rows, group_rows, image_thumb, mask_thumb
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section
from raygen.store.lookup import evenly

__all__ = ["StyleGroup", "section"]


MAX_GROUPS: Final = 8
MAX_IMAGES: Final = 8
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


class StyleGroup(NamedTuple):
    """One group: named references with their images, its mask, and the results, each with its caption."""

    name: str
    references: Sequence[tuple[str, str]]
    mask: str | None
    results: Sequence[tuple[str, str]]


def section(run: RunFolder) -> Section | None:
    """A few groups of samples with style references; None where no row has one."""
    if run.images is None:
        return None
    samples = run.images.slices("samples")
    ids = list(dict.fromkeys(row["group_id"] for row in evenly(samples, MAX_IMAGES * MAX_GROUPS, ["group_id"])))
    ids = ids[:: max(1, len(ids) // MAX_GROUPS)][:MAX_GROUPS]
    groups = [group_rows(samples, "group_id", name, COLUMNS) for name in ids if name is not None]
    groups = [[row for row in group if row["image"] is not None][:MAX_IMAGES] for group in groups]
    groups = [group for group in groups if any(row["style_reference_a"] or row["style_reference_b"] for row in group)]
    if not groups:
        return None
    names = {name for group in groups for row in group for name in _references(row).values()}
    faces = find_rows(run.faces, "face_id", names, ["image"])
    parts = [CLASSES[part] for part in groups[0][0]["style_parts"] or ()]
    unread = "style" in run.images.plan.settings.get("ignore", ())
    variables = {"unread": unread, "parts": parts, "groups": [_group(group, faces) for group in groups]}
    return Section("styles", "Styles", "styles.html.j2", variables)


def _references(row: Mapping[str, Any]) -> dict[str, str]:
    """The faces that a row refers to, by what they are for."""
    named = {"the face": row["source"]}
    named |= {
        label: (row[column] or {}).get("face_id")
        for label, column in (("style", "style_reference_a"), ("other", "style_reference_b"))
    }
    return {label: name for label, name in named.items() if name}


def _group(rows: Sequence[Mapping[str, Any]], faces: Mapping[str, Mapping[str, Any]]) -> StyleGroup:
    names = _references(rows[0])
    if names.get("style") == names.get("the face"):
        names.pop("style", None)
    references = list(_thumbs((label, faces[name]["image"]) for label, name in names.items() if name in faces))
    results = list(_thumbs((_caption(row, len(rows)), row["image"]) for row in rows))
    return StyleGroup(str(rows[0]["group_id"]), references, mask_thumb(rows[0]["mask"]), results)


def _thumbs(images: Iterator[tuple[str, Mapping[str, Any] | None]]) -> Iterator[tuple[str, str]]:
    """Captions and thumbnails of the images that open."""
    return ((caption, thumb) for caption, image in images if (thumb := image_thumb(image)) is not None)


def _caption(row: Mapping[str, Any], rows: int) -> str:
    if rows == 1:
        return "result"
    mix = row["style_mix"]
    return f"{mix:.2f}" if mix is not None and row["style_reference_b"] else str(row["variant"])
