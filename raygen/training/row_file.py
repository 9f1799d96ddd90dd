"""Arrays in files, of which rows are read when they are needed.

Files are read by `preadv` and not mapped: the memory of a process does not grow with the array, processes of a machine
share what the system keeps of the file, and a disk that fails raises an error where a mapping would end the process.
"""

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from raygen.core.errors import IntegrityError
from raygen.core.types import AnyArray
from raygen.store import disk

__all__ = ["RowFile", "RowWriter"]


#: An array of at most this many bytes stays in memory.
SMALL: Final = 16 << 20


class RowFile:
    """An array [n, ...] in a file that `RowWriter` wrote. Rows are copies, compared with their CRC-32.

    `IntegrityError` where the file is shorter than the array, or a row is not as it was written.
    """

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self.path, self.dtype, self.shape = path, np.dtype(record["dtype"]), tuple(record["shape"])
        self._whole_sum = int(record["crc32"])
        self._bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        self._sums = np.fromfile(path.with_suffix(".crc32"), dtype="<u4")
        if len(self._sums) != len(self):
            raise IntegrityError(f"{path} is damaged: it does not have the check sums of {len(self)} rows")
        self._file = os.open(path, os.O_RDONLY)
        self._values: AnyArray | None = None
        if self._bytes * len(self) <= SMALL:
            self._values = self._read_all()

    def __len__(self) -> int:
        return int(self.shape[0])

    def __del__(self) -> None:
        if (handle := getattr(self, "_file", None)) is not None:
            os.close(handle)

    def __getitem__(self, rows: AnyArray | slice) -> AnyArray:
        """The rows of an index array or a slice, in its order."""
        if self._values is not None:
            return self._values[rows].copy() if isinstance(rows, slice) else self._values[rows]
        if isinstance(rows, slice):
            return self._read_all() if rows == slice(None) else self._read(np.arange(*rows.indices(len(self))))
        return self._read(rows)

    def _read_all(self) -> AnyArray:
        """All rows at once, with one check sum."""
        content = np.fromfile(self.path, dtype=np.uint8)
        if len(content) != self._bytes * len(self) or zlib.crc32(content.data) != self._whole_sum:
            raise IntegrityError(f"{self.path} is damaged; remove its folder, it is then made again")
        result: AnyArray = content.view(self.dtype).reshape(self.shape)
        return result

    def _read(self, rows: AnyArray) -> AnyArray:
        result = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        content: Any = memoryview(result.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        for i, row in enumerate(rows.tolist()):
            part = content[i * self._bytes : (i + 1) * self._bytes]
            if os.preadv(self._file, [part], row * self._bytes) != len(part) or zlib.crc32(part) != self._sums[row]:
                raise IntegrityError(f"{self.path} is damaged in row {row}; remove its folder, it is then made again")
        return result


class RowWriter:
    """Writes an array row by row, and beside it the CRC-32 of each row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._sums: list[int] = []
        self._whole_sum = 0
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.uint8)

    def add(self, rows: AnyArray) -> None:
        """Append rows [n, ...]; all have the same shape and type."""
        values = np.ascontiguousarray(rows)
        if self._sums and (values.shape[1:], values.dtype) != (self._shape, self._dtype):
            raise ValueError(f"{self.path.name}: rows of {values.shape[1:]} after rows of {self._shape}")
        self._shape, self._dtype = values.shape[1:], values.dtype
        for row in values:
            content = row.tobytes()
            self._file.write(content)
            self._sums.append(zlib.crc32(content))
            self._whole_sum = zlib.crc32(content, self._whole_sum)

    def close(self) -> dict[str, Any]:
        """Put the file on the disk; what `RowFile` needs to open it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        disk.write(self.path.with_suffix(".crc32"), np.array(self._sums, dtype="<u4").tobytes(), once=False)
        shape = [len(self._sums), *self._shape]
        return {"dtype": self._dtype.str, "shape": shape, "crc32": self._whole_sum}
