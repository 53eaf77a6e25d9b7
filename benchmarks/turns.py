"""Sides of a comparison that take turns, each in a process of its own.

A process each, because thread pools of two frameworks in one process disturb each other and memory
could not be told apart. Turns, because the speed of a machine drifts: ratios are of neighbours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import host

if TYPE_CHECKING:  # no jax in the process of another framework
    from internvideo_jax.layers.tower import VideoTowerConfig

MARK = "@turn "  # before every answer; what libraries print is passed over
PAUSE = 0.05  # seconds between turns, in which threads of the last side go to sleep
WARM_UP = 2  # steps of every side before the first turn


def serve(make: Callable[[], tuple[Callable[[], float], dict[str, Any]]]) -> int:
    """The side's part: makes the step, then takes two for every line and times the second.

    Args:
      make: gives the step, which returns the loss, and facts to report.
    """
    try:
        step, facts = make()
        first = step()
        for _ in range(WARM_UP - 1):
            step()
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        _answer({"error": f"{type(error).__name__}: {error}"})
        return 2
    host.forget_peak()
    _answer({"first_loss": first, **facts})
    for _ in sys.stdin:
        step()  # not timed: caches and memory belonged to the others for seconds
        started = time.perf_counter()
        step()
        seconds = time.perf_counter() - started
        _answer({"seconds": seconds, **host.memory_mib()})
    return 0


def _answer(facts: Mapping[str, Any]) -> None:
    print(MARK + json.dumps(facts), flush=True)


def torch_spec(
    kind: str,
    torch_model: str,
    folder: Path,
    variant: str,
    model: VideoTowerConfig,
    sizes: Mapping[str, Any],
) -> dict[str, Any]:
    """What `torch_peer.py` needs to build its side; ValueError for a file that is not there."""
    if not Path(torch_model).is_file():
        raise ValueError(f"--torch_model={torch_model}: no such file")
    return {
        "kind": kind,
        "torch_model": str(Path(torch_model).resolve()),
        "variant": variant,
        "folder": str(folder),
        "dtype": model.dtype,
        "pixel_mean": list(model.pixel_mean),
        "pixel_std": list(model.pixel_std),
        "sizes": {
            "img_size": model.resolution,
            "patch_size": model.patch,
            "tubelet_size": model.tubelet,
            "mlp_ratio": model.encoder.hidden / model.encoder.width,
            "qkv_bias": True,
            **sizes,
        },
    }


class Side:
    """A process that takes steps when told.

    Args:
      command: of the process, which calls `serve`.
      without: variables of the environment that it does not get.

    Raises:
      RuntimeError: it could not make or take its step; the text says why.
    """

    def __init__(self, command: Sequence[str], without: Sequence[str] = ()):
        self._process = subprocess.Popen(
            command,
            env={name: value for name, value in os.environ.items() if name not in without},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seconds: list[float] = []
        self.memory: dict[str, float] = {}
        self.facts = self._read()

    def turn(self) -> None:
        """Two steps, of which the second counts."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        time.sleep(PAUSE)
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        found = self._read()
        self.seconds.append(found.pop("seconds"))
        self.memory = found

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        for line in self._process.stdout:
            if line.startswith(MARK):
                found = json.loads(line[len(MARK) :])
                if "error" in found:
                    raise RuntimeError(found["error"])
                return found
        raise RuntimeError(f"the process ended with {self._process.wait()}")


def take_turns(sides: Mapping[str, Side], rounds: int) -> None:
    """Every side takes one step per round."""
    for _ in range(rounds):
        for side in sides.values():
            side.turn()


def chosen(asked: Sequence[str], known: Mapping[str, Any]) -> Sequence[str]:
    """The peers asked for; ValueError for one that does not exist."""
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(f"--peers: unknown {unknown[0]!r}; known: {', '.join(known)}")
    return asked


def compare(
    specs: Mapping[str, Mapping[str, Any]],
    folder: Path,
    rounds: int,
    *,
    script: str = "torch_peer.py",
    ready: Callable[[str], None] = lambda name: None,
) -> dict[str, Side]:
    """This benchmark's own side and its torch peers, by name, after `rounds` turns.

    Args:
      specs: what each peer reads from a JSON file; peers start after `own` has, with memory pages
        as torch finds them.
      folder: where the sides leave what others read; `own` is this command with --side=FOLDER.
      script: of the peers, in the folder of the benchmarks.
      ready: called with the name of each peer that has taken its first steps.
    """
    here = Path(__file__).resolve().parent
    sides = {"own": Side([sys.executable, *sys.argv, f"--side={folder}"])}
    try:
        for name, spec in specs.items():
            file = folder / f"{name}.json"
            file.write_text(json.dumps(spec))
            command = [sys.executable, str(here / script), str(file)]
            sides[name] = Side(command, ["GLIBC_TUNABLES"])
            ready(name)
        take_turns(sides, rounds)
    finally:
        for side in sides.values():
            side.close()
    return sides
