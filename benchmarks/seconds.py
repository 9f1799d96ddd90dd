"""Seconds a picture of several checkpoints or samplers, at several step counts, in turns, in one process.

    python benchmarks/seconds.py runs/scadm/steps/masks runs/scadm/long runs/scadm/sdm_long --steps 50 100 200 1000
    python benchmarks/seconds.py runs/sweep/few_conditions bundled --samplers ddim:50 unipc:12 --pictures 16 --rounds 9

Each round times every one of them once, so that what else the machine does is shared out; ratios are of the same round.
No scoring, no encoding; a warm-up before the first round does not count.
"""

import argparse
import statistics
from collections.abc import Iterator
from itertools import product

from raygen.commands.generate import GenerateJob, sample_worker
from raygen.commands.registry import make
from raygen.sampling.timing import TimingConfig, TimingWorker
from raygen.store.parquet import read_slice
from raygen.store.run_store import open_input


def workers(given: argparse.Namespace, steps: int) -> Iterator[TimingWorker]:
    """One a checkpoint and sampler; a sampler such as `ddim:50` has its own number of steps."""
    for checkpoint, sampler in product(given.checkpoints, given.samplers):
        name, _, own = sampler.partition(":")
        what = {
            "conditions": given.conditions,
            "checkpoint": checkpoint,
            "batch": given.pictures,
            "sampler": {"name": name, "steps": int(own or steps)},
        }
        job = make({"kind": "generate", **what, "out": "unused"})
        assert isinstance(job, GenerateJob)
        worker = sample_worker(job.sampling("timed"), None, given.threads)
        yield TimingWorker(worker, TimingConfig(pictures=given.pictures, rounds=1), checkpoint)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conditions")
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--steps", nargs="+", type=int, default=[50])
    parser.add_argument("--samplers", nargs="+", default=["ddim"])
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    piece = open_input(given.conditions)[0].slices("conditions")[0]
    rows = read_slice(piece._replace(rows=given.pictures))
    checkpoints = [checkpoint.rstrip("/").rpartition("/")[2] for checkpoint in given.checkpoints]
    pairs = product(checkpoints, given.samplers)
    names = [one if len(given.samplers) == 1 else f"{one}, {sampler}" for one, sampler in pairs]
    print("| steps | " + " | ".join(names) + f" | {names[0]} over {names[-1]} (rounds) |")
    print("|---|" + "---|" * (len(names) + 1))
    for steps in given.steps:
        timed = list(workers(given, steps))
        for one in timed:
            one.round(rows)
        found = [[one.round(rows) for one in timed] for _ in range(given.rounds)]
        middle = [f"{statistics.median(seconds):.3f} s" for seconds in zip(*found, strict=True)]
        ratios = [seconds[0] / seconds[-1] for seconds in found]
        rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {steps} | {' | '.join(middle)} | {statistics.median(ratios):.2f} ({rounds}) |", flush=True)


if __name__ == "__main__":
    main()
