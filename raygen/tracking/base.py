"""What a tracker is, and the setting that names them."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Protocol

from pydantic import AfterValidator

from raygen.core.location import is_remote

__all__ = ["LOG", "LogTo", "TrackedRun", "Tracker", "local_folder", "measured", "tracked"]


#: Package of each tracker. MLflow and wandb are no extras: they hold back pyarrow (MLflow 3.17) and many others.
PACKAGES: Final[Mapping[str, str]] = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


def _installed(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        spec = find_spec(PACKAGES[name])
        # Without an origin it is a folder of this name, such as the one that a run's pictures are in.
        if spec is None or spec.origin is None:
            raise ValueError(f"{name} needs the package {PACKAGES[name]}: pip install {PACKAGES[name]}")
    return tuple(dict.fromkeys(names))


LogTo = Annotated[tuple[Literal["tensorboard", "mlflow", "wandb"], ...], AfterValidator(_installed)]
#: Description of the setting `log`.
LOG: Final = (
    "where numbers and sheets are also recorded: tensorboard, mlflow, wandb. Servers and accounts are those of the "
    "tools' own environment variables"
)


class TrackedRun(NamedTuple):
    """A run as trackers know it: command, run id, name, folder for local files, settings by dotted key.

    A command that is repeated has the same run id and continues the same run.
    """

    kind: str
    run_id: str
    name: str
    folder: str
    settings: Mapping[str, str]


class Tracker(Protocol):
    """One tool. Methods may raise anything; the caller goes on without it."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Record finite values by name."""

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Record a picture, an encoded PNG."""

    def close(self) -> None:
        """The run has ended well."""


def local_folder(run: TrackedRun) -> Path:
    """The folder of the run; `ValueError` where it is on object storage."""
    if is_remote(run.folder):
        raise ValueError("`out` is a URL, so there is no folder for local files; name a server in the environment")
    return Path(run.folder).absolute()


def tracked(document: Mapping[str, Any], run_id: str) -> TrackedRun:
    """The run of a job as plain values: `kind`, settings, `out`."""
    out = str(document["out"]).rstrip("/")
    return TrackedRun(str(document["kind"]), run_id, out.rpartition("/")[2] or out, out, _flat(document))


def measured(facts: Mapping[str, Any], prefix: str = "result/") -> dict[str, float]:
    """The numbers among facts about a result, those of nested facts with both names."""
    values: dict[str, float] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            values |= measured(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            values[f"{prefix}{name}"] = float(value)
    return values


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings -> texts by dotted key; lists stay whole."""
    values: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            values |= _flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = str(value)
    return values
