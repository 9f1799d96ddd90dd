"""Cost of the mask-aware loss: time and memory of a training step with and without its terms.

    python benchmarks/mask_aware.py [--base FOLDER] [--batch 16] [--rounds 5] [--json FILE]

One thread (or the accelerator if there is one). A branch for FOLDER (a trained ldm that reads tokens; a random one by
default), the bundled first stage, and the bundled attribute classifier in place of LPIPS and a face embedder. Every
case runs in its own process, because memory is the maximum of a process; cases alternate within a round, ratios are
medians over rounds. Operations are counted (convolutions and matrices, forward and backward), so they are the same on
every machine.

plain       only the diffusion loss
T=100       perceptual and face terms for the tenth of the rows with timesteps below 100
T=1000      for all rows
T=1000, decoder again    the same, with activation checkpointing of the decoder
latent      the error of the latents weighted by class, for all rows; nothing is decoded
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch.utils.flop_counter import FlopCounterMode

TERMS: dict[str, Any] = {"perceptual": 0.2, "face": 0.5, "crop": 64}
CASES: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "T=100": {"below": 100, **TERMS},
    "T=1000": {"below": 1000, **TERMS},
    "T=1000, decoder again": {"below": 1000, "checkpoint_decoder": True, **TERMS},
    "latent": {"below": 1000, "perceptual": 0.0, "face": 0.0, "latent": 0.5},
}
STEPS = 4


def one(case: str, base: str, batch: int) -> dict[str, float]:
    """Seconds per step, peak memory in MB, and 10^9 operations per step, measured in this process."""
    from raygen.extractors.config import BundledNetworkConfig
    from raygen.extractors.perceptual import load_embedder, load_perceptual
    from raygen.models import checkpoint
    from raygen.models.config.controlnet import ControlNetConfig
    from raygen.training.config.losses import MaskAwareConfig, SimpleLoss
    from raygen.training.losses import DiffusionObjective, MaskAwareObjective

    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stage = checkpoint.load_first_stage("bundled")
    model = checkpoint.build(ControlNetConfig(base=base, hint="mask"), stage, seed=0)
    fields = CASES[case]
    if fields is None:
        objective: DiffusionObjective = DiffusionObjective(model, SimpleLoss())
    else:
        config = MaskAwareConfig.model_validate(
            {"network": BundledNetworkConfig(), "embedder": BundledNetworkConfig(), **fields}
        )
        objective = MaskAwareObjective(
            model,
            SimpleLoss(),
            config=config,
            perceptual=load_perceptual(BundledNetworkConfig()),
            embedder=load_embedder(BundledNetworkConfig()),
        )
    objective = objective.to(device).train()
    optimizer = torch.optim.AdamW(objective.phases()[0], lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    size, shape = model.shapes.mask_size, model.latent_shape
    mask = torch.zeros(batch, size, size, dtype=torch.uint8)
    mask[:, size // 4 : -size // 4, size // 4 : -size // 4] = 1
    inputs = {
        "images": torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=generator),
        "moments": torch.randn(batch, *shape, generator=generator),
        "noise": torch.randn(batch, *shape),
        "posterior": torch.randn(batch, *shape),
        "dropout": torch.ones(batch),
        "mask": mask,
        "t": (torch.arange(batch) * 1000 // batch),  # evenly: a tenth of them below 100
        "text": torch.ones(batch, max(model.shapes.text_length, 1), dtype=torch.int64),
        **{f"present_{name}": torch.ones(batch, dtype=torch.bool) for name in (*model.modalities, "mask")},
    }
    inputs = {name: value.to(device) for name, value in inputs.items()}

    def step() -> None:
        optimizer.zero_grad()
        objective(inputs)["loss"].backward()
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    # On a CPU, the thread's own time excludes other processes; the work of an accelerator is only in the wall time.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    began = clock()
    for _ in range(STEPS):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = (clock() - began) / STEPS
    most = torch.cuda.max_memory_allocated() if device.type == "cuda" else _peak()
    return {"s": seconds, "mb": most / 1e6, "gflop": counter.get_total_flops() / 1e9}


def _peak() -> float:
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def random_base(folder: Path) -> str:
    """An untrained base over the bundled first stage."""
    from raygen.models import checkpoint
    from raygen.models.config.ldm import LDMConfig

    config = LDMConfig(channels=(48, 96, 128), attention=(False, True, True), head_dim=16, constant_token=True)
    checkpoint.save(checkpoint.build(config, checkpoint.load_first_stage("bundled"), seed=0), folder)
    return str(folder)


def main() -> None:
    """Print one line per case; write JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="checkpoint of a trained ldm that reads tokens")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", choices=sorted(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(one(options.case, options.base, options.batch)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as place:
        base = options.base or random_base(Path(place) / "base")
        for _ in range(options.rounds):
            for name in CASES:
                command = [sys.executable, __file__, "--case", name, "--base", base, "--batch", str(options.batch)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                results[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for name, values in results.items():
        row: dict[str, Any] = {"case": name}
        for key in ("s", "mb", "gflop"):
            ratios = [a[key] / b[key] for a, b in zip(values, results["plain"], strict=True)]
            row[key] = round(statistics.median(v[key] for v in values), 3)
            row[f"{key}_ratio"] = round(statistics.median(ratios), 3)
            row[f"{key}_spread"] = [round(min(ratios), 3), round(max(ratios), 3)]
        rows.append(row)
        print(json.dumps(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"batch": options.batch, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
