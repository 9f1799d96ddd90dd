"""Where the bundled checkpoints lie, and the word by which a job asks for them.

Knows paths. Their recipes, seeds, times and scores stand beside them in README.md; the jobs that made them are
in jobs/bundled.
"""

from pathlib import Path
from typing import Any, Final

from raygen.core.config import read_yaml

__all__ = ["BUNDLED", "recipe", "resolve"]


_HERE: Final = Path(__file__).parent.parent / "assets"
BUNDLED: Final = {name: str(_HERE / name) for name in ("model", "parser", "classifier", "embedder")}


def resolve(path: str, kind: str = "model") -> str:
    """`path`, or the bundled checkpoint of that kind where it is the word `bundled`."""
    return BUNDLED[kind] if path == "bundled" else path


def recipe(name: str) -> dict[str, Any]:
    """The settings of the job that made a bundled checkpoint, by its name: one of `BUNDLED`, or `first_stage`."""
    installed, checkout = _HERE / "jobs", _HERE.parent.parent / "jobs" / "bundled"
    job = read_yaml((installed if installed.is_dir() else checkout) / f"{name}.yaml")
    return {key: value for key, value in job.items() if key not in ("kind", "resources", "out")}
