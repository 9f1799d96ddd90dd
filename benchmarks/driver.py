"""What the driver of a run does for each shard, and its memory, at 100 to 10,000 shards of 1,024 rows.

    python benchmarks/driver.py --shards 100 1000 10000

The rows are tiny and the shards are committed here, without a worker. Times are CPU seconds of this process for each
shard; `memory` is how much the peak memory of the process grew over all steps, for a million rows.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from raygen.commands.verify import verify
from raygen.store.parquet import RANGE, Slice
from raygen.store.run_store import Plan, RunStore, make_shards, open_input
from raygen.store.schemas import SELECTION

ROWS = 1024


def measured(shards: int, folder: str) -> dict[str, float]:
    """CPU microseconds a shard by step, and MB a million rows."""
    steps: dict[str, float] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def step(name: str, call: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = call()
        steps[name] = (time.process_time() - began) / shards * 1e6
        return result

    def planned() -> Plan:
        plan = Plan("select", "benchmark", {}, ROWS, make_shards([Slice(RANGE, 0, shards * ROWS)], ROWS))
        RunStore(folder).create(plan)
        return plan

    def commit() -> None:
        for shard in range(shards):
            ids = [f"r{shard * ROWS + i:09d}" for i in range(ROWS)]
            columns = [
                pa.array(ids),
                pa.array(np.zeros(ROWS, np.int32)),
                pa.array([True] * ROWS),
                pa.nulls(ROWS, pa.string()),
            ]
            tables = {"selection": pa.Table.from_arrays(columns, schema=SELECTION)}
            store.commit(shard, shards, tables, timings={}, environment={}, reasons={})

    plan = step("plan", planned)
    store = RunStore(folder)
    step("commit", commit)
    step("list", lambda: sum(1 for _ in store.commits()))
    step("resume", lambda: store.missing(RunStore(folder).plan()))
    step("finish", lambda: store.finish(plan))
    step("open", lambda: open_input(folder)[0].slices("selection"))
    report = step("verify", lambda: verify(store, decode=False))
    assert report.ok, report.problems[:3]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return steps | {"memory": grown / 1024 / (shards * ROWS / 1e6)}


def main() -> None:
    """Print a line for each number of shards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", nargs="+", type=int, default=[100, 1000, 10_000])
    options = parser.parse_args()
    for shards in options.shards:
        with tempfile.TemporaryDirectory() as folder:
            found = measured(shards, folder)
        times = "  ".join(f"{name} {value:,.0f}" for name, value in found.items() if name != "memory")
        print(
            f"{shards:6,} shards, microseconds a shard: {times}; memory {found['memory']:.1f} MB a million rows",
            flush=True,
        )


if __name__ == "__main__":
    main()
