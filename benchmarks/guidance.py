"""Guidance scales and intervals of the bundled model over the same rows and noise, with the contrast of the pictures.

    python benchmarks/guidance.py [--rows 256] [--folder runs/guidance] [STEPS:SCALE:LOW:HIGH ...]

Draws faces, plans their masks and attributes, and generates and scores them once for each cell. One line a cell: mIoU,
balanced attribute accuracy, Fréchet distance, evaluations of the network a picture; mean and deviation of pixels, mean
chroma, and mean absolute Laplacian (sharpness). The first line has the measures of the drawn faces.
"""

import argparse
from pathlib import Path

import numpy as np

from raygen import load_dataset, run
from raygen.store.images import decode_image

LOCAL = {"runner": "local", "workers": 1}
#: Cells of docs/results.md.
CELLS = ("10:1:0:1", "10:1.5:0:1", "8:1.5:0:1", "8:1.5:0.5:1", "8:2:0.5:1", "8:2.5:0.5:1", "10:2:0:1", "10:1.5:0:0.5")


def looks(folder: str, table: str) -> str:
    """Mean and deviation of pixels, chroma and sharpness of stored pictures."""
    column = load_dataset(folder, table, columns=["image"])["image"].to_pylist()
    x = np.stack([decode_image(value["bytes"]) for value in column if value]).astype(np.float64)
    chroma = (x.max(axis=-1) - x.min(axis=-1)).mean()
    around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    sharpness = np.abs(4 * x[:, 1:-1, 1:-1] - around).mean()
    return f"{x.mean():.1f} | {x.std():.1f} | {chroma:.1f} | {sharpness:.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cells", nargs="*", default=CELLS)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--folder", default="runs/guidance")
    given = parser.parse_args()
    root = Path(given.folder)
    faces, conditions = str(root / "faces"), str(root / "conditions")
    data = {"kind": "procedural", "identities": -(-given.rows // 4), "pictures": 4, "size": 64, "seed": 7}
    planning = {"kind": "from_faces", "conditions": ["mask", "attributes"], "per_face": 1}
    run({"kind": "ingest", "data": data, "shard_rows": 128, "out": faces, "resources": LOCAL})
    run({"kind": "plan", "faces": faces, "planning": planning, "out": conditions, "resources": LOCAL})
    print("| steps | scale | interval | evaluations | mIoU | attributes | fd | mean | deviation | chroma | sharpness |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    print(f"| *procedural faces* | | | | | | | {looks(faces, 'faces')} |", flush=True)
    for cell in given.cells:
        steps, scale, low, high = cell.split(":")
        samples = str(root / f"samples-{cell.replace(':', '-')}")
        job = {"kind": "generate", "conditions": conditions, "checkpoint": "bundled", "seed": 7, "score": {}}
        job |= {"sampler": {"name": "unipc", "steps": int(steps)}, "guidance": float(scale), "shard_rows": 64}
        guided = 0
        if float(scale) != 1:
            job["guidance_interval"] = [float(low), float(high)]
            guided = sum(float(low) <= i / int(steps) < float(high) for i in range(int(steps)))
        run({**job, "out": samples, "resources": LOCAL})
        scored = {"kind": "evaluate", "samples": samples, "reference": faces, "score": {}, "out": f"{samples}-scores"}
        facts = run({**scored, "resources": LOCAL}).facts
        found = {name.split(":")[0]: value for name, value in facts.items() if name.endswith("[all]")}
        numbers = " | ".join(f"{float(found[name]):.3f}" for name in ("miou", "attribute_balanced", "fd"))
        interval = f"{low} to {high}"
        print(
            f"| {steps} | {scale} | {interval} | {int(steps) + guided} | {numbers} | {looks(samples, 'samples')} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
