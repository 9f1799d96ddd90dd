"""Very large, labelled, reproducible synthetic face data sets from diffusion models, on Ray.

    from raygen import FacePipeline, evaluate, load_dataset, run

These names are the public interface; everything else may change between versions. Each is imported when it is first
used, so that `import raygen` needs neither torch nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from raygen.core.version import __version__

if TYPE_CHECKING:
    from raygen.commands.api import evaluate, load_dataset, run
    from raygen.commands.base import Result
    from raygen.commands.verify import IntegrityReport, verify
    from raygen.core.errors import (
        ConfigError,
        InfrastructureError,
        InputError,
        IntegrityError,
        RaygenError,
        StorageError,
        TooManyBadRows,
    )
    from raygen.sampling.pipeline import FacePipeline

__all__ = [
    "ConfigError",
    "FacePipeline",
    "InfrastructureError",
    "InputError",
    "IntegrityError",
    "IntegrityReport",
    "RaygenError",
    "Result",
    "StorageError",
    "TooManyBadRows",
    "__version__",
    "evaluate",
    "load_dataset",
    "run",
    "verify",
]

_MODULES: Final = {
    "FacePipeline": "raygen.sampling.pipeline",
    "IntegrityReport": "raygen.commands.verify",
    "Result": "raygen.commands.base",
    "evaluate": "raygen.commands.api",
    "load_dataset": "raygen.commands.api",
    "run": "raygen.commands.api",
    "verify": "raygen.commands.verify",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'raygen' has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "raygen.core.errors")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
