"""Overhead of Ray and of the commit protocol, measured in one run on one machine.

    python benchmarks/throughput.py [--rounds 3] [--pictures 768] [--only real,emulated,overhead,codec] [--json FILE]

real       pictures per second of `raygen generate` on Ray against the same worker in a loop (results are kept in
           memory, not encoded or stored) and against a plain torchrun script, alternating round by round.
emulated   a worker that sleeps as long as a GPU with 25 pictures per second would compute, 1 to 8 actors.
overhead   seconds and driver memory per shard, from runs whose worker does nothing.
codec      pictures per second that one core encodes, and their size, for drawn faces of 256 px.

Steady rates exclude the first batch or shard of each worker. Ratios are medians over rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
import torch

from benchmarks.workers import Emulated, Nothing
from raygen.core.assets import resolve
from raygen.core.config import Resources
from raygen.core.hashing import run_id
from raygen.evaluation.scored_sampler import sample_worker
from raygen.execution.executor import execute
from raygen.execution.ray.actors import ray_runner
from raygen.execution.ray.session import connected
from raygen.models.config.sampler import SamplerConfig
from raygen.sampling.config import SampleConfig
from raygen.store.images import Codec, encode_image
from raygen.store.parquet import Slice, to_parquet
from raygen.store.run_store import Plan, RunStore, make_shards

BATCH = 32


def conditions(folder: Path, rows: int) -> Path:
    """Condition rows of drawn faces, in one file."""
    from raygen.datasets import ProceduralDataSet
    from raygen.planning import FromFaces

    data = ProceduralDataSet(identities=-(-rows // 4), pictures=4, size=64, seed=11)
    faces = data.load(data.listing().slice(0, rows))
    path = folder / "conditions.parquet"
    path.write_bytes(to_parquet(FromFaces().rows(faces.drop_columns(["error"]))))
    return path


def steady(store: RunStore, workers: int) -> dict[str, float]:
    """Rate after each worker's first shard, and the share of that time in the device's part."""
    commits = sorted(store.commits(), key=lambda c: c.timings["started"])
    by_worker: dict[str, list[Any]] = {}
    for commit in commits:
        by_worker.setdefault(str(commit.environment.get("worker", "")), []).append(commit)
    rates, busy = [], []
    for own in by_worker.values():
        later = own[1:]
        if later:
            span = later[-1].created - later[0].timings["started"]
            rates.append(sum(c.rows("samples") for c in later) / span)
            busy.append(sum(c.timings["device_s"] for c in later) / span)
    return {"rate": sum(rates), "busy": min(busy, default=0.0), "workers": float(len(rates))}


def run(
    folder: Path, slices: list[Slice], build: Any, workers: int, shard_rows: int
) -> tuple[RunStore, dict[str, float]]:
    """One run on Ray; its store, the result of `steady` and the wall time."""
    store = RunStore(str(folder))
    plan = Plan("generate", run_id(str(folder)), {}, BATCH, make_shards(slices, shard_rows))
    began = time.time()
    outcome = execute(store, plan, build, Resources(runner="ray", workers=workers), ray_runner, max_error_fraction=0)
    return store, {**steady(store, workers), "wall": time.time() - began, "first": outcome.progress.first_commit_s or 0}


def bare(config: SampleConfig, path: Path, batches: int) -> float:
    """Pictures per second of the same worker in a loop in this process; its results are dropped."""
    import pyarrow.parquet as pq

    worker = sample_worker(config, None, 1)
    rows = pq.read_table(path)
    worker.start(rows.slice(0, BATCH))
    began = time.perf_counter()
    for i in range(batches):
        worker.start(rows.slice(i * BATCH % (rows.num_rows - BATCH), BATCH))
    return batches * BATCH / (time.perf_counter() - began)


def torchrun(path: Path, checkpoint: str, folder: Path, workers: int, steps: int) -> dict[str, float]:
    """The torchrun script: steady rate after each rank's first batch, and its wall time."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(workers),
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        "29777",
        "benchmarks/torchrun_sample.py",
        str(path),
        checkpoint,
        str(folder),
        str(BATCH),
        str(steps),
    ]
    began = time.time()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    wall = time.time() - began
    rate = 0.0
    for file in folder.glob("times-*.json"):
        marks = json.loads(file.read_text())
        rate += sum(n for _, n in marks[1:]) / (marks[-1][0] - marks[0][0])
    return {"rate": rate, "wall": wall}


def real(folder: Path, rounds: int, pictures: int, steps: int) -> list[dict[str, Any]]:
    """generate against the bare loop and torchrun, one actor (a core to spare) and two (every core used)."""
    path = conditions(folder, pictures)
    checkpoint = resolve("bundled")
    config = SampleConfig(checkpoint=checkpoint, sampler=SamplerConfig(steps=steps), batch=BATCH, run_id="benchmark")
    torch.set_num_threads(1)
    results = []
    for workers in (1, 2):
        rows = []
        for i in range(rounds):
            loop = bare(config, path, max(4, pictures // BATCH // 4))
            _, ours = run(
                folder / f"ray-{workers}-{i}",
                [Slice(str(path), 0, pictures)],
                partial(sample_worker, config, None, 1),
                workers,
                2 * BATCH,
            )
            plain = torchrun(path, checkpoint, folder / f"torchrun-{workers}-{i}", workers, steps)
            rows.append(
                {
                    "bare": loop,
                    "ours": ours["rate"],
                    "torchrun": plain["rate"],
                    "busy": ours["busy"],
                    "first": ours["first"],
                    "wall": ours["wall"],
                    "torchrun_wall": plain["wall"],
                }
            )
            print(
                f"  {workers} worker(s), round {i + 1}: {json.dumps({k: round(v, 2) for k, v in rows[-1].items()})}",
                flush=True,
            )
        ratios = [r["ours"] / r["torchrun"] for r in rows]
        middle = {k: statistics.median(r[k] for r in rows) for k in rows[0]}
        results.append(
            {
                "case": f"real, {workers} worker(s)",
                **middle,
                "of_bare": statistics.median(r["ours"] / (workers * r["bare"]) for r in rows),
                "of_torchrun": statistics.median(ratios),
                "spread_of_torchrun": [min(ratios), max(ratios)],
            }
        )
    return results


def emulated(folder: Path, rate: float, shard_rows: int, shards: int = 4) -> list[dict[str, Any]]:
    """1 to 8 sleeping devices: the remaining share of `rate` pictures per second each."""
    results = []
    for workers in (1, 2, 4, 8):
        pieces = _ranged(folder, shards * workers * shard_rows)
        name = f"emulated, {workers} actor(s), {shard_rows} rows a shard"
        _, got = run(folder / name.replace(" ", "-"), pieces, partial(Emulated, rate), workers, shard_rows)
        case = {"case": name, "of_ideal": got["rate"] / (workers * rate)}
        results.append({**case, "rate": got["rate"], "busy": got["busy"], "first": got["first"]})
        print(f"  {results[-1]}", flush=True)
    return results


def overhead(folder: Path) -> list[dict[str, Any]]:
    """Seconds per shard, and megabytes of driver memory per million rows with 1,024 rows per shard."""
    counts = (50, 250, 450)
    pieces = _ranged(folder, counts[-1] * 1024)[0]
    marks = []
    for shards in counts:
        began = time.time()
        with _peak() as peak:
            rows = [Slice(pieces.path, 0, shards * 1024)]
            run(folder / f"nothing-{shards}", rows, Nothing, 1, 1024)
        marks.append((shards, time.time() - began, peak[0]))
        print(f"  {shards} shards: {marks[-1][1]:.1f} s, {marks[-1][2]:.0f} MB", flush=True)
    (few, _, low), (_, early, _), (many, late, high) = marks[1], marks[0], marks[2]
    return [
        {
            "case": "a shard of 1,024 rows without pictures",
            "seconds": (late - early) / (many - counts[0]),
            "driver_mb_a_million_rows": (high - low) / (many - few) * 1e6 / 1024,
        }
    ]


@contextmanager
def _peak() -> Iterator[list[float]]:
    """Peak resident memory of this process in the block, in MB; ru_maxrss would include what came before."""
    process, largest, over = psutil.Process(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            largest[0] = max(largest[0], process.memory_info().rss / 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield largest
    finally:
        over.set()
        thread.join()


def codec(pictures: int = 64) -> list[dict[str, Any]]:
    """Pictures a second of one core and of two threads, and KiB a picture, of each codec in turns.

    For drawn faces, and for the same with noise of two grey values, which compress about as photographs do.
    """
    from raygen.datasets.procedural.draw import draw

    drawn = [draw(0, i, 0, 256).pixels for i in range(pictures)]
    random = np.random.default_rng(0)
    noisy = [np.clip(p + random.integers(-2, 3, p.shape), 0, 255).astype(np.uint8) for p in drawn]
    seconds, threaded, sizes = defaultdict(list), defaultdict(list), {}
    with ThreadPoolExecutor(2) as threads:
        for _ in range(5):
            for kind, faces in (("drawn", drawn), ("noisy", noisy)):
                for name in get_args(get_args(Codec)[0]):
                    case = f"codec {name}, {kind}, 256 px"
                    began = time.process_time()
                    sizes[case] = sum(len(encode_image(face, name)) for face in faces)
                    seconds[case].append((time.process_time() - began) / pictures)
                    began = time.perf_counter()
                    list(threads.map(encode_image, faces, [name] * pictures))
                    threaded[case].append((time.perf_counter() - began) / pictures)
    return [
        {
            "case": case,
            "a_second_a_core": 1 / statistics.median(seconds[case]),
            "a_second_two_threads": 1 / statistics.median(threaded[case]),
            "kib": size / pictures / 1024,
        }
        for case, size in sizes.items()
    ]


def _ranged(folder: Path, rows: int) -> list[Slice]:
    """A file of `rows` empty condition rows, written by another process to keep its memory out of this one."""
    path = folder / f"rows-{rows}.parquet"
    if not path.exists():
        subprocess.run([sys.executable, __file__, "--rows-file", str(path), str(rows)], check=True)
    return [Slice(str(path), 0, rows)]


def _write_rows(path: Path, rows: int) -> None:
    """The other process of `_ranged`."""
    import pyarrow as pa

    from raygen.planning import Unconditional

    numbers = pa.table({"index": pa.array(range(rows), pa.int64())})
    path.write_bytes(to_parquet(Unconditional(count=rows).rows(numbers), row_group_rows=1024))


def main() -> None:
    """Run the parts of --only; print tables, and write JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=768)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--shard-rows", type=int, default=512, help="of the emulated runs; 512 are 20 s a device")
    parser.add_argument("--only", default="codec,emulated,overhead,real")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows-file", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows_file:
        _write_rows(Path(options.rows_file[0]), int(options.rows_file[1]))
        return
    parts = options.only.split(",")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, connected(Resources(runner="ray", workers=8)):
        folder = Path(name)
        if "codec" in parts:
            results += codec()
        if "emulated" in parts:
            results += emulated(folder, 25.0, options.shard_rows)
        if "overhead" in parts:
            results += overhead(folder)
        if "real" in parts:
            results += real(folder, options.rounds, options.pictures, options.steps)
    for row in results:
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
