"""Wall time and CPU time of `raygen quickstart`, for this build and earlier ones, in turns.

    git worktree add /tmp/before COMMIT
    python benchmarks/quickstart.py --builds /tmp/before . --rounds 3

Each run is a new process in a new folder, and the builds take turns. CPU time is that of all processes of a run, the
servers and workers of Ray among them, read four times a second (Linux). Prints a table of the seconds by stage, the
ratio of the medians, and how many pictures of the builds are equal.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import psutil

from raygen.store.run_store import RunStore

#: Marks the processes of a run, which inherit it.
MARK = "RAYGEN_BENCHMARK_RUN"


class CpuTime:
    """CPU seconds of all processes with a mark in their environment, also of those that have ended."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.ours: dict[int, bool] = {}
        self.seconds: dict[int, float] = {}

    def look(self) -> None:
        """Read the times of the processes that are there now."""
        for process in psutil.process_iter():
            try:
                if process.pid not in self.ours:
                    self.ours[process.pid] = process.environ().get(MARK) == self.mark
                if self.ours[process.pid]:
                    times = process.cpu_times()
                    self.seconds[process.pid] = times.user + times.system
            except (psutil.Error, OSError):
                continue


def measured(build: Path, out: str, pictures: int) -> dict[str, float]:
    """Seconds of one run by stage, in all, and of CPU."""
    mark = uuid.uuid4().hex
    environment = {**os.environ, "PYTHONPATH": str(build.resolve()), MARK: mark, "RAY_USAGE_STATS_ENABLED": "0"}
    cpu, ended = CpuTime(mark), threading.Event()
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "raygen", "quickstart", "--out", out, "--pictures", str(pictures)],
        cwd=build,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )

    def watch() -> None:
        while not ended.wait(0.25):
            cpu.look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stdout is not None
    found, last = {}, began
    for line in process.stdout:
        if stage := re.fullmatch(r"  ([a-z ]+): \d+ (s|min)\n", line):
            found[stage[1]], last = time.monotonic() - last, time.monotonic()
    code = process.wait()
    found["report and end"], found["wall"] = time.monotonic() - last, time.monotonic() - began
    ended.set()
    watcher.join()
    if code:
        raise SystemExit(f"{build}: quickstart ended with {code}")
    return {**found, "CPU": sum(cpu.seconds.values())}


def pictures_of(folder: str) -> dict[str, str]:
    """sha256 of each picture of a quickstart by its id."""
    tables = RunStore(f"{folder}/samples").tables("samples", ["sample_id", "image_sha256"])
    return {row["sample_id"]: row["image_sha256"] for table in tables for row in table.to_pylist()}


def main() -> None:
    """Run the builds in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--builds", nargs="+", type=Path, default=[Path()], help="folders with the source of raygen")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=1024)
    options = parser.parse_args()
    runs: list[list[dict[str, float]]] = [[] for _ in options.builds]
    with tempfile.TemporaryDirectory() as folder:
        pictures = []
        for turn in range(options.rounds):
            for number, build in enumerate(options.builds):
                out = f"{folder}/{number}-{turn}"
                runs[number].append(measured(build, out, options.pictures))
                print(f"{build}: " + ", ".join(f"{name} {s:.1f}" for name, s in runs[number][-1].items()), flush=True)
                if not turn:
                    pictures.append(pictures_of(out))
    medians = [{name: statistics.median(run[name] for run in build) for name in build[0]} for build in runs]
    first, last = medians[0], medians[-1]
    for name in dict.fromkeys(name for median in medians for name in median):
        print(f"| {name} | " + " | ".join(f"{m[name]:.1f} s" if name in m else "" for m in medians) + " |")
    equal = sum(pictures[-1].get(name) == sha for name, sha in pictures[0].items())
    wall, cpu = (last[name] / first[name] for name in ("wall", "CPU"))
    print(f"wall {wall:.2f}, CPU {cpu:.2f} of the first build's; {equal} of {len(pictures[0])} pictures are equal")


if __name__ == "__main__":
    main()
