"""Vectors of SCORES rows by metric."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow.compute as pc

from raygen.core.types import Float64Array
from raygen.store.parquet import Slice, read_slice

__all__ = ["vectors_by_metric"]


def vectors_by_metric(pieces: Iterable[Slice], prefix: str) -> Iterator[tuple[str, Float64Array]]:
    """Of each file every metric whose name starts with `prefix`, and its vectors [n, D]."""
    for piece in pieces:
        table = read_slice(piece, ["metric", "vector"])
        for name in table["metric"].unique().to_pylist():
            if name.startswith(prefix):
                rows = table.filter(pc.equal(table["metric"], name))["vector"].to_pylist()
                yield name, np.array(rows, dtype=np.float64)
