"""Programs of clouds and clusters that do here, in a folder, what they are told to do there.

`python stand_in.py PROGRAM ARGUMENTS`, with STAND_IN as the folder. Every call is kept as a line
of `calls.jsonl` there.

gcloud: a TPU VM is a folder `vm/NAME`; ssh runs its command there, scp copies.
uv: makes an environment whose Python is this one, with the checkout that is installed into it.
sbatch, srun: run the job at once, as Slurm would on one node.
kubectl: runs the container of every pod of a JobSet, in `pod/NAME`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(os.environ["STAND_IN"])
PYTHON = os.environ["STAND_IN_PYTHON"]
CHECKOUT = os.environ["STAND_IN_CHECKOUT"]


def value(words: Sequence[str], flag: str) -> str:
    return next((word.partition("=")[2] for word in words if word.startswith(f"{flag}=")), "")


def sandbox(kind: str, name: str) -> Path:
    folder = FOLDER / kind / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def gcloud(words: list[str]) -> int:
    group, action, name, *rest = words[2:]
    if (group, action) == ("tpu-vm", "create"):
        sandbox("vm", name)
    elif (group, action) == ("tpu-vm", "delete"):
        shutil.rmtree(sandbox("vm", name))
    elif action == "describe":
        print("READY")
    elif action == "ssh":
        command = value(rest, "--command")
        return subprocess.run(["bash", "-c", command], cwd=sandbox("vm", name)).returncode
    elif action == "scp":
        source, target = [word for word in (name, *rest) if not word.startswith("--")]
        recursive = "--recurse" in (name, *rest)
        there, _, path = (source if recursive else target).partition(":")
        remote = sandbox("vm", there) / path
        if recursive:
            shutil.copytree(remote, Path(target) / remote.name)
        else:
            shutil.copy(source, remote)
    else:
        print(f"stand-in: no {words}", file=sys.stderr)
        return 1
    return 0


def python3(words: list[str]) -> int:
    """The Python of a worker, which is asked for uv only."""
    if words != ["-m", "pip", "install", "--user", "--quiet", "uv"]:
        print(f"stand-in: no python3 {words}", file=sys.stderr)
        return 1
    write(Path(".local/bin/uv"), f'exec {shlex.quote(PYTHON)} {shlex.quote(__file__)} uv "$@"')
    return 0


def uv(words: list[str]) -> int:
    if words[0] == "venv":
        write(Path(words[-1]) / "bin/python", "echo 'nothing is installed' >&2; exit 1")
        return 0
    if words[:2] == ["pip", "install"]:
        target, what = Path(value(words, "--python")), words[-1]
        checkout = Path(what.partition("[")[0]).resolve()
        line = f'exec env PYTHONPATH={checkout} {shlex.quote(PYTHON)} "$@"'
        write(target, line)
        return 0
    return 1


def sbatch(words: list[str]) -> int:
    print("Submitted batch job 7")
    job = dict(os.environ, SLURM_JOB_ID="7")
    with open("slurm-7.log", "wb") as log:
        done = subprocess.run(["bash", words[-1]], env=job, stdout=log, stderr=log)
    return done.returncode


def srun(words: list[str]) -> int:
    command = words[next(i for i, word in enumerate(words) if not word.startswith("-")) :]
    return subprocess.run(
        [PYTHON if command[0] == "python" else command[0], *command[1:]]
    ).returncode


def kubectl(words: list[str]) -> int:
    import yaml

    for job in yaml.safe_load_all(sys.stdin.read()):
        (group,) = job["spec"]["replicatedJobs"]
        template = group["template"]["spec"]
        (container,) = template["template"]["spec"]["containers"]
        variables = {each["name"]: each["value"] for each in container.get("env", ())}
        for pod in range(template["completions"]):
            name = f"{job['metadata']['name']}-{pod}"
            command = [PYTHON, *container["command"][1:]]
            with open(sandbox("pod", name) / "log", "wb") as log:
                done = subprocess.run(
                    command, cwd=sandbox("pod", name), stdout=log, stderr=log,
                    env={**os.environ, **variables, "PYTHONPATH": CHECKOUT},
                )  # fmt: skip
            if done.returncode:
                return done.returncode
    return 0


def write(path: Path, line: str) -> None:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/bash\n{line}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def main() -> int:
    name, *words = sys.argv[1:]
    with open(FOLDER / "calls.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps([name, *words]) + "\n")
    return globals()[name](words)


if __name__ == "__main__":
    sys.exit(main())
