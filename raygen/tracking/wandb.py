"""Runs of Weights & Biases. Account, project and mode are those of its own environment variables.

Without `WANDB_API_KEY` and `WANDB_MODE` the run is offline, in wandb/ beside the run's folder; `wandb sync` uploads it.
"""

import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from PIL import Image

from raygen.core.location import is_remote
from raygen.tracking.base import TrackedRun, local_folder

__all__ = ["WandbRun", "start"]


PROJECT: Final = "raygen"


def start(run: TrackedRun) -> "WandbRun":
    """The run with this run id, continued or new. Code, console and the git remote are not recorded."""
    import wandb

    offline = not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE"))
    beside = Path(tempfile.gettempdir()) if is_remote(run.folder) and not offline else local_folder(run).parent
    beside.mkdir(parents=True, exist_ok=True)
    made = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        id=run.run_id,
        name=run.name,
        job_type=run.kind,
        config=dict(run.settings),
        dir=str(beside),
        mode="offline" if offline else None,
        resume=None if offline else "allow",
        settings=wandb.Settings(
            save_code=False, disable_git=True, disable_job_creation=True, console="off", silent=True
        ),
    )
    return WandbRun(made, wandb.Image)


class WandbRun:
    """One run. `image`: the class of pictures of the package."""

    def __init__(self, run: Any, image: Any) -> None:
        self._run, self._image = run, image

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """A row of the history."""
        self._run.log(dict(values), step=step)

    def picture(self, name: str, png: bytes, step: int) -> None:
        """A picture in the history."""
        self._run.log({name: self._image(Image.open(io.BytesIO(png)))}, step=step)

    def close(self) -> None:
        """End the run, and wait for what is not sent."""
        self._run.finish()
