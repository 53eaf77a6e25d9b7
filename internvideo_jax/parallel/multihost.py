"""Several processes: start-up, batches from host-local arrays, results back to the host."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

JOB_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize() -> None:
    """Joins the other processes of the job; must run before any device is touched.

    A job of several processes is one with JOB_VARIABLES in the environment, a Slurm step of several
    tasks, or a TPU slice of several hosts; from the last two jax reads the rest itself.
    """
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    tasks = os.environ.get("SLURM_NTASKS", "1") if "SLURM_STEP_ID" in os.environ else "1"
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        # jax itself reads only the address from the environment.
        missing = [name for name in JOB_VARIABLES if name not in os.environ]
        if missing:
            raise ValueError(
                f"JAX_COORDINATOR_ADDRESS is set but {missing[0]} is not; a job of several "
                f"processes needs {', '.join(JOB_VARIABLES)} in each of them"
            )
        address, count, number = (os.environ[name] for name in JOB_VARIABLES)
        jax.distributed.initialize(address, int(count), int(number))
    elif "," in hosts or int(tasks) > 1:
        jax.distributed.initialize()


def to_global(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Global arrays from the rows of this process; every array is split along its first axis."""
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def to_host(tree: Any) -> Any:
    """numpy copies of (possibly sharded) arrays, whole on every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, jax.device_get(tree))
    return multihost_utils.process_allgather(tree, tiled=True)


def any_process(flag: bool) -> bool:
    """True on all processes when it is on one. Every process must call it at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def is_main() -> bool:
    """True on the one process that prints and writes files."""
    return jax.process_index() == 0
