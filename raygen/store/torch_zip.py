"""Tensors of a file as views of its mapped bytes; and what torch.save writes since 1.6.

That is a zip of one pickle and one uncompressed record a storage. `zipfile` reads its directory; the records are read
where they lie, and compared with their CRC-32. `torch.load` of torch 2.15.0 does not do that, and takes a flipped bit
of a storage for a weight.
"""

import io
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
from torch import Tensor

from raygen.core.errors import InputError
from raygen.store.pickle_reader import PickledTensor, read_pickle

__all__ = ["MappedFile", "TorchZip"]


#: Of the pickle inside; those of the largest published files have less than one.
LARGEST_PICKLE: Final = 256 << 20


#: Endings of files of weights that are published in a zip file.
WEIGHTS: Final = frozenset({".ckpt", ".pth", ".pt", ".bin", ".safetensors"})


class MappedFile:
    """The bytes of a file, as views."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            # Copy on write: torch wants to be allowed to write, and nothing reaches the file.
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def view(
        self, stored: PickledTensor, start: int, room: int, check: Callable[[], object] = lambda: None
    ) -> Callable[[], Tensor]:
        """How the tensor is read whose storage begins at byte `start` and has `room` bytes; `check` is called then.

        `ValueError` at once where that lies outside of the file, or the tensor outside of the storage.
        """
        dtype, elements = getattr(torch, stored.storage.dtype), stored.storage.elements
        numel = math.prod(stored.shape)
        reach = stored.offset + sum((n - 1) * step for n, step in zip(stored.shape, stored.stride, strict=True)) + 1
        if elements * dtype.itemsize > room or start + room > len(self.bytes):
            raise ValueError("a storage that ends behind the file")
        if numel > elements or (numel and reach > elements):
            raise ValueError("a tensor larger than its storage")

        def read() -> Tensor:
            check()
            if numel == 0:
                return torch.empty(stored.shape, dtype=dtype)
            flat = torch.frombuffer(self.bytes, dtype=dtype, count=elements, offset=start)
            return flat.as_strided(stored.shape, stored.stride, stored.offset)

        return read


class TorchZip:
    """An opened file. Records are compared with their CRC-32 when they are first read.

    `ValueError` or `zipfile.BadZipFile` where it is damaged or no such file; `InputError` with the reason `unsafe`
    where it is a program, `weights` where a record is damaged.
    """

    def __init__(self, path: Path) -> None:
        if not zipfile.is_zipfile(path):
            raise ValueError("the directory at the end of the zip file is missing: it was cut off, fetch it again")
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if any(name.startswith("code/") for name in records):
            raise InputError(f"{path}: a TorchScript file, which is a program", reason="unsafe")
        if "data.pkl" not in records:
            inside = [name for name in names if PurePosixPath(name).suffix in WEIGHTS]
            found = f"; unpack it, and name {inside[0]}" if inside else ""
            raise ValueError(f"a zip file that torch did not write{found}")
        if bad := [name for name, info in records.items() if info.compress_type != zipfile.ZIP_STORED]:
            raise ValueError(f"{bad[0]} is compressed, which torch never does")
        self.path, self.records, self.mapped = path, records, MappedFile(path)
        # `torch.serialization.set_crc32_options(False)` leaves zeros everywhere.
        self.intact = set() if any(info.CRC for info in records.values()) else set(records)

    def document(self) -> Any:
        """What was saved, tensors as `PickledTensor`."""
        if self.records["data.pkl"].file_size > LARGEST_PICKLE:
            raise ValueError("its pickle is too large")
        if "byteorder" in self.records and self._content("byteorder") != b"little":
            raise ValueError("its numbers have the other byte order")
        return read_pickle(io.BytesIO(self._content("data.pkl")), str(self.path))

    def view(self, stored: PickledTensor) -> Callable[[], Tensor]:
        """How a tensor is read."""
        name = f"data/{stored.storage.key}"
        start, size = self._place(name)
        return self.mapped.view(stored, start, size, lambda: self._check(name))

    def _place(self, name: str) -> tuple[int, int]:
        """First byte and length of a record."""
        info = self.records[name]
        name_length, extra = struct.unpack_from("<HH", self.mapped.bytes, info.header_offset + 26)
        start = info.header_offset + 30 + name_length + extra
        if start + info.file_size > len(self.mapped.bytes):
            raise ValueError(f"{name} ends behind the file")
        return start, info.file_size

    def _check(self, name: str) -> None:
        if name in self.intact:
            return
        start, size = self._place(name)
        with memoryview(self.mapped.bytes) as data, data[start : start + size] as record:
            if zlib.crc32(record) != self.records[name].CRC:
                raise InputError(
                    f"{self.path}: {name} is damaged (its CRC-32 differs): fetch it again", reason="weights"
                )
        self.intact.add(name)

    def _content(self, name: str) -> bytes:
        self._check(name)
        start, size = self._place(name)
        return self.mapped.bytes[start : start + size]
