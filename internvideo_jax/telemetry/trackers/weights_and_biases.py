"""Weights & Biases. WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline ... are read by its library."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internvideo_jax.telemetry.trackers.base import TrackedRun, Tracker
from internvideo_jax.telemetry.trackers.delivery import END_SECONDS, warn

PROJECT = "internvideo_jax"
STEP = "trainer/step"
EXIT = {"finished": 0, "stopped": 0}


class WeightsAndBiases(Tracker):
    """A run of the id of the workdir, in `wandb/` there until it is sent.

    Its own step only grows, so the step of training is a value (`trainer/step`) that all charts
    have as their axis: rows of a run that goes on at an earlier step are not refused.
    """

    needs = ("wandb", "wandb")
    _run: Any = None
    _wandb: Any = None

    def begin(self, run: TrackedRun) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb = wandb
        # Quiet, as the terminal is the run's; never asks for a key; gives up at the end, where what
        # was not sent stays in the folder.
        settings = wandb.Settings(
            console="off", silent=True, login_timeout=1, finish_timeout=END_SECONDS * 0.8
        )
        begin = {
            "id": run.id,
            "resume": "allow",
            "name": run.name,
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "dir": str(run.workdir),
            "config": {**run.config, "recipe": run.recipe},
            "allow_val_change": True,
            "settings": settings,
        }
        try:
            self._run = wandb.init(**begin)
        except (wandb.errors.Error, TimeoutError) as error:
            self._run = wandb.init(**begin, mode="offline")
            reason = str(error).strip().splitlines()[0]
            warn(
                f"tracker wandb: {reason}; the run is kept in {run.workdir / 'wandb'}, from where "
                "`wandb sync` sends it"
            )
        self._run.define_metric("*", step_metric=STEP)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({STEP: step, **values})

    def picture(self, step: int, name: str, path: Path) -> None:
        kind = self._wandb.Video if path.suffix == ".gif" else self._wandb.Image
        self._run.log({STEP: step, name: kind(str(path))})

    def file(self, path: Path) -> None:
        artifact = self._wandb.Artifact(f"{path.stem}-{self._run.id}", type=path.stem)
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def end(self, status: str) -> None:
        self._run.finish(exit_code=EXIT.get(status, 1))

    def abandon(self) -> None:
        """Ends the library's process, for which it would wait when Python exits.

        What was logged is in the folder of the run.
        """
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                about, _, rest = stat.read_text().rpartition(") ")  # of a name with spaces, too
                pid, _, name = about.partition(" (")
                if (name, rest.split()[1]) == ("wandb-core", str(os.getpid())):
                    os.kill(int(pid), signal.SIGKILL)
