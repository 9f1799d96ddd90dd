"""Training on several ranks through Ray Train.

A lost worker restarts all ranks from the newest complete training state. For several nodes the job's `out` has to be a
URL, or a folder that all of them see. Ray Train retries every failure; here only `InfrastructureError` and dead workers
are retried, and paths of a job stay relative to the folder in which it was started.
"""

import json
import os
import platform
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import ray
import ray.train
from ray._private.worker import get_dashboard_url
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from raygen.core.config import Resources
from raygen.core.errors import (
    ConfigError,
    InfrastructureError,
    RaygenError,
    StorageError,
    from_record,
    to_record,
)
from raygen.core.location import is_remote
from raygen.execution.ray.capacity import Capacity
from raygen.execution.ray.session import HARMLESS, StderrFilter, connected, enter
from raygen.store.filesystem import FileStore

__all__ = ["run_ranks"]


#: Part of the lines in which every rank repeats what `history.jsonl` has.
REPORTS: Final = b"Reporting training result"
#: Seconds between two looks at the nodes of the cluster.
LOOK_S: Final = 2.0
#: (rank, world size) -> the steps of that rank, each a dataclass of numbers.
RankTask = Callable[[int, int], Iterator[Any]]


def _loop(config: dict[str, Any]) -> None:
    enter(config["folder"])
    store, failed = FileStore(config["shared"]), config["failed"]
    if not store.exists(config["mark"]):
        raise ConfigError(
            f"{store.url}: the machine {platform.node()} does not see this folder; set `out` to a URL such as "
            "s3://bucket/run, or to a folder that all machines share"
        )
    if store.exists(failed):
        return  # a retry would fail the same way; `run_ranks` reads the error
    context = ray.train.get_context()
    try:
        for step in config["task"](context.get_world_rank(), context.get_world_size()):
            ray.train.report(asdict(step))
    except RaygenError as error:
        if type(error) is InfrastructureError:
            raise  # a retry may work
        with suppress(OSError, RaygenError):  # on a full disk it is tried again, and ends as what Ray says of it
            store.put(failed, json.dumps(to_record(error)).encode())
        raise


def _recorded(store: FileStore, failed: str) -> RaygenError | None:
    """The error that a rank recorded, as an exception of the same class; None where there is none."""
    with suppress(OSError, RaygenError):
        return from_record(json.loads(store.get(failed)))
    return None


def _raised(error: Exception) -> RaygenError | None:
    """The error of a rank that could not record it."""
    failures = getattr(error, "worker_failures", {}).values()
    return next((one for one in failures if isinstance(one, ConfigError | StorageError)), None)


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """`TorchTrainer` without two of its habits.

    It asks the dashboard whether the controller lives, also where there is none: each request times out after twelve
    seconds and delays the end of a training. And it turns an interrupt into a normal end of the process.
    """

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller

    def abort(self) -> None:
        """End the ranks, which would go on in a cluster that stays."""
        if self.controller is not None:
            with suppress(Exception):
                ray.get(self.controller.abort.remote(), timeout=20)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [c for c in callbacks if get_dashboard_url() or type(c).__name__ != "PlacementGroupCleanerCallback"]


class _Watch:
    """A thread that reports what a training waits for, and ends a training that waits for too long.

    Ray Train 2.60 asks for its ranks for ever: `controller_failure_limit` counts over a whole training, and its loop
    hears nothing while it waits. So its actor is ended, and its ranks and its demand with it.
    """

    def __init__(self, trainer: _Trainer, capacity: Capacity, report: Callable[[str], None]) -> None:
        self.trainer, self.capacity, self.report = trainer, capacity, report
        self.error: InfrastructureError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                if self.error is None:
                    self.report(self.capacity.look())
            except InfrastructureError as error:
                self.error = error
            except Exception:  # a look that failed; where the connection has ended, `_stop` is set soon
                continue
            if self.error is not None and self.trainer.controller is not None:
                ray.kill(self.trainer.controller)
                return


def run_ranks(
    task: RankTask,
    resources: Resources,
    shared: str,
    report: Callable[[str], None] = lambda _: None,
    work: Path | None = None,
) -> None:
    """Run `task` on `resources.workers` ranks (gloo on CPUs, nccl on GPUs) until it ends on all of them.

    A worker that dies restarts the ranks, at most `resources.max_attempts` times; `task` resumes its own state.
    `InfrastructureError` where that is not enough, and where the cluster has no room for all ranks for
    `resources.wait_s`; other errors of `raygen.core.errors` are raised as they are. `shared`: folder or URL that all
    ranks see, else `ConfigError`. `work`: a folder of this machine, by default `shared`. `report`: told what is waited
    for.
    """
    store = FileStore(shared if is_remote(shared) else os.path.abspath(shared))
    storage = os.path.join(os.path.abspath(work or shared), ".ray-train")
    name = uuid.uuid4().hex[:8]
    facts = {"shared": store.url, "mark": f".ray-train/shared-{name}", "failed": f".ray-train/failed-{name}.json"}
    store.put(facts["mark"], b"raygen")
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    with StderrFilter(HARMLESS, REPORTS) as stderr, connected(resources):
        capacity = Capacity(resources, resources.workers)
        trainer = _Trainer(
            _loop,
            train_loop_config={"task": task, "folder": os.getcwd(), **facts},
            torch_config=TorchConfig(backend="nccl" if resources.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.gpus > 0,
                resources_per_worker={"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})},
            ),
            # A new name each time: with a used name Ray Train would silently resume its own state.
            run_config=RunConfig(
                name=f"train-{name}",
                storage_path=storage,
                failure_config=FailureConfig(max_failures=resources.max_attempts),
                logging_config=LoggingConfig(log_level="WARNING"),  # the others repeat `history.jsonl`
            ),
        )
        watch = _Watch(trainer, capacity, report)
        try:
            with watch:
                trainer.fit()
            if (reason := _recorded(store, facts["failed"])) is not None:
                raise reason
        except KeyboardInterrupt:
            stderr.silence()
            trainer.abort()
            raise
        except RaygenError:
            raise
        except Exception as error:
            if (reason := watch.error or _recorded(store, facts["failed"]) or _raised(error)) is not None:
                raise reason from None
            raise InfrastructureError(f"training ended: {type(error).__name__}: {str(error)[:1500]}") from error
        finally:
            shutil.rmtree(storage, ignore_errors=True)
            with suppress(OSError, RaygenError):  # of a driver that ends for this very reason
                store.remove_folder(".ray-train")
