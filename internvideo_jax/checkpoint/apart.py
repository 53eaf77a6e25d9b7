"""Frozen parameters of a run's model: in no checkpoint, but once beside all of them.

`checkpoints/frozen-DIGEST` holds them, named after its content. A step names the folder in its
provenance, with the digest of every array. Steps of versions before this hold them themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from internvideo_jax.checkpoint.digests import examine
from internvideo_jax.checkpoint.metadata import describe_tree
from internvideo_jax.checkpoint.own_disks import checkpointer, read
from internvideo_jax.checkpoint.remote_steps import RemoteSteps
from internvideo_jax.parallel import multihost
from internvideo_jax.types import Params, Tree

KEY = "frozen_parameters"  # in the provenance: {"folder", "tree", "digests"}, by path


class Apart:
    """The frozen parameters of a run in the folder of its checkpoints.

    Args:
      folder: local.
      remote: the checkpoints where they are on an object store.
    """

    def __init__(self, folder: Path, remote: RemoteSteps | None = None):
        self._folder, self._remote = folder, remote
        self._stored: dict[str, Any] | None = None

    def missing(self) -> bool:
        """Whether the next `store` may have to write them."""
        return self._stored is None

    def found(self, stored: Mapping[str, Any]) -> None:
        """Says that they are there, as a step names them."""
        self._stored = dict(stored)

    def store(self, frozen: Params) -> dict[str, Any]:
        """Writes the frozen parameters unless they are there; what a step says of them.

        Collective over processes.
        """
        if not frozen:
            return {}
        if self._stored is None:
            digests = examine(frozen).digests
            text = json.dumps(digests, sort_keys=True)
            name = f"frozen-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
            if not self._there(name, frozen, digests):
                self._write(name, frozen)
            self._stored = {"folder": name, "tree": describe_tree(frozen), "digests": digests}
        return {KEY: self._stored}

    def _there(self, name: str, frozen: Params, digests: Mapping[str, str]) -> bool:
        """Whether an earlier start, all of whose steps are gone, left these very arrays.

        The same answer on all processes, of which one alone may have a damaged copy.
        """
        shardings = jax.tree.map(lambda leaf: leaf.sharding, frozen)
        found = None
        if (self._folder / name).exists():
            # orbax raises anything; they are written anew then
            with contextlib.suppress(Exception):
                self.bring({"folder": name}, frozen, shardings)
                found = self.restore({"folder": name}, frozen, shardings)
        if multihost.any_process(found is None):
            return False
        return examine(found).digests == digests

    def _write(self, name: str, frozen: Params) -> None:
        if self._remote is not None:
            self._remote.clear(name)
            multihost.any_process(False)  # the others wait for that
        with checkpointer(own=self._remote is not None and self._remote.divided) as writer:
            writer.save(
                self._folder / name,
                args=ocp.args.StandardSave(frozen),  # pyright: ignore[reportCallIssue]
                force=True,
            )

    def bring(self, stored: Mapping[str, Any], shapes: Params, shardings: Tree) -> None:
        """Gets from an object store what `restore` needs."""
        if self._remote is not None:
            self._remote.bring_arrays(stored["folder"], targets(shapes, shardings))

    def restore(self, stored: Mapping[str, Any], shapes: Params, shardings: Tree) -> Params:
        """The frozen parameters that a step names, placed as `shardings` say."""
        return read(self._folder / stored["folder"], targets(shapes, shardings))


def targets(shapes: Tree, shardings: Tree) -> Any:
    """What Orbax reads into: shapes that know their shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
