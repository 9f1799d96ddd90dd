"""Ranks through Ray Train.

Knows how a training function gets its rank, and that a lost worker restarts all ranks from the newest whole
training state. Does not know what is trained. For several nodes the job's `out` must be a folder that all of them
see.
"""

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from raygen.cluster.connect import connected
from raygen.spec import InfrastructureError, RaygenError, Where
from raygen.training import Step

__all__ = ["run_ranks"]

#: (rank, world size) -> the steps of that rank.
RankTask = Callable[[int, int], Iterator[Step]]


def _loop(config: dict[str, Any]) -> None:
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it would say again what `history.jsonl` says
    context = ray.train.get_context()
    for step in config["task"](context.get_world_rank(), context.get_world_size()):
        ray.train.report(asdict(step))


def run_ranks(task: RankTask, where: Where, shared: str) -> None:
    """Run `task` on `where.workers` ranks (gloo on CPUs, nccl on GPUs) until it ends on all of them.

    A worker that dies restarts the ranks, at most `where.tries` times; `task` goes on from its own state.
    `InfrastructureError` where that is not enough.
    """
    storage = os.path.join(shared, ".ray-train")
    with connected(where):
        trainer = TorchTrainer(
            _loop,
            train_loop_config={"task": task},
            torch_config=TorchConfig(backend="nccl" if where.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=where.workers,
                use_gpu=where.gpus > 0,
                resources_per_worker={"CPU": where.cpus, **({"GPU": where.gpus} if where.gpus else {})},
            ),
            # The name is new each time: a name that was used before would silently go on with Ray's own state.
            run_config=RunConfig(
                name=f"train-{uuid.uuid4().hex[:8]}",
                storage_path=os.path.abspath(storage),
                failure_config=FailureConfig(max_failures=where.tries),
            ),
        )
        try:
            trainer.fit()
        except RaygenError:
            raise
        except Exception as error:
            raise InfrastructureError(f"training ended: {type(error).__name__}: {str(error)[:1500]}") from error
        finally:
            shutil.rmtree(storage, ignore_errors=True)
