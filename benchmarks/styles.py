"""SCA-DM: gain from computing scales, shifts, styles, keys and values once per picture.

    python benchmarks/styles.py [--size small|paper] [--steps 20] [--batch 8] [--rounds 5] [--json FILE]

One thread (or the accelerator if there is one), random weights; cases alternate, ratios are medians over rounds.
`small` is the model of jobs/scadm/train.yaml, `paper` that of jobs/papers/scadm_256.yaml (2 GB of weights; use few
steps on a CPU).
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from raygen.commands.registry import load
from raygen.models import checkpoint
from raygen.models.autoencoder import FirstStage
from raygen.models.conditions import Conditions
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.scadm import SCADMConfig
from raygen.models.scadm import SCADM
from raygen.models.spade import modulations
from raygen.training.losses.diffusion import own_style

JOBS = {"small": "jobs/scadm/train.yaml", "paper": "jobs/papers/scadm_256.yaml"}


def model_of(size: str) -> SCADM:
    """A random model of that size; the first stage matters only by its shape."""
    config: SCADMConfig = load(JOBS[size]).model  # type: ignore[attr-defined]
    if size == "small":
        stage = checkpoint.load_first_stage("bundled")
    else:
        stage = FirstStage(AutoencoderConfig(stage="pixel", image_size=256, patch=4))
        config = config.model_copy(update={"latent": None})
    model = checkpoint.build(config, stage, seed=0)
    assert isinstance(model, SCADM)
    return model.eval().requires_grad_(False)


def main() -> None:
    """Print one line per case; write JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(JOBS), default="small")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model_of(options.size).to(device)
    n, size = options.batch, model.shapes.mask_size
    mask = torch.randint(0, 19, (n, size // 8, size // 8), dtype=torch.uint8)
    mask = mask.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    style, weights = own_style(torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8), mask)
    present = {name: torch.ones(n, dtype=torch.bool) for name in ("mask", "style")}
    inputs = Conditions(n=n, mask=mask, style=style, style_weights=weights, present=present).to(device)
    zt = torch.randn(n, *model.latent_shape, device=device)
    t = torch.full((n,), 500, device=device)

    def once() -> None:
        ctx = model.prepare(model.embed(inputs))
        for _ in range(options.steps):
            model.predict(zt, t, ctx)

    def scales_again() -> None:
        ctx: dict[str, Any] = dict(model.prepare(model.embed(inputs)))
        assert inputs.mask is not None
        for _ in range(options.steps):
            model.predict(zt, t, ctx | modulations(model.unet, inputs.mask, inputs.present["mask"], 19))

    def all_again() -> None:
        for _ in range(options.steps):
            model.predict(zt, t, model.prepare(model.embed(inputs)))

    cases: dict[str, Callable[[], None]] = {
        "once a picture": once,
        "scales and shifts at each step": scales_again,
        "styles, keys and values too": all_again,
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    rows = []
    with torch.inference_mode():
        once()
        for _ in range(options.rounds):
            for name, call in cases.items():
                began = time.perf_counter()
                call()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - began)
    for name, found in seconds.items():
        ratios = [a / b for a, b in zip(found, seconds["once a picture"], strict=True)]
        spread = [round(min(ratios), 3), round(max(ratios), 3)]
        ratio, each = round(statistics.median(ratios), 3), round(statistics.median(found) / options.steps, 4)
        rows.append({"case": name, "s_a_step": each, "ratio": ratio, "spread": spread})
        print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"device": str(device), "size": options.size, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
