"""What jax's own detection of clusters finds: TPU slices, Slurm steps, Kubernetes Jobs.

jax has no public name for asking, only `jax.distributed.initialize`, which asks and joins at once.
This is the one place with names that it keeps private. Where a version of jax does not have them as
they are known here, the public ways are taken, which tell less.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import jax

Found = tuple[str | None, int | None, int | None]  # coordinator, processes, number of this one


def on_tpu_vm() -> bool:
    """Whether jax was imported on a TPU VM."""
    try:
        from jax._src.clusters import cloud_tpu_cluster

        return bool(cloud_tpu_cluster.running_in_cloud_tpu_vm)  # pyright: ignore[reportPrivateImportUsage]
    except (ImportError, AttributeError):
        # What importing jax on such a machine leaves for the TPU's runtime.
        return os.environ.get("TPU_ML_PLATFORM") == "JAX"


def detect(seconds: int) -> Found | None:
    """The job as far as jax finds one; None where it does not tell.

    Args:
      seconds: to wait until the name of the coordinator is known.
    """
    try:
        from jax._src.clusters import ClusterEnv

        ask = ClusterEnv.auto_detect_unset_distributed_params
        address, count, number, _ = ask(None, None, None, None, None, seconds)
    except (ImportError, AttributeError, TypeError, ValueError):
        return None  # an error that is not about the names comes again in `join`
    return address, count, number


def join(seconds: int, variables: Sequence[str]) -> None:
    """Lets jax find and join its job, without anybody being told which.

    Args:
      seconds: until the processes must be there.
      variables: what a user can set instead; for the messages.

    Raises:
      ValueError: jax finds no job, or only a part of one.
    """
    instead = f"set {', '.join(variables)} in each process"
    try:
        jax.distributed.initialize(initialization_timeout=seconds)
    except ValueError as error:
        raise ValueError(f"jax cannot tell which job this is ({error}); {instead}") from error
    if jax.process_index() == 0:
        print(
            f"warning: jax {jax.__version__} does not tell where its processes meet, so that the "
            f"end of one is noticed late; {instead} to change that",
            file=sys.stderr,
            flush=True,
        )
