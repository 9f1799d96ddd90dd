"""Memory and CPU time of the Fréchet distance with its interval over stored SCORES, for this build and earlier ones.

    python benchmarks/evaluation.py --builds /tmp/before . --rows 20000 --width 256

Prints the peak memory of a process that gathers and aggregates, its CPU seconds, and the numbers. SCORES are written
once, in files of 1,024 rows, to a temporary folder (`TMPDIR`): rows x width x 4 bytes, and as much again while it runs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from raygen.store.parquet import to_parquet
from raygen.store.schemas import SCORES, cast

SHARD = 1024
AGGREGATE = """
import resource, sys, time
from pathlib import Path
from raygen.evaluation.aggregate import aggregate, gather_scores
from raygen.store.parquet import from_parquet
def tables(name):
    return (from_parquet(path.read_bytes()) for path in sorted(Path(sys.argv[1], name).iterdir()))
start, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
sets = {"reference": gather_scores(tables("reference")), "all": gather_scores(tables("all"))}
rows = aggregate(sets, run_id="r", reference="f", protocols={}, frechet_name="fd").to_pylist()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
text = " ".join(f"{row['value']:.14g} [{row['ci_low']:.14g}, {row['ci_high']:.14g}]" for row in rows)
seconds = time.process_time() - began
print(f"peak {peak / 1024:,.0f} MiB ({start / 1024:,.0f} after imports), {seconds:,.0f} s of CPU: {text}")
"""


def write(folder: Path, rows: int, width: int, seed: int) -> None:
    """Files of SCORES with features of `width` values whose variances fall."""
    folder.mkdir(parents=True)
    scales = np.linspace(1, 0.1, width, dtype=np.float32)
    for start in range(0, rows, SHARD):
        n = min(SHARD, rows - start)
        values = np.random.default_rng((seed, start)).standard_normal((n, width), np.float32) * scales + seed / 50
        offsets = pa.array(range(0, n * width + 1, width), pa.int32())
        columns = {
            "sample_id": [f"s{(start + i) * 7919 % 10**8:08d}" for i in range(n)],  # not in the order of their ids
            "attempt": pa.array([0] * n, pa.int32()),
            "metric": ["features:net"] * n,
            "run_id": ["r"] * n,
            "vector": pa.ListArray.from_arrays(offsets, pa.array(values.ravel())),
        }
        (folder / f"{start:09d}.parquet").write_bytes(to_parquet(cast(pa.table(columns), SCORES)))


def main() -> None:
    """Write SCORES, then aggregate them with each build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--builds", nargs="+", type=Path, default=[Path()], help="folders with the source of raygen")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--reference", type=int, default=10_000, help="rows of the reference")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "reference"), options.reference, options.width, 1)
        write(Path(folder, "all"), options.rows, options.width, 2)
        for build in options.builds:
            environment = {**os.environ, "PYTHONPATH": str(build.resolve())}
            subprocess.run([sys.executable, "-c", AGGREGATE, folder], cwd=build, env=environment, check=True)


if __name__ == "__main__":
    main()
