"""Reading a step of a run. Whatever is wrong with its files ends in one message (`DamagedStep`).

Digests of the provenance and of every array lie in the provenance (`meta/metadata`), so that what
was read is what was saved, or is refused. Steps of earlier versions have none and are read as they
are, with a note.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from data_pipelines.commands.exit_codes import PassingFault
from internvideo_jax.checkpoint.apart import KEY
from internvideo_jax.checkpoint.digests import examine
from internvideo_jax.checkpoint.metadata import describe_tree, first_difference
from internvideo_jax.checkpoint.steps import FOLDER, complete_steps, shown
from internvideo_jax.ops import lora
from internvideo_jax.parallel import multihost
from internvideo_jax.types import (
    Tree,
    flatten_paths,
    unflatten_paths,
)

META = "meta/metadata"
STATE_FILES = ("_METADATA", "manifest.ocdbt", "d")  # without which no array can be found
ARRAYS, WHOLE = "digests", "digest"  # keys of the digests in the provenance
PARAMETERS = ("params/", "ema/")  # of the train state
# Of another step at most so much is read before it is called complete; a larger one by its files.
SMALL = 2**30
# Not of the files: a storage that does not answer.
PASSING = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)\b")
CAUSES = (
    (re.compile(r"PERMISSION_DENIED|Permission denied"), "a file may not be read"),
    (re.compile(r"NOT_FOUND|No such file|not found", re.IGNORECASE), "a file is missing"),
)


class DamagedStep(ValueError):
    """A step whose files are not those that were saved.

    Attributes:
      what: is wrong with it.
    """

    def __init__(self, text: str, what: str):
        super().__init__(text)
        self.what = what


class _Wrong(Exception):
    """What is wrong with a step."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A step whose provenance is as it was saved.

    Attributes:
      path: its folder.
      meta: the provenance.
      named: the user gave this step, not its run.
    """

    path: Path
    meta: dict[str, Any]
    named: bool = False

    @classmethod
    def at(cls, path: Path, named: bool = False) -> Step:
        """The step in a folder; DamagedStep where its provenance is not as it was saved."""
        try:
            return cls(path, _meta(path), named)
        except _Wrong as error:
            raise damaged(path, str(error), named) from error.__cause__

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """What the libraries raise while they read the arrays, as one message.

        Raises:
          DamagedStep: the files are not as they were saved.
          PassingFault: the storage or another process failed; RuntimeError: memory did.
        """
        try:
            with _hushed():
                yield
        except MemoryError:
            raise
        except Exception as error:  # orbax and tensorstore raise anything, plain Exception too
            text = " ".join(str(error).split())
            where = f"step {self.path.name} in {shown(self.path.parent)}"
            if "RESOURCE_EXHAUSTED" in text:
                raise RuntimeError(f"{where}: not enough memory or files ({text[:200]})") from error
            if PASSING.search(text) or (jax.process_count() > 1 and multihost.BROKEN.search(text)):
                raise PassingFault(f"{where} could not be read ({text[:200]})") from error
            found = [what for pattern, what in CAUSES if pattern.search(text)]
            what = f"its arrays cannot be read: {(*found, 'a file is missing, cut or changed')[0]}"
            raise damaged(self.path, what, self.named) from error

    def check(self, tree: Tree) -> None:
        """DamagedStep where arrays that were read are not those that were saved.

        Collective over processes.

        Args:
          tree: the train state or a part of it, by the paths of the state.
        """
        try:
            _compare(self.meta, tree)
        except _Wrong as error:
            raise damaged(self.path, str(error), self.named) from None
        if ARRAYS not in self.meta and multihost.is_main():
            print(
                f"note: step {self.path.name} in {shown(self.path.parent)} carries no digests, as "
                "earlier versions wrote none; damage to its arrays would not be noticed",
                file=sys.stderr,
                flush=True,
            )

    def parameters(self, averaged: bool = True) -> dict[str, np.ndarray]:
        """Parameters on the host by path, the averaged ones when wanted and there.

        As the model runs with them: with those that are frozen, adapters added to their kernels.

        Raises:
          DamagedStep: they are not what was saved.
        """
        with self.reading():
            paths = _paths(self.path, self.meta)
            averaged = averaged and any(path.startswith("ema/") for path in paths)
            name = "ema" if averaged else "params"
            wanted = [path for path in paths if path.startswith(f"{name}/")]
            flat = _arrays(self.path / "state", wanted)
        self.check(flat)
        found = {path.removeprefix(f"{name}/"): value for path, value in flat.items()}
        if apart := self.apart():
            with self.reading():
                frozen = _arrays(self.path.parent / apart["folder"], list(apart["tree"]))
            self.check_apart(frozen)
            found |= frozen
        return self._merged(found)

    def _merged(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        config = self.meta.get("config", {}).get("lora", {})
        if not config.get("rank"):
            return found
        mark = f"{lora.ADAPTERS}/"
        adapters = {p.removeprefix(mark): x for p, x in found.items() if p.startswith(mark)}
        base = {path: value for path, value in found.items() if not path.startswith(mark)}
        return lora.merge_flat(base, adapters, lora.scale(config["rank"], config["alpha"]))

    def apart(self) -> Mapping[str, Any] | None:
        """What the step says of frozen parameters beside it; DamagedStep where they are away."""
        apart = self.meta.get(KEY)
        if apart and not (self.path.parent / apart["folder"]).is_dir():
            place = shown(self.path.parent / apart["folder"])
            what = f"its frozen parameters are missing: {place}, which all steps of the run share"
            raise damaged(self.path, what, self.named)
        return apart

    def check_apart(self, tree: Tree) -> None:
        """DamagedStep where frozen parameters are not those that were stored. Collective."""
        if wrong := _other(self.meta[KEY]["digests"], tree):
            place = shown(self.path.parent / self.meta[KEY]["folder"])
            what = f"array {wrong[0]} in {place}: its digest is not the stored one"
            raise damaged(self.path, what, self.named)


def step_of(path: str | Path) -> Step:
    """The step meant by `path`: itself, or the newest step of a run.

    Raises:
      ValueError: there is none; DamagedStep: its provenance is not as it was saved.
    """
    place = Path(path).absolute()
    if (place / "state").is_dir() or (place.parent.name == FOLDER and place.is_dir()):
        return Step.at(place, named=True)
    folder = place if place.name == FOLDER else place / FOLDER
    steps = complete_steps(folder)
    if not steps:
        raise ValueError(
            f"{place}: no checkpoint here; expected a run directory with {FOLDER}/, one of its "
            "steps, a .safetensors / .pth file, or the name of a published one (`ivj weights list`)"
        )
    return Step.at(folder / str(steps[-1]))


def sealed(meta: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """The provenance with the digests of the arrays and one of itself."""
    meta = {**meta, ARRAYS: digests}
    return {**meta, WHOLE: _digest(meta)}


def _digest(meta: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in meta.items() if key != WHOLE}
    text = json.dumps(json.loads(json.dumps(rest)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _meta(step: Path) -> dict[str, Any]:
    if not step.is_dir():
        raise _Wrong("it is no folder")
    if not any(step.iterdir()):
        raise _Wrong("its folder is empty")
    try:
        meta = json.loads((step / META).read_bytes())
    except FileNotFoundError as error:
        raise _Wrong(f"{META} is missing") from error
    except OSError as error:
        raise _Wrong(f"{META} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _Wrong(f"{META} is cut or changed: it is no JSON") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("config", {}), dict):
        raise _Wrong(f"{META} is not the provenance of a step")
    if (ARRAYS in meta or WHOLE in meta) and meta.get(WHOLE) != _digest(meta):
        raise _Wrong(f"{META}: its digest is not the stored one")
    if step.parent.name == FOLDER and str(meta.get("step", step.name)) != step.name:
        raise _Wrong(f"{META} is that of step {meta['step']}")
    missing = [name for name in ("", *STATE_FILES) if not (step / "state" / name).exists()]
    if missing:
        raise _Wrong(f"state/{missing[0]} is missing")
    return meta


def _compare(meta: Mapping[str, Any], tree: Tree) -> None:
    found = describe_tree(tree)
    expected = (
        {path: meta["tree"].get(path, "absent") for path in found} if "tree" in meta else found
    )
    if difference := first_difference(found, expected):
        raise _Wrong(f"its arrays are not those of {META}:\n{difference}\n")
    stored = meta.get(ARRAYS)
    if stored is None:
        return
    if wrong := _other(stored, tree):
        more = f", nor are those of {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise _Wrong(f"array {wrong[0]}: its digest is not the stored one{more}")


def _other(stored: Mapping[str, str], tree: Tree) -> list[str]:
    """Paths of the arrays that are not those that were saved."""
    return [path for path, each in examine(tree).digests.items() if stored.get(path) != each]


def _paths(step: Path, meta: Mapping[str, Any]) -> list[str]:
    """Paths of the train state."""
    if "tree" in meta:
        return list(meta["tree"])
    metadata: Any = ocp.PyTreeCheckpointer().metadata(step / "state").item_metadata
    return list(flatten_paths(metadata.tree))


def _arrays(folder: Path, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """These arrays of a tree that Orbax wrote."""
    restored = ocp.PyTreeCheckpointer().restore(
        folder,
        args=ocp.args.PyTreeRestore(
            item=unflatten_paths(dict.fromkeys(paths, 0)),  # pyright: ignore[reportCallIssue]
            restore_args=unflatten_paths(  # pyright: ignore[reportCallIssue]
                dict.fromkeys(paths, ocp.RestoreArgs(restore_type=np.ndarray))
            ),
            partial_restore=True,  # pyright: ignore[reportCallIssue]
        ),
    )
    return flatten_paths(restored)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keeps what the libraries print about a failed read to themselves.

    The first array that cannot be read ends the restore. The reads of the others end later, in an
    event loop that is closed, and each prints a traceback. So after a failure it stays quiet.
    """
    hook, logger = sys.unraisablehook, logging.getLogger("asyncio")
    level = logger.level

    def without_closed_loops(found: Any) -> None:
        if str(found.exc_value) != "Event loop is closed":
            hook(found)

    sys.unraisablehook = without_closed_loops
    logger.setLevel(logging.CRITICAL)
    yield
    sys.unraisablehook = hook
    logger.setLevel(level)


def damaged(step: Path, what: str, named: bool = False) -> DamagedStep:
    """`step 6 in runs/x/checkpoints is damaged (...); step 3 is complete: remove or move ...`."""
    here = shown(step)
    if not step.name.isdigit():
        text = f"the checkpoint {here} is damaged ({what}); give another one"
        return DamagedStep(text, what)
    advice = f"no other step is complete: remove or move {here}; the run then starts anew"
    others = [number for number in complete_steps(step.parent) if str(number) != step.name]
    for number in reversed(others):
        if not _is_complete(other := step.parent / str(number)):
            continue
        advice = f"remove or move {here} and start the same command again"
        advice = f"step {number} is complete: {f'give {shown(other)}' if named else advice}"
        break
    return DamagedStep(
        f"step {step.name} in {shown(step.parent)} is damaged ({what}); {advice}", what
    )


def _is_complete(step: Path) -> bool:
    """Whether the files of a step are there, and, where that is little to read, what was saved."""
    try:
        meta = _meta(step)
        size = sum(file.stat().st_size for file in (step / "state").rglob("*") if file.is_file())
        # Reading is collective, and not every process need have come here.
        if size <= SMALL and jax.process_count() == 1:
            wanted = [path for path in _paths(step, meta) if path.startswith(PARAMETERS)]
            with _hushed():
                _compare(meta, _arrays(step / "state", wanted))
                if apart := meta.get(KEY):
                    frozen = _arrays(step.parent / apart["folder"], list(apart["tree"]))
                    return not _other(apart["digests"], frozen)
    except Exception:  # noqa: BLE001  (whatever it is, this step is no better)
        return False
    return True
