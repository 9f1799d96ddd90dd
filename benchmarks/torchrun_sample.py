"""The usual plain script, as a baseline: each rank samples its part of the rows and writes a PNG per picture.

    torchrun --nproc-per-node 2 benchmarks/torchrun_sample.py CONDITIONS.parquet CHECKPOINT OUT [BATCH [STEPS]]

It cannot be resumed, commits nothing and overlaps nothing. Model and sampler are those of raygen.
"""

import json
import os
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch

from raygen.models.config.sampler import SamplerConfig
from raygen.sampling.config import SampleConfig
from raygen.sampling.worker import SampleWorker


def main() -> None:
    """Rank 0 prints nothing; every rank writes its own times."""
    conditions, checkpoint, out = sys.argv[1:4]
    batch, steps = (int(a) for a in (sys.argv[4:6] or ("32", "12")))
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    config = SampleConfig(checkpoint=checkpoint, sampler=SamplerConfig(steps=steps), batch=batch, codec="png")
    worker = SampleWorker(config, threads=1)
    rows = pq.read_table(conditions)
    share = rows.num_rows // world
    rows = rows.slice(rank * share, share)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    marks = []
    for start in range(0, rows.num_rows, batch):
        part = rows.slice(start, batch)
        samples = worker(part)["samples"]
        for name, image in zip(samples["sample_id"].to_pylist(), samples["image"].to_pylist(), strict=True):
            (folder / f"{name}.png").write_bytes(image["bytes"])
        marks.append((time.time(), part.num_rows))
    (folder / f"times-{rank}.json").write_text(json.dumps(marks))


if __name__ == "__main__":
    main()
