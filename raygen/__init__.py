"""Very large, labelled, reproducible synthetic face data sets from diffusion models, on Ray.

The public names for use from Python; everything else may change between versions. Modules that need torch are
not imported here.
"""

from raygen.commands.registry import load, make
from raygen.commands.verify import IntegrityReport, verify
from raygen.core.config import Resources
from raygen.core.errors import (
    ConfigError,
    InfrastructureError,
    InputError,
    IntegrityError,
    RaygenError,
    TooManyBadRows,
)
from raygen.store.run_store import RunStore

__all__ = [
    "ConfigError",
    "InfrastructureError",
    "InputError",
    "IntegrityError",
    "IntegrityReport",
    "RaygenError",
    "Resources",
    "RunStore",
    "TooManyBadRows",
    "load",
    "make",
    "verify",
]
