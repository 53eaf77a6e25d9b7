"""Every launcher once from its command line to results, against programs that stand for a cloud.

The data are in a bucket of an S3 server on this machine; what the clouds' programs do here is in
stand_in.py. Only the machines are not real.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

pytestmark = pytest.mark.services
PROGRAMS = ("gcloud", "python3", "sbatch", "srun", "kubectl")
BUCKET = "jobs"
RECIPE = "--config=videomae/finetune:size=base,smoke"
DATA = f"--config.data.train=s3://{BUCKET}/shards"


@pytest.fixture(scope="module")
def bucket(shards) -> Iterator[dict[str, str]]:
    """The variables by which the shards are found in a bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3", endpoint_url=variables["AWS_ENDPOINT_URL"], region_name="us-east-1",
        aws_access_key_id="testing", aws_secret_access_key="testing",
    )  # fmt: skip
    client.create_bucket(Bucket=BUCKET)
    for file in (path for path in shards.rglob("*") if path.is_file()):
        client.upload_file(str(file), BUCKET, f"shards/{file.relative_to(shards)}")
    yield variables
    server.stop()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a committed checkout and the programs of a cloud in `bin`."""
    folder = tmp_path_factory.mktemp("cloud")
    subprocess.run(["git", "clone", "--quiet", str(ROOT), folder / "checkout"], check=True)
    changed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--modified", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in filter(lambda one: (ROOT / one).is_file(), changed):
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "checkout" / name)
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty"]
    subprocess.run(["git", "-C", folder / "checkout", "add", "--all"], check=True)
    subprocess.run(["git", "-C", folder / "checkout", *commit, "--message=now"], check=True)
    (folder / "bin").mkdir()
    for name in PROGRAMS:
        program = folder / "bin" / name
        program.write_text(
            f'#!/bin/bash\nexec {sys.executable} {ROOT}/tests/scripts/stand_in.py {name} "$@"\n'
        )
        program.chmod(0o755)
    return folder


Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def script(place, bucket) -> Script:
    """Runs a script of the checkout in `place`."""

    def run(name: str, *words: object) -> subprocess.CompletedProcess[str]:
        command = [str(place / "checkout/scripts" / name), *map(str, words)]
        if name.endswith(".py"):
            command.insert(0, sys.executable)
        own = environment()
        return subprocess.run(
            command,
            cwd=place,
            env={
                **own,
                **bucket,
                "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": str(place / "checkout"),
                "PYTHON": sys.executable,
                "STAND_IN": str(place),
                "STAND_IN_PYTHON": sys.executable,
                "STAND_IN_CHECKOUT": str(place / "checkout"),
                "HOME": str(place),
            },
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def calls(place: Path, name: str) -> list[list[str]]:
    lines = map(json.loads, (place / "calls.jsonl").read_text().splitlines())
    return [words[1:] for words in lines if words[0] == name]


@pytest.fixture(scope="module")
def trained(place, script, bucket) -> Path:
    """The run that tpu_vm.sh trained and collected."""
    workdir = place / "shared/run"
    done = script(
        "tpu_vm.sh", "launch", "small", "--slice=v5e:1x1", "--restarts=1", "--price=1.2",
        *(f"--env={name}" for name in bucket), "--env=JAX_PLATFORMS=cpu", "--",
        RECIPE, DATA, f"--workdir={workdir}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "check: slice        v5e:1x1: 1 chips on 1 host, v5litepod-1" in done.stderr
    assert "check: needs        [remote] for --config.data.train" in done.stderr
    assert "1.2 per chip-hour" in done.stderr
    # What --env takes from the shell is given to the worker and not printed.
    assert bucket["AWS_ENDPOINT_URL"] not in done.stdout
    assert "$AWS_ENDPOINT_URL" in done.stdout
    deadline = time.monotonic() + 200
    while script("tpu_vm.sh", "status", "small", "--zone=z").stdout.count("\nnot running") < 1:
        assert time.monotonic() < deadline
        time.sleep(1)
    shown = script("tpu_vm.sh", "logs", "small", "--zone=z").stdout
    assert "finished; parameters" in shown, shown[-3000:]
    done = script(
        "tpu_vm.sh", "collect", "small", "--zone=z", f"--workdir={workdir}", "--to=collected"
    )
    assert done.returncode == 0, done.stderr
    return place / "collected/run"


def test_a_tpu_vm_trains_from_a_bucket(place, trained, script):
    about = json.loads((trained / "run.json").read_text())
    assert about["params_digest"] and about["config"]["data"]["train"] == f"s3://{BUCKET}/shards"
    head = ["git", "-C", str(place / "checkout"), "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    assert commit.startswith(about["git"])
    (installed,) = [words for words in calls(place, "uv") if words[:2] == ["pip", "install"]]
    assert installed[-1] == ".[tpu,remote]"
    assert script("tpu_vm.sh", "delete", "small", "--zone=z", "--yes").returncode == 0
    assert not (place / "vm/small").exists()


def test_nothing_is_rented_for_a_recipe_that_does_not_fit(place, script):
    before = len(calls(place, "gcloud"))
    for words, message in (
        ([DATA, "--config.data.global_batch=3"], "config.data.global_batch = 3 cannot be split"),
        ([DATA, "--config.optim.lrr=1"], "unknown field config.optim.lrr"),
        ([], "config.data.train is empty"),
        (["--config.data.train=s3:/jobs/shards"], "expected two slashes, s3://"),
    ):
        done = script(
            "tpu_vm.sh", "launch", "none", "--slice=v5e:2x2", "--", RECIPE, "--workdir=w", *words
        )
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert done.stdout == ""
    assert len(calls(place, "gcloud")) == before


def test_a_slurm_job_evaluates(place, trained, script):
    done = script(
        "slurm.sh", "--name=test", "--gpus-per-node=0", "--", "ivj", "evaluate",
        f"--checkpoint={trained}", "--out=tested/result.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + (place / "slurm-7.log").read_text()
    assert "Submitted batch job 7" in done.stdout
    result = json.loads((place / "tested/result.json").read_text())
    assert 0 <= result["results"]["test"]["metrics"]["top1"] <= 1


def test_a_jobset_extracts(place, trained, script, bucket):
    done = script(
        "xmanager_launch.py", "--name=features", "--executor=gke", "--slice=v5e:1x1",
        "--image=image", *(f"--env={name}" for name in bucket), "--",
        "ivj", "extract", f"--checkpoint={trained}", "--split=test", f"--out={place}/features",
    )  # fmt: skip
    log = place / "pod/features-0/log"
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")
    assert list((place / "features").glob("*")), log.read_text()


def test_a_sweep_runs_another_command_and_tables_it(place, trained, script):
    words = (
        "sweep.py", "--out=swept", "--set=evals.test.views.clips=1,2", "--parallel=1",
        "--sort=eval/test/top1", "--", "evaluate", f"--checkpoint={trained}", RECIPE, DATA,
    )  # fmt: skip
    done = script(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    (header,) = [line for line in done.stdout.splitlines() if line.startswith("| evals.")]
    assert header.startswith("| evals.test.views.clips | status | step | eval/test/")
    assert " eval/test/top1 |" in header
    assert done.stdout.count("| finished |") == 2
    assert "2 runs, 2 of them finished before" in script(*words).stdout


def test_xmanager_runs_jobs_in_an_experiment(place, script, shards):
    pytest.importorskip("xmanager")
    videos = shards.parent / "videos/annotations.jsonl"
    words = (
        "xmanager_launch.py", "--name=small", "--executor=xmanager", "--restarts=0", "--",
        "ivj", "ingest", f"--source={videos}", f"--out={place}/ingested", "--name=world",
    )  # fmt: skip
    shown = script(*words[:4], "--dry-run", *words[4:])
    assert "# XManager experiment small: 1 x xm.Binary(python) by xm_local.Local" in shown.stdout
    done = script(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "ingested").is_dir()
    failing = script(*(word for word in words if "--source" not in word), "--source=/nowhere")
    assert failing.returncode == 1
    image = script(*words[:4], "--image=no/such/image", *words[4:])
    assert image.returncode == 2 and "error: --image=no/such/image: Docker" in image.stderr
