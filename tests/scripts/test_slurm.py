"""scripts/slurm.sh: the sbatch file line by line, and how the job ends."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from tests.scripts.conftest import CHECKED, ROOT, TRAIN, Script, program, script_environment

END = [
    "# By it the processes know each other.",
    "IVJ_JOB_TOKEN=$(</proc/sys/kernel/random/uuid)",
    "export IVJ_JOB_TOKEN",
    "# The signal before the limit goes to the processes, not to this shell: here it means",
    "# that somebody cancelled the job.",
    "cancelled=",
    "trap 'cancelled=1' TERM",
]
WORKER = f"python -m internvideo_jax.train {' '.join(TRAIN)}"


def after(code: str = "100", name: str = "mae") -> list[str]:
    return [
        "code=$?",
        "# 143: saved after SIGTERM. 75, 134 to 139: a fault that may pass, counted until a save.",
        f"faults={name}-$SLURM_JOB_ID.faults",
        "again=",
        "case $code in",
        '  143) again=1; rm -f "$faults" ;;',
        "  75 | 13[4-9])",
        '    echo "$code" >>"$faults" && [[ $(wc -l <"$faults") -le 3 ]] && again=1 ;;',
        "esac",
        f"if [[ -n $again && -z $cancelled && ${{SLURM_RESTART_COUNT:-0}} -lt {code} ]]; then",
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        "exit $code",
    ]


def started(job: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The job file as the scheduler starts it, in its own folder."""
    return subprocess.run(
        ["/bin/bash", str(job)],
        cwd=job.parent,
        env={**script_environment(job.parent), "SLURM_JOB_ID": "7", **variables},
        capture_output=True,
        text=True,
    )


def test_a_process_per_gpu(script: Script):
    done = script(
        "slurm.sh",
        "--dry-run",
        "--name=mae",
        "--nodes=4",
        "--gpus-per-node=8",
        "--cpus-per-process=12",
        "--time=2-00:00:00",
        "--partition=gpu",
        "--venv=/shared/venv",
        "--",
        *TRAIN,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "#!/usr/bin/env bash",
        "#SBATCH --job-name=mae",
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --time=2-00:00:00",
        "#SBATCH --signal=TERM@120",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --output=mae-%j.log",
        "#SBATCH --partition=gpu",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --cpus-per-task=12",
        "set -uo pipefail",
        "source /shared/venv/bin/activate",
        *END,
        f"srun --kill-on-bad-exit=0 --wait=120 {WORKER}",
        *after(),
    ]


def test_a_process_per_node_is_told_its_devices(script: Script, tmp_path: Path):
    done = script(
        "slurm.sh",
        "--dry-run",
        "--process-per=node",
        "--gpus-per-node=4",
        "--container=docker://image",
        "--mount=/data:/data",
        "--save-seconds=300",
        "--requeues=5",
        "--restarts=2",
        "--",
        *TRAIN,
    )
    found = done.stdout.splitlines()
    assert "#SBATCH --ntasks-per-node=1" in found and "#SBATCH --signal=TERM@300" in found
    assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3" in found
    assert found[-14:] == [
        f"srun --kill-on-bad-exit=0 --wait=300 --container-image=docker://image "
        f"--container-workdir={tmp_path} --container-mounts={tmp_path}:{tmp_path}\\,/data:/data "
        f"python -m internvideo_jax.launch --restarts=2 -- {WORKER}",
        *after("5", "internvideo"),
    ]


def test_apptainer_and_cpu_nodes(script: Script, tmp_path: Path):
    done = script(
        "slurm.sh", "--dry-run", "--gpus-per-node=0", "--container=a.sif", "--mount=/data", "--",
        *TRAIN,
    )  # fmt: skip
    assert "--gpus" not in done.stdout and "JAX_LOCAL" not in done.stdout
    assert (
        f"srun --kill-on-bad-exit=0 --wait=120 apptainer exec --nv --bind={tmp_path} --bind=/data "
        f"a.sif {WORKER}" in done.stdout.splitlines()
    )


def test_it_is_submitted(script: Script, tmp_path: Path):
    program(tmp_path, "sbatch", 'echo "submitted $*"')
    done = script("slurm.sh", "--name=a", "--", *CHECKED)
    assert done.stdout == "submitted a.sbatch\n"
    assert "check: recipe       videomae/pretrain:size=base with its overrides fits" in done.stderr
    dry = script("slurm.sh", "--name=a", "--dry-run", "--no-check", "--", *CHECKED)
    assert (tmp_path / "a.sbatch").read_text() == dry.stdout


def test_nothing_is_submitted_that_the_training_would_refuse(script: Script, tmp_path: Path):
    program(tmp_path, "sbatch", 'echo "submitted $*"')
    done = script("slurm.sh", "--", *TRAIN)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --config: configs/x.py: no such file or recipe;")
    done = script("slurm.sh", "--no-check", "--", *TRAIN)
    assert done.stdout == "submitted internvideo.sbatch\n"


def test_any_command_and_extras_that_are_installed_before(script: Script, tmp_path: Path):
    extract = ("ivj", "extract", "--checkpoint=s3://bucket/run", "--out=s3://bucket/features")
    flags = ("--dry-run", "--gpus-per-node=0", "--venv=/shared/venv", "--extras=text")
    done = script("slurm.sh", *flags, "--", *extract)
    assert done.returncode == 0, done.stderr
    worker = shlex.join(["python", "-m", "internvideo_jax.offline.extract", *extract[2:]])
    assert f"srun --kill-on-bad-exit=0 --wait=120 {worker}" in done.stdout.splitlines()
    steps = [shlex.split(line) for line in done.stderr.splitlines() if "venv" in line]
    assert steps[0][1:] == ["-m", "venv", "/shared/venv"]
    assert steps[1][-2:] == ["--editable", f"{ROOT}[text,remote]"]
    for wrong, message in (
        (["--extras=txt"], "--extras=txt: 'txt' is no extra: did you mean 'text'"),
        (["--extras=text", "--venv="], "--extras=text is installed into --venv=DIR"),
    ):
        done = script("slurm.sh", *flags[:3], *wrong, "--", *extract)
        assert done.returncode == 2 and message in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--time=3", "--", *TRAIN], "--time=3: expected [days-]hours:minutes:seconds"),
        (["--nodes=0", "--", *TRAIN], "--nodes=0: expected a whole number of at least 1"),
        (["--process-per=chip", "--", *TRAIN], "--process-per=chip: expected gpu or node"),
        (["--venv=a", "--container=b", "--", *TRAIN], "--venv and --container: expected one"),
        (["--mount=/a", "--", *TRAIN], "--mount is for --container"),
        (["--node=2", "--", *TRAIN], "unknown option '--node=2'"),
        (["--name=a b", "--", *TRAIN], "--name=a b: expected letters"),
        (["--partition=a --wrap=b", "--", *TRAIN], "--partition=a --wrap=b: expected no spaces"),
        (["--sbatch=touch x", "--", *TRAIN], "--sbatch=touch x: expected an option"),
        (["--nodes=08", "--", *TRAIN], "--nodes=08: expected a whole number"),
        ([f"--nodes={'9' * 30}", "--", *TRAIN], "9: expected a whole number of at least 1"),
        ([], "no --config for the training"),
        (["--", *TRAIN], "sbatch is not installed; run this on a login node"),
    ],
)
def test_errors_say_what_to_do(script: Script, arguments, message):
    done = script("slurm.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr


@pytest.mark.parametrize(
    ("srun", "count", "requeued"),
    [
        ("exit 143", 0, True),  # saved before the limit
        ("exit 143", 3, False),  # too often
        ("exit 75", 0, True),  # a fault that may pass
        ("exit 137", 1, True),
        ("exit 75", 3, False),
        ("kill -TERM $PPID; exit 75", 0, False),
        ("exit 1", 0, False),
        ("exit 2", 0, False),
        ("exit 3", 0, False),
        ("exit 70", 0, False),
        ("exit 130", 0, False),
        ("kill -TERM $PPID; exit 143", 0, False),  # cancelled: the shell is told too
        ("exit 0", 0, False),
    ],
)
def test_only_a_job_that_met_its_limit_is_queued_again(
    script: Script, tmp_path: Path, srun: str, count: int, requeued: bool
):
    dry = script("slurm.sh", "--dry-run", "--requeues=3", "--", *TRAIN)
    job = tmp_path / "job"
    job.write_text(dry.stdout)
    program(tmp_path, "srun", srun)
    program(tmp_path, "scontrol", 'echo "scontrol $*"')
    done = started(job, SLURM_RESTART_COUNT=str(count))
    assert done.returncode == int(srun.split()[-1])
    assert (done.stdout == "scontrol requeue 7\n") is requeued


def test_faults_in_a_row_are_counted_until_a_save(script: Script, tmp_path: Path):
    dry = script("slurm.sh", "--dry-run", "--faults=2", "--", *TRAIN)
    job, codes = tmp_path / "job", tmp_path / "codes"
    job.write_text(dry.stdout)
    program(
        tmp_path, "srun", f'read -r code <{codes}; echo "$IVJ_JOB_TOKEN" >>tokens; exit "$code"'
    )
    program(tmp_path, "scontrol", 'echo "scontrol $*"')

    def requeued(code: int) -> bool:
        codes.write_text(f"{code}\n")
        done = started(job)
        assert done.returncode == code
        return bool(done.stdout)

    assert [requeued(code) for code in (75, 137, 75)] == [True, True, False]
    assert [requeued(code) for code in (143, 134, 75, 75)] == [True, True, True, False]
    assert len({*(tmp_path / "tokens").read_text().split()}) == 7  # drawn for every start
    requeued(143)
    # A full disk: what cannot be counted is not queued again.
    (tmp_path / "internvideo-7.faults").symlink_to("/dev/full")
    assert not requeued(75)


BREAKS = ["\n", "\r", "\x0b", "\x1b[2J", "\x7f", "\t"]


@pytest.mark.parametrize(
    "flag",
    ["partition", "account", "qos", "constraint", "sbatch", "name", "time", "venv", "out", "mount",
     "container", "nodes", "gpus-per-node", "cpus-per-process", "process-per", "save-seconds",
     "requeues", "restarts", "faults"],
)  # fmt: skip
def test_no_option_adds_a_line_to_the_job(script: Script, tmp_path: Path, flag):
    program(tmp_path, "sbatch", 'echo "submitted $*"')
    for text in BREAKS[: 6 if flag == "partition" else 1]:
        value = f"-a{text}touch PWNED" if flag == "sbatch" else f"a{text}touch PWNED"
        done = script("slurm.sh", f"--{flag}={value}", "--", *TRAIN)
        assert done.returncode == 2 and not done.stdout, done.stdout
        assert f"error: --{flag}=" in done.stderr
        assert "expected no line breaks or control characters" in done.stderr
        assert "\x1b" not in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "PWNED").exists()


def test_words_of_the_training_stay_words(script: Script, tmp_path: Path):
    """Whatever is in them, the job gives them to the training as they were."""
    words = [
        *TRAIN,
        "--config.a=it's",
        "--config.b=$(touch PWNED)",
        "--config.c=x\ntouch PWNED",
        "--config.d=`id`;#",
        "--config.e= * \\",
        '--config.f="',
        "--config.g=\n#SBATCH --exclusive",
    ]
    dry = script("slurm.sh", "--dry-run", "--", *words)
    job = tmp_path / "job"
    job.write_text(dry.stdout)
    program(tmp_path, "srun", 'shift 2; printf "%s\\0" "$@"')
    done = started(job)
    assert done.stdout.split("\0")[3:-1] == words
    assert not (tmp_path / "PWNED").exists()


def test_a_folder_with_spaces_and_quotes(script: Script, tmp_path: Path):
    venv = tmp_path / "it's a $(venv)"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/activate").write_text("echo activated")
    job = tmp_path / "job"
    job.write_text(script("slurm.sh", "--dry-run", f"--venv={venv}", "--", *TRAIN).stdout)
    program(tmp_path, "srun", "exit 0")
    done = started(job)
    assert done.stdout == "activated\n" and done.returncode == 0
