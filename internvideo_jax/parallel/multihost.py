"""Several processes: start-up, batches from host-local arrays, results back to the host."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from data_pipelines.commands.exit_codes import ExitCode, exit_code_of
from internvideo_jax.parallel import jax_cluster, peers
from internvideo_jax.types import Tree

JOB_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
JOB_FLAGS = ("--coordinator", "--processes", "--process")
JOIN_SECONDS = 300.0  # IVJ_JOIN_SECONDS
# What jax and its collectives say when the other side is gone.
BROKEN = re.compile(
    r"\bGloo\b|\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED): |heartbeat|coordination service|barrier",
    re.IGNORECASE,
)

Job = tuple[str, int, int]  # coordinator host:port, number of processes, number of this one
UNTOLD: Job = ("", 0, 0)  # a job that only jax can join, since it does not tell which


class AllEnd(RuntimeError):
    """An end that all processes of a job come to at the same step; the main one says why."""


def find_job(coordinator: str = "", processes: int = 0, process: int = -1) -> Job | None:
    """The job this process belongs to; None for a single process.

    By arguments, by JOB_VARIABLES, else what jax reads from a TPU slice (metadata of a TPU VM, or
    TPU_WORKER_HOSTNAMES and TPU_WORKER_ID of GKE, MEGASCALE_* with several slices), a Slurm step,
    or an indexed Kubernetes Job or JobSet. UNTOLD where this jax does not tell what it reads.

    Raises:
      ValueError: only a part is given, or numbers that cannot be.
    """
    flags = (coordinator, str(processes) if processes else "", str(process) if process >= 0 else "")
    variables = tuple(os.environ.get(name, "") for name in JOB_VARIABLES)
    for names, values in ((JOB_FLAGS, flags), (JOB_VARIABLES, variables)):
        if not any(values):
            continue
        missing = [name for name, value in zip(names, values, strict=True) if not value]
        if missing:
            given = next(name for name, value in zip(names, values, strict=True) if value)
            raise ValueError(
                f"{given} is set but {missing[0]} is not; a job of several processes needs "
                f"{', '.join(names)} in each of them"
            )
        return _checked(names, values)
    return _detected()


def _checked(names: tuple[str, ...], values: tuple[str, ...]) -> Job | None:
    address, count, number = values
    if not re.fullmatch(r"(\[[^\]]+\]|[^:]+):\d+", address):
        raise ValueError(f"{names[0]} = {address!r}: expected host:port, such as 10.0.0.2:8476")
    for name, value in zip(names[1:], values[1:], strict=True):
        if not value.isdigit():
            raise ValueError(f"{name} = {value!r}: expected a whole number")
    if not 0 <= int(number) < int(count):
        raise ValueError(
            f"{names[2]} = {number} with {names[1]} = {count}: expected 0 to {int(count) - 1}"
        )
    return (address, int(count), int(number)) if int(count) > 1 else None


def _detected() -> Job | None:
    """What jax's own cluster detection finds, asked only where there is something to find."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    # With JAX_PLATFORMS=cpu a TPU VM is a plain machine, for rehearsals.
    tpu = (not platforms or "tpu" in platforms) and jax_cluster.on_tpu_vm()
    slurm = "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    indexed = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
    if not (tpu or slurm or indexed):
        return None
    found = jax_cluster.detect(int(_join_seconds()))
    if found is None:
        return UNTOLD
    address, count, number = found
    if address is None or count is None or number is None:
        if slurm:
            raise ValueError(
                f"a Slurm step of {os.environ['SLURM_NTASKS']} tasks, but jax could not read its "
                f"nodes; start with srun, or set {', '.join(JOB_VARIABLES)}"
            )
        return None
    return (address, count, number) if count > 1 else None


def _join_seconds() -> float:
    return float(os.environ.get("IVJ_JOIN_SECONDS", JOIN_SECONDS))


def initialize(
    coordinator: str = "", processes: int = 0, process: int = -1, *, notices: bool = True
) -> peers.Peers | None:
    """Joins the other processes of the job; must run before any device is touched.

    Args:
      coordinator, processes, process: as `find_job`.
      notices: whether SIGTERM is taken as a notice that `stop_after` hands to all processes; else
        it ends the process.

    Raises:
      ValueError: a job that is only partly described.
      RuntimeError: the processes do not come together in the time of IVJ_JOIN_SECONDS.
    """
    job = find_job(coordinator, processes, process)
    if job is None:
        return None
    timeout = _join_seconds()
    others = None if job == UNTOLD else peers.meet(*job, timeout)
    jax.config.update("jax_enable_preemption_service", notices)
    if job == UNTOLD:
        jax_cluster.join(int(timeout) + 1, JOB_VARIABLES)
    else:
        jax.distributed.initialize(*job, initialization_timeout=int(timeout) + 1)
    local = jax.local_devices()
    print(
        f"process {jax.process_index()} of {jax.process_count()}: {len(local)} local devices "
        f"({local[0].device_kind}), {jax.device_count()} in all; "
        f"coordinator {job[0] or 'of jax'}",
        flush=True,
    )
    return others


@contextlib.contextmanager
def joined(
    coordinator: str = "",
    processes: int = 0,
    process: int = -1,
    *,
    notices: bool = True,
    safe: Callable[[], str] = lambda: "",
) -> Iterator[None]:
    """`initialize`, and while the context lasts the end of any process ends all of them.

    A process that loses another one prints what happened and exits with AGAIN, or with the code of
    the other one when that had an error that would come again. An `AllEnd`, which every process
    raises, goes on from here in the main one only; the others exit with its code and say nothing.

    Args:
      safe: says what is on disk, for that message.
    """
    others = initialize(coordinator, processes, process, notices=notices)
    if jax.process_count() == 1:
        yield
        return

    def end(what: str, code: int | None) -> None:
        ends = code in (ExitCode.USAGE, ExitCode.FAILED, ExitCode.BUG)
        advice = "" if ends else "start all processes with the same command to go on"
        text = "; ".join(filter(None, (what, safe(), advice)))
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} ends: {text}",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        # The main thread may stand in a collective that never returns.
        os._exit(code if code is not None and ends else ExitCode.AGAIN)

    if others is not None:
        others.watch(end)
    try:
        yield
    except AllEnd as error:
        main = is_main()
        # Waits for all: the main process may still be writing a report.
        jax.distributed.shutdown()
        if others is not None:
            others.leave()
        if main:
            raise
        sys.stdout.flush()
        os._exit(exit_code_of(error))
    except BaseException as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        if BROKEN.search(text) and not isinstance(error, KeyboardInterrupt):
            # The collective saw it first. Who it was comes over the connection, and ends us there.
            time.sleep(3.0 if others is not None else 0.0)
            if others is not None:
                others.leave(text)
            end(f"another process or its host is probably gone ({text})", None)
        if others is not None:
            others.leave(text, exit_code_of(error))
        # On its way out jax would wait for the others, which end without its knowledge.
        atexit.register(_exit_at_once)
        raise
    if others is not None:
        others.leave()


def _exit_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ExitCode.BUG)


def to_global(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Global arrays from the rows of this process; every array is split along its first axis."""
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def to_host(tree: Tree) -> Any:
    """numpy copies of (possibly sharded) arrays, whole on every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, jax.device_get(tree))
    return multihost_utils.process_allgather(tree, tiled=True)


def any_process(flag: bool) -> bool:
    """True on all processes when it is on one. Every process must call it at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def takes_notices() -> bool:
    """Whether jax's coordination service passes a SIGTERM of one process on to all."""
    started = jax.distributed.is_initialized() and jax.process_count() > 1
    # With this setting jax starts that service; `initialize` sets it.
    return started and bool(jax.config.jax_enable_preemption_service)  # pyright: ignore


def stop_after(step: int, requested: bool, *, agree: bool) -> bool:
    """Whether to save and stop after this step; the same answer on all processes.

    Every process must call it after every step. With `takes_notices` that costs no exchange: the
    service agrees in the background on a step that no process has reached yet.

    Args:
      requested: whether this process was asked to stop.
      agree: whether the processes may exchange the flag now, where there are no notices.
    """
    if jax.process_count() == 1:
        return requested
    if takes_notices():
        return multihost_utils.reached_preemption_sync_point(step)
    return agree and any_process(requested)


def is_main() -> bool:
    """True on the one process that prints and writes files."""
    return jax.process_index() == 0


def say(text: str, file: TextIO | None = None) -> None:
    """Prints on the main process, at once."""
    if is_main():
        print(text, file=file or sys.stdout, flush=True)
