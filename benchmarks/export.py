"""Cost of exporting many rows: time, memory, files and bytes.

    python benchmarks/export.py --rows 500000 --people 10000 --out /tmp/exports

A worker without a model commits rows that share one tiny picture. Every format is then exported in its own process,
whose largest resident size is read at the end. Driver and worker are one process here, so this is an upper bound for
the driver. The final step runs in the driver only.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from raygen.commands.registry import make
from raygen.core.config import Resources
from raygen.core.hashing import digest, run_id
from raygen.execution.executor import execute, local_runner
from raygen.store.images import encode_image, picture_column
from raygen.store.parquet import RANGE, Slice
from raygen.store.run_store import Plan, RunStore, make_shards
from raygen.store.schemas import SAMPLES

FORMATS = ("folder", "recordio", "webdataset", "huggingface", "csv")
SHARD = 1024


@dataclass(frozen=True)
class Shared:
    """Row numbers -> SAMPLES, all with the same picture; `each` pictures per identity."""

    picture: bytes
    each: int

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """No work on the device."""
        return lambda: {"samples": self._samples(rows["index"].to_numpy())}

    def _samples(self, numbers: np.ndarray) -> pa.Table:
        n = len(numbers)
        columns = {
            "sample_id": pa.array([f"s{i:09d}" for i in numbers]),
            "attempt": pa.array([0] * n, pa.int32()),
            "image": picture_column([self.picture] * n),
            "plan": pa.array(["benchmark"] * n),
            "seed": pa.array([0] * n, pa.int64()),
            "run_id": pa.array(["benchmark"] * n),
            "identity_id": pa.array([f"p{i // self.each:06d}" for i in numbers]),
            "variant": pa.array(numbers % self.each, pa.int32()),
            "image_sha256": pa.array([digest(self.picture)] * n),
        }
        return pa.Table.from_arrays([columns.get(f.name, pa.nulls(n, f.type)) for f in SAMPLES], schema=SAMPLES)


def peak_mb() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def commit(rows: int, people: int, size: int, out: Path) -> None:
    """Plan and commit the rows."""
    pixels = (
        np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(size // 4, 0).repeat(size // 4, 1)
    )
    worker = Shared(encode_image(pixels), rows // people)
    shards = make_shards([Slice(RANGE, 0, rows)], SHARD)
    plan = Plan("generate", run_id({"rows": rows, "people": people, "size": size}), {"seed": 0}, SHARD, shards)
    began = time.perf_counter()
    execute(RunStore(str(out)), plan, partial(lambda: worker), Resources(), local_runner, max_error_fraction=0)
    seconds = time.perf_counter() - began
    print(f"| commit {rows:,} rows, {len(shards)} shards | {seconds:.0f} s | | {peak_mb():.0f} MB | | |")


def export(kind: str, samples: Path, out: Path, size: int) -> None:
    """Export in one format."""
    form = {"kind": kind, **({"size": size} if kind == "recordio" else {})}
    settings = {"samples": str(samples), "format": form, "shard_rows": SHARD}
    began = time.perf_counter()
    facts = make({"kind": "export", **settings, "out": str(out)}).run(lambda _: None).facts
    files, size_ = str(facts["data set"]).split(": ")[1].split(" files, ")
    took = f"{time.perf_counter() - began:.0f} s | {facts['finish_s']} s"
    print(f"| {kind} | {took} | {peak_mb():.0f} MB | {files} | {size_.split(' bytes')[0]} |", flush=True)


def main() -> None:
    """Run the steps and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--people", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=16, help="side of the picture, a multiple of 4")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--only", choices=("commit", *FORMATS), help="this step, in this process")
    options = parser.parse_args()
    if options.only == "commit":
        commit(options.rows, options.people, options.size, options.out / "samples")
    elif options.only:
        export(options.only, options.out / "samples", options.out / options.only, options.size)
    else:
        print(
            "| step | time | of it finish | largest resident size | files | bytes |\n|---|---|---|---|---|---|",
            flush=True,
        )
        for step in ("commit", *options.formats):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", step], check=True)


if __name__ == "__main__":
    main()
