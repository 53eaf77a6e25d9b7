"""MLflow: a server or a local store, named by MLFLOW_TRACKING_URI as for its own tools."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internvideo_jax.telemetry.trackers.base import TrackedRun, Tracker

EXPERIMENT = "internvideo_jax"
ID = "internvideo_jax.id"  # the tag by which a run is found again
AT_ONCE = 100  # parameters in one request
LONGEST = 6000  # characters of a parameter
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MLflow(Tracker):
    """A run with the tag of the workdir's id, which a restart finds and goes on with.

    Parameters are those of the first start, as MLflow lets none change; `run.json` beside them has
    the settings of now and `history`.
    """

    needs = ("mlflow", "mlflow")
    _client: Any = None
    _id = ""

    def begin(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        self._client = client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        known = client.search_runs([experiment], f"tags.`{ID}` = '{run.id}'", max_results=1)
        if known:
            self._id = known[0].info.run_id
            client.update_run(self._id, status="RUNNING")
        else:
            tags = {ID: run.id, "recipe": run.recipe, "workdir": str(run.workdir)}
            self._id = client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        old = client.get_run(self._id).data.params
        new = [
            Param(key, str(value)[:LONGEST]) for key, value in run.config.items() if key not in old
        ]
        for first in range(0, len(new), AT_ONCE):
            client.log_batch(self._id, params=new[first : first + AT_ONCE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(time.time() * 1000)
        rows = [Metric(allowed(key), float(value), now, step) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=rows)

    def picture(self, step: int, name: str, path: Path) -> None:
        self._client.log_artifact(self._id, str(path), f"pictures/step-{step}")

    def file(self, path: Path) -> None:
        self._client.log_artifact(self._id, str(path))

    def end(self, status: str) -> None:
        self._client.set_terminated(self._id, STATUS[status])


def allowed(key: str) -> str:
    """A metric's name in the characters that MLflow takes."""
    return re.sub(r"[^\w\-./ ]", "_", key)
