"""Memory, start-up and rate of training data: in files, in memory, and as an earlier build had it.

    python benchmarks/training_data.py [--builds FOLDER …] [--pictures 100000] [--latents 200000] [--size 64]

Pictures are 512 drawn faces of `--size` px under new names, lossless WebP; latents are float16 moments [8, 32, 32], as
a first stage of factor 8 makes them of pictures of 256 px. Each case is a process of its own: peak resident memory
above that of the imports, seconds of CPU to load, seconds to open once more, and the rate of batches of 64 rows in the
seeded order. Cases take turns over `--rounds`; numbers are medians.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa

BATCHES, SHARD = 300, 1024


def faces(path: Path, n: int) -> Iterator[pa.Table]:
    """FACES of `n` rows, a shard at a time: the rows of a file again and again under new names."""
    drawn = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    for start in range(0, n, SHARD):
        rows = np.arange(start, min(start + SHARD, n))
        table = drawn.take(pa.array(rows % drawn.num_rows))
        yield table.set_column(0, "face_id", pa.array([f"face-{i:07d}" for i in rows]))


def latents(n: int) -> Iterator[pa.Table]:
    """LATENTS of `n` rows, a shard at a time; all have the same numbers."""
    width = 8 * 32 * 32
    values = np.random.default_rng(0).normal(size=(SHARD, width)).astype(np.float16)
    for start in range(0, n, SHARD):
        rows = np.arange(start, min(start + SHARD, n))
        count = len(rows)
        yield pa.table(
            {
                "face_id": pa.array([f"face-{i:07d}" for i in rows]),
                "transform": pa.array(["none"] * count),
                "autoencoder": pa.array(["a"] * count),
                "moments": pa.ListArray.from_arrays(np.arange(0, (count + 1) * width, width), values[:count].ravel()),
                "shape": pa.array([[8, 32, 32]] * count, pa.list_(pa.int32())),
            }
        )


def small_faces(n: int) -> Iterator[pa.Table]:
    """FACES without pictures."""
    for start in range(0, n, SHARD):
        names = [f"face-{i:07d}" for i in range(start, min(start + SHARD, n))]
        yield pa.table({"face_id": names, "split": ["train"] * len(names)})


def measure(case: str, drawn: Path, n: int, size: int, folder: str) -> dict[str, float]:
    """One case in this process."""
    try:
        from raygen.training.loading import load_training_data
    except ImportError:  # an earlier build
        from raygen.training.data import load_training_data  # type: ignore[attr-defined,no-redef]
    from raygen.training.data import order

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before, began = peak(), time.process_time()
    options: dict[str, Any] = {"folder": Path(folder)} if folder else {}
    if case == "pictures":
        data = load_training_data(faces(drawn, n), size=size, **options)
    else:
        data = load_training_data(small_faces(n), size=size, latents=latents(n), **options)
    loaded = time.process_time() - began
    again = 0.0
    if folder:
        from raygen.training.data import open_training_data

        began = time.perf_counter()
        data = open_training_data(Path(folder))
        again = time.perf_counter() - began
    mirror = np.zeros(64, dtype=bool)
    order(0, len(data), [0])  # the permutation of the epoch
    began = time.perf_counter()
    for step in range(BATCHES):
        data.batch(order(0, len(data), range(step * 64, step * 64 + 64)), mirror)
    rate = BATCHES * 64 / (time.perf_counter() - began)
    return {"memory_mib": peak() - before, "load_s": loaded, "open_s": again, "rows_per_s": rate}


def run(build: str, case: str, drawn: Path, n: int, size: int, files: bool) -> dict[str, float]:
    """One case in a process of its own, with the code of `build`."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--case", case, "--drawn", str(drawn), "--rows", str(n)]
        words += ["--size", str(size), "--folder", folder if files else ""]
        done = subprocess.run(
            words, env={**os.environ, "PYTHONPATH": build}, cwd=build, capture_output=True, text=True, check=True
        )
        result: dict[str, float] = json.loads(done.stdout)
        return result


def draw(path: Path, size: int) -> None:
    """Write 512 drawn faces without masks."""
    from raygen.datasets import ProceduralDataSet

    data = ProceduralDataSet(identities=128, pictures=4, size=size, seed=3)
    table = data.load(data.listing()).select(["face_id", "split", "image"])
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def main() -> None:
    """Run all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--builds", nargs="*", default=[], help="folders of earlier builds")
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--latents", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    for name in ("--case", "--drawn", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        found = measure(options.case, Path(options.drawn), options.rows, options.size, options.folder)
        print(json.dumps(found))
        return
    own = str(Path(__file__).parents[1])
    cases = [("files", own, True), ("memory", own, False), *((build, build, False) for build in options.builds)]
    results: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "faces.arrow"
        draw(drawn, options.size)
        for _ in range(options.rounds):
            for case, n in (("pictures", options.pictures), ("latents", options.latents)):
                for name, build, files in cases if n else []:
                    found = run(os.path.abspath(build), case, drawn, n, options.size, files)
                    results.setdefault(f"{case}, {name}", []).append(found)
                    print(f"{case}, {name}: {found}", file=sys.stderr, flush=True)
    print("| case | peak memory | load, CPU | open again | rows a second |\n|---|---|---|---|---|")
    for name, rounds in results.items():
        middle = {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}
        print(
            f"| {name} | {middle['memory_mib']:,.0f} MiB | {middle['load_s']:.1f} s | {middle['open_s']:.2f} s | "
            f"{middle['rows_per_s']:,.0f} |"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
