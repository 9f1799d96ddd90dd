"""`raygen train`: FACES (and LATENTS) -> a checkpoint folder.

A rank loads the data, trains, and on rank 0 writes history, sheets and the checkpoint.

    out/model_index.json …     the checkpoint, once training has ended
    out/training/step-…/       training state, to go on from
    out/training/history.jsonl one line a record; also in tensorboard/
    out/training/sheets/       pictures on the way
    out/training/result.json   what came out
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc
import torch

from raygen.commands.base import Estimate, Job, ProgressCallback, Result
from raygen.core.errors import ConfigError, InfrastructureError, RaygenError
from raygen.core.hashing import run_id
from raygen.core.precision import set_deterministic_precision
from raygen.models import checkpoint
from raygen.models.text import Tokenizer, tokenizer_of
from raygen.store.run_store import open_input
from raygen.training.data import TrainingData, load_training_data, texts_of
from raygen.training.logger import TrainingLogger, followed
from raygen.training.losses import Objective
from raygen.training.preview import sheet
from raygen.training.recipe import (
    NETWORKS,
    TrainRecipe,
    build_objective,
    count_parameters,
    folders_of,
    frozen_digests,
    is_denoiser,
    required_fields,
    text_config_of,
)
from raygen.training.trainer import TrainConfig, Trainer, TrainStep, train

__all__ = ["JOB", "TrainJob", "TrainRecipe"]


#: Parameters above which a dry run does not try a step on a CPU.
LARGEST_TIMED = 50_000_000
#: Faces left out that a result names.
MENTIONED = 3


class TrainJob(TrainRecipe, Job):
    """FACES -> a checkpoint."""

    kind: Literal["train"] = "train"

    def run(self, report: ProgressCallback) -> Result:
        """Train to the end, going on from what an earlier command left."""
        Path(self.out).mkdir(parents=True, exist_ok=True)
        began = time.time()
        folder = Path(self.out) / "training"
        with followed(folder, report, self.training):
            if self.resources.runner == "ray":
                from raygen.execution.ray.train import run_ranks

                run_ranks(partial(_rank, self), self.resources, self.out)
            else:
                for _ in _rank(self, 0, 1):
                    pass
        facts = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return Result(self.out, {**facts, "seconds": round(time.time() - began, 1)})

    def estimate(self) -> Estimate:
        """Parameters, and the time of a few steps scaled up; nothing is written.

        Parameters are counted without making the model. Where data is not there yet, or a model is too large for
        this machine, time is not estimated, and a note says so.
        """
        recipe = self
        notes = [f"missing: {error}" for error in _absent(self)]
        counts: dict[str, int] = {}
        try:
            counts = count_parameters(recipe.model, recipe.first_stage)
            notes += [f"{name}: {number:,} parameters" for name, number in counts.items()]
        except RaygenError as error:
            notes.append(f"parameters are not counted: {error}")
        size = sum(counts.values()) * (2 if recipe.save_dtype == "float16" else 4)
        if sum(counts.values()) > LARGEST_TIMED and not torch.cuda.is_available():
            notes.append("time is not estimated: too large to try a step on a CPU")
            return Estimate(0, 0, 0, size, 0.0, tuple(notes))
        try:
            tokenizer = self.tokenizer()
            arrays, objective = self.arrays(tokenizer), self.objective(tokenizer)
        except RaygenError as error:
            return Estimate(0, 0, 0, size, 0.0, (*notes, f"time is not estimated: {error}"))
        each = _seconds_a_step(Trainer(objective, recipe.training, device=_device()), arrays) / self.resources.workers
        limits = (recipe.training.max_seconds, (recipe.training.steps or 1e12) * each)
        seconds = min(v for v in limits if v is not None)
        notes.append(f"{len(arrays):,} rows, batch {recipe.training.batch}, {1 / each:.2f} steps a second")
        return Estimate(len(arrays), 0, 0, size, seconds, tuple(notes))

    def tokenizer(self) -> Tokenizer | None:
        """Of a model that reads texts: its experts', its base's, or one whose words are learned from the faces."""
        model = self.model
        if folders := folders_of(model):
            found = (checkpoint.load_tokenizer(folder) for folder in folders.values())
            return next((tokenizer for tokenizer in found if tokenizer is not None), None)
        if self.init is not None:
            return checkpoint.load_tokenizer(self.init)
        text = text_config_of(model)
        return None if text is None else tokenizer_of(text, self._texts)

    def _texts(self) -> Iterator[str]:
        faces, _ = open_input(self.faces)
        for table in faces.tables("faces", ["split", "texts"]):
            kept = table if self.split is None else table.filter(pc.equal(table["split"], self.split))
            yield from (text for text in texts_of(kept, self.caption).to_pylist() if text is not None)

    def arrays(self, tokenizer: Tokenizer | None = None) -> TrainingData:
        """The training data in memory."""
        recipe = self
        faces, _ = open_input(recipe.faces)
        columns = ["face_id", "split", "image", "mask", "attributes", "texts"]
        size, modalities = required_fields(recipe.model, recipe.first_stage)
        pictures = "style" in modalities or (recipe.mask_aware is not None and recipe.mask_aware.decodes)
        modalities = tuple(sorted({*modalities, *(["mask"] if recipe.mask_aware is not None else [])}))
        places = [] if recipe.mask_aware is None else recipe.mask_aware.places
        columns += [*places, *(["hint"] if "hint" in modalities else []), *(["identity_id"] if recipe.identity else [])]
        if recipe.latents is None or not is_denoiser(recipe.model):
            arrays = load_training_data(
                faces.tables("faces", columns),
                size=size,
                modalities=modalities,
                split=recipe.split,
                tokenize=tokenizer,
                caption=recipe.caption,
                places=places,
                people=recipe.identity is not None,
            )
            return _with_centres(arrays, self)
        latents, _ = open_input(recipe.latents)
        assert recipe.first_stage is not None
        return load_training_data(
            faces.tables("faces", [c for c in columns if c != "image" or pictures]),
            size=size,
            modalities=modalities,
            latents=latents.tables("latents"),
            autoencoder=checkpoint.digest(recipe.first_stage),
            split=recipe.split,
            tokenize=tokenizer,
            caption=recipe.caption,
            pictures=pictures,
            places=places,
        )

    def objective(self, tokenizer: Tokenizer | None = None) -> Objective:
        """A fresh objective, its weights drawn from the training seed."""
        return build_objective(self, tokenizer)


def _with_centres(arrays: TrainingData, recipe: TrainRecipe) -> TrainingData:
    """The arrays; `ConfigError` where there are more people than an embedder has centres for."""
    people = 0 if arrays.identity is None else int(arrays.identity.max()) + 1
    if recipe.identity is not None and people > recipe.identity.identities:
        raise ConfigError(f"recipe.identity.identities: {recipe.faces} has {people:,} people; give as many or more")
    return arrays


def _absent(recipe: TrainRecipe) -> Iterator[RaygenError]:
    """What each input that is not there says."""
    looks: list[Callable[[], object]] = [
        partial(open_input, url) for url in (recipe.faces, recipe.latents) if url is not None
    ]
    folders = [folder for folder in (recipe.first_stage, recipe.init) if folder is not None]
    folders += folders_of(recipe.model).values()
    looks += [partial(checkpoint.digest, folder) for folder in folders]
    for look in looks:
        try:
            look()
        except RaygenError as error:
            yield error


def _seconds_a_step(trainer: Trainer, arrays: TrainingData) -> float:
    batch = trainer.batch(arrays, 0)
    trainer.update(batch, 0.0)  # the first one pays for what is only done once
    began = time.perf_counter()
    for _ in range(3):
        trainer.update(batch, 0.0)
    return (time.perf_counter() - began) / 3


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _rank(job: TrainJob, rank: int, world_size: int) -> Iterator[TrainStep]:
    """Everything one rank does: data, training, and on rank 0 sheets, records and the checkpoint."""
    set_deterministic_precision(job.resources.threads)
    folder, config = Path(job.out) / "training", job.training
    tokenizer = job.tokenizer()
    arrays = job.arrays(tokenizer)
    if _is_done(job, arrays):
        return
    trainer = Trainer(job.objective(tokenizer), config, device=_device(), rank=rank, world_size=world_size)
    journal = TrainingLogger(folder) if rank == 0 else None
    last = None
    for step in train(trainer, arrays, folder):
        if journal is not None:
            journal.write(step)
            if _sheet_is_due(step.step, config):
                with trainer.averaged():
                    journal.picture(step.step, sheet(trainer.objective, arrays, trainer.device))
        last = step
        yield step
    if journal is not None:
        _finish(job, trainer, arrays, last)
        journal.close()


def _is_done(job: TrainJob, arrays: TrainingData) -> bool:
    """Whether an earlier command ended this very training; its checkpoint stays as it is, to the byte.

    `ConfigError` where it was another one: going on from its end with more steps would be neither of the two, as
    the learning rate had already come down.
    """
    out = Path(job.out)
    try:
        facts = json.loads((out / "training" / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not any((out / name).is_file() for name in ("raygen.json", "model.safetensors")):
        return False
    mine = _run_id(job, arrays)
    if facts.get("run_id") != mine:
        raise ConfigError(
            f"{job.out} holds another training that has ended ({facts.get('run_id')}, {facts.get('steps')} steps; this "
            f"one is {mine}): other settings or data. Choose another `out`"
        )
    return True


def _run_id(job: TrainJob, arrays: TrainingData) -> str:
    experts = frozen_digests(job)
    return run_id({"settings": job.settings(), "data": arrays.digest, **({"experts": experts} if experts else {})})


def _sheet_is_due(step: int, config: TrainConfig) -> bool:
    """Whether the steps of this record passed a multiple of `sheet_every`."""
    every = config.sheet_every
    return every is not None and step // every > max(0, step - config.log_every) // every


def _finish(job: TrainJob, trainer: Trainer, arrays: TrainingData, last: TrainStep | None) -> None:
    module = trainer.objective.module
    facts: dict[str, Any] = {
        "run_id": _run_id(job, arrays),
        "steps": trainer.step,
        "pictures": trainer.step * job.training.batch,
        "trained_s": round(trainer.elapsed, 1),
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        **({"loss": last.loss, "images_per_s": round(last.images_per_s, 1)} if last else {}),
        "left_out": _left_out(arrays),
    }
    with trainer.averaged():
        if (network := NETWORKS.get(job.model.kind)) is not None:
            facts |= network.finish(trainer.objective, job, arrays, trainer.device)
        facts["checkpoint"] = _save(job, module, facts)
    (Path(job.out) / "training" / "result.json").write_text(json.dumps(facts), encoding="utf-8")


def _left_out(arrays: TrainingData) -> str:
    """Faces that could not be trained on, and why."""
    if not arrays.left_out:
        return "none"
    more = "; …" if len(arrays.left_out) > MENTIONED else ""
    return f"{len(arrays.left_out)}: {'; '.join(arrays.left_out[:MENTIONED])}{more}"


def _save(job: TrainJob, module: Any, facts: dict[str, Any]) -> str:
    """The checkpoint in `out`, with the recipe that made it."""
    out = Path(job.out)
    extra = {"recipe": job.model_dump(mode="json"), "result": facts}
    save = checkpoint.save if is_denoiser(job.model) else NETWORKS[job.model.kind].save
    # A checkpoint replaces its folder as a whole, so it is written beside the training state and moved in.
    temporary = out.parent / f".{out.name}.checkpoint"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        digest = save(module, temporary, weights=job.save_dtype, extra=extra)
        for path in sorted(temporary.iterdir()):
            target = out / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
        temporary.rmdir()
    except OSError as error:
        raise InfrastructureError(
            f"{job.out}: the checkpoint cannot be written ({error.strerror or error}); the training state is whole, "
            "and the same command ends the job"
        ) from error
    return digest


JOB = TrainJob
