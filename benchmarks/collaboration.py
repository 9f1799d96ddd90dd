"""Cost of collaborative diffusion: a step, what is computed once per picture, and a batch against single processes.

    python benchmarks/collaboration.py [--only step|once|pairs] [--model FOLDER] [--rounds 5] [--json FILE]

One thread (or the accelerator if there is one). The cases alternate; ratios are medians over rounds.

step   one step of a collaboration of two and of three experts of equal shape, against the sum of its experts' steps:
       one network after the other, and equal ones as one (what accelerators do). Of a CPU these are CPU seconds.
once   condition encoders, keys and values: computed once per picture against at every step, for 19, 64 and 1,024
       tokens.
pairs  the published script, which is one process per pair and loads its models each time, against `raygen generate`
       for 200 pairs with the same weights (FOLDER, or tiny random ones), sampler and steps. The published script is
       timed on `--pairs` pairs and extrapolated, with and without starting the process and loading.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from raygen.commands.registry import make
from raygen.models import checkpoint, checkpoint_folder
from raygen.models.autoencoder import FirstStage
from raygen.models.base import Model
from raygen.models.collaborative import Collaborative
from raygen.models.conditions import Conditions
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.collaborative import CollaborativeConfig
from raygen.models.config.ldm import LDMConfig
from raygen.models.config.text import TransformerTextConfig
from raygen.models.ldm import LDM, run_unet
from raygen.models.text import Tokenizer, learn_vocabulary

STEPS = 20
#: One process of the published script: load, generate one picture, write it.
ONE_PAIR = """
import json, sys, time
began = time.perf_counter()
import torch
torch.set_num_threads(1)
import pyarrow.parquet as pq
from raygen.sampling.config import SampleConfig
from raygen.sampling.worker import SampleWorker
folder, conditions, row, out, steps = sys.argv[1:]
worker = SampleWorker(SampleConfig(checkpoint=folder, batch=1, codec="png", sampler=json.loads(steps)), threads=1)
loaded = time.perf_counter()
rows = pq.read_table(conditions).slice(int(row), 1)
sample = worker(rows)["samples"]
warm = time.perf_counter()  # the first picture pays for what a process does once
worker(rows)
made = time.perf_counter() - warm
open(out, "wb").write(sample["image"][0].as_py()["bytes"])
print(json.dumps({"load": loaded - began, "make": made}))
"""


def taking_turns(cases: Mapping[str, Callable[[], object]], rounds: int, times: int = 4) -> dict[str, list[float]]:
    """Seconds per call, for every case and round; on a CPU those of this process."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for call in cases.values():
        call()
    for _ in range(rounds):
        for name, call in cases.items():
            began = clock()
            for _ in range(times):
                call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append((clock() - began) / times)
    return seconds


def row(name: str, seconds: list[float], base: list[float]) -> dict[str, Any]:
    """A case's time and its ratio to another's, with the spread over rounds."""
    ratios = [a / b for a, b in zip(seconds, base, strict=True)]
    spread = [round(min(ratios), 3), round(max(ratios), 3)]
    milliseconds, ratio = round(1000 * statistics.median(seconds), 2), round(statistics.median(ratios), 3)
    line = {"case": name, "ms": milliseconds, "ratio": ratio}
    print(json.dumps({**line, "spread": spread}), flush=True)
    return {**line, "spread": spread}


def conditions(model: Model, n: int) -> Conditions:
    """Random conditions of the modalities that the model takes."""
    generator = torch.Generator().manual_seed(0)
    size = model.shapes.mask_size
    mask = torch.randint(0, 19, (n, size, size), dtype=torch.uint8, generator=generator)
    text = torch.randint(5, 20, (n, model.shapes.text_length), generator=generator)
    return Conditions(
        n=n,
        mask=mask if "mask" in model.modalities else None,
        text=text if "text" in model.modalities else None,
        present={name: torch.ones(n, dtype=torch.bool) for name in model.modalities},
    ).to(model.device)


def expert(stage: FirstStage, **fields: Any) -> LDM:
    """A random expert of the bundled denoiser's channels."""
    common: dict[str, Any] = {"channels": (48, 96, 128), "attention": (False, True, True), "head_dim": 16}
    tokenizer = None
    if "text" in fields["modalities"]:
        tokenizer = Tokenizer.wordpiece(
            learn_vocabulary(["a person who smiles", "somebody else"]), fields["text"].length
        )
    model = checkpoint.build(LDMConfig(**{**common, **fields}), stage, seed=0, tokenizer=tokenizer)
    assert isinstance(model, LDM)
    return model.eval().requires_grad_(False)


def text(length: int) -> TransformerTextConfig:
    """A transformer of two layers."""
    return TransformerTextConfig(length=length, layers=2, heads=4, head_dim=16, inner=256)


def equal_experts(stage: FirstStage, count: int) -> dict[str, LDM]:
    """Two or three experts of the same shape: for masks as tokens, for texts, for masks with a token more."""
    made = {
        "mask": expert(stage, modalities=("mask",), mask_path="tokens", token_width=64),
        "text": expert(stage, modalities=("text",), text=text(19), token_width=64),
        "other": expert(stage, modalities=("mask",), mask_path="tokens", token_width=64, constant_token=True),
    }
    return dict(list(made.items())[:count])


@torch.no_grad()
def steps(device: torch.device, rounds: int, batch: int) -> list[dict[str, Any]]:
    """Time of one step: experts and collaboration, one network after the other and equal ones as one."""
    return [line for count in (2, 3) for line in _steps(device, rounds, batch, count)]


def _steps(device: torch.device, rounds: int, batch: int, count: int) -> list[dict[str, Any]]:
    stage = checkpoint.load_first_stage("bundled")
    experts = equal_experts(stage, count)
    config = CollaborativeConfig(experts={name: name for name in experts}, channels=(16, 32, 48), head_dim=16)
    model = Collaborative(config, experts).to(device).eval().requires_grad_(False)
    zt = torch.randn(batch, *model.latent_shape, device=device)
    t = torch.full((batch,), 500, device=device)
    inputs = conditions(model, batch)
    ctx = model.prepare(model.embed(inputs))
    own = {name: model.expert(name).prepare(model.expert(name).embed(inputs)) for name in experts}
    unets = {name: model.expert(name).unet for name in experts}

    def alone(grouped: bool) -> dict[str, torch.Tensor]:
        model.side_by_side.grouped = grouped
        return model.side_by_side(unets, own, zt, t)

    def step(grouped: bool) -> torch.Tensor:
        model.side_by_side.grouped = grouped
        return model.predict(zt, t, ctx)

    torch.testing.assert_close(step(True), step(False), rtol=1e-3, atol=1e-4)
    calls: dict[str, Callable[[], object]] = {
        f"{count} experts, one after the other": lambda: alone(False),
        f"{count} experts as one": lambda: alone(True),
        f"a step with {count} experts, one network after the other": lambda: step(False),
        f"a step with {count} experts, equal networks as one": lambda: step(True),
    }
    seconds = taking_turns(calls, rounds)
    base = next(iter(seconds.values()))
    return [row(name, values, base) for name, values in seconds.items()]


@torch.inference_mode()
def once(device: torch.device, rounds: int, batch: int) -> list[dict[str, Any]]:
    """Pictures of `STEPS` steps with the context of the conditions computed once, or at each step."""
    stage = checkpoint.load_first_stage("bundled")
    masks = expert(stage, modalities=("mask",), mask_path="tokens", token_width=64).to(device)
    texts = expert(stage, modalities=("text",), text=text(64), token_width=64).to(device)
    many = {"mask_tokens": torch.randn(batch, 1024, 64, device=device)}
    inputs = {model: conditions(model, batch) for model in (masks, texts)}
    return [
        *_once("19 mask tokens", masks, lambda: masks.embed(inputs[masks]), batch, rounds),
        *_once("64 text tokens, a transformer of two layers", texts, lambda: texts.embed(inputs[texts]), batch, rounds),
        *_once("1,024 tokens without an encoder", masks, lambda: many, batch, rounds),
    ]


def _once(name: str, model: LDM, embed: Callable[[], Any], batch: int, rounds: int) -> list[dict[str, Any]]:
    zt = torch.randn(batch, *model.latent_shape, device=model.device)
    t = torch.full((batch,), 500, device=model.device)

    def without_keys(ctx: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: value for key, value in ctx.items() if not key.startswith("kv.")}

    ready = model.prepare(embed())
    same = torch.equal(run_unet(model.unet, zt, t, ready), run_unet(model.unet, zt, t, without_keys(ready)))
    if not same:
        raise AssertionError(f"{name}: not bit-equal")

    def all_once() -> None:
        ctx = model.prepare(embed())
        for _ in range(STEPS):
            model.predict(zt, t, ctx)

    def encoders_once() -> None:
        with torch.enable_grad():  # which is when `prepare` leaves keys and values to the steps
            ctx = model.prepare(embed())
        for _ in range(STEPS):
            model.predict(zt, t, ctx)

    def nothing_once() -> None:
        for _ in range(STEPS):
            with torch.enable_grad():
                ctx = model.prepare(embed())
            model.predict(zt, t, ctx)

    seconds = taking_turns({"all": all_once, "encoders": encoders_once, "nothing": nothing_once}, rounds, 1)
    return [
        row(f"{name}: keys and values at each step", seconds["encoders"], seconds["all"]),
        row(f"{name}: encoders too", seconds["nothing"], seconds["all"]),
    ]


def pairs(model: str | None, count: int, total: int) -> list[dict[str, Any]]:
    """The published script against one job, both as commands of a shell."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        folder = model or _tiny(root / "model")
        sampler = {"name": "ddim", "steps": 50, "eta": 1.0, "spacing": "leading"}
        size = checkpoint_folder.first_stage_config(folder).image_size
        data = {"kind": "procedural", "identities": total, "pictures": 1, "size": size, "seed": 5}
        planning = {"kind": "from_faces", "conditions": ["mask", "text"]}
        _run(root, "ingest", "faces", {"data": data})
        _run(root, "plan", "conditions", {"faces": str(root / "faces"), "planning": planning})
        file = str(next((root / "conditions").rglob("*.parquet")))
        script = root / "one_pair.py"
        script.write_text(ONE_PAIR)
        began, parts = time.perf_counter(), []
        for i in range(count):
            command = [sys.executable, str(script), folder, file, str(i), str(root / f"{i}.png"), json.dumps(sampler)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            parts.append(json.loads(done.stdout.splitlines()[-1]))
        each = (time.perf_counter() - began) / count
        inside = statistics.mean(part["make"] for part in parts)
        settings = {
            "conditions": str(root / "conditions"),
            "checkpoint": folder,
            "sampler": sampler,
            "batch": 50,
            "shard_rows": 100,
            "codec": "png",
        }
        (root / "job.yaml").write_text(json.dumps({"kind": "generate", **settings, "out": str(root / "samples")}))
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "raygen", "generate", str(root / "job.yaml")], check=True, stdout=2)
        mine = (time.perf_counter() - began) / total
        worked = json.loads((root / "samples/attempt-00/run.json").read_text())["seconds"] / total
    result = {
        "pairs": total,
        "published_s_a_pair": round(each, 3),
        "of_that_making": round(inside, 3),
        "raygen_s_a_pair": round(mine, 4),
        "of_that_without_start": round(worked, 4),
        "ratio": round(each / mine, 1),
        "ratio_without_starts": round(inside / worked, 1),
    }
    print(json.dumps(result), flush=True)
    return [result]


def _run(root: Path, kind: str, name: str, settings: dict[str, Any]) -> None:
    make({"kind": kind, **settings, "out": str(root / name)}).run(lambda _: None)


def _tiny(folder: Path) -> str:
    """Two experts of 16 px pictures with random weights."""
    stage = FirstStage(AutoencoderConfig(image_size=32, channels=(8, 8)))
    small: dict[str, Any] = {"channels": (16, 16), "attention": (False, True), "head_dim": 8, "token_width": 16}
    reader = TransformerTextConfig(length=64, layers=1, heads=2, head_dim=8, inner=16)
    experts = {
        "mask": expert(stage, modalities=("mask",), mask_path="tokens", **small),
        "text": expert(stage, modalities=("text",), text=reader, **small),
    }
    config = CollaborativeConfig(experts={name: name for name in experts}, channels=(8, 8), head_dim=8)
    checkpoint.save(Collaborative(config, experts), folder)
    return str(folder)


def main() -> None:
    """Print one line per case; write JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["step", "once", "pairs"])
    parser.add_argument("--model", help="checkpoint of a collaboration, for `pairs`")
    parser.add_argument("--pairs", type=int, default=20, help="pairs that the published script is timed on")
    parser.add_argument("--total", type=int, default=200, help="number of pairs of the job")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "step": lambda: steps(device, options.rounds, options.batch),
        "once": lambda: once(device, options.rounds, options.batch),
        "pairs": lambda: pairs(options.model, options.pairs, options.total),
    }
    rows = {name: part() for name, part in parts.items() if options.only in (None, name)}
    if options.json:
        options.json.write_text(json.dumps({"device": str(device), **rows}, indent=1))


if __name__ == "__main__":
    main()
