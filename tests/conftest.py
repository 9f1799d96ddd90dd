"""Shared fixtures: one thread, a private Ray, and a worker that is cheap, deterministic and can misbehave."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
# Workers of Ray give way to every other process unless told not to: beside other tests they would hardly move.
os.environ.setdefault("RAY_worker_niceness", "0")
# Read when huggingface_hub is imported. Without it a name that is not at hand is looked up again and again.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("RAY_ADDRESS", None)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--dist=loadgroup`: those that start Ray first, then slow files, then the others by size.

    Those that share one Ray are one group. Files that start a Ray of their own in other processes stand beside it.
    """
    if not getattr(config.option, "loadgroup", False):
        return
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ray"))
    tests = Counter(item.path for item in items)
    heavy = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(
        key=lambda item: (
            item.get_closest_marker("ray") is None,
            item.path not in heavy,
            -tests[item.path],
            item.path,
        )
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist=loadgroup`: a group to a process, and the other tests a file to a process."""
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    class FilesAndGroups(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return super()._split_scope(nodeid).split("::", 1)[0]

    config.option.loadscopereorder = False
    return FilesAndGroups(config, log)


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
