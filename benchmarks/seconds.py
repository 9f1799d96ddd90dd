"""Seconds per picture of several checkpoints or samplers at several step counts, alternating in one process.

    python benchmarks/seconds.py runs/scadm/steps/masks runs/scadm/long runs/scadm/sdm_long --steps 50 100 200 1000
    python benchmarks/seconds.py runs/sweep/few_conditions bundled --samplers ddim:50 unipc:12 --pictures 16 --rounds 9

Each round times every case once, so that other load on the machine affects all of them; ratios are taken within a
round. Without scoring and encoding; a warm-up before the first round is not counted.
"""

import argparse
import statistics
from collections.abc import Iterator
from itertools import product

from raygen.commands.generate import GenerateJob
from raygen.commands.registry import make
from raygen.evaluation.scored_sampler import sample_worker
from raygen.sampling.config import TimingConfig
from raygen.sampling.timing import TimingWorker
from raygen.store.parquet import read_slice
from raygen.store.run_store import open_input


def workers(options: argparse.Namespace, steps: int) -> Iterator[TimingWorker]:
    """One worker per checkpoint and sampler; `ddim:50` is a sampler with its own number of steps."""
    for checkpoint, sampler in product(options.checkpoints, options.samplers):
        name, _, own = sampler.partition(":")
        settings = {
            "conditions": options.conditions,
            "checkpoint": checkpoint,
            "batch": options.pictures,
            "sampler": {"name": name, "steps": int(own or steps)},
        }
        job = make({"kind": "generate", **settings, "out": "unused"})
        assert isinstance(job, GenerateJob)
        worker = sample_worker(job.sampling("timed"), None, options.threads)
        yield TimingWorker(worker, TimingConfig(pictures=options.pictures, rounds=1), checkpoint)


def main() -> None:
    """Time all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conditions")
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--steps", nargs="+", type=int, default=[50])
    parser.add_argument("--samplers", nargs="+", default=["ddim"])
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    piece = open_input(options.conditions)[0].slices("conditions")[0]
    rows = read_slice(piece._replace(rows=options.pictures))
    checkpoints = [checkpoint.rstrip("/").rpartition("/")[2] for checkpoint in options.checkpoints]
    pairs = product(checkpoints, options.samplers)
    names = [one if len(options.samplers) == 1 else f"{one}, {sampler}" for one, sampler in pairs]
    print("| steps | " + " | ".join(names) + f" | {names[0]} over {names[-1]} (rounds) |")
    print("|---|" + "---|" * (len(names) + 1))
    for steps in options.steps:
        timed = list(workers(options, steps))
        for one in timed:
            one.round(rows)
        timings = [[one.round(rows) for one in timed] for _ in range(options.rounds)]
        middle = [f"{statistics.median(seconds):.3f} s" for seconds in zip(*timings, strict=True)]
        ratios = [seconds[0] / seconds[-1] for seconds in timings]
        rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {steps} | {' | '.join(middle)} | {statistics.median(ratios):.2f} ({rounds}) |", flush=True)


if __name__ == "__main__":
    main()
