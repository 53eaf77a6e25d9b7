"""Orbax on processes each of which writes into a folder that no other process sees.

Each saves its part of the arrays into `ocdbt.process_N`, as Orbax does in a folder that they share.
There the main process merges the parts at once; here it does so when it has the indices of all of
them (`merge`). The files are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

PART = "ocdbt.process_"  # with the number of the process, the folder of its arrays
DESCRIBED = "array_metadatas"  # the folder of a file of each process on its arrays
OWN = ocp.options.MultiprocessingOptions(primary_host=None)
# Who creates a folder says so to all processes, which each have to wait for their own.
AT_ONCE = ocp.AsyncOptions(create_directories_asynchronously=False)


def manager(folder: Path, keep: int, *, asynchronous: bool, own: bool) -> ocp.CheckpointManager:
    """The manager of a folder of steps, with the items `state` and `meta`.

    Args:
      keep: steps that stay.
      asynchronous: whether `save` returns when the arrays are copied off the devices.
      own: whether each process has such a folder of its own.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=True,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=asynchronous,
    )
    if not own:
        return ocp.CheckpointManager(folder, item_names=("state", "meta"), options=options)
    options.multiprocessing_options, options.async_options = OWN, AT_ONCE
    meta = ocp.JsonCheckpointHandler(multiprocessing_options=OWN)
    handlers = {"state": _part_handler(), "meta": meta}
    return ocp.CheckpointManager(folder, item_handlers=handlers, options=options)


def checkpointer(*, own: bool) -> ocp.AsyncCheckpointer:
    """What writes one tree of arrays into one folder; `own` as for the manager."""
    if not own:
        return ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
    return ocp.AsyncCheckpointer(
        _part_handler(), async_options=AT_ONCE, multiprocessing_options=OWN
    )


def _part_handler() -> ocp.StandardCheckpointHandler:
    """Saves the part of this process.

    No class of its own: its name would be in the files.
    """
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=OWN)
    save = handler.async_save

    async def async_save(directory: Any, *args: Any, **kwargs: Any) -> Any:
        # Orbax has one handler of arrays for all, which may wait until the main process makes it.
        (directory / DESCRIBED).mkdir(parents=True, exist_ok=True)
        return await save(directory, *args, **kwargs)

    handler.async_save = async_save
    handler.finalize = lambda directory: None  # it would find one part only
    return handler


def merge(folder: Path) -> None:
    """Makes one checkpoint of all parts in a folder, on the main process.

    Only the manifests and nodes of the parts of others need be here (`chunks.bring_index`).
    """
    handler = ocp.StandardCheckpointHandler()
    handler.finalize(folder)  # pyright: ignore[reportArgumentType]  (any path will do)


def read(folder: Path, targets: Any) -> Any:
    """A tree of arrays; waits for no other process, so that one alone may find it damaged.

    Args:
      targets: shapes with shardings.
    """
    handler = ocp.StandardCheckpointHandler()
    return handler.restore(
        folder,  # pyright: ignore[reportArgumentType]
        args=ocp.args.StandardRestore(targets),
    )
