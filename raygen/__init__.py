"""Very large, labelled, reproducible synthetic face data sets from diffusion models, on Ray.

The public names for use from Python; everything else may change between versions. Modules that need torch are
not imported here.
"""

from raygen.commands.registry import load, make
from raygen.commands.verify import Verification, verify
from raygen.core.config import Where
from raygen.core.errors import (
    ConfigError,
    InfrastructureError,
    InputError,
    IntegrityError,
    RaygenError,
    TooManyBadRows,
)
from raygen.store.run_store import Store

__all__ = [
    "ConfigError",
    "InfrastructureError",
    "InputError",
    "IntegrityError",
    "RaygenError",
    "Store",
    "TooManyBadRows",
    "Verification",
    "Where",
    "load",
    "make",
    "verify",
]
