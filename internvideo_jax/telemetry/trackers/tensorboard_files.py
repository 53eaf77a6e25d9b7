"""TensorBoard event files in `tensorboard/` of the workdir, without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from internvideo_jax.telemetry.trackers.base import TrackedRun, Tracker


class TensorBoard(Tracker):
    """Rewinds where a run goes on: TensorBoard drops the steps that will come again."""

    needs = ("tensorboardX", "tracking")
    _writer: Any = None

    def begin(self, run: TrackedRun) -> None:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        purge = run.start + 1 if run.goes_on else None
        self._writer = SummaryWriter(str(run.workdir / "tensorboard"), purge_step=purge)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, float(value), step)
        self._writer.flush()  # what a kill would take otherwise: two minutes

    def picture(self, step: int, name: str, path: Path) -> None:
        with Image.open(path) as image:  # of an animation the first frame
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def end(self, status: str) -> None:
        self._writer.close()
