"""Shared fixtures: one thread, a private Ray, and a worker that is cheap, deterministic and can misbehave."""

import ast
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
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

ROOT = Path(__file__).parents[1]
#: The fixture of the Ray that tests share.
FIXTURE = "ray_session"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--dist=loadgroup`: those that start Ray first, then slow files, then the others by size."""
    if not getattr(config.option, "loadgroup", False):
        return
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


@cache
def _sharing_ray(path: str) -> tuple[bool, frozenset[str]]:
    """Whether all tests of a file share the session's Ray, and the names of those that do."""
    nodes = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    marks = [ast.unparse(node) for node in nodes if isinstance(node, ast.Assign)]
    whole = any("pytestmark" in mark and FIXTURE in mark for mark in marks)
    tests = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    heads = {test.name: ast.unparse([*test.decorator_list, test.args]) for test in tests}
    return whole, frozenset(name for name, head in heads.items() if FIXTURE in head)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist=loadgroup`: the tests that share a Ray to one process, and the others a file to a process.

    pytest-xdist 3.8 says the group of a test by `item._nodeid`, which pytest 9.2 does not read any more: marks of
    `xdist_group` have no effect. So the scheduler looks into the files.
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    class FilesAndGroups(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path, _, name = nodeid.partition("::")
            whole, names = _sharing_ray(path)
            return "ray" if whole or name.partition("[")[0] in names else path

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
