"""FACES rows -> LATENTS rows: pictures encoded once by a first stage; mirrored pictures are rows of their own."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raygen.core.pixels import to_pixels, to_uint8
from raygen.core.precision import DTYPES, arithmetic, check_precision, set_deterministic_precision
from raygen.core.types import BoolArray, Float32Array, UInt8Array
from raygen.models import checkpoint, checkpoint_folder
from raygen.models.conditions import to_device
from raygen.sampling.config import EncodeConfig
from raygen.sampling.worker import compute_environment, pick_device, to_host
from raygen.store.images import images_from_rows
from raygen.store.schemas import LATENTS

__all__ = ["LATENTS_OR_ERROR", "EncodeWorker", "RoundTrip"]


#: LATENTS with one more column: the reason why a row could not be encoded. Such rows go to quarantine.
LATENTS_OR_ERROR = LATENTS.append(pa.field("error", pa.string()))
#: Moments are stored as float16, whose largest number is 65,504.
LIMIT = 65504.0


class EncodeWorker:
    """FACES rows -> LATENTS rows: first those of the pictures as they are, then the mirrored ones."""

    def __init__(self, config: EncodeConfig, *, threads: int | None = None) -> None:
        set_deterministic_precision(threads)
        self.config = config
        self.device = pick_device(config.device)
        check_precision(config.precision, self.device)
        self.digest = checkpoint_folder.digest(config.checkpoint)
        self.stage = checkpoint.load_first_stage(config.checkpoint, self.device).to(DTYPES[config.precision])

    def environment(self) -> dict[str, str]:
        """What the latents depend on except the config and library versions; see `compute_environment`."""
        return compute_environment(self.device, self.config.precision)

    def __call__(self, rows: pa.Table) -> dict[str, pa.Table]:
        """`start(rows)()`."""
        return self.start(rows)()

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Encode now; the returned call makes the table. A picture that cannot be read becomes a row with `error`."""
        images, errors = images_from_rows(rows, self.stage.config.image_size)
        pixels = to_pixels(torch.from_numpy(images))
        flips = [pixels.flip(-1)] if self.config.horizontal_flips else []
        moments = [self._moments(x) for x in (pixels, *flips)]
        ids = rows["face_id"].to_pylist()

        def finish() -> dict[str, pa.Table]:
            parts = [
                self._table(ids, transform, errors, fetch()[0])
                for transform, fetch in zip(("none", "flip"), moments, strict=False)
            ]
            return {"latents": pa.concat_tables(parts)}

        return finish

    @torch.inference_mode()
    def _moments(self, pixels: Tensor) -> Callable[[], tuple[Any, ...]]:
        """Start to encode pixels; the returned call waits for the moments, a float32 array."""
        with arithmetic(self.config.precision):
            parts = torch.split(pixels, self.config.batch)
            return to_host(torch.cat([self.stage.encode(to_device(part, self.device)) for part in parts]))

    def _table(
        self, ids: Sequence[str], transform: str, errors: Sequence[str | None], values: Float32Array
    ) -> pa.Table:
        with np.errstate(invalid="ignore"):
            fits: BoolArray = np.abs(values) <= LIMIT
        finite: BoolArray = np.asarray(fits.reshape(len(values), -1).all(axis=1))
        reasons = [
            error or (None if ok else "nonfinite: the moments do not fit float16")
            for error, ok in zip(errors, finite, strict=True)
        ]
        with np.errstate(over="ignore"):
            flat = values.reshape(len(values), -1).astype(np.float16)
        shape = list(values.shape[1:])
        columns: dict[str, Any] = {
            "face_id": list(ids),
            "transform": [transform] * len(ids),
            "autoencoder": [self.digest] * len(ids),
            "moments": [None if reason else row for row, reason in zip(flat, reasons, strict=True)],
            "shape": [None if reason else shape for reason in reasons],
            "error": reasons,
        }
        return pa.table(columns, schema=LATENTS_OR_ERROR)


class RoundTrip:
    """Pictures encoded and decoded by a first stage: an upper bound for every model over its latents."""

    def __init__(self, checkpoint_folder: str, device: str = "auto") -> None:
        set_deterministic_precision()
        self.device = pick_device(device)
        self.stage = checkpoint.load_first_stage(checkpoint_folder, self.device)

    @torch.inference_mode()
    def __call__(self, images: UInt8Array) -> UInt8Array:
        """uint8 [n, H, W, 3] at the first stage's size -> the reconstructions of `mode`, uint8 [n, H, W, 3]."""
        pixels = to_pixels(torch.from_numpy(np.ascontiguousarray(images)).to(self.device))
        result: UInt8Array = to_uint8(self.stage.decode(self.stage.mode(self.stage.encode(pixels)))).cpu().numpy()
        return result
