"""Workers and plans for tests: pictures that depend on the row alone, and ways of going wrong.

A module of its own, so that Ray's actors can import what they are sent. It imports no torch: every actor would spend
seconds on it.
"""

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
from fsspec.implementations.memory import MemoryFileSystem

from raygen.core.errors import ConfigError, InputError
from raygen.core.hashing import digest, run_id
from raygen.execution.worker import Tables
from raygen.store.images import encode_image, picture_column
from raygen.store.parquet import Slice, to_parquet
from raygen.store.run_store import Plan, make_shards
from raygen.store.schemas import CONDITIONS, SAMPLES, cast
from raygen.store.sealed import to_bytes, to_text


@dataclass(frozen=True)
class Fake:
    """A sampler without a model. `trouble` is a file: while it exists, the rows of `at` meet `kind`."""

    seconds: float = 0.0
    kind: str = ""
    at: str = ""
    trouble: str = ""
    seed: int = 0

    def start(self, rows: pa.Table) -> Callable[[], Tables]:
        ids = rows["sample_id"].to_pylist()
        time.sleep(self.seconds)
        if self.at in ids and os.path.exists(self.trouble):
            if self.kind == "kill_at_end":
                return partial(os.kill, os.getpid(), signal.SIGKILL)
            self._misbehave()
        pixels = [self._picture(name) for name in ids]
        return partial(_table, rows, ids, pixels, "bad" if self.kind == "max_error_fraction" else "")

    def _picture(self, name: str) -> np.ndarray:
        key = int(digest(f"{self.seed}:{name}".encode())[:32], 16)
        noise = np.random.Generator(np.random.Philox(key=key)).standard_normal((16, 16, 3))
        return (np.clip(noise * 40 + 128, 0, 255)).astype(np.uint8)

    def _misbehave(self) -> None:
        if self.kind == "once":
            os.unlink(self.trouble)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "raise_once":
            os.unlink(self.trouble)
            raise MemoryError("out of memory on the device")
        if self.kind == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.kind == "damaged":
            raise InputError("the input is damaged", reason="parquet")
        if self.kind == "raise":
            raise RuntimeError("a defect")
        if self.kind == "hang":
            time.sleep(3600)


def _table(rows: pa.Table, ids: list[str], pixels: list[np.ndarray], bad: str) -> Tables:
    errors = [f"{bad}: as asked" if bad and name.endswith("7") else None for name in ids]
    data = [None if error else encode_image(p) for p, error in zip(pixels, errors, strict=True)]
    columns = {
        "sample_id": ids,
        "attempt": pa.array([0] * len(ids), pa.int32()),
        "image": picture_column(data),
        "error": pa.array(errors, pa.string()),
        "run_id": ["test"] * len(ids),
        "image_sha256": pa.array([None if d is None else digest(d) for d in data], pa.string()),
    }
    return {"samples": cast(pa.table(columns), SAMPLES)}


def build(fake: Fake) -> Fake:
    """What an actor calls."""
    return fake


def build_refused(message: str) -> Fake:
    """What an actor calls where the settings do not fit the model."""
    raise ConfigError(message)


def plan_of(folder: Path, rows: int = 96, *, shard_rows: int = 16, batch: int = 8, name: object = "test") -> Plan:
    """A plan over condition rows r000000 … written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "conditions.parquet"
    ids = [f"r{i:06d}" for i in range(rows)]
    table = cast(pa.table({"sample_id": ids, "plan": ["t"] * rows, "seed": [0] * rows}), CONDITIONS)
    path.write_bytes(to_parquet(table))
    shards = make_shards([Slice(str(path), 0, rows)], shard_rows)
    return Plan("generate", run_id({"name": name, "rows": rows}), {"name": name}, batch, shards)


class Shelf(MemoryFileSystem):
    """A storage that is neither a disk nor a known service: `shelf://folder/file`, in the memory of this process."""

    protocol = "shelf"
    store: ClassVar[dict[str, object]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("shelf://", "memory://")))

    @classmethod
    def register(cls) -> None:
        """Let fsspec open such URLs."""
        fsspec.register_implementation("shelf", cls, clobber=True)


def rewrite(path: Path, **changes: Any) -> None:
    """Replace fields of a sealed record, as if it had been written so."""
    record = {**json.loads(path.read_bytes()), **changes}
    path.write_bytes((to_text if path.read_bytes().startswith(b"{\n") else to_bytes)(record))
