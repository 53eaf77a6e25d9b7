"""Runs `internvideo_jax.train` and does harm to it at an exact place, once per start and place.

    python -m tests.faults.saboteur FOLDER PLACE:NUMBER,... -- ARGUMENTS OF train

Process 1 (or the only one) kills itself with SIGKILL in step NUMBER (`step`), in the save of step
NUMBER (`save`), in the evaluation of step NUMBER (`evaluation`), sends itself SIGTERM in step
NUMBER (`stop`), or raises there what is no error of settings (`error`). FOLDER
remembers what has been done, and gets `ids-PROCESS.jsonl`: the record numbers of every step as the
process saw them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from data_pipelines.stream.pipeline import TrainStream
from internvideo_jax import train
from internvideo_jax.checkpoint.manager import Checkpoints
from internvideo_jax.evaluators.base import EvalContext

FOLDER = Path(sys.argv[1])
FAULTS = [tuple(item.split(":")) for item in sys.argv[2].split(",") if ":" in item]
PROCESS = int(os.environ.get("JAX_PROCESS_ID", "0"))
LAST = int(os.environ.get("JAX_NUM_PROCESSES", "1")) - 1
position = 0


def harm(place: str, step: int) -> None:
    marker = FOLDER / f"done-{place}-{step}"
    if min(1, LAST) != PROCESS or (place, str(step)) not in FAULTS or marker.exists():
        return
    marker.touch()
    if place == "error":
        raise TypeError("an error that nobody expected")
    os.kill(os.getpid(), signal.SIGTERM if place == "stop" else signal.SIGKILL)


def main() -> None:
    draw, save, outputs = TrainStream.__next__, Checkpoints.save, EvalContext.outputs
    start = TrainStream.__init__

    def started(self: Any, *args: Any, **kwargs: Any) -> None:
        global position
        position = kwargs["start_step"]
        start(self, *args, **kwargs)

    def drawn(self: Any) -> Any:
        global position
        position += 1
        batch = draw(self)
        ids = [int(number) for number in batch["index"]]
        with open(FOLDER / f"ids-{PROCESS}.jsonl", "a") as file:
            file.write(json.dumps({"step": position, "ids": ids}) + "\n")
        harm("step", position)
        harm("stop", position)
        harm("error", position)
        return batch

    def saved(self: Any, step: int, *args: Any) -> None:
        save(self, step, *args)
        harm("save", step)

    def put_out(self: Any, *args: Any) -> Any:
        for item in outputs(self, *args):
            harm("evaluation", position)
            yield item

    TrainStream.__init__, TrainStream.__next__ = started, drawn  # pyright: ignore
    Checkpoints.save, EvalContext.outputs = saved, put_out  # pyright: ignore
    sys.argv = ["train", *sys.argv[4:]]
    train.main()


if __name__ == "__main__":
    main()
