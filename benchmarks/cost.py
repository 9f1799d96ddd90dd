"""Estimated time of an identity data set at the size of the paper, from operation counts and an assumed GPU use.

    python benchmarks/cost.py [--steps 12] [--gpus 1 8 64] [--share 0.25 0.35] [--tries 500000 48600 16100]

Counts multiplications and additions (two operations each) of SCA-DM at the size of jobs/papers/scadm_256.yaml with
random weights: what depends only on the conditions, once per picture; one prediction; the decoder of the released
VQ-f4. The time is arithmetic for a GPU that reaches `share` of `rate`; no GPU was measured. Each round of attempts is a
pass of its own and waits for its last shard. The rounds of --tries are those of the 200 generated people (389 of 4,000
rejected at first, then 129) times 125; for 10,000 people they differ, because the rule `others: 0.9` rejects more with
more people. Measurements of it and of `far` are in docs/results.md, "500,000 pictures".
"""

import argparse
import math
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.styles import model_of
from raygen.commands.registry import load
from raygen.models.autoencoder import FirstStage
from raygen.models.conditions import Conditions
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.training.losses.diffusion import own_style


def operations() -> dict[str, float]:
    """Floating-point operations of one picture of 256 px, by part."""
    torch.set_num_threads(1)
    model = model_of("paper")
    size = model.shapes.mask_size
    mask = torch.randint(0, 19, (1, size // 8, size // 8), dtype=torch.uint8)
    mask = mask.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    style, weights = own_style(torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8), mask)
    present = {name: torch.ones(1, dtype=torch.bool) for name in ("mask", "style")}
    given = Conditions(n=1, mask=mask, style=style, style_weights=weights, present=present)
    zt, t = torch.randn(1, *model.latent_shape), torch.full((1,), 500)
    stage_config = load("jobs/papers/vq_f4_256.yaml").model  # type: ignore[attr-defined]
    assert isinstance(stage_config, AutoencoderConfig)
    stage = FirstStage(stage_config).eval()
    counts = {}
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            ctx = model.prepare(model.embed(given))
        counts["once a picture"] = float(counter.get_total_flops())
        with FlopCounterMode(display=False) as counter:
            model.predict(zt, t, ctx)
        counts["a step"] = float(counter.get_total_flops())
        with FlopCounterMode(display=False) as counter:
            stage.decode(torch.randn(1, *stage.latent_shape))
        counts["decoding"] = float(counter.get_total_flops())
    return counts


def main() -> None:
    """Print the operations, then a line for each number of GPUs and each share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--share", type=float, nargs="+", default=[0.25, 0.35])
    parser.add_argument("--rate", type=float, default=790e12, help="operations a second of one GPU in bfloat16")
    parser.add_argument(
        "--tries",
        type=int,
        nargs="+",
        default=[500_000, 48_600, 16_100],
        help="rows of each round; as given: 200 people",
    )
    parser.add_argument("--shard", type=int, default=1024)
    parser.add_argument("--start", type=float, default=60.0, help="seconds until every actor has its model, each round")
    given = parser.parse_args()
    parts = operations()
    each = parts["once a picture"] + given.steps * parts["a step"] + parts["decoding"]
    for name, count in (*parts.items(), (f"a picture of {given.steps} steps", each)):
        print(f"{name}: {count / 1e9:,.0f} GFLOP")
    print("\n| GPUs | share | pictures a second | a shard | all rounds | GPU hours |\n|---|---|---|---|---|---|")
    for gpus in given.gpus:
        for share in given.share:
            rate = share * given.rate / each
            shard = given.shard / rate
            rounds = [math.ceil(math.ceil(rows / given.shard) / gpus) * shard + given.start for rows in given.tries]
            print(
                f"| {gpus} | {share:.2f} | {gpus * rate:,.0f} | {shard:.0f} s | {sum(rounds) / 60:,.0f} min | "
                f"{gpus * sum(rounds) / 3600:.1f} |"
            )


if __name__ == "__main__":
    main()
