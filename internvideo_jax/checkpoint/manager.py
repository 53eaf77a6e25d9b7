"""Checkpoints of a run: train state, data position and provenance, saved in the background."""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from data_pipelines.records import storage
from data_pipelines.stream.identity import class_difference, differences, digest
from internvideo_jax.checkpoint import own_disks
from internvideo_jax.checkpoint.apart import KEY, Apart, targets
from internvideo_jax.checkpoint.digests import examine
from internvideo_jax.checkpoint.metadata import describe_tree, first_difference
from internvideo_jax.checkpoint.reading import DamagedStep, Step, sealed
from internvideo_jax.checkpoint.remote_steps import STATE, RemoteSteps
from internvideo_jax.checkpoint.settings import Changes, changes, check
from internvideo_jax.checkpoint.steps import FOLDER, complete_steps, shown
from internvideo_jax.config import CheckpointConfig, TrainConfig
from internvideo_jax.parallel import multihost
from internvideo_jax.types import (
    TrainState,
    Tree,
    flatten_paths,
    joined,
    unflatten_paths,
)

# Version of the layout: items `state` (step, params, opt_state, ema, nonfinite) and `meta`.
LAYOUT = 1
UNSOUND = ".unsound"  # after the number of a step whose update broke the parameters


def as_tree(state: TrainState) -> dict[str, Any]:
    """The state as a plain dict, so that files do not depend on our classes.

    Without the frozen parameters, which are stored apart.
    """
    return {
        "step": state.step,
        "params": state.params,
        "opt_state": state.opt_state,
        "ema": state.ema,
        "nonfinite": state.nonfinite,
    }


def together(state: TrainState) -> TrainState:
    """The layout of steps that hold the frozen parameters, and averages of them, themselves."""
    average = None if state.ema is None else joined(state.ema, state.frozen)
    return state.replace(params=joined(state.params, state.frozen), ema=average, frozen={})


def divided(state: TrainState, shapes: TrainState) -> TrainState:
    """A state as `together` made it, as its shapes are."""
    if not shapes.frozen:
        return state
    flat = flatten_paths(state.params)

    def part(of: Mapping[str, Any], like: Tree) -> Any:
        return unflatten_paths({path: of[path] for path in flatten_paths(like)})

    average = None if state.ema is None else part(flatten_paths(state.ema), shapes.ema)
    return state.replace(
        params=part(flat, shapes.params), ema=average, frozen=part(flat, shapes.frozen)
    )


class Checkpoints:
    """The checkpoints below `workdir/checkpoints`.

    A step is complete or does not exist: what a killed process left behind is ignored by name and
    removed on the next start.

    The newest step is not known to be sound before a step has been made from it, so at least two
    are kept: with config.keep = 1 the one before it stays until the next save.
    """

    def __init__(
        self, workdir: str | Path, config: CheckpointConfig, remote: RemoteSteps | None = None
    ):
        """
        Args:
          workdir: of the run; where that is on an object store, the local folder in its stead.
          remote: the checkpoints there.
        """
        self.folder = Path(workdir).absolute() / FOLDER
        self._remote = remote
        # As messages say it.
        self.place = str(self.folder) if remote is None else remote.url
        self._apart = Apart(self.folder, remote)
        self._keep = config.keep
        self._accept_new_data = config.accept_new_data
        self._manager = own_disks.manager(
            self.folder,
            max(config.keep, 2) if remote is None else 2,
            asynchronous=config.asynchronous,
            own=self._divided,
        )

    @property
    def _divided(self) -> bool:
        """Whether this process has a part of the files only."""
        return self._remote is not None and self._remote.divided

    def latest(self) -> int | None:
        """Number of the newest complete step, also where something else has taken its place."""
        found = self._manager.latest_step()  # does not see what is no folder
        newest = [step for step in complete_steps(self.folder) if step > (found or 0)]
        return newest[-1] if newest else found

    def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts saving; returns as soon as the arrays are copied off the devices.

        Call it only after a step that was sound: the saved step before is taken for sound then.

        Raises:
          RuntimeError: this or the previous save failed, or the state holds values that cannot be
            right and is not saved; says which step is still safe.
        """
        if self._manager.latest_step() == step:
            return
        tree = as_tree(state)
        examined = examine(tree)
        if examined.wrong:
            raise RuntimeError(
                f"the update of step {step} made values that are not finite, or whose squares are "
                f"not, in {_first(examined.wrong)}; it was not saved. Lower config.optim.lr or set "
                f"config.optim.clip_norm; {self.sound_text()}"
            )
        self._wait_remote()
        self._make_room(tree, state.frozen if self._apart.missing() else {})
        meta = {**meta, "layout": LAYOUT, "step": step, "tree": describe_tree(tree)}
        try:
            meta = sealed({**meta, **self._apart.store(state.frozen)}, examined.digests)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree),  # pyright: ignore[reportCallIssue]
                    meta=ocp.args.JsonSave(meta),  # pyright: ignore[reportCallIssue]
                ),
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._explain(step, error) from error
        if self._remote is not None:
            self._remote.start(step, self._manager.wait_until_finished)

    def _make_room(self, tree: Tree, frozen: Tree) -> None:
        """RuntimeError when the disk cannot hold another checkpoint; nothing is written then.

        With config.keep = 1 the newest step, now known to be sound, is left alone before that.
        """
        if self._keep == 1:
            self.wait()
            for old in self._manager.all_steps()[:-1]:
                self._manager.delete(old)
        needed = sum(self._bytes(leaf) for leaf in jax.tree.leaves((tree, frozen)))
        free = shutil.disk_usage(self.folder).free
        if free < 1.05 * needed:
            text = f"{free / 2**20:.0f} MiB free, {1.05 * needed / 2**20:.0f} MiB needed"
            if self._remote is not None:
                host = f" on {socket.gethostname()}"
                text += f" in {self.folder}{host}, from where it is copied (IVJ_STAGING)"
            error = OSError(errno.ENOSPC, text)
            raise self._explain(int(tree["step"]), error) from error

    def _bytes(self, leaf: jax.Array) -> int:
        """What this process may write of an array; of one folder for all, that is the whole."""
        if not self._divided:
            return leaf.size * leaf.dtype.itemsize
        shards = {str(shard.index): shard.data.nbytes for shard in leaf.addressable_shards}
        return sum(shards.values())

    def wait(self) -> None:
        """Blocks until everything is on disk; RuntimeError when it could not be written."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._explain(None, error) from error
        self._wait_remote()

    def _wait_remote(self) -> None:
        if self._remote is None:
            return
        try:
            self._remote.wait()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._explain(None, error) from error

    def _where(self, step: int) -> Path | str:
        """The folder of a step, or its URL."""
        return self.folder / str(step) if self._remote is None else f"{self.place}/{step}"

    def _steps(self) -> list[int]:
        """Complete ones, which a start would see."""
        return complete_steps(self.folder) if self._remote is None else self._remote.steps()

    def _explain(self, step: int | None, error: Exception) -> RuntimeError:
        try:
            complete = self._steps()
        except (OSError, storage.StorageError):  # it may be what the save failed of
            complete = []
        safe = f"step {complete[-1]} in {self.place} is complete" if complete else "none exists"
        which = f"of step {step} " if step is not None else ""
        return RuntimeError(
            f"could not save the checkpoint {which}({_first_line(error)}); the last complete one: "
            f"{safe}. Free space or fix the directory, then start the same command again"
        )

    def meta(self, step: int) -> dict[str, Any]:
        """Provenance stored with a step; DamagedStep where it is not as it was saved."""
        return self._at(step).meta

    def _at(self, step: int) -> Step:
        try:
            return Step.at(self.folder / str(step))
        except DamagedStep as error:
            raise self._damaged(step, error) from error.__cause__

    def _damaged(self, step: int, error: DamagedStep) -> DamagedStep:
        """The same, of the step that the user knows where this one is a copy."""
        if self._remote is None:
            return error
        others = [other for other in self._steps() if other != step]
        then = f"goes on from step {others[-1]}" if others else "starts anew"
        return DamagedStep(
            f"step {step} in {self.place} is damaged ({error.what}); remove {self.place}/{step}, "
            f"and start the same command again, which then {then}",
            error.what,
        )

    def check_data(self, step: int, identity: dict[str, Any]) -> None:
        """ValueError unless the checkpoint's data stream is the one described by `identity`."""
        stored = self.meta(step).get("data", {})
        lines = differences(identity, stored)
        if not lines or self._accept_new_data:
            return
        raise ValueError(
            f"the data stream is not the one of {self.place}/{step}:\n"
            f"  fingerprint: found {digest(identity)}, the checkpoint has {digest(stored)}\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nGive the same data and settings, or another --workdir; "
            "--config.checkpoint.accept_new_data goes on with the changed stream"
        )

    def check_classes(self, step: int, classes: Sequence[str]) -> None:
        """ValueError where the head of the checkpoint was trained on another class list.

        Whatever `accept_new_data` says: the labels would mean other rows of the head.

        Args:
          classes: names of the classes of the data, in the order of the labels; empty: the run
            learns none.
        """
        stored = self.meta(step).get("classes", ())
        difference = class_difference(classes, stored, "the checkpoint")
        if not (stored and classes and difference):
            return
        where = f"{self.place}/{step}"
        raise ValueError(
            f"the classes of the data are not those of {where}: {difference}. Give the data with "
            "that class list, or start another run from these weights: another --workdir, "
            f"--config.init_from={where} and --config.head_rows=names"
        )

    def _check_fit(self, step: int, shapes: TrainState) -> None:
        meta, where = self.meta(step), f"{self.place}/{step}"
        if meta.get("layout") != LAYOUT:
            raise ValueError(
                f"{where} has checkpoint layout {meta.get('layout')}, this program reads {LAYOUT}"
            )
        apart = meta.get(KEY, {}).get("tree", {})
        wanted = shapes if apart else together(shapes)
        difference = first_difference(meta["tree"], describe_tree(as_tree(wanted)))
        if apart and not difference:
            difference = first_difference(apart, describe_tree(shapes.frozen))
        if difference:
            raise ValueError(
                f"{where} does not fit this config:\n{difference}\n"
                "Use the config of that run, another --workdir, or start from its parameters with "
                f"--config.init_from={where}"
            )

    def check_settings(self, step: int, shapes: TrainState, config: TrainConfig) -> Changes:
        """What differs from the config that the checkpoint was made with.

        Raises:
          ValueError: something does that may not.
        """
        self._check_fit(step, shapes)
        found = changes(self.meta(step).get("config", {}), config)
        check(found, self._where(step))
        return found

    def restore(self, step: int, shapes: TrainState, shardings: TrainState) -> TrainState:
        """The state of `step`, placed as `shardings` say, whatever mesh it was saved from.

        Raises:
          ValueError: the checkpoint holds another model, optimizer or layout; DamagedStep: its
            files or arrays are not those that were saved.
        """
        try:
            return self._restored(step, shapes, shardings)
        except DamagedStep as error:
            raise self._damaged(step, error) from error.__cause__

    def _restored(self, step: int, shapes: TrainState, shardings: TrainState) -> TrainState:
        found = self._at(step)
        self._check_fit(step, shapes)
        apart = found.apart()
        layout = (shapes, shardings) if apart else (together(shapes), together(shardings))
        target, frozen = targets(*map(as_tree, layout)), {}
        if self._remote is not None:
            self._remote.bring_arrays(f"{step}/{STATE}", target)
        if apart:
            self._apart.bring(apart, shapes.frozen, shardings.frozen)
        with found.reading():
            if apart:
                frozen = self._apart.restore(apart, shapes.frozen, shardings.frozen)
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target),  # pyright: ignore[reportCallIssue]
                ),
            )
            state = TrainState(**restored["state"])
        found.check(as_tree(state))
        if not apart:
            return divided(state, shapes)
        found.check_apart(frozen)
        self._apart.found(apart)
        return state.replace(frozen=frozen)

    def set_aside(self, step: int) -> str:
        """Takes a step out of the run, under a name that no start looks for; returns that name."""
        self.wait()
        here = self.folder / str(step)
        aside = here.with_suffix(UNSOUND)
        if multihost.is_main():
            shutil.rmtree(aside, ignore_errors=True)
            here.rename(aside)
            if self._remote is not None:
                return self._remote.set_aside(step, aside.name)
        return shown(aside)

    def sound_text(self, without: int = 0) -> str:
        """`the last sound step is step 3 in runs/x/checkpoints`, and what the same command does.

        Args:
          without: a step that does not count.
        """
        self.wait()
        steps = [step for step in self._steps() if step != without]
        where = shown(self.folder) if self._remote is None else self.place
        if not steps:
            return f"there is no sound step in {where}, the same command starts anew"
        return (
            f"the last sound step is step {steps[-1]} in {where}, the same command goes on from it"
        )

    def close(self) -> None:
        """Waits until all that was begun is saved."""
        self._manager.close()


def _first(paths: Sequence[str]) -> str:
    return paths[0] + (f" and {len(paths) - 1} more arrays" if len(paths) > 1 else "")


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, OSError) and error.filename is None and error.strerror:
        text = error.strerror  # without the number
    return text.splitlines()[0][:300]
