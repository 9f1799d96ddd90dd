"""Section: images of a few identities."""

from collections.abc import Sequence
from typing import Final

from raygen.report.images import ImageWithMask, group_rows, image_with_mask
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section
from raygen.store.lookup import evenly
from raygen.store.parquet import Slice
from raygen.store.set_digest import KEYS

__all__ = ["identities", "section"]


MAX_IDENTITIES: Final = 8
MAX_IMAGES: Final = 10


def section(run: RunFolder) -> Section | None:
    """A row of images for each of a few identities; None where rows name none, or none has two images."""
    if run.main is None or run.main.table not in ("samples", "faces"):
        return None
    shown = identities(run.main.slices(run.main.table), KEYS[run.main.table][0])
    return Section("identities", "Identities", "identities.html.j2", {"identities": shown}) if shown else None


def identities(pieces: Sequence[Slice], key: str) -> list[tuple[str, list[ImageWithMask]]]:
    """Evenly spaced identities with at least two images, and their first images; `key` is the column of row ids."""
    shown: dict[str, list[ImageWithMask]] = {}
    for name in (row.get("identity_id") for row in evenly(pieces, MAX_IDENTITIES, ["identity_id"])):
        if name is None or name in shown:
            continue
        rows = group_rows(pieces, "identity_id", name, (key, "image", "mask", "source"))
        images = [image for row in rows if row["image"] and (image := image_with_mask(row, key))][:MAX_IMAGES]
        if len(images) > 1:
            shown[name] = images
    return list(shown.items())
