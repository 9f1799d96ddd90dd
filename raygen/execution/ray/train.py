"""Ranks through Ray Train.

Knows how a training function gets its rank, and that a lost worker restarts all ranks from the newest whole
training state. Does not know what is trained. For several nodes the job's `out` must be a folder that all of them
see.

Ray Train tries every failure again, and by default starts its workers in another folder. Here only what may work
later is tried again: a wrong job or damaged data ends the run, and jobs mean their paths as they were written.
"""

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
from ray._private.worker import get_dashboard_url
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from raygen.core.config import Resources
from raygen.core.errors import ConfigError, InfrastructureError, InputError, IntegrityError, RaygenError
from raygen.execution.ray.session import connected

__all__ = ["run_ranks"]


#: (rank, world size) -> the steps of that rank, each a dataclass of numbers.
RankTask = Callable[[int, int], Iterator[Any]]


def _loop(config: dict[str, Any]) -> None:
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it would say again what `history.jsonl` says
    failed = Path(config["failed"])
    if failed.exists():
        return  # a second try would fail the same way; `run_ranks` reads why
    context = ray.train.get_context()
    try:
        for step in config["task"](context.get_world_rank(), context.get_world_size()):
            ray.train.report(asdict(step))
    except InfrastructureError:
        raise  # this one may work on another try
    except RaygenError as error:
        failed.parent.mkdir(parents=True, exist_ok=True)
        message = Exception.__str__(error)  # an InputError's own text puts its reason in front
        kind = next(k for k in type(error).__mro__ if k.__module__ == RaygenError.__module__)
        record = {"kind": kind.__name__, "message": message, "reason": getattr(error, "reason", "")}
        failed.write_text(json.dumps(record), encoding="utf-8")
        raise


def _recorded(failed: Path) -> RaygenError | None:
    """The error that a rank wrote down, as it was raised there."""
    if not failed.exists():
        return None
    record = json.loads(failed.read_text(encoding="utf-8"))
    if record["kind"] == "InputError":
        return InputError(record["message"], reason=record["reason"])
    known = {kind.__name__: kind for kind in (ConfigError, IntegrityError)}
    return known.get(record["kind"], RaygenError)(record["message"])


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Without a dashboard there is nobody to tell Ray Train's watchman whether the controller lives: each of its
    questions, and so the end of a training, waits for twelve seconds. A Ray of our own has none, and ends with us.
    """

    def _create_default_callbacks(self) -> list[Any]:
        made: list[Any] = super()._create_default_callbacks()
        return [c for c in made if get_dashboard_url() or type(c).__name__ != "PlacementGroupCleanerCallback"]


def run_ranks(task: RankTask, resources: Resources, shared: str) -> None:
    """Run `task` on `resources.workers` ranks (gloo on CPUs, nccl on GPUs) until it ends on all of them.

    A worker that dies restarts the ranks, at most `resources.max_attempts` times; `task` goes on from its own state.
    `InfrastructureError` where that is not enough; other errors of `raygen.core.config` come as they were raised.
    """
    storage = os.path.join(os.path.abspath(shared), ".ray-train")
    failed = Path(storage) / f"failed-{uuid.uuid4().hex[:8]}.json"
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    with connected(resources):
        trainer = _Trainer(
            _loop,
            train_loop_config={"task": task, "failed": str(failed)},
            torch_config=TorchConfig(backend="nccl" if resources.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.gpus > 0,
                resources_per_worker={"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})},
            ),
            # The name is new each time: a name that was used before would silently go on with Ray's own state.
            run_config=RunConfig(
                name=f"train-{uuid.uuid4().hex[:8]}",
                storage_path=storage,
                failure_config=FailureConfig(max_failures=resources.max_attempts),
            ),
        )
        try:
            trainer.fit()
            if (reason := _recorded(failed)) is not None:
                raise reason
        except RaygenError:
            raise
        except Exception as error:
            if (reason := _recorded(failed)) is not None:
                raise reason from None
            raise InfrastructureError(f"training ended: {type(error).__name__}: {str(error)[:1500]}") from error
        finally:
            shutil.rmtree(storage, ignore_errors=True)
