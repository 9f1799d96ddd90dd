"""What one rank of `raygen train` does, from the data to the checkpoint."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from raygen.core.errors import ConfigError, InputError
from raygen.core.hashing import run_id
from raygen.core.precision import set_deterministic_precision
from raygen.models import checkpoint
from raygen.models.text import Tokenizer
from raygen.tracking.background import Trackers
from raygen.tracking.base import measured, tracked
from raygen.training.cleanup import explained
from raygen.training.config.recipe import is_denoiser
from raygen.training.data import TrainingData
from raygen.training.logger import TrainingLogger
from raygen.training.networks import NETWORKS, frozen_digests
from raygen.training.outputs import Outputs
from raygen.training.preview import sheet
from raygen.training.trainer import Trainer, TrainStep, train

if TYPE_CHECKING:
    from raygen.commands.train import TrainJob

__all__ = ["check_states", "is_finished", "pick_device", "run_id_of", "train_rank"]


#: Number of skipped faces whose reasons are listed in the result.
LISTED_FACES: Final = 3


def pick_device() -> torch.device:
    """The GPU of this process, or its CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_rank(job: "TrainJob", rank: int, world_size: int) -> Iterator[TrainStep]:
    """Everything that one rank does: load the data, train, and on rank 0 write records, sheets and the checkpoint."""
    set_deterministic_precision(job.resources.threads)
    outputs, config = Outputs(job.out), job.training
    tokenizer = job.tokenizer()
    name = run_id_of(job, tokenizer)
    if is_finished(outputs, name):
        remove_data(job, outputs, rank)  # where a killed process left it
        return
    # First: what these refuse should not wait for the data.
    trainer = Trainer(job.objective(tokenizer), config, device=pick_device(), rank=rank, world_size=world_size)
    check_states(outputs, trainer)
    try:
        arrays = job.arrays(tokenizer)
    except (ConfigError, InputError):
        remove_data(job, outputs, rank)
        raise
    if rank == 0:
        outputs.begin()
    logger = None
    if rank == 0:
        trackers = Trackers([n for n in job.log if n != "tensorboard"], tracked(job.document(), name))
        logger = TrainingLogger(outputs.folder, trackers, tensorboard="tensorboard" in job.log)
    every, states = config.sheet_every, outputs.states(config.keep)
    for step in train(trainer, arrays, states):
        # A record covers several steps: a sheet is due if one of them is a multiple of `sheet_every`.
        due = every is not None and step.step // every > max(0, step.step - config.log_every) // every
        if logger is not None:
            logger.write(step)
        if due and (logger is not None or trainer.sharded):
            with trainer.averaged():
                if logger is not None:
                    logger.picture(step.step, sheet(trainer.objective, arrays, trainer.device))
        if logger is not None:
            outputs.publish_soon(states)
        yield step
    if logger is not None or trainer.sharded:
        with trainer.averaged():
            if logger is not None:
                logger.close()
                write_result(job, outputs, trainer, arrays, name, logger.last(), logger.trackers)
    remove_data(job, outputs, rank)


def remove_data(job: "TrainJob", outputs: Outputs, rank: int = 0) -> None:
    """Remove the prepared data of a training that has ended; a `cache` keeps it. Only rank 0 does."""
    if rank == 0 and job.cache is None:
        shutil.rmtree(job.data_folder, ignore_errors=True)


def check_states(outputs: Outputs, trainer: Trainer) -> None:
    """`ConfigError` where the newest state in a local `out` is one of other settings."""
    if outputs.local:
        states = outputs.states(1)
        newest = states.last()
        states.close()
        if newest is not None:
            trainer.check_state(Path(newest))


def is_finished(outputs: Outputs, expected: str) -> bool:
    """Whether this training, of the `expected` run id, has ended already; its checkpoint is then left as it is.

    `ConfigError` where another training has ended in `out`: its learning rate has come down, so continuing it would
    give neither of the two.
    """
    facts = outputs.result()
    if facts is None or not outputs.is_checkpoint():
        return False
    if facts.get("run_id") != expected:
        raise ConfigError(
            f"{outputs.out} holds another training that has ended ({facts.get('run_id')}, {facts.get('steps')} steps; "
            f"this one is {expected}): other settings or data. Choose another `out`"
        )
    return True


def run_id_of(job: "TrainJob", tokenizer: Tokenizer | None) -> str:
    """The run id of a training: a hash of its settings, its data, and the trained models that it stands beside."""
    experts = frozen_digests(job)
    return run_id(
        {"settings": job.settings(), "data": job.data_digest(tokenizer), **({"experts": experts} if experts else {})}
    )


def write_result(
    job: "TrainJob",
    outputs: Outputs,
    trainer: Trainer,
    arrays: TrainingData,
    name: str,
    last: Mapping[str, Any],
    trackers: Trackers | None = None,
) -> None:
    """Write the checkpoint, with the recipe that made it, and then result.json.

    The module has the averaged weights. `last`: the newest record. `trackers` also get the numbers, and are closed.
    """
    module = trainer.objective.module
    skipped = "none"
    if arrays.left_out:
        more = "; …" if arrays.left_out_rows > LISTED_FACES else ""
        skipped = f"{arrays.left_out_rows}: {'; '.join(arrays.left_out[:LISTED_FACES])}{more}"
    facts: dict[str, Any] = {
        "run_id": name,
        "steps": trainer.step,
        "pictures": trainer.step * job.training.batch,
        "trained_s": round(trainer.elapsed, 1),
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        **({"loss": last["loss"], "images_per_s": round(last["images_per_s"], 1)} if last else {}),
        "left_out": skipped,
        **({} if trainer.problem is None else {"not_compiled": trainer.problem}),
    }
    if (network := NETWORKS.get(job.model.kind)) is not None:
        facts |= network.finish(trainer.objective, job, arrays, trainer.device)
    facts["checkpoint"] = _save(job, outputs, module, facts)
    if trackers is not None:
        trackers.numbers(measured(facts), trainer.step)
        if problems := trackers.close():
            facts["not_logged"] = "; ".join(problems)
    outputs.write_result(facts)


def _save(job: "TrainJob", outputs: Outputs, module: Any, facts: dict[str, Any]) -> str:
    """Write the checkpoint into `out`; its digest. `InfrastructureError` where that fails."""
    extra = {"recipe": job.model_dump(mode="json"), "result": facts}
    save = checkpoint.save if is_denoiser(job.model) else NETWORKS[job.model.kind].save
    # A checkpoint replaces its folder as a whole, so it is written beside the training state and moved in.
    temporary = outputs.folder / ".checkpoint"
    then = "the training state is complete: run the same command again to write it"
    try:
        with explained(outputs.work, "the checkpoint", then):
            shutil.rmtree(temporary, ignore_errors=True)
            digest = save(module, temporary, weights=job.save_dtype, extra=extra)
        outputs.publish_checkpoint(temporary, then)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return digest
