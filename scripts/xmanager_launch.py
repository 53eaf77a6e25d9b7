"""Launches an experiment, one run or a sweep, on this machine, on TPU VMs or on GKE.

    python scripts/xmanager_launch.py --name=lr --config=configs/videomae/pretrain.py:size=base \\
        --workdir=/mnt/shared/lr --set=optim.lr=1e-3,3e-4 --set=seed=0 \\
        --executor=gke --slice=v5e:4x4 --image=IMAGE --emit=job.yaml

or of another command, with what all its runs have behind --:

    python scripts/xmanager_launch.py --name=features --executor=tpu-vm --slice=v5e:2x4 -- \\
        ivj extract --checkpoint=gs://BUCKET/run --out=gs://BUCKET/features

Before anything is rented or submitted the command line and the recipe are checked, and whether it
fits the slice. The model is XManager's: an experiment holds jobs, an executor says where they run.
The package itself is needed for --executor=xmanager only; the same parts can be used from Python:
Experiment, Local, TpuVm, Gke, XManager.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from internvideo_jax.launch import xmanager_jobs
from internvideo_jax.launch.cloud import CloudSlice
from internvideo_jax.launch.experiment import Experiment, Job, split, worker_command
from internvideo_jax.launch.jobset import manifest, pod_of, yaml_text

SCRIPTS = Path(__file__).resolve().parent
MOUNT = "/mnt/shared"  # as in tpu_vm.sh


class Executor(Protocol):
    """Where the jobs of an experiment run."""

    def launch(self, experiment: Experiment, *, dry_run: bool) -> int:
        """Runs, or prints what would run; returns an exit code."""
        ...


@dataclasses.dataclass(frozen=True)
class Local:
    """Processes of this machine, by sweep.py."""

    parallel: int = 1
    restarts: int = 0

    def launch(self, experiment: Experiment, *, dry_run: bool) -> int:
        if not experiment.sweep:
            (job,) = experiment.jobs()
            return run(worker_command(job.arguments, restarts=self.restarts), dry_run)
        fixed = {field: [value] for field, value in experiment.overrides}
        return run(
            [
                "python",
                str(SCRIPTS / "sweep.py"),
                *([f"--config={experiment.config}"] if experiment.config else []),
                f"--out={experiment.workdir}",
                *(
                    f"--set={field}={json.dumps(list(values))}"
                    for field, values in {**fixed, **experiment.sweep}.items()
                ),
                *(["--zip"] if experiment.zipped else []),
                f"--parallel={self.parallel}",
                f"--restarts={self.restarts}",
                *(["--", *experiment.command] if experiment.command else []),
            ],
            dry_run,
        )


@dataclasses.dataclass(frozen=True)
class TpuVm:
    """One TPU VM slice per job, by tpu_vm.sh."""

    slice: CloudSlice
    restarts: int = 3
    options: tuple[str, ...] = ()  # of tpu_vm.sh launch: --spot, --queued, --nfs=...

    def command(self, name: str, job: Job, command: str = "launch") -> list[str]:
        """The one command that rents a slice and starts the job on it, or another of the script."""
        return [
            str(SCRIPTS / "tpu_vm.sh"),
            command,
            name,
            f"--slice={self.slice.name}",
            f"--restarts={self.restarts}",
            *self.options,
            "--",
            *job.arguments,
        ]

    def launch(self, experiment: Experiment, *, dry_run: bool) -> int:
        jobs = named(experiment)
        # The script checks the one it launches; a fault of a later one would come too late.
        for name, job in covering(jobs) if len(jobs) > 1 and not dry_run else ():
            code = subprocess.run(self.command(name, job, "check"), check=False).returncode
            if code:
                return code
        for name, job in jobs:
            command = self.command(name, job)
            print(f"# {shlex.join(command)}", flush=True)
            # The script has a dry run of its own, which shows every step.
            command[3:3] = ["--dry-run"] if dry_run else []
            code = subprocess.run(command, check=False).returncode
            if code:
                return code
        return 0


@dataclasses.dataclass(frozen=True)
class Gke:
    """One JobSet per job on a GKE cluster, by kubectl or XPK."""

    slice: CloudSlice
    image: str  # with this package installed, started in the directory of the checkout
    restarts: int = 3
    grace: int = 300  # seconds between SIGTERM and SIGKILL, for saving
    nfs: str = ""  # HOST:/EXPORT, mounted as MOUNT
    spot: bool = False
    submit: str = "kubectl"  # or xpk
    cluster: str = ""  # of xpk
    emit: str = ""  # write the manifest to this file and submit nothing
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    checks: tuple[str, ...] = ()  # of preflight: --extras=..., --price=..., --records=...

    def __post_init__(self) -> None:
        if not self.image:
            raise ValueError("--executor=gke needs --image, with this package installed in it")
        if self.submit == "xpk" and not self.cluster:
            raise ValueError("--submit=xpk needs --cluster")
        if self.submit == "xpk" and (self.nfs or self.emit or self.spot or self.variables):
            raise ValueError(
                "--nfs, --emit, --spot and --env are for --submit=kubectl; with xpk storage and "
                "kind of nodes are those of its cluster"
            )
        if self.nfs and ":/" not in self.nfs:
            raise ValueError(f"--nfs={self.nfs}: expected HOST:/EXPORT")
        if self.grace < 30:
            raise ValueError(f"--grace={self.grace}: expected at least 30 seconds to save in")

    def manifest(self, name: str, job: Job) -> dict[str, Any]:
        """The JobSet of one job."""
        pod = pod_of(
            worker_command(job.arguments, restarts=self.restarts),
            self.slice,
            self.image,
            grace=self.grace,
            nfs=(self.nfs, MOUNT),
            spot=self.spot,
            variables=self.variables,
        )
        return manifest(name, pod, self.slice, self.restarts)

    def xpk(self, name: str, job: Job) -> list[str]:
        """The command of XPK for one job."""
        return [
            "xpk",
            "workload",
            "create",
            f"--cluster={self.cluster}",
            f"--workload={name}",
            f"--tpu-type={self.slice.accelerator_type}",
            "--num-slices=1",
            f"--docker-image={self.image}",
            f"--max-restarts={self.restarts}",
            f"--termination-grace-period-seconds={self.grace}",
            f"--command={shlex.join(worker_command(job.arguments, restarts=self.restarts))}",
        ]

    def launch(self, experiment: Experiment, *, dry_run: bool) -> int:
        jobs = named(experiment)
        for _, job in jobs if not experiment.command else ():
            check_shared(job.workdir, self.slice.nodes, self.slice.name)
        if not (dry_run or self.emit):
            present(self.submit)
        target = f"--slice={self.slice.name}", f"--hosts={self.slice.nodes}", "--jax=tpu"
        words = [*target, *self.checks]
        warn = ["--dry-run"] if dry_run or self.emit else []
        for _, job in covering(jobs):
            code = preflight([*words, *warn], job)
            if code:
                return code
        if self.submit == "xpk":
            codes = [run(self.xpk(name, job), dry_run) for name, job in jobs]
            return max(codes)
        text = "---\n".join(yaml_text(self.manifest(name, job)) for name, job in jobs)
        command = ["kubectl", "apply", f"--filename={self.emit or '-'}"]
        if dry_run:
            print(f"{text}# {shlex.join(command)}")
            return 0
        if self.emit:
            Path(self.emit).write_text(text)
            print(f"wrote {self.emit}; start it with: {shlex.join(command)}")
            return 0
        return run(command, dry_run, text)


@dataclasses.dataclass(frozen=True)
class XManager:
    """All jobs at once in one experiment of XManager's, on this machine."""

    image: str = ""  # run them in containers of it
    restarts: int = 0
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    checks: tuple[str, ...] = ()

    def launch(self, experiment: Experiment, *, dry_run: bool) -> int:
        jobs = named(experiment)
        for _, job in covering(jobs):
            code = preflight(["--here", *self.checks, *(["--dry-run"] if dry_run else [])], job)
            if code:
                return code
        commands = [
            (name, worker_command(job.arguments, restarts=self.restarts)) for name, job in jobs
        ]
        if dry_run:
            print(
                xmanager_jobs.shown(
                    experiment.name, commands, image=self.image, variables=self.variables
                )
            )
            return 0
        return xmanager_jobs.launch(
            experiment.name, commands, image=self.image, variables=self.variables
        )


def covering(jobs: Sequence[tuple[str, Job]]) -> Iterator[tuple[str, Job]]:
    """As few jobs of a sweep as have every value of every field."""
    seen: set[str] = set()
    for name, job in jobs:
        words = {word for word in job.arguments if word.startswith("--config")}
        if not seen or words - seen:
            yield name, job
        seen |= {*words, ""}


def preflight(options: Sequence[str], job: Job) -> int:
    """Checks one job; what it needs and what is wrong is on the standard error stream."""
    module = [sys.executable, "-m", "internvideo_jax.launch.preflight"]
    found = subprocess.run(
        [*module, *options, "--", *job.arguments], check=False, stdout=subprocess.PIPE, text=True
    )
    if found.returncode == 0 and (wanted := found.stdout.splitlines()[-1]):
        print(f"check: the workers need internvideo-jax[{wanted}]", file=sys.stderr, flush=True)
    return found.returncode


def present(name: str) -> None:
    """ValueError for a program that is not on this machine."""
    if shutil.which(name) is None:
        raise ValueError(f"{name} is not installed; --dry-run shows what it would do")


def variables_of(items: Sequence[str]) -> dict[str, str]:
    """Values of --env=NAME=VALUE, or of --env=NAME the one of this shell.

    Raises:
      ValueError: no name, or one that is not set here.
    """
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"--env={item}: expected NAME or NAME=VALUE")
        if not equals and name not in os.environ:
            raise ValueError(f"--env={name}: it is not set here; expected --env={name}=VALUE")
        found[name] = value if equals else os.environ[name]
    return found


def named(experiment: Experiment) -> list[tuple[str, Job]]:
    """(name in a cluster, job): runs of a sweep are numbered."""
    jobs = experiment.jobs()
    if len(jobs) == 1:
        return [(experiment.name, jobs[0])]
    return [(f"{experiment.name}-{number}", job) for number, job in enumerate(jobs)]


def check_shared(workdir: str, hosts: int, name: str) -> None:
    if not workdir.startswith("/") and "://" not in workdir:
        raise ValueError(
            f"--workdir={workdir}: {name} has {hosts} host{'s' * (hosts > 1)} whose own disks are "
            "lost with them; expected a place in a bucket, such as gs://BUCKET/RUN, or an absolute "
            f"directory that all see, such as {MOUNT}/RUN"
        )


def run(command: Sequence[str], dry_run: bool, stdin: str | None = None) -> int:
    """Prints a command and, unless it is a dry run, runs it; its exit code."""
    print(shlex.join(command), flush=True)
    if dry_run:
        return 0
    full = [sys.executable, *command[1:]] if command[0] == "python" else list(command)
    present(full[0])
    return subprocess.run(full, input=stdin, text=True, check=False).returncode


# Flag -> the executors that it is for.
OF = {
    "slice": ("tpu-vm", "gke"),
    "spot": ("tpu-vm", "gke"),
    "nfs": ("tpu-vm", "gke"),
    "extras": ("tpu-vm", "gke", "xmanager"),
    "price": ("tpu-vm", "gke"),
    "records": ("tpu-vm", "gke"),
    "env": ("tpu-vm", "gke", "xmanager"),
    "project": ("tpu-vm",),
    "zone": ("tpu-vm",),
    "queued": ("tpu-vm",),
    "image": ("gke", "xmanager"),
    "emit": ("gke",),
    "cluster": ("gke",),
}


def executor(options: argparse.Namespace) -> Executor:
    """The executor of the flags; ValueError for flags of another one."""
    kind = options.executor
    for flag, kinds in OF.items():
        if getattr(options, flag) and kind not in kinds:
            raise ValueError(f"--{flag} is for --executor={' or '.join(kinds)}, not {kind}")
    if kind == "local":
        return Local(options.parallel, options.restarts)
    given = ("extras", "price", "records")
    checks = tuple(f"--{flag}={getattr(options, flag)}" for flag in given if getattr(options, flag))
    if kind == "xmanager":
        return XManager(options.image, options.restarts, variables_of(options.env), checks)
    if not options.slice:
        raise ValueError(f"--executor={kind} needs --slice, for example --slice=v5e:16x16")
    target = CloudSlice(options.slice)
    if kind == "tpu-vm":
        flags = [f"--{name}" for name in ("spot", "queued") if getattr(options, name)]
        for name in ("project", "zone", "nfs"):
            if getattr(options, name):
                flags.append(f"--{name}={getattr(options, name)}")
        flags += [*checks, *(f"--env={item}" for item in options.env)]
        return TpuVm(target, options.restarts, tuple(flags))
    return Gke(
        target,
        image=options.image,
        restarts=options.restarts,
        grace=options.grace,
        nfs=options.nfs,
        spot=options.spot,
        submit=options.submit,
        cluster=options.cluster,
        emit=options.emit,
        variables=variables_of(options.env),
        checks=checks,
    )


def parser() -> argparse.ArgumentParser:
    """The options before `--`."""
    result = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit code 2: a wrong command line; otherwise that of what was run.",
    )
    add = result.add_argument
    add("--name", required=True, help="of the experiment, also in the cluster")
    add("--config", default="", help="recipe, as for ivj train")
    add("--workdir", default="", help="of the run (--out of others); a sweep puts runs below it")
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=V1,V2",
        help="value of a config field; several values are swept over (as in sweep.py)",
    )
    add("--zip", action="store_true", help="first values together, then second...")
    add("--executor", choices=["local", "tpu-vm", "gke", "xmanager"], default="local")
    add("--restarts", type=int, default=3, help="of a run that fails")
    add("--dry-run", action="store_true", help="print what would run")
    add("--parallel", type=int, default=1, help="local: runs at a time")
    add("--slice", default="", help="tpu-vm, gke: as for compile_check")
    add("--spot", action="store_true", help="tpu-vm, gke: may be taken away")
    add("--nfs", default="", help=f"tpu-vm, gke: HOST:/EXPORT, seen as {MOUNT}")
    add("--extras", default="", help="tpu-vm, gke, xmanager: further ones of the package")
    add("--env", action="append", default=[], metavar="NAME[=VALUE]", help="variable of the jobs")
    add("--price", type=float, default=0.0, help="tpu-vm, gke: of a chip-hour, for the cost")
    add("--records", default="", help="tpu-vm, gke: clips of the training set, or its name")
    add("--project", default="", help="tpu-vm")
    add("--zone", default="", help="tpu-vm")
    add("--queued", action="store_true", help="tpu-vm: as queued resource")
    add("--image", default="", help="gke, xmanager: container image with this package")
    add("--grace", type=int, default=300, help="gke: seconds for saving")
    add("--submit", choices=["kubectl", "xpk"], default="kubectl", help="gke")
    add("--cluster", default="", help="gke with xpk")
    add("--emit", default="", help="gke: write the JobSet to this file only")
    return result


def main() -> int:
    own, _, command = split(sys.argv[1:])
    options = parser().parse_args(own)
    try:
        if not command and not (options.config and options.workdir):
            raise ValueError(
                "expected --config and --workdir of a training, or a command behind --, such as "
                "-- ivj evaluate --checkpoint=... --out=..."
            )
        if len(options.set) and not options.workdir:
            raise ValueError("--set needs --workdir, below which every run of a sweep has a folder")
        experiment = Experiment.from_sets(
            options.name, options.config, options.workdir, options.set, options.zip, command
        )
        return executor(options).launch(experiment, dry_run=options.dry_run)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
