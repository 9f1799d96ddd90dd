"""Vectors of many rows in a file without a name, read in blocks: memory does not grow with their number."""

import os
import tempfile
from itertools import pairwise
from typing import Any, Final

import numpy as np

from raygen.core.errors import StorageError
from raygen.core.types import AnyArray, Float32Array, Int64Array
from raygen.store.filesystem import PERMANENT

__all__ = ["IN_MEMORY", "VectorFile", "as_rows", "select_rows"]


#: Vectors with more bytes than this are kept in a file.
IN_MEMORY: Final = 64 << 20


class VectorFile:
    """Rows of float32 values [n, width], in the folder for temporary files (`TMPDIR`) until the last reference goes.

    It is read as an array is: `x[a:b]` and `x[rows]` are arrays in memory, `np.asarray(x)` is all of it. The file is
    read with `pread`, so its pages count as cache of the system and not as memory of the process.
    """

    ndim: Final = 2
    dtype = np.dtype(np.float32)

    def __init__(self, width: int) -> None:
        self.width = width
        self._file = tempfile.TemporaryFile(prefix="raygen-")  # noqa: SIM115 - it lives as long as the object
        self._written = 0
        self._chosen: Int64Array | None = None

    def append(self, values: AnyArray) -> None:
        """Add rows [k, width]; `StorageError` where the disk is full."""
        try:
            self._file.write(np.ascontiguousarray(values, np.float32).data)
            self._file.flush()
        except OSError as error:
            if error.errno not in PERMANENT:
                raise
            raise StorageError(
                f"{tempfile.gettempdir()}: no room for the features of an evaluation ({error.strerror}); set TMPDIR to "
                "a folder on a larger disk"
            ) from error
        self._written += len(values)

    def _places(self, rows: slice | AnyArray) -> Int64Array:
        """Where these rows are in the file."""
        if self._chosen is not None:
            return self._chosen[rows]
        return np.arange(*rows.indices(self._written)) if isinstance(rows, slice) else np.arange(self._written)[rows]

    def select(self, rows: AnyArray) -> "VectorFile":
        """These rows, in this order, of the same file."""
        part = object.__new__(VectorFile)
        part.width, part._file, part._written, part._chosen = self.width, self._file, 0, self._places(rows)
        return part

    def __len__(self) -> int:
        return self._written if self._chosen is None else len(self._chosen)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and values."""
        return len(self), self.width

    def __getitem__(self, rows: slice | AnyArray) -> Float32Array:
        places = self._places(rows)
        order = np.argsort(places, kind="stable")
        ascending, size = places[order], 4 * self.width
        values = np.empty((len(places), self.width), np.float32)
        view = memoryview(values.reshape(-1).view(np.uint8).data)
        starts = np.flatnonzero(np.diff(ascending, prepend=-2) != 1).tolist() if values.size else []
        for start, end in pairwise([*starts, len(places)]):
            done, at = start * size, int(ascending[start]) * size
            while done < end * size:  # one call reads 2 GiB at most
                done += (read := os.preadv(self._file.fileno(), [view[done : end * size]], at))
                at += read
                if not read:
                    raise OSError("a temporary file of features was cut")
        if (np.diff(order) == 1).all():
            return values
        result = np.empty_like(values)
        result[order] = values
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> AnyArray:
        return self[:] if dtype is None else self[:].astype(dtype)


def as_rows(features: Any) -> Any:
    """Features as an array, or as the `VectorFile` that they are in."""
    return features if isinstance(features, VectorFile) else np.asarray(features)


def select_rows(features: Any, rows: AnyArray) -> Any:
    """Rows of an array or of a `VectorFile`; those of a file stay there."""
    return features.select(rows) if isinstance(features, VectorFile) else features[rows]
