"""Jobs in an experiment of XManager's, where that package is installed (`pip install xmanager`).

XManager keeps the experiment and its jobs in its own store and runs them on this machine: as
processes, or as containers of an image by Docker. Its executors for Google Cloud know no TPU after
v3, so slices are rented by our own (tpu_vm.sh, JobSets).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shlex
import sys
from collections.abc import Mapping, Sequence


def launch(
    title: str,
    jobs: Sequence[tuple[str, Sequence[str]]],
    *,
    image: str = "",
    variables: Mapping[str, str] | None = None,
) -> int:
    """Runs the jobs, all at once, and waits for them; 0 when all ended well, else 1.

    Args:
      title: of the experiment.
      jobs: (name, command) of each; the first word of a command is the interpreter, which is this
        one, or the image's.
      image: run them in containers of it.
      variables: of their environment.

    Raises:
      ValueError: the package is missing, or an image that Docker does not find.
    """
    if importlib.util.find_spec("xmanager") is None:
        raise ValueError(
            "--executor=xmanager needs the package xmanager: pip install xmanager; --dry-run shows "
            "what it would do without"
        )
    from absl import flags
    from xmanager import xm, xm_local  # pyright: ignore[reportMissingImports]

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])  # XManager's own, at their defaults
    executor, ended = xm_local.Local(), []

    async def run() -> None:
        async with xm_local.create_experiment(experiment_title=title) as experiment:
            spec = xm.Container(image_path=image) if image else xm.Binary(path=sys.executable)
            wanted = xm.Packageable(executable_spec=spec, executor_spec=xm_local.Local.Spec())
            try:
                (executable,) = experiment.package([wanted])
            except Exception as error:  # whatever Docker and XManager raise
                raise ValueError(
                    f"--image={image}: Docker does not give it to XManager ({error}); build or "
                    "pull it here, or leave --image out to run processes"
                ) from error
            units = [
                await experiment.add(
                    xm.Job(
                        executable=executable,
                        executor=executor,
                        name=name,
                        args=list(command if image else command[1:]),
                        env_vars=dict(variables or {}),
                    )
                )
                for name, command in jobs
            ]
            # All of them, as leaving the experiment ends those that a failed one left alone.
            waited = (unit.wait_until_complete() for unit in units)
            ended.extend(await asyncio.gather(*waited, return_exceptions=True))

    with contextlib.suppress(RuntimeError):  # it says again that a job failed
        asyncio.run(run())
    failed = [str(each) for each in ended if isinstance(each, BaseException)]
    for text in failed:
        print(f"error: {text}", file=sys.stderr, flush=True)
    return int(bool(failed) or len(ended) < len(jobs))


def shown(
    title: str,
    jobs: Sequence[tuple[str, Sequence[str]]],
    *,
    image: str = "",
    variables: Mapping[str, str] | None = None,
) -> str:
    """What `launch` would add to the experiment, one line for each job."""
    kind = f"xm.Container({image})" if image else "xm.Binary(python)"
    names = " ".join(variables or {})
    head = f"# XManager experiment {title}: {len(jobs)} x {kind} by xm_local.Local"
    lines = [f"{name}: {shlex.join(command)}" for name, command in jobs]
    return "\n".join([head + (f" with {names}" if names else ""), *lines])
