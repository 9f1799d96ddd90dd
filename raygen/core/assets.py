"""Paths of the bundled checkpoints, which jobs name as `bundled`.

Their README.md has recipes, seeds, times and scores; the jobs that trained them are in jobs/bundled.
"""

from pathlib import Path
from typing import Any, Final

from raygen.core.config import read_yaml

__all__ = ["BUNDLED", "recipe", "resolve"]


_HERE: Final = Path(__file__).parent.parent / "assets"
BUNDLED: Final = {name: str(_HERE / name) for name in ("model", "parser", "classifier", "embedder")}


def resolve(path: str, kind: str = "model") -> str:
    """The path of the bundled checkpoint of `kind` if `path` is `bundled`, else `path`."""
    return BUNDLED[kind] if path == "bundled" else path


def recipe(name: str) -> dict[str, Any]:
    """The settings of the job that trained a bundled checkpoint: one of `BUNDLED`, or `first_stage`."""
    installed, checkout = _HERE / "jobs", _HERE.parent.parent / "jobs" / "bundled"
    job = read_yaml((installed if installed.is_dir() else checkout) / f"{name}.yaml")
    return {key: value for key, value in job.items() if key not in ("kind", "resources", "out")}
