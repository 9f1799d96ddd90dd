"""Several runs by the same actors, one after the other."""

from collections.abc import Callable, Sequence

from raygen.core.errors import ConfigError, InputError, RaygenError
from raygen.execution.worker import SharedWorker, Worker, WorkerFactory

__all__ = ["WorkersInTurn", "built_first"]


class WorkersInTurn:
    """A `SharedWorker` that builds the worker of a run when its first shard comes.

    Starting an actor and importing its libraries takes seconds, which runs that follow each other pay once. At most one
    worker is held, so the networks of two runs are not in memory together.
    """

    def __init__(self, builds: Sequence[Callable[[], Worker]]) -> None:
        """`builds`: how the worker of each run is built, in the order of `ShardTask.runs`."""
        self.builds = tuple(builds)
        self._run = -1
        self._worker: Worker | None = None
        self._refused: dict[int, RaygenError] = {}

    def for_run(self, run: int) -> Worker:
        """The worker of run number `run`. An error on purpose is raised again for each shard, without a second try."""
        if run in self._refused:
            raise self._refused[run]
        if self._worker is None or run != self._run:
            self._worker = None  # frees the other one before this one is built
            try:
                self._worker, self._run = self.builds[run](), run
            except RaygenError as error:
                self._refused[run] = error
                raise
        return self._worker


def built_first(build: WorkerFactory, runs: Sequence[int]) -> WorkerFactory:
    """A call that returns the worker of `build`, which is built now, before anything is written; for one process.

    `runs`: numbers of the runs with work left. `ConfigError` and `InputError` of all of them are raised now. `build`
    itself where there are none, and where it fails in another way, which may pass.
    """
    if not runs:
        return build
    try:
        worker = build()
        if isinstance(worker, SharedWorker):
            for number in reversed(runs):  # the first one is kept
                worker.for_run(number)
    except (ConfigError, InputError):
        raise
    except Exception:
        return build
    return lambda: worker  # type: ignore[return-value]
