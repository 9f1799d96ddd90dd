"""A worker whose FACES or SAMPLES rows also get landmarks."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from raygen.core.errors import InputError
from raygen.execution.worker import Worker
from raygen.extractors.config import LandmarksConfig
from raygen.extractors.landmarks import LandmarkFinder
from raygen.store.images import decode_image, decode_mask
from raygen.store.schemas import LANDMARKS, reason_of

__all__ = ["LandmarkedWorker", "landmarks_of"]


class LandmarkedWorker:
    """The worker of `build`, and the landmarks of its rows. Rows with an error have none."""

    def __init__(self, build: Callable[[], Worker], config: LandmarksConfig, threads: int = 1) -> None:
        self.finder = LandmarkFinder(config, threads)
        self.worker = build()

    def environment(self) -> dict[str, str]:
        """That of the worker."""
        own: dict[str, str] = getattr(self.worker, "environment", dict)()
        return own

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """The worker's own start; landmarks are found in the returned call."""
        finish = self.worker.start(rows)

        def with_landmarks() -> dict[str, pa.Table]:
            tables = finish()
            for name in tables.keys() & {"faces", "samples"}:
                tables[name] = landmarks_of(tables[name], self.finder)
            return tables

        return with_landmarks


def landmarks_of(table: pa.Table, finder: LandmarkFinder) -> pa.Table:
    """FACES or SAMPLES rows with their column `landmarks` filled in."""
    pictures = table["image"].to_pylist() if finder.needs_pixels else [None] * table.num_rows
    errors = table["error"].to_pylist() if "error" in table.column_names else [None] * table.num_rows
    values = [
        None if error is not None else _landmarks(image, mask, finder)
        for image, mask, error in zip(pictures, table["mask"].to_pylist(), errors, strict=True)
    ]
    place = table.column_names.index("landmarks")
    return table.set_column(place, pa.field("landmarks", LANDMARKS), pa.array(values, LANDMARKS))


def _landmarks(image: dict[str, Any] | None, mask: dict[str, Any] | None, finder: LandmarkFinder) -> dict[str, Any]:
    """A value of the column."""
    try:
        pixels = decode_image(image["bytes"]) if image else None
        ids = decode_mask(mask["bytes"]) if mask and mask["bytes"] else None
        return {"points": finder(pixels, ids).tolist(), "source": finder.source, "error": None}
    except InputError as error:
        return {"points": None, "source": finder.source, "error": reason_of(error)}
