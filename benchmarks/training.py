"""Training throughput, case against case: cached latents, activation checkpointing, bfloat16, compilation.

    python benchmarks/training.py [--rounds 3] [--steps 12] [--batch 32] [--stage bundled|kl] [--compile] [--json FILE]

The shape of the bundled denoiser on drawn faces of 64 px, one thread (or the accelerator if there is one). `pictures`
encodes each batch with the first stage at every step, with random mirroring; `latents` reads the result of `raygen
encode`. Cases alternate; ratios to `latents` are medians over rounds.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import torch

from raygen.core.pixels import to_pixels
from raygen.datasets import ProceduralDataSet
from raygen.models import checkpoint
from raygen.models.autoencoder import FirstStage
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.ldm import LDMConfig
from raygen.training.config.loop import TrainConfig
from raygen.training.config.losses import SimpleLoss
from raygen.training.data import TrainingData
from raygen.training.loading import load_training_data
from raygen.training.losses import DiffusionObjective
from raygen.training.trainer import Trainer

FACES = 512


def data(stage: FirstStage, device: torch.device) -> dict[str, TrainingData]:
    """The same faces as pictures and as latent moments."""
    drawn = ProceduralDataSet(identities=FACES // 4, pictures=4, size=64, seed=3)
    faces: pa.Table = drawn.load(drawn.listing()).drop_columns(["error"])
    pictures = load_training_data([faces], size=64, modalities=["mask", "attributes"])
    assert pictures.images is not None
    with torch.no_grad():
        parts = torch.split(torch.from_numpy(pictures.images), 64)
        moments = torch.cat([stage.encode(to_pixels(part.to(device))).cpu() for part in parts])
    return {"pictures": pictures, "latents": replace(pictures, images=None, moments=moments.numpy().astype(np.float16))}


def trainer(stage: FirstStage, device: torch.device, batch: int, **fields: Any) -> Trainer:
    """The bundled denoiser with new weights."""
    config = LDMConfig(
        modalities=("mask", "attributes"),
        channels=(48, 96, 128),
        attention=(False, False, True),
        head_dim=16,
        attribute_path="vector",
    )
    objective = DiffusionObjective(checkpoint.build(config, stage, seed=0), SimpleLoss())
    return Trainer(objective, TrainConfig(steps=10_000, batch=batch, **fields), device=device)


def rate(active: Trainer, arrays: TrainingData, steps: int) -> float:
    """Pictures per second over `steps`, reading the data like training but without prefetching."""
    began = time.perf_counter()
    for _ in range(steps):
        active.update(active.batch(arrays, active.step), 1e-4)
    if active.device.type == "cuda":
        torch.cuda.synchronize()
    return steps * active.config.batch / (time.perf_counter() - began)


def main() -> None:
    """Print one line per case; write JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--stage", choices=["bundled", "kl"], default="bundled", help="kl: AutoencoderKL, 64 and 128")
    parser.add_argument("--compile", action="store_true", help="also a compiled case; needs a C++ compiler")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    large = AutoencoderConfig(patch=2, channels=(64, 128), layers_per_block=2)
    stage = (FirstStage(large) if options.stage == "kl" else checkpoint.load_first_stage("bundled")).to(device)
    arrays = data(stage, device)
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "latents": ("latents", {}),
        "pictures": ("pictures", {}),
        "latents, checkpointing": ("latents", {"gradient_checkpointing": True}),
        "latents, bfloat16": ("latents", {"precision": "bfloat16"}),
    }
    if options.compile:
        cases["latents, compiled"] = ("latents", {"compile": "default"})
    active = {name: trainer(stage, device, options.batch, **fields) for name, (_, fields) in cases.items()}
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for name, (source, _) in cases.items():
        rate(active[name], arrays[source], 2)
    for _ in range(options.rounds):
        for name, (source, _) in cases.items():
            rates[name].append(rate(active[name], arrays[source], options.steps))
    rows = []
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates["latents"], strict=True)]
        spread = [round(min(ratios), 3), round(max(ratios), 3)]
        middle, ratio = round(statistics.median(found), 1), round(statistics.median(ratios), 3)
        rows.append({"case": name, "pictures_a_second": middle, "of_latents": ratio, "spread": spread})
        print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"device": str(device), "stage": options.stage, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
