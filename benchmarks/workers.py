"""Workers for benchmarks: one that sleeps as long as a GPU would compute, and one that does nothing."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raygen.core.hashing import digest
from raygen.store.images import encode_image, picture_column
from raygen.store.schemas import SAMPLES


@dataclass(frozen=True)
class Emulated:
    """Sleeps `rows / rate` seconds, then encodes as many distinct pictures of `size` pixels as a real worker would."""

    rate: float
    size: int = 256

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Sleeps in place of the device."""
        time.sleep(rows.num_rows / self.rate)
        return lambda: {"samples": _samples(rows, [encode_image(_picture(i, self.size)) for i in range(rows.num_rows)])}


@dataclass(frozen=True)
class Nothing:
    """Returns rows without pictures, so that only the overhead of a shard remains."""

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """No work on the device."""
        return lambda: {"samples": _samples(rows, [None] * rows.num_rows)}


def _picture(index: int, size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    waves = [127 + 100 * np.sin(6 * (x * (c + 1) + y * (index % 7 + 1)) + index) for c in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def _samples(rows: pa.Table, data: list[bytes | None]) -> pa.Table:
    n = rows.num_rows
    columns = {
        "sample_id": rows["sample_id"].combine_chunks(),
        "attempt": pa.array([0] * n, pa.int32()),
        "image": picture_column(data),
        "run_id": pa.array(["benchmark"] * n),
        "image_sha256": pa.array([None if d is None else digest(d) for d in data], pa.string()),
    }
    arrays = [columns.get(f.name, pa.nulls(n, f.type)) for f in SAMPLES]
    return pa.Table.from_arrays(arrays, schema=SAMPLES)
