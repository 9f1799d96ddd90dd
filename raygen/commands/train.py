"""`raygen train`: FACES (and LATENTS) -> a checkpoint folder.

    out/model_index.json …     the checkpoint, after the last step
    out/training/step-…/       training states, to continue from
    out/training/history.jsonl one line per record; also in tensorboard/
    out/training/sheets/       sample pictures during the training
    out/training/result.json   run id, steps, loss and other facts, after the last step
    out/training/MANIFEST.json sha256 of every file in training/, written last

Every rank loads the data and trains; rank 0 writes the files.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow.compute as pc
import torch
from pydantic import Field

from raygen.commands.base import Estimate, Job, ProgressCallback, Result, parallel_workers
from raygen.core.errors import ConfigError, InfrastructureError, RaygenError
from raygen.core.hashing import run_id
from raygen.core.location import LocalLocation
from raygen.core.precision import set_deterministic_precision
from raygen.models import checkpoint
from raygen.models.text import Tokenizer, tokenizer_of
from raygen.store import disk
from raygen.store.filesystem import FileStore
from raygen.store.run_store import open_input
from raygen.store.sealed import seal_folder
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
from raygen.training.trainer import Trainer, TrainStep, train
from raygen.training.unfinished import explained

__all__ = ["JOB", "TrainJob", "TrainRecipe"]


#: The list of check sums of a finished training, in its folder.
MANIFEST: Final = "MANIFEST.json"
#: A dry run on a CPU does not time the steps of a model with more parameters than this.
LARGEST_TIMED: Final = 50_000_000
#: Number of skipped faces whose reasons are listed in the result.
LISTED_FACES: Final = 3
#: The file that makes a folder the checkpoint of a model.
MARK: Final = "raygen.json"


class TrainJob(TrainRecipe, Job):
    """FACES -> a checkpoint."""

    kind: Literal["train"] = "train"

    out: LocalLocation = Field(..., description="folder that the checkpoint is written to")

    def run(self, report: ProgressCallback) -> Result:
        """Train to the end, continuing from the last training state in `out`."""
        FileStore(self.out).require()
        began = time.time()
        folder = Path(self.out) / "training"
        with self._alone(folder), followed(folder, report, self.training):
            if self.resources.runner == "ray":
                from raygen.execution.ray.train import run_ranks

                run_ranks(partial(train_rank, self), self.resources, self.out)
            else:
                shutil.rmtree(Path(self.out) / ".ray-train", ignore_errors=True)  # of a killed driver
                for _ in train_rank(self, 0, 1):
                    pass
            if not (folder / MANIFEST).exists():
                run_id = json.loads((folder / "result.json").read_text(encoding="utf-8"))["run_id"]
                with explained(folder / MANIFEST, "the list of check sums"):
                    seal_folder(folder, MANIFEST, {"run_id": run_id})
        facts = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return Result(self.out, {**facts, "seconds": round(time.time() - began, 1)})

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """Two trainings into one folder would write over each other's records and states."""
        with ExitStack() as stack:
            try:
                with explained(folder, "a training"):
                    stack.enter_context(disk.exclusively(folder))
            except InfrastructureError as error:
                if not isinstance(error.__cause__, BlockingIOError):
                    raise
                raise InfrastructureError(
                    f"{self.out}: another process trains into this folder; wait for its end, or choose another `out`"
                ) from error
            yield

    def estimate(self) -> Estimate:
        """Parameters, and the time extrapolated from a few steps; nothing is written.

        Parameters are counted without allocating the model. Where data is missing, or a model is too large for this
        machine, the time is not estimated, and a note says why.
        """
        notes = [f"missing: {error}" for error in self.missing_inputs()]
        parameters, rows = 0, 0 if notes else self._count_rows()
        try:
            counts = count_parameters(self.model, self.first_stage)
            parameters = sum(counts.values())
            notes += [f"{name}: {number:,} parameters" for name, number in counts.items()]
        except RaygenError as error:
            notes.append(f"parameters are not counted: {error}")
        size = parameters * (2 if self.save_dtype == "float16" else 4)
        if parameters > LARGEST_TIMED and not torch.cuda.is_available():
            notes.append("time is not estimated: the model is too large to time a step on a CPU")
            return Estimate(rows, 0, 0, size, 0.0, tuple(notes))
        try:
            tokenizer = self.tokenizer()
            arrays, objective = self.arrays(tokenizer), self.objective(tokenizer)
        except RaygenError as error:
            return Estimate(rows, 0, 0, size, 0.0, (*notes, f"time is not estimated: {error}"))
        trainer = Trainer(objective, self.training, device=_device())
        batch = trainer.batch(arrays, 0)
        trainer.update(batch, 0.0)  # the first step pays for initialisation
        began = time.perf_counter()
        for _ in range(3):
            trainer.update(batch, 0.0)
        step_s = (time.perf_counter() - began) / 3 / parallel_workers(self.resources)
        limits = (self.training.max_seconds, (self.training.steps or 1e12) * step_s)
        seconds = min(limit for limit in limits if limit is not None)
        notes.append(f"{len(arrays):,} rows, batch {self.training.batch}, {1 / step_s:.2f} steps per second")
        return Estimate(len(arrays), 0, 0, size, seconds, tuple(notes))

    def _count_rows(self) -> int:
        """Number of training faces, without reading any picture."""
        tables = open_input(self.faces)[0].tables("faces", ["split"])
        splits = (name for table in tables for name in table["split"].to_pylist())
        return sum(self.split is None or name == self.split for name in splits)

    def missing_inputs(self) -> Iterator[RaygenError]:
        """The error of each input that does not exist yet."""
        folders = [folder for folder in (self.first_stage, self.init) if folder is not None]
        opens: list[Callable[[], object]] = [
            *(partial(open_input, url) for url in (self.faces, self.latents) if url is not None),
            *(partial(checkpoint.digest, folder) for folder in (*folders, *folders_of(self.model).values())),
        ]
        for open_one in opens:
            try:
                open_one()
            except RaygenError as error:
                yield error

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of a model that reads texts: of its experts, of `init`, or learned from the faces."""
        if folders := folders_of(self.model):
            tokenizers = (checkpoint.load_tokenizer(folder) for folder in folders.values())
            return next((tokenizer for tokenizer in tokenizers if tokenizer is not None), None)
        if self.init is not None:
            return checkpoint.load_tokenizer(self.init)

        def texts() -> Iterator[str]:
            for table in open_input(self.faces)[0].tables("faces", ["split", "texts"]):
                rows = table if self.split is None else table.filter(pc.equal(table["split"], self.split))
                yield from (text for text in texts_of(rows, self.caption).to_pylist() if text is not None)

        text = text_config_of(self.model)
        return None if text is None else tokenizer_of(text, texts)

    def arrays(self, tokenizer: Tokenizer | None = None) -> TrainingData:
        """The training data in memory.

        `ConfigError` where it has more identities than `identity.identities`, or latents without the mirrored ones that
        `training.horizontal_flip` asks for.
        """
        faces, _ = open_input(self.faces)
        columns = ["face_id", "split", "image", "mask", "attributes", "texts"]
        size, modalities = required_fields(self.model, self.first_stage)
        pictures = "style" in modalities or (self.mask_aware is not None and self.mask_aware.decodes)
        modalities = tuple(sorted({*modalities, *(["mask"] if self.mask_aware is not None else [])}))
        places = [] if self.mask_aware is None else self.mask_aware.places
        columns += [*places, *(["hint"] if "hint" in modalities else []), *(["identity_id"] if self.identity else [])]
        if self.latents is None or not is_denoiser(self.model):
            arrays = load_training_data(
                faces.tables("faces", columns),
                size=size,
                modalities=modalities,
                split=self.split,
                tokenize=tokenizer,
                caption=self.caption,
                places=places,
                people=self.identity is not None,
            )
            people = 0 if arrays.identity is None else int(arrays.identity.max()) + 1
            if self.identity is not None and people > self.identity.identities:
                raise ConfigError(f"identity.identities: {self.faces} has {people:,} people; set at least this number")
            return arrays
        latents, _ = open_input(self.latents)
        assert self.first_stage is not None
        flip = self.training.horizontal_flip
        arrays = load_training_data(
            faces.tables("faces", [name for name in columns if name != "image" or pictures]),
            size=size,
            modalities=modalities,
            latents=latents.tables("latents"),
            autoencoder=checkpoint.digest(self.first_stage),
            split=self.split,
            tokenize=tokenizer,
            caption=self.caption,
            pictures=pictures,
            places=places,
            mirrored=flip,
        )
        if flip and not arrays.flipped.any():
            raise ConfigError(
                f"training.horizontal_flip: {self.latents} has no latents of mirrored pictures; encode with "
                "horizontal_flips=true, or set training.horizontal_flip=false"
            )
        return arrays

    def objective(self, tokenizer: Tokenizer | None = None) -> Objective:
        """A new objective, with weights drawn from the training seed."""
        return build_objective(self, tokenizer)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_rank(job: TrainJob, rank: int, world_size: int) -> Iterator[TrainStep]:
    """Everything that one rank does: load the data, train, and on rank 0 write records, sheets and the checkpoint."""
    set_deterministic_precision(job.resources.threads)
    folder, config = Path(job.out) / "training", job.training
    tokenizer = job.tokenizer()
    arrays = job.arrays(tokenizer)
    if is_finished(job, arrays):
        return
    if rank == 0:
        (folder / MANIFEST).unlink(missing_ok=True)
    trainer = Trainer(job.objective(tokenizer), config, device=_device(), rank=rank, world_size=world_size)
    logger = TrainingLogger(folder) if rank == 0 else None
    every = config.sheet_every
    for step in train(trainer, arrays, folder):
        if logger is not None:
            logger.write(step)
            # A record covers several steps: a sheet is due if one of them is a multiple of `sheet_every`.
            if every is not None and step.step // every > max(0, step.step - config.log_every) // every:
                with trainer.averaged():
                    logger.picture(step.step, sheet(trainer.objective, arrays, trainer.device))
        yield step
    if logger is not None:
        logger.close()
        write_result(job, trainer, arrays, logger.last())


def is_finished(job: TrainJob, arrays: TrainingData) -> bool:
    """Whether this training has ended already; its checkpoint is then left as it is.

    `ConfigError` where another training has ended in `out`: its learning rate has come down, so continuing it would
    give neither of the two.
    """
    out = Path(job.out)
    try:
        facts = json.loads((out / "training" / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not any((out / name).is_file() for name in ("raygen.json", "model.safetensors")):
        return False
    expected = _run_id(job, arrays)
    if facts.get("run_id") != expected:
        raise ConfigError(
            f"{job.out} holds another training that has ended ({facts.get('run_id')}, {facts.get('steps')} steps; this "
            f"one is {expected}): other settings or data. Choose another `out`"
        )
    return True


def _run_id(job: TrainJob, arrays: TrainingData) -> str:
    experts = frozen_digests(job)
    return run_id({"settings": job.settings(), "data": arrays.digest, **({"experts": experts} if experts else {})})


def write_result(job: TrainJob, trainer: Trainer, arrays: TrainingData, last: Mapping[str, Any]) -> None:
    """Write the checkpoint, with the recipe that made it, and then result.json. `last`: the newest record."""
    module = trainer.objective.module
    skipped = "none"
    if arrays.left_out:
        more = "; …" if len(arrays.left_out) > LISTED_FACES else ""
        skipped = f"{len(arrays.left_out)}: {'; '.join(arrays.left_out[:LISTED_FACES])}{more}"
    facts: dict[str, Any] = {
        "run_id": _run_id(job, arrays),
        "steps": trainer.step,
        "pictures": trainer.step * job.training.batch,
        "trained_s": round(trainer.elapsed, 1),
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        **({"loss": last["loss"], "images_per_s": round(last["images_per_s"], 1)} if last else {}),
        "left_out": skipped,
    }
    with trainer.averaged():
        if (network := NETWORKS.get(job.model.kind)) is not None:
            facts |= network.finish(trainer.objective, job, arrays, trainer.device)
        facts["checkpoint"] = _save(job, module, facts)
    # The last file: it says that the training has ended.
    path = Path(job.out) / "training" / "result.json"
    with explained(path, "the result"):
        disk.write(path, json.dumps(facts).encode(), once=False)


def _save(job: TrainJob, module: Any, facts: dict[str, Any]) -> str:
    """Write the checkpoint into `out`; its digest. `InfrastructureError` where that fails."""
    out = Path(job.out)
    extra = {"recipe": job.model_dump(mode="json"), "result": facts}
    save = checkpoint.save if is_denoiser(job.model) else NETWORKS[job.model.kind].save
    # A checkpoint replaces its folder as a whole, so it is written beside the training state and moved in.
    temporary = out / "training" / ".checkpoint"
    then = "the training state is complete: run the same command again to write it"
    with explained(out, "the checkpoint", then):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            digest = save(module, temporary, weights=job.save_dtype, extra=extra)
            disk.sync_file_system(temporary)
            # Without its mark a folder is no checkpoint, so that one whose parts are of two trainings is never read.
            (out / MARK).unlink(missing_ok=True)
            for path in sorted(temporary.iterdir(), key=lambda path: (path.name == MARK, path.name)):
                target = out / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                path.replace(target)
            disk.sync_folder(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return digest


JOB = TrainJob
