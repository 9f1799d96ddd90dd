"""`raygen train`: FACES (and LATENTS) -> a checkpoint folder.

Knows which objective belongs to which family, what a rank does from data to checkpoint, and where training
state lies. Does not know the loop itself, nor how ranks are started.

    out/model_index.json …     the checkpoint, once training has ended
    out/training/step-…/       training state, to go on from
    out/training/history.jsonl one line a record
"""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from raygen.arrays import TrainingArrays, load_arrays
from raygen.extractors.small import SmallParser, SmallParserSpec, save_small
from raygen.losses import (
    AutoencoderObjective,
    AutoencoderObjectiveSpec,
    DiffusionLoss,
    DiffusionObjective,
    MinSNR,
    Objective,
    ParserObjective,
)
from raygen.models import checkpoint
from raygen.models.autoencoder import AutoencoderSpec, FirstStage, to_pixels
from raygen.models.conditions import ConditionDropout
from raygen.models.ldm import LDMSpec
from raygen.shards import Progress
from raygen.spec import Spec, run_id
from raygen.store import open_input
from raygen.training import Step, Trainer, TrainSpec, train
from raygen.verbs.base import Estimate, Job, Report, Result

__all__ = ["TrainJob", "TrainWhat"]

#: Pictures that set the scale of a first stage's latents.
CALIBRATION = 4096


class TrainWhat(Spec):
    """What to train, on what, for how long."""

    model: Annotated[AutoencoderSpec | LDMSpec | SmallParserSpec, Field(discriminator="kind")]
    faces: str = Field(..., description="folder of an ingest run")
    split: str | None = Field(None, description="only faces of this split")
    first_stage: str | None = Field(None, description="ldm: folder of a trained first stage")
    latents: str | None = Field(None, description="ldm: folder of an encode run; none encodes at each step")
    loss: DiffusionLoss = Field(default_factory=MinSNR, description="ldm")
    dropout: ConditionDropout = Field(default_factory=ConditionDropout, description="ldm")
    reconstruction: AutoencoderObjectiveSpec = Field(
        default_factory=AutoencoderObjectiveSpec, description="autoencoder"
    )
    training: TrainSpec
    weights: Literal["float32", "float16"] = Field("float32", description="of the checkpoint's files")

    @model_validator(mode="after")
    def _complete(self) -> "TrainWhat":
        if isinstance(self.model, LDMSpec) and self.first_stage is None:
            raise ValueError("an ldm needs `first_stage`, the folder of a trained autoencoder")
        return self


class TrainJob(Job):
    """FACES -> a checkpoint."""

    kind: Literal["train"] = "train"
    what: TrainWhat

    def run(self, report: Report) -> Result:
        """Train to the end, going on from what an earlier command left."""
        Path(self.out).mkdir(parents=True, exist_ok=True)
        began = time.time()
        with _followed(Path(self.out) / "training" / "history.jsonl", report, self.what.training):
            if self.where.runner == "ray":
                from raygen.cluster.train import run_ranks

                run_ranks(partial(_rank, self), self.where, self.out)
            else:
                for _ in _rank(self, 0, 1):
                    pass
        facts = json.loads((Path(self.out) / "training" / "result.json").read_text(encoding="utf-8"))
        return Result(self.out, {**facts, "seconds": round(time.time() - began, 1)})

    def estimate(self) -> Estimate:
        """Parameters, and the time of a few steps scaled up; nothing is written."""
        arrays = self.arrays()
        trainer = Trainer(self.objective(), self.what.training, device=_device())
        batch = trainer.batch(arrays, 0)
        trainer.update(batch, 0.0)
        began = time.perf_counter()
        for _ in range(3):
            trainer.update(batch, 0.0)
        each = (time.perf_counter() - began) / 3 / self.where.workers
        spec = self.what.training
        seconds = min(v for v in (spec.max_seconds, (spec.steps or 1e12) * each) if v is not None)
        size = sum(p.numel() for p in trainer.parameters.values()) * (2 if self.what.weights == "float16" else 4)
        notes = (
            f"{sum(p.numel() for p in trainer.parameters.values()):,} parameters to train",
            f"{len(arrays):,} rows, batch {spec.batch}, {1 / each:.2f} steps a second",
        )
        return Estimate(len(arrays), 0, 0, size, seconds, notes)

    def arrays(self) -> TrainingArrays:
        """The training data in memory."""
        what = self.what
        faces, _ = open_input(what.faces)
        columns = ["face_id", "split", "image", "mask", "attributes"]
        size, modalities = _needs(self)
        if what.latents is None or not isinstance(what.model, LDMSpec):
            return load_arrays(faces.tables("faces", columns), size=size, modalities=modalities, split=what.split)
        latents, _ = open_input(what.latents)
        assert what.first_stage is not None
        return load_arrays(
            faces.tables("faces", [c for c in columns if c != "image"]),
            size=size,
            modalities=modalities,
            latents=latents.tables("latents"),
            autoencoder=checkpoint.digest(what.first_stage),
            split=what.split,
        )

    def objective(self) -> Objective:
        """A fresh objective, its weights drawn from the training seed."""
        what, seed = self.what, self.what.training.seed
        if isinstance(what.model, LDMSpec):
            assert what.first_stage is not None
            model = checkpoint.build(what.model, checkpoint.load_first_stage(what.first_stage), seed=seed)
            return DiffusionObjective(model, what.loss, what.dropout)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if isinstance(what.model, AutoencoderSpec):
                return AutoencoderObjective(FirstStage(what.model), what.reconstruction)
            return ParserObjective(SmallParser(what.model))


def _needs(job: TrainJob) -> tuple[int, tuple[str, ...]]:
    """Picture size, and the conditions that training reads."""
    model = job.what.model
    if isinstance(model, AutoencoderSpec):
        return model.image_size, ()
    if isinstance(model, LDMSpec):
        assert job.what.first_stage is not None
        return checkpoint.load_first_stage(job.what.first_stage).spec.image_size, model.modalities
    return model.image_size, ("mask",)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _rank(job: TrainJob, rank: int, world_size: int) -> Iterator[Step]:
    """Everything one rank does: data, training, and on rank 0 the checkpoint."""
    torch.set_num_threads(job.where.threads)
    folder = Path(job.out) / "training"
    arrays = job.arrays()
    trainer = Trainer(job.objective(), job.what.training, device=_device(), rank=rank, world_size=world_size)
    last = None
    for step in train(trainer, arrays, folder):
        if rank == 0:
            _log(folder / "history.jsonl", step)
        last = step
        yield step
    if rank == 0:
        _finish(job, trainer, arrays, last)


def _log(path: Path, step: Step) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(step)) + "\n")


def _finish(job: TrainJob, trainer: Trainer, arrays: TrainingArrays, last: Step | None) -> None:
    module = trainer.objective.module
    facts: dict[str, Any] = {
        "run_id": run_id({"what": job.what, "data": arrays.digest}),
        "steps": trainer.step,
        "pictures": trainer.step * job.what.training.batch,
        "trained_s": round(trainer.elapsed, 1),
        "parameters": sum(p.numel() for p in trainer.parameters.values()),
        **({"loss": last.loss, "images_per_s": round(last.images_per_s, 1)} if last else {}),
    }
    with trainer.averaged():
        if isinstance(module, FirstStage):
            _calibrate(module, arrays, trainer.device)
        facts["checkpoint"] = _save(job, module, facts)
    (Path(job.out) / "training" / "result.json").write_text(json.dumps(facts), encoding="utf-8")


def _calibrate(stage: FirstStage, arrays: TrainingArrays, device: torch.device) -> None:
    """Set the scale of the latents from the training pictures."""
    assert arrays.images is not None
    images = torch.from_numpy(arrays.images[:CALIBRATION])
    with torch.no_grad():
        parts = [stage.encode(to_pixels(part.to(device))).cpu() for part in torch.split(images, 64)]
    stage.calibrate(torch.cat(parts))


def _save(job: TrainJob, module: Any, facts: dict[str, Any]) -> str:
    """The checkpoint in `out`, with the recipe that made it."""
    out = Path(job.out)
    recipe = {"recipe": job.what.model_dump(mode="json"), "result": facts}
    if isinstance(module, SmallParser):
        return save_small(module, out, weights=job.what.weights, extra=recipe)
    # The checkpoint replaces its folder as a whole, so it is made beside the training state and moved in.
    made = out.parent / f".{out.name}.checkpoint"
    shutil.rmtree(made, ignore_errors=True)
    name = checkpoint.save(module, made, weights=job.what.weights, extra=recipe)
    for path in sorted(made.iterdir()):
        target = out / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    made.rmdir()
    return name


@contextmanager
def _followed(path: Path, report: Report, spec: TrainSpec) -> Iterator[None]:
    """Turn the records of rank 0, wherever it runs, into progress here."""
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(path, report, spec, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(path: Path, report: Report, spec: TrainSpec, stop: threading.Event) -> None:
    start = path.stat().st_size if path.exists() else 0
    progress = Progress(0, 1000)
    while True:
        ended = stop.wait(1.0)
        record = _newest(path, start)
        if record is not None:
            steps = record["step"] / spec.steps if spec.steps else 0.0
            seconds = record["elapsed"] / spec.max_seconds if spec.max_seconds else 0.0
            progress.note = f"step {record['step']}, loss {record['loss']:.4f}, {record['images_per_s']:.0f} pictures/s"
            progress.done_rows = int(1000 * min(1.0, max(steps, seconds)))
            report(progress)
        if ended:
            return


def _newest(path: Path, start: int) -> dict[str, Any] | None:
    """The last whole line that was written after byte `start`."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(start)
        lines = [line for line in file.read().splitlines() if line.endswith(b"}")]
        if lines:
            record: dict[str, Any] = json.loads(lines[-1])
            return record
    return None
