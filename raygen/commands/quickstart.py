"""`raygen quickstart`: the main job from nothing, as the same jobs a user would write.

Knows which jobs follow each other and with what settings. Does nothing that a job file could not do.
"""

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raygen.commands import console
from raygen.commands.base import Result
from raygen.commands.registry import make
from raygen.core.assets import recipe
from raygen.core.config import Config, Resources
from raygen.execution.ray.session import connected
from raygen.report import build

__all__ = ["Quickstart", "run_quickstart"]


SIZE = 64
#: Identities of the drawn faces that the bundled models were trained on begin at 0 under this seed; the
#: quickstart draws people under other seeds.
TRAINING_SEED = 0
#: Drawn people that `--train` learns from, four pictures each.
TRAINING_PEOPLE = 640
#: Found by trying (benchmarks/README.md): noise levels after Karras do not suit a schedule that ends in pure noise.
SAMPLER = {"name": "unipc", "steps": 10}
GUIDANCE = 1.5
#: Seconds of training each model gets with `--train`, on two cores.
BUDGET = {"parser": 40.0, "first_stage": 60.0, "model": 160.0}
#: Steps of warm-up there: the recipes' own would be half of so short a training.
WARMUP = 40


class Quickstart(Config):
    """Settings of the quickstart."""

    out: str = "runs/quickstart"
    train: bool = False
    workers: int = 2
    pictures: int = 1024
    seed: int = 7


def run_quickstart(settings: Quickstart) -> None:
    """Draw, (train,) plan, generate, evaluate, report; prints where everything is."""
    began = time.time()
    out = Path(settings.out)
    resources = Resources(runner="ray", workers=settings.workers)
    console.heading(f"raygen quickstart: {settings.pictures:,} pictures into {out}")
    with connected(resources):
        models = _train(out, resources) if settings.train else {"model": "bundled", "parser": "bundled"}
        facts = _make(settings, out, resources, models)
    command = "make quickstart" if settings == Quickstart() else f"raygen quickstart --out {out}"
    page = build.build_report(str(out), command=command)
    _print_summary(settings, out, page, facts, time.time() - began)


def _make(settings: Quickstart, out: Path, resources: Resources, models: Mapping[str, str]) -> Mapping[str, object]:
    """Faces, conditions, pictures, scores: four jobs."""
    people = -(-settings.pictures // 4)
    data = {"kind": "procedural", "identities": people, "pictures": 4, "size": SIZE, "seed": settings.seed}
    parser = {"kind": "small", "folder": models["parser"]}
    score = {"parser": parser, "features": parser, "classifier": {"kind": "small", "folder": "bundled"}}
    _step("ingest", "draw faces", resources, out / "faces", {"data": data, "shard_rows": 128})
    planning = {"kind": "from_faces", "conditions": ["mask", "attributes"], "per_face": 1}
    _step(
        "plan", "plan conditions", Resources(), out / "conditions", {"faces": str(out / "faces"), "planning": planning}
    )
    generation = {
        "conditions": str(out / "conditions"),
        "checkpoint": models["model"],
        "seed": settings.seed,
        "sampler": SAMPLER,
        "guidance": GUIDANCE,
        "batch": 32,
        "shard_rows": 64,
        "score": score,
    }
    _step("generate", "generate", resources, out / "samples", generation)
    evaluation = {
        "samples": str(out / "samples"),
        "reference": str(out / "faces"),
        "round_trip": models["model"],
        "score": score,
        "batch": 32,
        "shard_rows": 128,
    }
    return _step("evaluate", "evaluate", resources, out, evaluation).facts


def _train(out: Path, resources: Resources) -> dict[str, str]:
    """The bundled models again, from nothing, in minutes instead of hours."""
    root = out / "models"
    data = {"kind": "procedural", "identities": TRAINING_PEOPLE, "pictures": 4, "size": SIZE, "seed": TRAINING_SEED}
    faces = str(root / "faces")
    _step("ingest", "draw faces to train on", resources, Path(faces), {"data": data, "shard_rows": 256})
    recipes = _recipes(faces, root)
    for name in ("parser", "first_stage"):
        _step("train", f"train {name}", resources, root / name, recipes[name])
    latents = {"faces": faces, "checkpoint": str(root / "first_stage"), "shard_rows": 512}
    _step("encode", "encode latents", resources, root / "latents", latents)
    _step("train", "train model", resources, root / "model", recipes["model"])
    return {"parser": str(root / "parser"), "model": str(root / "model")}


def _recipes(faces: str, root: Path) -> dict[str, dict[str, Any]]:
    """The `what` of the three trainings: the bundled recipes with a time limit instead of a number of steps."""
    recipes = {name: {**recipe(name), "faces": faces} for name in BUDGET}
    for name, seconds in BUDGET.items():
        training = {k: v for k, v in recipes[name]["training"].items() if k != "steps"}
        recipes[name]["training"] = {**training, "max_seconds": seconds, "warmup": WARMUP}
    recipes["model"] |= {"first_stage": str(root / "first_stage"), "latents": str(root / "latents")}
    return recipes


def _step(kind: str, label: str, resources: Resources, out: Path, settings: dict[str, Any]) -> Result:
    """One job, with its settings saved beside what it makes."""
    job = make({"kind": kind, **settings, "resources": resources.model_dump(), "out": str(out)}, label)
    began = time.time()
    with console.progress(label) as progress:
        result = job.run(progress)
    console.console.print(f"  {label}: {console.duration(time.time() - began)}")
    return result


def _print_summary(settings: Quickstart, out: Path, page: object, facts: Mapping[str, object], seconds: float) -> None:
    console.heading(f"done in {console.duration(seconds)}")
    console.facts(
        {
            **facts,
            "report": page,
            "pictures": f"{out}/samples (Parquet; opens with pandas, DuckDB, datasets)",
            "drawn faces": f"{out}/faces",
            "conditions": f"{out}/conditions",
            "scores": f"{out}/scores and {out}/metrics",
        }
    )
    console.heading("next")
    activate = [] if shutil.which("raygen") else [(f". {Path(sys.prefix)}/bin/activate", "so that `raygen` is found")]
    again = f"raygen generate jobs/generate_quickstart.yaml conditions={out}/conditions sampler.steps=25"
    steps = [
        *activate,
        (f"raygen verify {out}/samples", "every row exactly once, every byte as committed"),
        (f"{again} --dry-run", "more steps: how long would it take"),
        ("raygen doctor", "is this machine ready for more"),
    ]
    console.console.print(f"  look at {page} in a browser", markup=False)
    for command, why in steps:
        console.console.print(f"  {command}    # {why}", markup=False)
