"""Jobs in an experiment of XManager's, where that package is installed (`pip install xmanager`).

XManager keeps the experiment and its jobs in its own store and runs them on this machine: as
processes, or as containers of an image by Docker. Its executors for Google Cloud know no TPU after
v3, so slices are rented by our own (tpu_vm.sh, JobSets).
"""

from __future__ import annotations

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
    executor = xm_local.Local()
    with xm_local.create_experiment(experiment_title=title) as experiment:
        spec = xm.Container(image_path=image) if image else xm.Binary(path=sys.executable)
        (executable,) = experiment.package(
            [xm.Packageable(executable_spec=spec, executor_spec=xm_local.Local.Spec())]
        )
        for name, (interpreter, *words) in jobs:
            arguments = [interpreter, *words] if image else list(words)
            job = xm.Job(
                executable=executable,
                executor=executor,
                name=name,
                args=arguments,
                env_vars=dict(variables or {}),
            )
            experiment.add(job, identity=name)
        units = [experiment.work_units[number] for number in sorted(experiment.work_units)]
    return int(any(not unit.get_status().is_completed for unit in units))


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
