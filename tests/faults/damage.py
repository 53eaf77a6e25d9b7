"""Damages the files of a checkpoint and looks what those make of it who read it.

python -m tests.faults.damage --tries=200 --seed=0 [--shards=FOLDER]

Every try damages the newest step of a run in one way, at a place drawn by the seed, and then goes
on with the training, evaluates, exports, and starts from it. Right is one message of ours that
names the step and the complete one before it. Where nothing is said every array must be the saved
one, to the bit: then no reader looks at the damaged bytes (`harmless`). Else the try is `silent`:
wrong numbers and no word; or `foreign`: an error that is not ours.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import io
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internvideo_jax import evaluate, train
from internvideo_jax.checkpoint import initial, manager
from internvideo_jax.checkpoint.reading import DamagedStep
from internvideo_jax.evaluators.reconstruction import Reconstruction
from internvideo_jax.run import loop
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights.__main__ import main as weights
from tests.data_pipelines.sets import write_set
from tests.faults.stepping import config, stepping

BEFORE, NEWEST = 3, 6
MESSAGE = re.compile(
    rf"step {NEWEST} in \S+/checkpoints is damaged \(.+\); step {BEFORE} is complete: "
    rf"remove or move \S+/{NEWEST} and start the same command again",
    re.DOTALL,
)
Damage = Callable[[Path, random.Random], None]


class Readers:
    """A run, and everybody who reads its checkpoint."""

    def __init__(self, shards: Path, folder: Path):
        evals = {"test": Reconstruction(every=-1)}
        self.config = config(shards, every=BEFORE, steps=NEWEST, evals=evals)
        self.folder, self.pristine = folder, folder / "pristine"
        self.run = folder / "runs/x"
        with pytest.MonkeyPatch.context() as patch, _quiet():
            patch.setattr(loop, "make_train_step", stepping())
            train.train(self.config, self.pristine)
        self.restore()
        with _quiet():
            self.right = {name: read() for name, read in self.readers().items()}

    @property
    def step(self) -> Path:
        return self.run / "checkpoints" / str(NEWEST)

    def restore(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.pristine, self.run)

    def readers(self) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
        return {
            "train": self.train,
            "evaluate": self.evaluate,
            "export": self.export,
            "init_from": self.init_from,
        }

    def train(self) -> dict[str, np.ndarray]:
        """The state with which the finished run goes on: no step is left to make."""
        states: list[Any] = []
        restore = manager.Checkpoints.restore
        with pytest.MonkeyPatch.context() as patch:

            def recorded(*arguments: Any) -> Any:
                states.append(restore(*arguments))
                return states[-1]

            patch.setattr(manager.Checkpoints, "restore", recorded)
            train.train(self.config, self.run)
        return _arrays(manager.as_tree(states[0]) if states else {})

    def evaluate(self) -> dict[str, np.ndarray]:
        """The parameters that evaluators would be given."""
        given: list[Any] = []

        def record(wanted: Any, context: Any, params: Any, **_: Any) -> dict[str, Any]:
            given.append(params)
            return {}

        evals = {"test": Reconstruction()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluate, "check_evaluators", lambda *_: None)
            patch.setattr(evaluate, "run_evaluators", record)
            evaluate.evaluate(
                dataclasses.replace(self.config, evals=evals),
                str(self.run),
                self.folder / "results.json",
            )
        return _arrays(given[0])

    def export(self) -> dict[str, np.ndarray]:
        """The exported file."""
        out, said = self.folder / "export.safetensors", io.StringIO()
        out.unlink(missing_ok=True)
        with contextlib.redirect_stderr(said):
            code = weights(["export", str(self.run), "--out", str(out)])
        if code:
            raise ValueError(f"{code}: {said.getvalue()}")
        return {"file": np.fromfile(out, np.uint8)}

    def init_from(self) -> dict[str, np.ndarray]:
        model = self.config.model
        params, _ = initial.initialise(str(self.run), model.model().shapes(), model)
        return _arrays(params)

    def outcomes(self) -> Iterator[tuple[str, str, str]]:
        """(reader, outcome, what it said) of the damaged run."""
        for name, read in self.readers().items():
            try:
                with _quiet():
                    found = read()
            except ValueError as error:  # DamagedStep, and export's exit code 2
                known = isinstance(error, DamagedStep) or str(error).startswith("2: error: ")
                kind = "refused" if known and MESSAGE.search(str(error)) else "foreign"
                yield name, kind, str(error)
            except Exception as error:  # noqa: BLE001  (any is foreign)
                yield name, "foreign", f"{type(error).__name__}: {error}"
            else:
                right = self.right[name]
                same = found.keys() == right.keys() and all(
                    found[path].tobytes() == right[path].tobytes() for path in right
                )
                yield name, "harmless" if same else "silent", ""


def _arrays(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_paths(tree).items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


# --- ways to damage a file or a folder of a step


def flip(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def flip_many(file: Path, rng: random.Random) -> None:
    for _ in range(8):
        flip(file, rng)


def cut(file: Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size))


def zero(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    first = rng.randrange(len(content))
    length = min(rng.choice((4, 64, 4096, len(content))), len(content) - first)
    content[first : first + length] = bytes(length)
    file.write_bytes(content)


def swap_blocks(file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    size = max(1, min(512, len(content) // 4))
    one, two = sorted(rng.sample(range(0, len(content) - size + 1, size), 2))
    blocks = content[one : one + size], content[two : two + size]
    content = (
        content[:one] + blocks[1] + content[one + size : two] + blocks[0] + (content[two + size :])
    )
    file.write_bytes(content)


def append(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes() + rng.randbytes(100))


def delete(file: Path, rng: random.Random) -> None:
    file.unlink()


def folder_instead(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


def of_another_step(file: Path, rng: random.Random) -> None:
    """Names of data files are random: the file of the same rank in the same folder."""
    step = next(parent for parent in file.parents if parent.name == str(NEWEST))
    other = step.with_name(str(BEFORE)) / file.relative_to(step).parent
    ranked = [
        sorted(place.iterdir(), key=lambda f: f.stat().st_size) for place in (file.parent, other)
    ]
    file.write_bytes(ranked[1][min(ranked[0].index(file), len(ranked[1]) - 1)].read_bytes())


FILE: tuple[Damage, ...] = (
    flip,
    flip_many,
    cut,
    zero,
    swap_blocks,
    append,
    delete,
    folder_instead,
    of_another_step,
)


def remove(folder: Path, rng: random.Random) -> None:
    shutil.rmtree(folder)


def empty(folder: Path, rng: random.Random) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def replace_folder(folder: Path, rng: random.Random) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"not a folder")


FOLDER: tuple[Damage, ...] = (empty, remove, replace_folder)


def plan(step: Path, tries: int, seed: int) -> list[tuple[Path, Damage]]:
    """What is damaged how: every file in turn, each time in another way; a folder now and then."""
    rng = random.Random(seed)
    paths = sorted(path.relative_to(step) for path in step.rglob("*"))
    files = [path for path in paths if (step / path).is_file()]
    folders = [path for path in paths if (step / path).is_dir()]
    every = [(path, how) for path in files for how in FILE]
    every += [(path, how) for path in folders for how in FOLDER]
    every.append((Path(), empty))
    rng.shuffle(every)
    # Largest first where there are more tries than ways: most bytes of a checkpoint are arrays.
    largest = sorted(files, key=lambda path: -(step / path).stat().st_size)[:3]
    while len(every) < tries:
        every.append((rng.choice(largest), rng.choice(FILE[:5])))
    return every[:tries]


def attack(readers: Readers, tries: int, seed: int, tell: Callable[[str], None]) -> dict[str, int]:
    """Counts of outcomes; every silent or foreign one is told."""
    counts: collections.Counter[str] = collections.Counter()
    rng = random.Random(seed + 1)
    readers.restore()
    for number, (path, how) in enumerate(plan(readers.step, tries, seed)):
        readers.restore()
        with contextlib.suppress(ValueError):  # an empty file has no bit to flip
            how(readers.step / path, rng)
        for name, kind, said in readers.outcomes():
            counts[kind] += 1
            if kind in ("silent", "foreign"):
                tell(f"{number}: {how.__name__} {path}: {name}: {kind}: {said[:600]}")
    return {kind: counts[kind] for kind in ("refused", "harmless", "silent", "foreign")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        readers = Readers(write_set(Path(folder) / "set", 12), Path(folder))
        counts = attack(readers, options.tries, options.seed, print)
    print(", ".join(f"{kind} {count}" for kind, count in counts.items()))
    return 1 if counts["silent"] or counts["foreign"] else 0


if __name__ == "__main__":
    sys.exit(main())
