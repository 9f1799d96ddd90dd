"""Shared fixtures: one thread, a private Ray, and a worker that is cheap, deterministic and can misbehave."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need one, with more logical CPUs than any pool asks for."""
    from raygen.core.config import Resources
    from raygen.execution.ray.session import connected

    with connected(Resources(runner="ray", workers=4)):
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; the test is skipped by name where there is none."""
    folder = os.environ.get("RAYGEN_REAL_DATA")
    if not folder:
        pytest.skip("RAYGEN_REAL_DATA is not set")
    return Path(folder)
