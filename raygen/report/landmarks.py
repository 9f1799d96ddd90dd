"""Section: the five landmarks of a few images, and the crops that an aligned export makes of them."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from PIL import Image

from raygen.core.errors import InputError
from raygen.core.landmarks import ARCFACE_TEMPLATE, from_mask, misfit, similarity, stored_points
from raygen.core.types import Float64Array
from raygen.report.images import data_url, image_thumb
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section
from raygen.store.face_crop import crop
from raygen.store.images import decode_image, decode_mask
from raygen.store.set_digest import KEYS

__all__ = ["AlignedFace", "aligned_face", "points_of", "section"]


#: Faces that are shown, and the side of their crops in pixels.
SHOWN: Final = 12
CROP: Final = 112


class AlignedFace(NamedTuple):
    """An image and its crop as data URLs, and the landmarks in both as fractions of the sides [5, 2].

    `misfit`: root mean square distance to the template, as a share of the distance of its eyes.
    """

    id: str
    image: str
    points: Float64Array
    crop: str
    moved: Float64Array
    misfit: float


def section(run: RunFolder) -> Section | None:
    """Evenly spaced images that can be aligned, and why others cannot; None without masks and landmarks."""
    if run.main is None or run.main.table not in ("samples", "faces"):
        return None
    rows = [row for row in run.example_rows if row.get("image") and (row.get("mask") or row.get("landmarks"))]
    good: list[tuple[Mapping[str, Any], Float64Array]] = []
    reasons: Counter[str] = Counter()
    for row in rows:
        try:
            good.append((row, points_of(row)))
        except InputError as error:
            reasons[str(error).partition(": ")[2] or str(error)] += 1
    if not rows:
        return None
    shown = [good[i * len(good) // SHOWN] for i in range(SHOWN)] if len(good) > SHOWN else good
    key = KEYS[run.main.table][0]
    variables = {
        "faces": [aligned_face(row, points, str(row[key])) for row, points in shown],
        "aligned": len(good),
        "examined": len(rows),
        "reasons": reasons.most_common(),
        "sources": sorted({str((row.get("landmarks") or {}).get("source") or "mask") for row in rows}),
        "template": ARCFACE_TEMPLATE,
        "generated": run.generated,
    }
    return Section("landmarks", "Landmarks", "landmarks.html.j2", variables)


def points_of(row: Mapping[str, Any]) -> Float64Array:
    """The landmarks of a row [5, 2], stored or from its mask.

    `InputError` where they cannot be told, or the image does not open.
    """
    decode_image(row["image"]["bytes"])
    stored = row.get("landmarks")
    return from_mask(decode_mask(row["mask"]["bytes"])) if stored is None else stored_points(stored)


def aligned_face(row: Mapping[str, Any], points: Float64Array, name: str) -> AlignedFace:
    """The image of a row with its landmarks [5, 2], and its crop."""
    pixels = decode_image(row["image"]["bytes"])
    height, width = pixels.shape[:2]
    matrix = similarity(points * [width, height], ARCFACE_TEMPLATE * CROP)
    moved = ((points * [width, height]) @ matrix[:, :2].T + matrix[:, 2]) / CROP
    cropped = Image.fromarray(crop(pixels, points, ARCFACE_TEMPLATE, CROP))
    thumb = image_thumb(row["image"])
    assert thumb is not None  # the image was decoded above
    distance = misfit(points * [width, height])
    return AlignedFace(name, thumb, points, data_url(cropped, quality=86, method=4), moved, distance)
