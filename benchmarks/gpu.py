"""What a GPU does with networks of paper size: sampling, first stage, training, features, memory. Without Ray.

    python benchmarks/gpu.py [--minutes 8] [--out gpu.md] [--tiny]

Runs on the GPU it finds and writes one Markdown file. Weights are random, which does not change the speed. Shapes are
those of jobs/papers. Shares are of the rate that this GPU reaches in one large bfloat16 product in the same run. When
the minutes are used up, the rest is left out and named. --tiny runs the same parts with small networks, also on a CPU,
to try the script.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from raygen.core.config import parse
from raygen.core.face_labels import CLASSES
from raygen.models import checkpoint
from raygen.models.autoencoder import FirstStage
from raygen.models.base import Model
from raygen.models.batched_unets import SideBySide
from raygen.models.compiled import run_uncompiled
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.ldm import LDMConfig
from raygen.models.config.scadm import SCADMConfig
from raygen.sampling.config import SampleConfig
from raygen.sampling.guidance import build_guidance
from raygen.sampling.influence import InfluenceRecorder
from raygen.sampling.worker import SampleWorker
from raygen.store.schemas import CONDITIONS, cast
from raygen.training.config.loop import TrainConfig
from raygen.training.config.losses import SimpleLoss
from raygen.training.losses import DiffusionObjective
from raygen.training.trainer import Trainer

PAPERS = Path(__file__).parents[1] / "jobs" / "papers"
#: Steps of a timed trajectory. The time of a step is the difference of two lengths, so set-up does not count.
SHORT, LONG = 4, 12
#: Settings of `raygen generate` for each way to run the network.
MODES: Mapping[str, Mapping[str, Any]] = {
    "eager": {},
    "graph": {"cuda_graph": True},
    "compiled": {"compile": "default"},
    "compiled, graph": {"compile": "default", "cuda_graph": True},
    "compiled, max-autotune": {"compile": "max-autotune"},
}
#: Modes of the large batch alone: each kind of batch is compiled anew, which takes up to half a minute.
LARGE_ONLY = ("compiled", "compiled, max-autotune")


# --- measuring ----------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """The device, the time that is left, and the tables so far."""

    device: torch.device
    tiny: bool
    ends: float
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    matrix_rate: float = 0.0

    @property
    def modes(self) -> Mapping[str, Mapping[str, Any]]:
        """Those of `MODES`; a tiny trial compiles nothing, which takes minutes on a CPU."""
        return {name: MODES[name] for name in ("eager", "graph")} if self.tiny else MODES

    def add(self, table: str, **row: Any) -> None:
        """A row of a table; also on stdout at once, so that a run that is cut off has shown what it measured."""
        self.tables.setdefault(table, []).append(row)
        print(json.dumps({"table": table, **row}), flush=True)

    def part(self, name: str, work: Callable[[], None], needs_s: float = 15) -> None:
        """Do a part if there is time for it. A part that fails is named with its error, and the others go on."""
        if time.monotonic() + (0 if self.tiny else needs_s) > self.ends:
            self.left_out.append(f"{name}: no time left")
            return
        try:
            work()
        except Exception as error:
            self.left_out.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
            print(self.left_out[-1], file=sys.stderr, flush=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Until the device has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], times: int = 3) -> float:
        """Median seconds of a call that was made once before."""
        call()
        found = []
        for _ in range(times):
            self.wait()
            began = time.perf_counter()
            call()
            self.wait()
            found.append(time.perf_counter() - began)
        return statistics.median(found)

    @contextmanager
    def peak(self) -> Iterator[list[float]]:
        """GiB that tensors took at most in the block; 0 on a CPU."""
        largest = [0.0]
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        yield largest
        if self.device.type == "cuda":
            self.wait()
            largest[0] = torch.cuda.max_memory_allocated() / 2**30


def limits(bench: Bench) -> None:
    """The rates that shares are of: a large product, and a copy."""
    side = 256 if bench.tiny else 8192
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
        seconds = min(bench.seconds(partial(torch.matmul, a, b), 5) for _ in range(3))
        rate = 2 * side**3 / seconds / 1e12
        if dtype == torch.bfloat16:
            bench.matrix_rate = rate
        bench.add("limits", what=f"matrix product {side}^3, {dtype}".replace("torch.", ""), value=f"{rate:.3g} TFLOP/s")
    data = torch.empty(side * side * 8, dtype=torch.uint8, device=bench.device)
    other = torch.empty_like(data)
    rate = 2 * data.numel() / bench.seconds(lambda: other.copy_(data), 5) / 1e12
    bench.add("limits", what="copy, bytes read and written", value=f"{rate:.3g} TB/s")


# --- networks -----------------------------------------------------------------------------------------------


@cache
def settings(name: str) -> dict[str, Any]:
    """The model section of a job in jobs/papers."""
    model: dict[str, Any] = yaml.safe_load((PAPERS / f"{name}.yaml").read_text(encoding="utf-8"))["model"]
    return model


def small(name: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """The same kind of model with few channels."""
    changes: dict[str, Any] = {"channels": [32, 64], "attention": [False, True], "layers_per_block": 1}
    if name == "vq_f4_256":
        changes = {"channels": [16, 16, 32], "layers_per_block": 1, "image_size": 64, "codes": 64}
    if "latent" in model:
        changes["latent"] = [3, 16, 16]
    if "style" in model:
        changes["style"] = {"base": 1, "downs": 3, "ups": 2, "width": 8}
    if "token_width" in model:
        changes |= {"token_width": 32, "mask_side": 8, "heads": 4}
    return {**model, **changes}


def first_stage(bench: Bench) -> FirstStage:
    """VQ-f4 with random weights."""
    model = settings("vq_f4_256")
    config: AutoencoderConfig = parse(AutoencoderConfig, small("vq_f4_256", model) if bench.tiny else model, "vq_f4")
    return FirstStage(config).eval()


def network(bench: Bench, name: str) -> Model:
    """A denoiser of jobs/papers. Its silent layers get weights, because products with zeros take less power."""
    kind: Any = {"ldm": LDMConfig, "scadm": SCADMConfig}[settings(name)["kind"]]
    config = parse(kind, small(name, settings(name)) if bench.tiny else settings(name), name)
    with torch.device(bench.device):  # random weights are drawn there, which takes seconds on a CPU
        model = checkpoint.build(config, first_stage(bench), seed=0)
    with torch.no_grad():
        for parameter in model.trainable():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.to(bench.device).eval()


def faces(model: Model, n: int) -> dict[str, Tensor]:
    """A batch of random pictures and masks as a training reads it, on the model's device."""
    size = model.first_stage.config.image_size
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    blocks = generator.integers(0, len(CLASSES), (n, size // 8, size // 8), dtype=np.uint8)
    batch = {"images": images, "mask": blocks.repeat(8, axis=1).repeat(8, axis=2), "present_mask": np.ones(n, bool)}
    return {key: torch.from_numpy(value).to(model.device) for key, value in batch.items()}


def forward_flops(model: Model, name: str, bench: Bench) -> float:
    """Operations of one forward pass a picture, without condition encoders; a product and a sum are two."""
    copy = model.float()
    conditions = DiffusionObjective(copy, SimpleLoss()).conditions(faces(copy, 1), 1)
    with torch.inference_mode():
        ctx = copy.prepare(copy.embed(conditions)) if copy.modalities else {}
        zt = torch.randn(1, *copy.latent_shape, device=copy.device)
        with FlopCounterMode(display=False) as counter:
            copy.predict(zt, torch.zeros(1, dtype=torch.int64, device=copy.device), ctx)
    return float(counter.get_total_flops())


# --- parts --------------------------------------------------------------------------------------------------


def sampler(model: Model, batch: int, steps: int, mode: Mapping[str, Any]) -> SampleWorker:
    """The worker of `raygen generate` for this model."""
    values = {"checkpoint": "random", "sampler": {"name": "ddim", "steps": steps}, "batch": batch, **mode}
    values |= {"precision": "bfloat16", "device": model.device.type}
    run_uncompiled([*model.networks, model.first_stage.net])  # the mode before may have compiled it
    return SampleWorker(parse(SampleConfig, values, "gpu"), model=model)


def trajectory(model: Model, batch: int, steps: int, mode: Mapping[str, Any]) -> Callable[[], object]:
    """A call that makes the pictures of a batch, and leaves them on the device."""
    worker = sampler(model, batch, steps, mode)
    conditions = DiffusionObjective(model, SimpleLoss()).conditions(faces(model, batch), batch)
    guided = build_guidance(model, conditions, 1.0)
    return lambda: worker.pictures(guided, list(range(batch)), InfluenceRecorder(batch, 0))


def denoising(bench: Bench, name: str, title: str) -> None:
    """A step of every batch size and mode."""
    model = network(bench, name)
    parameters = sum(p.numel() for p in model.trainable()) / 1e6
    flops = forward_flops(model, name, bench)
    for batch in (2, 4) if bench.tiny else (64, 8, 1):
        for mode, values in bench.modes.items():
            if mode in LARGE_ONLY and batch < 64:
                continue

            def measure(batch: int = batch, mode: str = mode, values: Mapping[str, Any] = values) -> None:
                with bench.peak() as peak, torch.inference_mode():
                    began = time.perf_counter()
                    short = trajectory(model, batch, SHORT, values)
                    short()
                    bench.wait()
                    started = time.perf_counter() - began
                    few, many = bench.seconds(short), bench.seconds(trajectory(model, batch, LONG, values))
                step = (many - few) / (LONG - SHORT)
                rest = max(few - SHORT * step, 0.0)
                rate = flops * batch / step / 1e12
                bench.add(
                    "denoising",
                    network=f"{title}, {parameters:.0f}M",
                    batch=batch,
                    mode=mode,
                    ms_a_step=round(1000 * step, 3),
                    share_of_matrix_rate=round(rate / bench.matrix_rate, 3),
                    pictures_a_second_50_steps=round(batch / (50 * step + rest), 2),
                    first_call_s=round(started, 1),
                    peak_gib=round(peak[0], 2),
                )

            bench.part(f"denoising, {title}, batch {batch}, {mode}", measure, 25 if "compiled" in mode else 10)


def against_diffusers(bench: Bench) -> None:
    """Whole pictures by diffusers' scheduler, UNet and VQModel and by ours, the same weights.

    The loop is that of diffusers' LDMPipeline, which itself ends in an error with weights in bfloat16 (0.42).
    """
    from diffusers import DDIMScheduler

    model = network(bench, "celebahq_256")
    batch, steps = (2, 4) if bench.tiny else (64, 20)
    model = model.to(torch.bfloat16)
    noise = model.schedule
    scheduler = DDIMScheduler(
        num_train_timesteps=noise.timesteps,
        beta_start=noise.beta_start,
        beta_end=noise.beta_end,
        beta_schedule=noise.beta_schedule,
        clip_sample=False,
    )
    unet, vqvae = model.unet, deepcopy(model.first_stage.net).to(torch.bfloat16)  # ours keeps its codes in float32

    @torch.no_grad()
    def theirs() -> object:
        scheduler.set_timesteps(steps, device=bench.device)
        zt = torch.randn(batch, *model.latent_shape, device=bench.device, dtype=torch.bfloat16)
        for t in scheduler.timesteps:
            zt = scheduler.step(unet(zt, t).sample, t, zt).prev_sample
        pixels = vqvae.decode(zt / vqvae.config.scaling_factor).sample
        return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()

    cases: dict[str, Callable[[], object]] = {"diffusers, eager": theirs}
    cases |= {f"raygen, {mode}": trajectory(model, batch, steps, values) for mode, values in bench.modes.items()}
    found: dict[str, float] = {}
    for name, call in cases.items():
        bench.part(f"pipelines, {name}", lambda name=name, call=call: found.update({name: bench.seconds(call)}), 20)
    base = found.get("diffusers, eager")
    for name, seconds in found.items():
        bench.add(
            "pipelines",
            what=f"{name}, batch {batch}, DDIM {steps}",
            pictures_a_second=round(batch / seconds, 2),
            of_diffusers=None if base is None else round(base / seconds, 3),
        )


def collaboration(bench: Bench) -> None:
    """A step of two mask experts of random weights side by side: as one network, and on streams of their own."""
    experts = {name: network(bench, "mask_256").to(torch.bfloat16) for name in ("first", "second")}
    model = next(iter(experts.values()))
    batch = 2 if bench.tiny else 32
    conditions = DiffusionObjective(model, SimpleLoss()).conditions(faces(model, batch), batch)
    zt = torch.randn(batch, *model.latent_shape, device=bench.device)
    t = torch.full((batch,), 500, device=bench.device)
    unets = {name: expert.networks[0] for name, expert in experts.items()}
    with torch.inference_mode():
        contexts = {name: expert.prepare(expert.embed(conditions)) for name, expert in experts.items()}
        for grouped, name in ((False, "on streams of their own"), (True, "as one network")):
            side_by_side = SideBySide()
            side_by_side.grouped = grouped
            with bench.peak() as peak:
                seconds = bench.seconds(partial(side_by_side, unets, contexts, zt, t), 5)
            milliseconds = round(1000 * seconds, 3)
            bench.add(
                "collaboration",
                what=f"two experts, batch {batch}, {name}",
                ms_a_step=milliseconds,
                peak_gib=round(peak[0], 2),
            )


def whole_shard(bench: Bench) -> None:
    """A shard with its files' bytes made beside the device, against the same batches whose pictures are dropped."""
    from concurrent.futures import ThreadPoolExecutor

    model = network(bench, "celebahq_256")
    batch, steps, batches = (2, 4, 3) if bench.tiny else (64, 20, 6)
    worker = sampler(model, batch, steps, {})
    ids = [f"{i:06d}" for i in range(batch * batches)]
    rows = cast(pa.table({"sample_id": ids, "plan": ["gpu"] * len(ids), "seed": [0] * len(ids)}), CONDITIONS)
    parts = [rows.slice(i * batch, batch) for i in range(batches)]

    def bare() -> None:
        for part in parts:
            worker.start(part)

    def whole() -> None:
        with ThreadPoolExecutor(2) as threads:
            for finished in [threads.submit(worker.start(part)) for part in parts]:
                finished.result()

    alone, beside = bench.seconds(bare, 2), bench.seconds(whole, 2)
    bench.add(
        "shard",
        what=f"{batches} batches of {batch}, DDIM {steps}, encoded as {worker.config.codec} in 2 threads",
        pictures_a_second=round(len(ids) / beside, 2),
        of_bare_loop=round(alone / beside, 3),
    )


def stage(bench: Bench) -> None:
    """The first stage: pictures a second of the decoder and the encoder."""
    net = first_stage(bench).to(bench.device, torch.bfloat16).to(memory_format=torch.channels_last)
    batch, size = (2 if bench.tiny else 32), net.config.image_size
    z = torch.randn(batch, *net.latent_shape, device=bench.device)
    pixels = torch.rand(batch, 3, size, size, device=bench.device) * 2 - 1
    for name, call in {"decode": partial(net.decode, z), "encode": partial(net.encode, pixels)}.items():
        with bench.peak() as peak, torch.inference_mode():
            with FlopCounterMode(display=False) as counter:
                call()
            seconds = bench.seconds(call, 5)
        share = counter.get_total_flops() / seconds / 1e12 / bench.matrix_rate
        bench.add(
            "first stage",
            what=f"VQ-f4 {name}, {size} px, batch {batch}, bfloat16",
            pictures_a_second=round(batch / seconds, 1),
            share_of_matrix_rate=round(share, 3),
            peak_gib=round(peak[0], 2),
        )


def training(bench: Bench, name: str, title: str) -> None:
    """Steps on cached latents: forward, backward, optimizer, average."""
    model = network(bench, name)
    batch = 2 if bench.tiny else 32
    fields = {"steps": 1000, "batch": batch, "precision": "bfloat16", "ema": 0.9999}
    for mode, values in {"eager": {}, **({} if bench.tiny else {"compiled": {"compile": "default"}})}.items():

        def measure(mode: str = mode, values: Mapping[str, Any] = values) -> None:
            trainer = Trainer(
                DiffusionObjective(model.train(), SimpleLoss()),
                parse(TrainConfig, {**fields, **values}, "gpu"),
                device=bench.device,
            )
            data = faces(model, batch)
            shape = (batch, *model.latent_shape)
            data |= {key: torch.randn(shape, device=bench.device) for key in ("moments", "noise", "posterior")}
            data |= {
                "t": torch.arange(batch, device=bench.device),
                "dropout": torch.rand(batch, 8, device=bench.device),
            }
            with bench.peak() as peak:
                seconds = bench.seconds(lambda: trainer.update(data, 1e-5), 4)
            bench.add(
                "training",
                network=title,
                mode=mode,
                batch=batch,
                steps_a_second=round(1 / seconds, 3),
                pictures_a_second=round(batch / seconds, 1),
                peak_gib=round(peak[0], 2),
            )

        bench.part(f"training, {title}, {mode}", measure, 40)


def features(bench: Bench) -> None:
    """Networks that score pictures, with random weights, in the precision that they are used in."""
    import lpips

    from raygen.extractors.inception import Inception2015

    batch, size = (2, 64) if bench.tiny else (32, 256)
    pixels = torch.rand(batch, 3, size, size, device=bench.device) * 2 - 1
    inception_input = torch.rand(batch, 3, 299, 299, device=bench.device)
    with warnings.catch_warnings():  # lpips passes arguments that torchvision renamed
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    distance = network.to(bench.device).eval()
    inception = Inception2015().to(bench.device).eval()
    cases: dict[str, Callable[[], object]] = {
        "Inception 2015, 299 px": lambda: inception(inception_input),
        f"LPIPS with VGG-16, {size} px, pairs": lambda: distance(pixels, pixels.flip(0)),
    }
    for name, call in cases.items():
        with bench.peak() as peak, torch.inference_mode():
            seconds = bench.seconds(call, 5)
        rate = round(batch / seconds, 1)
        bench.add("features", what=f"{name}, batch {batch}, float32", a_second=rate, peak_gib=round(peak[0], 2))


# --- the report ---------------------------------------------------------------------------------------------


def markdown(bench: Bench) -> str:
    """The tables, what they were measured on, and what was left out."""
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else f"CPU ({platform.machine()})"
    versions = (
        f"torch {torch.__version__}, CUDA {torch.version.cuda}" if bench.device.type == "cuda" else torch.__version__
    )
    lines = [
        f"# {name}",
        "",
        f"{versions}; Python {platform.python_version()}; {time.strftime('%Y-%m-%d', time.gmtime())}",
    ]
    for title, rows in bench.tables.items():
        columns = list(rows[0])
        lines += ["", f"## {title}", "", f"| {' | '.join(c.replace('_', ' ') for c in columns)} |"]
        lines += [f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join('' if row[c] is None else str(row[c]) for c in columns)} |" for row in rows]
    if bench.left_out:
        lines += ["", "## Left out", "", *(f"- {text}" for text in bench.left_out)]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, print each number at once, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")) / "gpu.md")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        raise SystemExit("there is no GPU; `--tiny` tries the script on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(device, options.tiny, time.monotonic() + 60 * options.minutes)
    parts: dict[str, Callable[[], None]] = {
        "limits": lambda: limits(bench),
        "unconditional": lambda: denoising(bench, "celebahq_256", "latent diffusion"),
        "pipelines": lambda: against_diffusers(bench),
        "shard": lambda: whole_shard(bench),
        "first stage": lambda: stage(bench),
        "training": lambda: training(bench, "celebahq_256", "latent diffusion"),
        "features": lambda: features(bench),
        "mask expert": lambda: denoising(bench, "mask_256", "Collaborative Diffusion's mask expert"),
        "collaboration": lambda: collaboration(bench),
        "SCA-DM": lambda: denoising(bench, "scadm_256", "SCA-DM"),
    }
    for name, work in parts.items():
        bench.part(name, work)
        options.out.write_text(markdown(bench), encoding="utf-8")
    print(markdown(bench))


if __name__ == "__main__":
    main()
