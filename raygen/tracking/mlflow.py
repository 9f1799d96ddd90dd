"""Runs of MLflow. The server is that of `MLFLOW_TRACKING_URI`, the experiment that of `MLFLOW_EXPERIMENT_NAME`.

Without a server the store is the file mlflow.db beside the run's folder, with pictures in mlflow/.
"""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from raygen.tracking.base import TrackedRun, local_folder

__all__ = ["MLflowRun", "start"]


EXPERIMENT: Final = "raygen"
#: Tag by which a repeated command finds its run.
RUN_ID: Final = "raygen.run_id"
#: MLflow takes these characters in names, and so many values at once; the server refuses longer settings.
STRANGE: Final = re.compile(r"[^\w\-. /:]")
AT_ONCE: Final = 100
LONGEST: Final = 500


def start(run: TrackedRun) -> "MLflowRun":
    """The run with the same run id, or a new one."""
    from mlflow.tracking import MlflowClient

    address, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
    if not address:
        beside = local_folder(run).parent
        beside.mkdir(parents=True, exist_ok=True)
        address, artifacts = f"sqlite:///{beside / 'mlflow.db'}", (beside / "mlflow").as_uri()
    client = MlflowClient(address)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    experiment = client.get_experiment_by_name(name)
    place = client.create_experiment(name, artifacts) if experiment is None else experiment.experiment_id
    found = client.search_runs([place], f"tags.`{RUN_ID}` = '{run.run_id}'", max_results=1)
    if found:
        return MLflowRun(client, found[0].info.run_id, _last_step(client, found[0]))
    made = client.create_run(place, run_name=run.name, tags={RUN_ID: run.run_id, "raygen.kind": run.kind})
    _describe(client, made.info.run_id, run.settings)
    return MLflowRun(client, made.info.run_id, -1)


def _last_step(client: Any, found: Any) -> int:
    """The last step that a run has, so that a resumed training does not write its points twice."""
    if found.info.status == "FINISHED":
        return -1
    histories = (client.get_metric_history(found.info.run_id, name) for name in list(found.data.metrics)[:1])
    return max((point.step for history in histories for point in history), default=-1)


def _describe(client: Any, name: str, settings: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    params = [Param(STRANGE.sub("_", key), value[:LONGEST]) for key, value in settings.items()]
    for i in range(0, len(params), AT_ONCE):
        client.log_batch(name, params=params[i : i + AT_ONCE])


class MLflowRun:
    """One run; points up to the step `after` are there already."""

    def __init__(self, client: Any, name: str, after: int) -> None:
        self._client, self._name, self._after = client, name, after
        client.update_run(name, status="RUNNING")

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """A batch of metrics."""
        from mlflow.entities import Metric

        if step <= self._after:
            return
        now = int(time.time() * 1000)
        metrics = [Metric(STRANGE.sub("_", key), value, now, step) for key, value in values.items()]
        for i in range(0, len(metrics), AT_ONCE):
            self._client.log_batch(self._name, metrics=metrics[i : i + AT_ONCE])

    def picture(self, name: str, png: bytes, step: int) -> None:
        """An artifact `NAME/step-000000010.png`."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"step-{step:09d}.png"
            path.write_bytes(png)
            self._client.log_artifact(self._name, str(path), STRANGE.sub("_", name))

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._name, "FINISHED")
