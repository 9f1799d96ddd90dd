"""Cost and quality of edits: embeddings of several edits at once, and low-rank tuning against that of all weights.

    python benchmarks/editing.py [--edits 8] [--steps 60] [--rates 1e-3 3e-3] [--rank 8] [--json FILE]

One thread and the bundled model. Seconds are CPU seconds of this process an edit, the cases one after the other in each
round. Quality is that of the alpha which the judge chooses: the part of the change that was made, SSIM to the input,
and their harmonic mean.
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow as pa
import torch

from raygen.core.assets import resolve
from raygen.datasets import ProceduralDataSet
from raygen.planning import EditsFromPairs
from raygen.sampling.config import EditJudgeConfig, ImagicConfig, SampleConfig
from raygen.sampling.imagic import EditWorker, embed

ALPHAS = (0.0, 0.4, 0.8, 1.0, 1.2, 1.5)


def faces(n: int) -> pa.Table:
    """Drawn people that the bundled model was not trained on."""
    drawn = ProceduralDataSet(identities=n, pictures=1, size=64, seed=21)
    people: pa.Table = drawn.load(drawn.listing()).drop_columns(["error"])
    return people


def planned(people: pa.Table, edits: int) -> pa.Table:
    """Glasses put on or taken off, in the attributes and in the mask."""
    table = EditsFromPairs(change="Eyeglasses", parts=("eye_g",), alphas=ALPHAS).rows(people)
    return table.drop_columns(["error"]).slice(0, edits * len(ALPHAS))


def edited(people: pa.Table, rows: pa.Table, imagic: ImagicConfig, at_once: int) -> dict[str, Any]:
    """All edits; CPU seconds an edit, and the means over the chosen alphas."""
    by_name = {row["face_id"]: row for row in people.to_pylist()}
    sample = SampleConfig(
        checkpoint=resolve("bundled"), batch=len(ALPHAS), run_id="r", sampler={"name": "ddim", "steps": 20}
    )
    worker = EditWorker(
        sample, imagic, EditJudgeConfig(), lambda ids: {i: by_name[i] for i in ids}, threads=1, edits=at_once
    )
    began, size = time.process_time(), at_once * len(ALPHAS)
    tables = [worker.start(rows.slice(i, size))() for i in range(0, rows.num_rows, size)]
    seconds = (time.process_time() - began) * len(ALPHAS) / rows.num_rows
    vectors = [v for t in tables for v in t["scores"]["vector"].to_pylist() if len(v) == 4]
    chosen = [v for v in vectors if v[3]]
    return {
        "seconds": round(seconds, 2),
        "alpha": round(mean(v[0] for v in chosen), 2),
        "fidelity": round(mean(v[1] for v in chosen), 3),
        "ssim": round(mean(v[2] for v in chosen), 3),
        "both": round(mean(2 * v[1] * v[2] / max(v[1] + v[2], 1e-9) for v in chosen), 3),
        "ssim at alpha 0": round(mean(v[2] for v in vectors if v[0] == 0), 3),
    }


def embeddings(rounds: int, batch: int, steps: int = 10) -> list[dict[str, Any]]:
    """CPU seconds of the embedding stage an edit and step, for several edits at once."""
    from raygen.models import checkpoint
    from raygen.models.conditions import Conditions

    model = checkpoint.load(resolve("bundled")).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    config = ImagicConfig(embedding_steps=steps, batch=batch)
    spent: dict[int, list[float]] = {1: [], 2: [], 4: [], 8: []}
    for _ in range(rounds + 1):
        for edits, seconds in spent.items():
            given = Conditions(
                n=edits,
                mask=torch.randint(0, 19, (edits, 64, 64), dtype=torch.uint8, generator=generator),
                attributes=torch.ones(edits, 40),
                present={name: torch.ones(edits, dtype=torch.bool) for name in ("mask", "attributes")},
            )
            z = torch.randn(edits, *model.latent_shape, generator=generator)
            with torch.no_grad():
                tokens = model.embed(given)
            began = time.process_time()
            embed(model, z, tokens, config, range(edits))
            seconds.append((time.process_time() - began) / edits / steps)
    return [
        {
            "edits at once": edits,
            "ms": round(1000 * min(seconds[1:]), 1),
            "speed": round(min(spent[1][1:]) / min(seconds[1:]), 2),
        }
        for edits, seconds in spent.items()
    ]


def main() -> None:
    """Print a line a case, and write them all as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60, help="of the embedding, and of the tuning")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3], help="of low-rank tuning")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="of the embedding stage")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)
        found.append(line)

    for batch in (1, 4):
        for line in embeddings(options.rounds, batch):
            say({"case": f"embedding stage, {batch} noises", **line})
    people = faces(12 * options.edits)
    rows = planned(people, options.edits)
    shared: dict[str, Any] = {"embedding_steps": options.steps, "embedding_lr": 1e-2, "batch": 4}
    say({"case": "no tuning", **edited(people, rows, ImagicConfig(**shared, tuning_steps=0), options.edits)})
    shared["tuning_steps"] = options.steps
    say({"case": "full", **edited(people, rows, ImagicConfig(**shared, tuning_lr=3e-4), 1)})
    for rate in options.rates:
        low = ImagicConfig(**shared, tuning="low_rank", rank=options.rank, tuning_lr=rate)
        for at_once in (1, options.edits):
            say({"case": f"low_rank, lr {rate:g}, {at_once} at once", **edited(people, rows, low, at_once)})
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
