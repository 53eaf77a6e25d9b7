"""scripts/tpu_vm.sh: the commands word by word, its errors, and what they do on the workers."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path

import pytest

from tests.scripts.conftest import CHECKED, ROOT, TRAIN, Script, program

IDLE = (
    'if test -e train.pid && kill -0 "$(cat train.pid)" 2>/dev/null; '
    "then echo 'a training is running; stop it first' >&2; exit 1; fi"
)


def lines(done) -> list[list[str]]:
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_launch_on_a_queued_slice(script: Script, tmp_path: Path):
    found = lines(
        script(
            "tpu_vm.sh",
            "launch",
            "big",
            "--dry-run",
            "--slice=v5e:16x16",
            "--queued",
            "--spot",
            "--project=my-project",
            "--nfs=10.0.0.2:/share",
            "--",
            *TRAIN,
            "--config.init_from=it's a file",
        )
    )
    where = ["--zone=us-west4-a", "--project=my-project"]
    tpus = ["gcloud", "compute", "tpus"]
    ssh = [*tpus, "tpu-vm", "ssh", "big", "--worker=all"]
    bundle = f"{tmp_path}/big.XXXXXXXX/big.bundle"
    worker = shlex.join(
        [
            *("../venv/bin/python", "-m", "internvideo_jax.launch", "--restarts=3", "--"),
            *("../venv/bin/python", "-m", "internvideo_jax.train", *TRAIN),
            "--config.init_from=it's a file",
        ]
    )
    assert found == [
        [*tpus, "queued-resources", "create", "big", "--node-id=big",
         "--accelerator-type=v5litepod-256", "--runtime-version=v2-alpha-tpuv5-lite", "--spot",
         *where],
        [*tpus, "queued-resources", "describe", "big", "--format=value(state.state)", *where],
        ["git", "-C", str(ROOT), "bundle", "create", "--quiet", bundle, "HEAD"],
        [*tpus, "tpu-vm", "scp", bundle, "big:internvideo.bundle", "--worker=all", *where],
        [*ssh, f"--command={IDLE}; test -d internvideo || git init --quiet internvideo; "
         "git -C internvideo fetch --quiet ../internvideo.bundle HEAD && "
         "git -C internvideo checkout --quiet --force --detach FETCH_HEAD", *where],
        [*ssh, "--command=python3 -m pip install --user --quiet uv && "
         ".local/bin/uv venv --quiet --allow-existing --python=3.12 venv && cd internvideo && "
         "../.local/bin/uv pip install --quiet --python=../venv/bin/python -e '.[tpu]'", *where],
        [*ssh, "--command=sudo apt-get install --quiet --yes nfs-common && "
         "sudo mkdir -p /mnt/shared && { mountpoint -q /mnt/shared || "
         "sudo mount -t nfs 10.0.0.2:/share /mnt/shared; } && sudo chmod 1777 /mnt/shared", *where],
        [*ssh, f"--command={IDLE}; cd internvideo && {{ setsid nohup {worker} "
         ">>../train.log 2>&1 </dev/null & echo $! >../train.pid; }", *where],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("slice", "kind", "version", "zone"),
    [
        ("v4:4x4x4", ["--type=v4", "--topology=4x4x4"], "tpu-ubuntu2204-base", "us-central2-b"),
        ("v5p:4x8x8", ["--type=v5p", "--topology=4x8x8"], "v2-alpha-tpuv5", "us-east5-a"),
        ("v6e:2x4", ["--accelerator-type=v6e-8"], "v2-alpha-tpuv6e", "us-east5-b"),
    ],
)
def test_create_names_the_slice_of_every_generation(script: Script, slice, kind, version, zone):
    (command,) = lines(script("tpu_vm.sh", "create", "a", "--dry-run", f"--slice={slice}"))
    assert command == [
        *("gcloud", "compute", "tpus", "tpu-vm", "create", "a"),
        *(*kind, f"--version={version}", f"--zone={zone}"),
    ]


def test_what_is_given_wins_over_the_table(script: Script):
    (command,) = lines(
        script(
            "tpu_vm.sh",
            "create",
            "a",
            "--dry-run",
            "--slice=v5p:4x8x8",
            "--accelerator-type=v5p-512",
            "--runtime-version=mine",
            "--zone=z",
            "--create-flag=--internal-ips",
        )
    )
    assert command[6:] == [
        *("--accelerator-type=v5p-512", "--version=mine", "--internal-ips", "--zone=z")
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["logs", "a", "--worker=3", "--follow"], ["ssh", "a", "--worker=3",
         "--command=tail -n 100 -f train.log"]),
        (["collect", "a", "--workdir=/mnt/shared/run", "--to=here"], ["scp", "--recurse",
         "a:/mnt/shared/run", "here", "--worker=0"]),
        (["collect", "a", "--workdir=runs/x"], ["scp", "--recurse", "a:internvideo/runs/x", "runs",
         "--worker=0"]),
        (["delete", "a", "--yes"], ["delete", "a", "--quiet"]),
        (["delete", "a"], ["delete", "a"]),
    ],
)  # fmt: skip
def test_the_commands_after_the_start(script: Script, arguments, expected):
    command = lines(script("tpu_vm.sh", *arguments, "--dry-run", "--zone=z"))[-1]
    assert command == ["gcloud", "compute", "tpus", "tpu-vm", *expected, "--zone=z"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lunch", "a"], "unknown command 'lunch'; known: launch create"),
        (["create", "A_b"], "'A_b': expected a name of lower-case letters"),
        (["create", "a", "--dry-run"], "create needs --slice, for example --slice=v5e:16x16"),
        (["create", "a", "--dry-run", "--slice=v5e:3x3"], "--slice=v5e:3x3: there is no"),
        (["create", "a", "--dry-run", "--slice=v5x:3x3"], "unknown chip 'v5x': did you mean"),
        (["create", "a", "--dry-run", "--slic=v5e:3x3"], "unknown option '--slic=v5e:3x3'"),
        (["create", "a", "--slice=v5e:2x2"], "gcloud is not installed; see https://cloud"),
        (["run", "a", "--dry-run", "--", "--config=x"], "no --workdir for the training"),
        (["run", "a", "--dry-run", "--slice=v5e:4x4", "--", "--config=x", "--workdir=r"],
         "v5e:4x4 has 4 hosts, which share a checkpoint; expected an absolute directory"),
        (["collect", "a", "--dry-run"], "collect needs --workdir"),
        (["install", "a", "--dry-run", "--nfs=/share"], "--nfs=/share: expected HOST:/EXPORT"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(script: Script, arguments, message):
    done = script("tpu_vm.sh", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr


def test_a_check_rents_nothing_and_needs_no_gcloud(script: Script):
    done = script("tpu_vm.sh", "check", "a", "--slice=v5e:4x4", "--extras=text", "--", *CHECKED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("every worker installs [tpu,text] and runs: ../venv/bin/python ")
    assert "check: slice        v5e:4x4: 16 chips on 4 hosts" in done.stderr
    assert "check: batch        2048 clips, 128 per chip" in done.stderr


def test_extras_and_any_command(script: Script):
    extract = ("ivj", "extract", "--checkpoint=gs://bucket/run", "--out=gs://bucket/features")
    dry = ("--dry-run", "--zone=z")
    (command,) = lines(script("tpu_vm.sh", "install", "a", *dry, "--extras=remote,text"))
    assert "-e '.[tpu,remote,text]'" in command[7]
    (command,) = lines(script("tpu_vm.sh", "run", "a", *dry, "--slice=v5e:4x4", "--", *extract))
    worker = shlex.join(["-m", "internvideo_jax.offline.extract", *extract[2:]])
    assert f"-- ../venv/bin/python {worker} >>../train.log" in command[7]
    done = script("tpu_vm.sh", "install", "a", *dry, "--extras=remot")
    assert done.returncode == 2 and "'remot' is no extra: did you mean 'remote'" in done.stderr


def test_variables_reach_the_worker_as_they_are_and_secrets_are_not_shown(
    script: Script, tmp_path: Path
):
    program(tmp_path, "gcloud", GCLOUD)
    flags = ("--env=WORD=it's $HOME", "--env=SECRET", "--restarts=0", "--zone=z")
    (tmp_path / "vm0/internvideo").mkdir(parents=True)
    (tmp_path / "vm1/internvideo").mkdir(parents=True)
    for name in ("vm0", "vm1"):
        python = tmp_path / name / "venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text('#!/bin/bash\nprintf "%s" "$WORD|$SECRET" >told\n')
        python.chmod(0o755)
    done = script("tpu_vm.sh", "run", "a", *flags, "--", *TRAIN, SECRET="hush's $h")
    assert done.returncode == 0, done.stderr
    assert "hush" not in done.stdout and "$SECRET" in done.stdout
    wait_for(tmp_path / "vm1/internvideo/told")
    assert (tmp_path / "vm1/internvideo/told").read_text() == "it's $HOME|hush's $h"
    for wrong, message in (
        ("--env=NOT_SET", "--env=NOT_SET: it is not set here; expected --env=NOT_SET=VALUE"),
        ("--env=1=2", "--env=1=2: expected NAME or NAME=VALUE"),
    ):
        done = script("tpu_vm.sh", "run", "a", wrong, "--", *TRAIN)
        assert done.returncode == 2 and message in done.stderr


def test_help(script: Script):
    for arguments in (["--help"], [], ["run", "--help"], ["run", "a", "--help"]):
        done = script("tpu_vm.sh", *arguments)
        assert done.returncode == 0 and "commands, in the order of a run" in done.stdout


# Runs what a worker is told in a directory for each worker.
GCLOUD = """
for word in "$@"; do
  case $word in
    --command=*) command=${word#--command=} ;;
    --worker=all) workers="0 1" ;;
    --worker=*) workers=${word#--worker=} ;;
  esac
done
case "$3 $4" in
  "tpu-vm scp") for w in $workers; do mkdir -p vm$w; cp "$5" vm$w/internvideo.bundle; done ;;
  "tpu-vm ssh") for w in $workers; do (cd vm$w && bash -c "$command") || exit 1; done ;;
  *) echo READY ;;
esac
"""
# Saves after SIGTERM, as a training does.
PYTHON = """
trap 'echo saved >>saved; exit 143' TERM
echo "$@" >arguments
for _ in {1..1000}; do sleep 0.05; done
"""


def test_the_commands_work_on_workers(script: Script, tmp_path: Path):
    program(tmp_path, "gcloud", GCLOUD)
    # A checkout of its own, since what is copied is a commit.
    checkout = tmp_path / "checkout"
    program(tmp_path, "python", PYTHON)
    (checkout / "scripts").mkdir(parents=True)
    (checkout / "scripts/tpu_vm.sh").write_bytes((ROOT / "scripts/tpu_vm.sh").read_bytes())
    (checkout / "scripts/tpu_vm.sh").chmod(0o755)
    (checkout / "internvideo_jax").symlink_to(ROOT / "internvideo_jax")
    (checkout / "file").write_text("one\n")
    for arguments in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=one"],
    ):
        subprocess.run(["git", "-C", checkout, *arguments], check=True)

    def call(command: str, *arguments: str):
        return script(str(checkout / "scripts/tpu_vm.sh"), command, "a", "--zone=z", *arguments)

    assert call("copy").returncode == 0
    for number in (0, 1):
        vm = tmp_path / f"vm{number}"
        assert (vm / "internvideo/file").read_text() == "one\n"
        (vm / "venv/bin").mkdir(parents=True)
        (vm / "venv/bin/python").symlink_to(tmp_path / "bin/python")
    started = call("run", "--", *TRAIN)
    assert started.returncode == 0, started.stderr
    vm = tmp_path / "vm1"
    wait_for(vm / "internvideo/arguments")
    assert (vm / "internvideo/arguments").read_text().split() == [
        *("-m", "internvideo_jax.launch", "--restarts=3", "--"),
        *("../venv/bin/python", "-m", "internvideo_jax.train", *TRAIN),
    ]
    assert call("status").stdout.count("\nrunning") == 2
    again = call("run", "--", *TRAIN)
    assert again.returncode == 1 and "a training is running; stop it first" in again.stderr
    assert "stop it first" in call("copy").stderr
    assert call("stop").returncode == 0
    wait_for(vm / "internvideo/saved")
    deadline = time.monotonic() + 20
    while call("status").stdout.count("\nnot running") < 2:
        assert time.monotonic() < deadline
    # What the run left stays when newer code comes.
    assert call("copy").returncode == 0
    assert (vm / "internvideo/saved").read_text() == "saved\n"
    (checkout / "file").write_text("changed\n")
    dirty = call("copy")
    assert dirty.returncode == 2 and "uncommitted changes would stay here" in dirty.stderr


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)
