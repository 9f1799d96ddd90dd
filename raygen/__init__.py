"""Very large, labelled, reproducible synthetic face data sets from diffusion models, on Ray.

The public names for use from Python; everything else may change between versions. Modules that need torch are
not imported here.
"""

from raygen.run import load, make
from raygen.spec import (
    ConfigError,
    InfrastructureError,
    InputError,
    IntegrityError,
    RaygenError,
    TooManyBadRows,
    Where,
)
from raygen.store import Store
from raygen.verify import Verification, verify

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
