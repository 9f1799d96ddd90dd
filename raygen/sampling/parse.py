"""FACES rows -> FACES rows with masks: pictures parsed by a face parser, with its confidence."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raygen.core.errors import InputError
from raygen.core.precision import set_deterministic_precision
from raygen.core.types import UInt8Array
from raygen.datasets.base import FACES_OR_ERROR
from raygen.extractors.base import load_parser
from raygen.sampling.config import ParseConfig
from raygen.sampling.worker import compute_environment, pick_device
from raygen.store.images import decode_image, encode_mask, picture_column
from raygen.store.schemas import FACES, cast, reason_of

__all__ = ["ParseWorker"]


class ParseWorker:
    """FACES rows -> FACES rows with masks. Rows that have a mask keep it, unless all masks are replaced."""

    def __init__(self, config: ParseConfig, *, threads: int | None = None) -> None:
        set_deterministic_precision(threads)
        self.config = config
        self.device = pick_device("auto")
        self.parser = load_parser(config.parser, self.device)

    def environment(self) -> dict[str, str]:
        """What the masks depend on except the config and library versions; see `compute_environment`."""
        return compute_environment(self.device, "float32")

    def __call__(self, rows: pa.Table) -> dict[str, pa.Table]:
        """`start(rows)()`."""
        return self.start(rows)()

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Parse now; the returned call encodes the masks. A picture that cannot be parsed becomes a row with `error`.

        Pictures of one size are parsed together.
        """
        rows = cast(rows, FACES)
        present = [value is not None and value["bytes"] is not None for value in rows["mask"].to_pylist()]
        todo = [i for i, has_mask in enumerate(present) if self.config.replace or not has_mask]
        pixels: dict[int, UInt8Array] = {}
        errors: list[str | None] = [None] * rows.num_rows
        values = rows["image"].to_pylist()
        for i in todo:
            try:
                pixels[i] = _square(decode_image((values[i] or {}).get("bytes")))
            except InputError as error:
                errors[i] = reason_of(error)
        ids: dict[int, UInt8Array] = {}
        confidence: list[float | None] = rows["mask_confidence"].to_pylist()
        for side in dict.fromkeys(len(image) for image in pixels.values()):
            places = [i for i, image in pixels.items() if len(image) == side]
            labels, certain = self.parser.segment(torch.from_numpy(np.stack([pixels[i] for i in places])))
            ids |= dict(zip(places, labels.numpy(), strict=True))
            for i, value in zip(places, certain.tolist(), strict=True):
                confidence[i] = value
                if not math.isfinite(value):
                    errors[i] = f"parser: {self.parser.name} gave values that are no finite numbers"
        return lambda: {"faces": self._table(rows, ids, confidence, errors)}

    def _table(
        self,
        rows: pa.Table,
        ids: dict[int, UInt8Array],
        confidence: Sequence[float | None],
        errors: Sequence[str | None],
    ) -> pa.Table:
        """`rows` with the masks `ids` by their place, without those of low confidence."""
        masks = [None if value is None else value["bytes"] for value in rows["mask"].to_pylist()]
        for i, labels in ids.items():
            low = (confidence[i] or 0) < self.config.min_confidence
            masks[i] = None if low else encode_mask(labels)
        columns: dict[str, Any] = {name: rows[name] for name in FACES.names}
        columns["mask"] = picture_column(masks)
        columns["mask_confidence"] = pa.array(confidence, pa.float32())
        # Those of a mask that is gone; the setting `landmarks` finds new ones.
        landmarks = [None if i in ids else value for i, value in enumerate(rows["landmarks"].to_pylist())]
        columns["landmarks"] = pa.array(landmarks, FACES.field("landmarks").type)
        columns["error"] = pa.array(errors, pa.string())
        return pa.table(columns, schema=FACES_OR_ERROR)


def _square(image: UInt8Array) -> UInt8Array:
    """`image`; `InputError` (`size`) where it is not square, as models need it."""
    if image.shape[0] != image.shape[1]:
        sides = f"{image.shape[1]}x{image.shape[0]}"
        raise InputError(f"picture is {sides}, not square; ingest it with data.size and data.crop", reason="size")
    return image
