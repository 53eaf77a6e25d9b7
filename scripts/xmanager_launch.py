"""Launches an experiment, one run or a sweep, on this machine, on TPU VMs or on GKE.

    python scripts/xmanager_launch.py --name=lr --config=configs/videomae/pretrain.py:size=base \\
        --workdir=/mnt/shared/lr --set=optim.lr=1e-3,3e-4 --set=seed=0 \\
        --executor=gke --slice=v5e:4x4 --image=IMAGE --emit=job.yaml

The model is XManager's: an experiment holds jobs, an executor says where they run. The package
xmanager is not needed; the same parts can be used from Python: Experiment, Local, TpuVm, Gke.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_pipelines.commands.exit_codes import ExitCode, starts_again
from internvideo_jax.launch.cloud import CloudSlice
from internvideo_jax.launch.experiment import Experiment, Job, worker_command

SCRIPTS = Path(__file__).resolve().parent
MOUNT = "/mnt/shared"  # as in tpu_vm.sh
HOPELESS = sorted(
    int(code) for code in ExitCode if code != ExitCode.GOOD and not starts_again([code] * 2, 3)
)


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
                f"--config={experiment.config}",
                f"--out={experiment.workdir}",
                *(
                    f"--set={field}={json.dumps(list(values))}"
                    for field, values in {**fixed, **experiment.sweep}.items()
                ),
                *(["--zip"] if experiment.zipped else []),
                f"--parallel={self.parallel}",
                f"--restarts={self.restarts}",
            ],
            dry_run,
        )


@dataclasses.dataclass(frozen=True)
class TpuVm:
    """One TPU VM slice per job, by tpu_vm.sh."""

    slice: CloudSlice
    restarts: int = 3
    options: tuple[str, ...] = ()  # of tpu_vm.sh launch: --spot, --queued, --nfs=...

    def command(self, name: str, job: Job) -> list[str]:
        """The one command that rents a slice and starts the job on it."""
        return [
            str(SCRIPTS / "tpu_vm.sh"),
            "launch",
            name,
            f"--slice={self.slice.name}",
            f"--restarts={self.restarts}",
            *self.options,
            "--",
            *job.arguments,
        ]

    def launch(self, experiment: Experiment, *, dry_run: bool) -> int:
        for name, job in named(experiment):
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

    def __post_init__(self) -> None:
        if not self.image:
            raise ValueError("--executor=gke needs --image, with this package installed in it")
        if self.submit == "xpk" and not self.cluster:
            raise ValueError("--submit=xpk needs --cluster")
        if self.submit == "xpk" and (self.nfs or self.emit or self.spot):
            raise ValueError(
                "--nfs, --emit and --spot are for --submit=kubectl; with xpk storage and kind of "
                "nodes are those of its cluster"
            )
        if self.nfs and ":/" not in self.nfs:
            raise ValueError(f"--nfs={self.nfs}: expected HOST:/EXPORT")
        if self.grace < 30:
            raise ValueError(f"--grace={self.grace}: expected at least 30 seconds to save in")

    def manifest(self, name: str, job: Job) -> dict[str, Any]:
        """The JobSet: one pod per host, restarted together when one is lost."""
        chips = {"google.com/tpu": self.slice.chips_per_node}
        selector = {
            "cloud.google.com/gke-tpu-accelerator": self.slice.generation.node_label,
            "cloud.google.com/gke-tpu-topology": self.slice.topology,
        }
        tolerations = []
        if self.spot:
            label = "cloud.google.com/gke-spot"
            selector[label] = "true"
            taint = {"key": label, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
            tolerations.append(taint)
        # Data workers hand over batches in shared memory, of which a pod has 64 MB otherwise.
        volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
        mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
        if self.nfs:
            server, _, path = self.nfs.partition(":")
            volumes.append({"name": "shared", "nfs": {"server": server, "path": path}})
            mounts.append({"name": "shared", "mountPath": MOUNT})
        pod = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.grace,
            "nodeSelector": selector,
            "tolerations": tolerations,
            "containers": [
                {
                    "name": "train",
                    "image": self.image,
                    "command": worker_command(job.arguments, restarts=self.restarts),
                    "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
                    "resources": {"requests": chips, "limits": chips},
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        }
        # What would come again; the launcher in the pod has tried again what may be tried once.
        hopeless = {
            "action": "FailJob",
            "onExitCodes": {"containerName": "train", "operator": "In", "values": HOPELESS},
        }
        failed = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
        hosts = self.slice.nodes
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {
                "name": name,
                "annotations": {
                    # One slice is one node pool; no other job may take nodes of it.
                    "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
                },
            },
            "spec": {
                "failurePolicy": {"maxRestarts": self.restarts, "rules": [failed]},
                "replicatedJobs": [
                    {
                        "name": "slice",
                        "replicas": 1,
                        "template": {
                            "spec": {
                                "completionMode": "Indexed",
                                "completions": hosts,
                                "parallelism": hosts,
                                "backoffLimit": 0,
                                "podFailurePolicy": {"rules": [hopeless]},
                                "template": {"spec": pod},
                            }
                        },
                    }
                ],
            },
        }

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
        for _, job in jobs:
            check_shared(job.workdir, self.slice.nodes, self.slice.name)
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


def named(experiment: Experiment) -> list[tuple[str, Job]]:
    """(name in a cluster, job): runs of a sweep are numbered."""
    jobs = experiment.jobs()
    if len(jobs) == 1:
        return [(experiment.name, jobs[0])]
    return [(f"{experiment.name}-{number}", job) for number, job in enumerate(jobs)]


def check_shared(workdir: str, hosts: int, name: str) -> None:
    if not workdir.startswith("/"):
        raise ValueError(
            f"--workdir={workdir}: {name} has {hosts} host{'s' * (hosts > 1)} whose own disks are "
            f"lost with them; expected an absolute directory that all see, such as {MOUNT}/RUN"
        )


def run(command: Sequence[str], dry_run: bool, stdin: str | None = None) -> int:
    """Prints a command and, unless it is a dry run, runs it; its exit code."""
    print(shlex.join(command), flush=True)
    if dry_run:
        return 0
    full = [sys.executable, *command[1:]] if command[0] == "python" else list(command)
    try:
        return subprocess.run(full, input=stdin, text=True, check=False).returncode
    except FileNotFoundError as error:
        raise ValueError(
            f"{command[0]} is not installed; --dry-run shows what it would do"
        ) from error


def yaml_text(value: Any, indent: str = "") -> str:
    """Mappings and lists as block YAML, strings quoted as in JSON (which YAML reads).

    But for characters beyond 16 bits, of which JSON makes two escapes and YAML one.
    """
    lines = ""
    items = value.items() if isinstance(value, Mapping) else ((None, one) for one in value)
    for key, item in items:
        head = (
            f"{indent}- " if key is None else f"{indent}{json.dumps(key) if '/' in key else key}:"
        )
        if not isinstance(item, Mapping | list) or not item:
            lines += f"{head}{'' if key is None else ' '}{_quoted(item)}\n"
        elif key is None:
            lines += head + yaml_text(item, f"{indent}  ").removeprefix(f"{indent}  ")
        else:
            lines += f"{head}\n{yaml_text(item, f'{indent}  ')}"
    return lines


def _quoted(item: Any) -> str:
    def one(pair: re.Match[str]) -> str:
        character = json.loads('"' + pair[0] + '"')
        return f"\\U{ord(character):08x}"

    return re.sub(r"\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}", one, json.dumps(item))


def executor(options: argparse.Namespace) -> Executor:
    """The executor of the flags; ValueError for flags of another one."""
    kind = options.executor
    for flag, kinds in {
        "slice": ("tpu-vm", "gke"),
        "spot": ("tpu-vm", "gke"),
        "nfs": ("tpu-vm", "gke"),
        "project": ("tpu-vm",),
        "zone": ("tpu-vm",),
        "queued": ("tpu-vm",),
        "image": ("gke",),
        "emit": ("gke",),
        "cluster": ("gke",),
    }.items():
        if getattr(options, flag) and kind not in kinds:
            raise ValueError(f"--{flag} is for --executor={' or '.join(kinds)}, not {kind}")
    if kind == "local":
        return Local(options.parallel, options.restarts)
    if not options.slice:
        raise ValueError(f"--executor={kind} needs --slice, for example --slice=v5e:16x16")
    target = CloudSlice(options.slice)
    if kind == "tpu-vm":
        flags = [f"--{name}" for name in ("spot", "queued") if getattr(options, name)]
        for name in ("project", "zone", "nfs"):
            if getattr(options, name):
                flags.append(f"--{name}={getattr(options, name)}")
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
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0] if __doc__ else "",
        epilog="Exit code 2: a wrong command line; otherwise that of what was run.",
    )
    parser.add_argument("--name", required=True, help="of the experiment, also in the cluster")
    parser.add_argument("--config", required=True, help="recipe, as for internvideo_jax.train")
    parser.add_argument("--workdir", required=True, help="of the run; a sweep puts runs below it")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=V1,V2",
        help="value of a config field; several values are swept over (as in sweep.py)",
    )
    parser.add_argument("--zip", action="store_true", help="first values together, then second...")
    parser.add_argument("--executor", choices=["local", "tpu-vm", "gke"], default="local")
    parser.add_argument("--restarts", type=int, default=3, help="of a run that fails")
    parser.add_argument("--dry-run", action="store_true", help="print what would run")
    parser.add_argument("--parallel", type=int, default=1, help="local: runs at a time")
    parser.add_argument("--slice", default="", help="tpu-vm, gke: as for compile_check")
    parser.add_argument("--spot", action="store_true", help="tpu-vm, gke: may be taken away")
    parser.add_argument("--nfs", default="", help=f"tpu-vm, gke: HOST:/EXPORT, seen as {MOUNT}")
    parser.add_argument("--project", default="", help="tpu-vm")
    parser.add_argument("--zone", default="", help="tpu-vm")
    parser.add_argument("--queued", action="store_true", help="tpu-vm: as queued resource")
    parser.add_argument("--image", default="", help="gke: container image with this package")
    parser.add_argument("--grace", type=int, default=300, help="gke: seconds for saving")
    parser.add_argument("--submit", choices=["kubectl", "xpk"], default="kubectl", help="gke")
    parser.add_argument("--cluster", default="", help="gke with xpk")
    parser.add_argument("--emit", default="", help="gke: write the JobSet to this file only")
    options = parser.parse_args()
    try:
        experiment = Experiment.from_sets(
            options.name, options.config, options.workdir, options.set, options.zip
        )
        return executor(options).launch(experiment, dry_run=options.dry_run)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
