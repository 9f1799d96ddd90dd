"""`raygen quickstart`: a data set from nothing, made with the jobs that a user would write.

out/faces  out/conditions  out/samples     results of ingest, plan and generate
out/scores  out/metrics                    results of evaluate
out/models                                 with --train: the trained models, and what they were trained on
out/report.html                            the report
"""

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from raygen.commands import console
from raygen.commands.base import Job, Result, run_together
from raygen.commands.evaluate import EvaluateJob
from raygen.commands.generate import GenerateJob
from raygen.commands.inputs import open_inputs
from raygen.commands.registry import make
from raygen.core.assets import recipe
from raygen.core.config import Config, Resources
from raygen.core.location import LocalLocation
from raygen.core.units import duration
from raygen.execution.ray.session import connected
from raygen.report import build

__all__ = ["Quickstart", "run_quickstart"]


#: Side of the pictures in pixels.
SIZE: Final = 64
#: The bundled models were trained on drawn faces of this seed; the quickstart draws its faces with another one.
TRAINING_SEED: Final = 0
#: Identities that `--train` draws to train on, four pictures each.
TRAINING_IDENTITIES: Final = 640
#: Found by experiment (docs/results.md): Karras noise levels do not suit a schedule that ends in pure noise.
SAMPLER: Final = {"name": "unipc", "steps": 8}
GUIDANCE: Final = 2.0
#: Guidance of the noisy steps changes colours and contrast, and hardly the accuracy of masks.
GUIDANCE_INTERVAL: Final = (0.5, 1.0)
#: Seconds that each model is trained for with `--train`, on two cores.
BUDGET = {"parser": 40.0, "first_stage": 60.0, "model": 160.0}
#: Warm-up steps with `--train`; the recipes' own number would be half of so short a training.
WARMUP: Final = 40


class Quickstart(Config):
    """Settings of the quickstart."""

    out: LocalLocation = Field("runs/quickstart", description="folder for all results")
    train: bool = Field(False, description="train the models first, in place of the bundled ones")
    workers: int = Field(2, description="number of Ray actors")
    pictures: int = Field(1024, description="number of pictures to generate, rounded up to a multiple of four")
    seed: int = Field(7, description="seed of the drawn faces and of the noise")


def run_quickstart(settings: Quickstart) -> None:
    """Draw faces, (train,) plan, generate, evaluate, report; prints where the results are."""
    began = time.time()
    out = Path(settings.out)
    resources = Resources(runner="ray", workers=settings.workers)
    console.heading(f"raygen quickstart: {settings.pictures:,} pictures into {out}")
    with connected(resources):
        models = {"model": "bundled", "parser": "bundled"}
        if settings.train:
            models = train_models(out / "models", resources)
        facts = make_data_set(settings, out, resources, models)
    command = "make quickstart" if settings == Quickstart() else f"raygen quickstart --out {out}"
    page = build.build_report(str(out), command=command)
    console.heading(f"done in {duration(time.time() - began)}")
    console.facts(
        {
            **facts,
            "report": page,
            "pictures": f"{out}/samples (Parquet: pandas, Polars, DuckDB, `datasets`)",
            "drawn faces": f"{out}/faces",
            "conditions": f"{out}/conditions",
            "scores": f"{out}/scores and {out}/metrics",
        }
    )
    console.heading("next")
    console.console.print(f"  open {page} in a browser", markup=False)
    generate = f"raygen generate jobs/generate_quickstart.yaml conditions={out}/conditions sampler.steps=25"
    commands = {
        f"raygen report {out} --explore": "a second page, which sorts, filters and enlarges all pictures",
        f"raygen verify {out}/samples": "check that every row is there exactly once, and every byte as committed",
        f"{generate} --dry-run": "estimate how long more steps would take",
        "raygen doctor": "check that this machine is ready for larger runs",
    }
    if not shutil.which("raygen"):
        commands = {f". {Path(sys.prefix)}/bin/activate": "put `raygen` on the PATH", **commands}
    for line, purpose in commands.items():
        console.console.print(f"  {line}    # {purpose}", markup=False)


def make_data_set(
    settings: Quickstart, out: Path, resources: Resources, models: Mapping[str, str]
) -> Mapping[str, object]:
    """Run four jobs (ingest, plan, generate, evaluate); the facts of the last one.

    The drawn faces are scored by the actors that generate, since starting others would take longer than the scoring.
    """
    identities = -(-settings.pictures // 4)
    data = {"kind": "procedural", "identities": identities, "pictures": 4, "size": SIZE, "seed": settings.seed}
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
        "guidance_interval": GUIDANCE_INTERVAL,
        "batch": 32,
        "shard_rows": 64,
        "score": score,
    }
    evaluation = {
        "reference": str(out / "faces"),
        "round_trip": models["model"],
        "score": score,
        "batch": 32,
        "shard_rows": 128,
    }
    label = "generate and score"
    began = time.time()
    generate: GenerateJob = _job("generate", label, resources, out / "samples", generation)
    score_reference: EvaluateJob = _job("evaluate", label, resources, out, evaluation)
    generate.remove_leftovers()
    score_reference.remove_leftovers()
    known = not settings.train  # the bundled model takes this sampler; checking that here would import torch
    works = [generate.planned(open_inputs(generate.conditions, "conditions"), checked=known), *score_reference.passes()]
    with console.progress(label) as progress:
        run_together(works, resources, progress)
    console.console.print(f"  {label}: {duration(time.time() - began)}")
    return _step("evaluate", "evaluate", resources, out, {**evaluation, "samples": str(out / "samples")}).facts


def train_models(root: Path, resources: Resources) -> dict[str, str]:
    """Train smaller versions of the bundled models in minutes: their recipes, with a time limit instead of steps."""
    faces, first_stage, latents = (str(root / name) for name in ("faces", "first_stage", "latents"))
    recipes: dict[str, dict[str, Any]] = {}
    for name, seconds in BUDGET.items():
        settings = recipe(name)
        training = {key: value for key, value in settings["training"].items() if key != "steps"}
        training |= {"max_seconds": seconds, "warmup": WARMUP}
        recipes[name] = {**settings, "faces": faces, "training": training}
    recipes["model"] |= {"first_stage": first_stage, "latents": latents}
    data = {"kind": "procedural", "identities": TRAINING_IDENTITIES, "pictures": 4, "size": SIZE, "seed": TRAINING_SEED}
    _step("ingest", "draw training faces", resources, Path(faces), {"data": data, "shard_rows": 256})
    for name in ("parser", "first_stage"):
        _step("train", f"train {name}", resources, root / name, recipes[name])
    encoding = {"faces": faces, "checkpoint": first_stage, "shard_rows": 512}
    _step("encode", "encode latents", resources, Path(latents), encoding)
    _step("train", "train model", resources, root / "model", recipes["model"])
    return {"parser": str(root / "parser"), "model": str(root / "model")}


def _job(kind: str, label: str, resources: Resources, out: Path, settings: dict[str, Any]) -> Any:
    return make({"kind": kind, **settings, "resources": resources.model_dump(), "out": str(out)}, label)


def _step(kind: str, label: str, resources: Resources, out: Path, settings: dict[str, Any]) -> Result:
    """Run one job, and print how long it took."""
    job: Job = _job(kind, label, resources, out, settings)
    began = time.time()
    with console.progress(label) as progress:
        result = job.start(progress)
    console.console.print(f"  {label}: {duration(time.time() - began)}")
    return result
