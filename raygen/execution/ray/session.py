"""Starting a local Ray, or joining a running one.

A local Ray listens on loopback only, keeps its files in a folder of this user, has more logical CPUs than the actors
ask for, and uses token authentication.
"""

import logging
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.ray_constants import ENABLE_RAY_CLUSTERS_ENV_VAR

from raygen.core.config import Resources
from raygen.core.errors import ConfigError, InfrastructureError
from raygen.store.parquet import VERIFY_ON_READ

__all__ = ["HARMLESS", "StderrFilter", "connected", "enter", "logical_cpus"]


#: Part of an error line that Ray prints for actors with arguments, without a consequence.
HARMLESS = b"issues/53727"
#: Logical CPUs of a local Ray beside the actors, for what Ray runs itself.
SPARE_CPUS = 2
#: Loggers of Ray that warn of settings chosen here on purpose: the token, and no progress bars.
QUIET = ("ray._private.authentication.authentication_token_setup", "ray.data._internal.progress")
_UNSAFE = "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA"


def logical_cpus(resources: Resources) -> int:
    """CPUs that a local Ray is started with: those of the machine, or more if the actors and `SPARE_CPUS` need more."""
    return max(os.cpu_count() or 1, round(resources.workers * resources.cpus) + SPARE_CPUS)


@contextmanager
def connected(resources: Resources) -> Iterator[None]:
    """Ray for the length of the block. A Ray that is already connected is used and left running.

    `ConfigError` where the environment makes Ray unsafe, `InfrastructureError` where Ray does not start.
    """
    if os.environ.get(_UNSAFE) == "1":
        raise ConfigError(f"{_UNSAFE}=1 lets a Parquet file run code while it is read; unset it")
    if ray.is_initialized():
        yield
        return
    _start(resources)
    try:
        yield
    finally:
        ray.shutdown()


def enter(folder: str) -> None:
    """Go to the folder in which the command was started, so that its relative paths mean the same in a worker.

    A Ray that was started elsewhere has its workers there. Another machine may not have the folder.
    """
    if os.path.isdir(folder):
        os.chdir(folder)


def _start(resources: Resources) -> None:
    threads = str(resources.threads)
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    environment |= {name: os.environ[name] for name in (VERIFY_ON_READ,) if name in os.environ}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.update({"RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_TQDM": "0"})
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    address = resources.address or os.environ.get("RAY_ADDRESS")
    try:
        if address and address != "local":
            ray.init(
                address=address, runtime_env={"env_vars": environment}, log_to_driver=True, logging_level="warning"
            )
            return
        with _environment({**environment, ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}), _loopback():
            ray.init(
                address="local",
                num_cpus=logical_cpus(resources),
                include_dashboard=False,
                _temp_dir=_session_root(),
                log_to_driver=True,
                logging_level="warning",
                configure_logging=True,
            )
        _guard_token()
    except ConfigError:
        raise
    except Exception as error:  # Ray raises bare ones where a process of its own is too slow to start
        raise InfrastructureError(f"Ray could not be started or joined: {error}") from error


@contextmanager
def _loopback() -> Iterator[None]:
    """A Ray that is started in the block listens on 127.0.0.1 alone, as on macOS and Windows.

    On Linux Ray 2.60 replaces a loopback address by that of the machine, and its servers then listen on all interfaces.
    The environment variable that decides it was read when Ray was imported, by whoever imported it first.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _session_root() -> str:
    """Folder for the sessions and logs of a local Ray, below one that only this user can enter.

    Ray makes its own folders writable for everybody. The path is short because the names of sockets have a limit.
    """
    private = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / f"raygen-{os.getuid()}"
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = private.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ConfigError(f"{private}: belongs to another user; set RAY_TMPDIR to a folder of your own")
    private.chmod(0o700)
    return str(private / "ray")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """`os.environ` with `variables` for the length of the block.

    The processes of a local Ray inherit them. With a `runtime_env` instead, Ray could not use the workers that it has
    started ahead, and every actor would wait for a new process.
    """
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


def _guard_token() -> None:
    """Ray writes its token readable by everyone on the machine; it opens the cluster, so make it private."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if token.is_file() and stat.S_IMODE(token.stat().st_mode) & 0o077:
        token.chmod(0o600)


def _print_nothing(*_: object) -> None:
    """In place of what prints the lines of other processes."""


class StderrFilter:
    """A context that drops lines of stderr which hold one of `texts`.

    C++ and other processes write them, so no logger can. `silence` drops all further lines, and what Ray 2.60 prints to
    stdout of its processes: after an interrupt it goes on until it is gone, and then every part of it complains.
    """

    def __init__(self, *texts: bytes) -> None:
        self._texts = texts
        self._printed: Callable[..., None] | None = None

    def silence(self) -> None:
        """Drop every line from now on."""
        self._texts = (b"",)
        if self._printed is None:
            self._printed, ray_worker.print_worker_logs = ray_worker.print_worker_logs, _print_nothing

    def __enter__(self) -> "StderrFilter":
        sys.stderr.flush()
        read, write = os.pipe()
        self._original = os.dup(2)
        self._thread = threading.Thread(target=self._forward, args=(read,), daemon=True)
        self._thread.start()
        os.dup2(write, 2)
        os.close(write)
        return self

    def _forward(self, read: int) -> None:
        with os.fdopen(read, "rb") as lines, os.fdopen(os.dup(self._original), "wb", buffering=0) as stderr:
            for line in lines:
                if not any(text in line for text in self._texts):
                    stderr.write(line)

    def __exit__(self, *error: object) -> None:
        if self._printed is not None:
            ray_worker.print_worker_logs = self._printed
        sys.stderr.flush()
        os.dup2(self._original, 2)  # closes the last writer of the pipe, which ends the thread
        self._thread.join(timeout=5)
        os.close(self._original)
