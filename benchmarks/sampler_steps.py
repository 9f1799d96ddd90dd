"""What a sampler costs beside the network: a step of the denoising loop and of diffusers' loop, with an empty network.

The noise of a step is measured by itself, against numpy's standard normal of the same keys.

    python benchmarks/sampler_steps.py [--latents 8 32 64] [--steps 50] [--rounds 9] [--json FILE]

CPU time of one thread, float32 latents of 3x64x64, the two loops in turns; the smallest of the rounds counts.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raygen.models.config.noise import NoiseSchedule
from raygen.models.config.sampler import SamplerConfig
from raygen.models.schedulers import SAMPLERS, build_sampler, diffusers_scheduler
from raygen.sampling.guidance import GuidedDenoiser
from raygen.sampling.noise import KeyedNoise, noise_key
from raygen.sampling.worker import denoise

SHAPE = (3, 64, 64)
SCHEDULE = NoiseSchedule()


class Empty:
    """A network that answers at once."""

    learns_variance = False

    def __init__(self, output: Tensor) -> None:
        self.output = output

    def outputs(self, *_: Any) -> Tensor:
        """Always the same tensor."""
        return self.output


def loops(config: SamplerConfig, latents: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A trajectory of raygen, and one of diffusers; both with their set-up, as for each batch."""
    zt = torch.randn(latents, *SHAPE)
    empty: Any = Empty(0.9 * torch.randn_like(zt))
    noise = torch.randn_like(zt)
    guided = GuidedDenoiser({}, (1.0,))

    def ours() -> None:
        sampler = build_sampler(SCHEDULE, config)
        for _ in denoise(empty, guided, zt, sampler, step_noise=(lambda _: noise) if sampler.noisy else None):
            pass

    def theirs() -> None:
        scheduler = diffusers_scheduler(SCHEDULE, config)
        scheduler.set_timesteps(config.steps)
        latent = zt * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            output = empty.outputs(scheduler.scale_model_input(latent, t))
            latent = scheduler.step(output, t, latent, return_dict=False)[0]

    return ours, theirs


def noises(latents: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Keyed noise of a step by raygen, and by numpy's own transformation of the same generator."""
    keys = [noise_key(0, str(i), 0) for i in range(latents)]
    made = KeyedNoise(keys, SHAPE, torch.device("cpu"))

    def theirs() -> None:
        streams = [np.random.Generator(np.random.Philox(key=key, counter=1 << 192)) for key in keys]
        np.stack([stream.standard_normal(SHAPE, dtype=np.float32) for stream in streams])

    return lambda: made(1), theirs


def cpu(call: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    print("| latents | sampler | raygen, ms a step | diffusers, ms a step | ratio |\n|---|---|---|---|---|")
    for latents in options.latents:
        for name in SAMPLERS:
            pair = loops(SamplerConfig(name=name, steps=options.steps), latents)
            rounds = [[cpu(call) for call in pair] for _ in range(options.rounds)]
            ours, theirs = (min(times) / options.steps * 1e3 for times in zip(*rounds, strict=True))
            print(f"| {latents} | {name} | {ours:.3f} | {theirs:.3f} | {ours / theirs:.2f} |", flush=True)
            found.append({"latents": latents, "sampler": name, "raygen_ms": ours, "diffusers_ms": theirs})
    print("\n| latents | noise | raygen, ms | numpy, ms | ratio |\n|---|---|---|---|---|")
    for latents in options.latents:
        calls = noises(latents)
        rounds = [[cpu(call) for call in calls] for _ in range(options.rounds)]
        ours, theirs = (min(times) * 1e3 for times in zip(*rounds, strict=True))
        print(f"| {latents} | of a step | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} |")
        found.append({"latents": latents, "noise": True, "raygen_ms": ours, "numpy_ms": theirs})
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
