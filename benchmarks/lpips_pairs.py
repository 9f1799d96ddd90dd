"""Cost of LPIPS for all pairs of a group: the whole matrix at once against a loop over pairs.

    python benchmarks/lpips_pairs.py [--network alex] [--pictures 10] [--size 256] [--rounds 3] [--json FILE]

One CPU thread, random weights of the trunk. Every case measures the same pictures in one process; cases alternate
within a round. The result is the ratio of CPU time to that of `matrix`, which depends less on other processes than
wall-clock time; the median over rounds.

matrix      `LPIPS.pairs`: each picture passes the trunk once
loop        one pair at a time
rows        each picture with the earlier ones as one batch: the previous implementation of diversity
"""

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torchvision
from torch import Tensor

from raygen.extractors.config import LPIPSConfig
from raygen.extractors.lpips import LPIPS, load_lpips

MODELS = {"vgg": torchvision.models.vgg16, "alex": torchvision.models.alexnet}


def random_lpips(network: str) -> LPIPS:
    """LPIPS over a random trunk that keeps a signal alive."""
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in MODELS[network]().state_dict().items() if n.startswith("features")}
    state = {n: torch.randn(s) * (2 / max(1, s[1:].numel())) ** 0.5 * (len(s) > 1) for n, s in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trunk.pth"
        torch.save(state, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return load_lpips(LPIPSConfig.model_validate({"network": network, "weights": str(path), "sha256": digest}))


def loop(distance: LPIPS, images: Tensor) -> Tensor:
    """[n, n], the lower half measured a pair at a time."""
    found = torch.zeros(len(images), len(images), dtype=torch.float64)
    for i in range(len(images)):
        for j in range(i):
            found[i, j] = distance(images[i : i + 1], images[j : j + 1])[0]
    return found + found.T


def rows(distance: LPIPS, images: Tensor) -> Tensor:
    """[n, n], the lower half measured a row at a time."""
    found = torch.zeros(len(images), len(images), dtype=torch.float64)
    for i in range(1, len(images)):
        found[i, :i] = distance(images[i : i + 1].expand(i, -1, -1, -1), images[:i]).double()
    return found + found.T


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(MODELS), default="alex")
    parser.add_argument("--pictures", type=int, default=10)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    distance = random_lpips(options.network)
    images = torch.rand(options.pictures, 3, options.size, options.size) * 2 - 1
    cases: dict[str, Callable[[LPIPS, Tensor], Tensor]] = {"matrix": LPIPS.pairs, "loop": loop, "rows": rows}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    matrices: dict[str, Tensor] = {}
    with torch.inference_mode():
        distance.pairs(images[:2])
        for _ in range(options.rounds):
            for name, case in cases.items():
                start = time.process_time()
                matrices[name] = case(distance, images)
                seconds[name].append(time.process_time() - start)
    found = {}
    for name in cases:
        ratios = [s / m for s, m in zip(seconds[name], seconds["matrix"], strict=True)]
        gap = float((matrices[name] - matrices["matrix"]).abs().max())
        found[name] = {"ratio": statistics.median(ratios), "ratios": ratios, "largest difference": gap}
        print(f"{name:8} {statistics.median(ratios):6.2f} x   {min(ratios):.2f}..{max(ratios):.2f}   differs {gap:.1e}")
    if options.json:
        Path(options.json).write_text(json.dumps({**vars(options), "cases": found}, indent=2))


if __name__ == "__main__":
    main()
