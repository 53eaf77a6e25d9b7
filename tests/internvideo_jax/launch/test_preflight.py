"""What is said of a job before machines are rented, and the extras that it needs."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from internvideo_jax.launch.experiment import Experiment, command_of, worker_command
from internvideo_jax.launch.extras import flag_values, joined, known_extras, needed, parse_extras
from tests.conftest import ROOT

BASE = ("--config=videomae/pretrain:size=base", "--workdir=/mnt/shared/run")
GS = "--config.data.train=gs://bucket/k400"


@pytest.fixture
def preflight(command):
    def run(*words: str, options: tuple[str, ...] = ("--slice=v5e:4x4", "--jax=tpu")):
        return command("internvideo_jax.launch.preflight", *options, "--", *words)

    return run


def test_a_training_on_a_slice(preflight):
    options = ("--slice=v5e:4x4", "--jax=tpu", "--extras=parquet", "--price=1.2", "--restarts=3")
    done = preflight(*BASE, GS, "--config.log.trackers=('wandb',)", options=options)
    assert done.returncode == 0, done.stderr
    worker, extras = done.stdout.splitlines()
    assert shlex.split(worker)[:6] == [
        *("python", "-m", "internvideo_jax.launch", "--restarts=3", "--", "python"),
    ]
    assert extras == "tpu,parquet,remote,wandb"
    shown = done.stderr
    assert "check: slice        v5e:4x4: 16 chips on 4 hosts, v5litepod-16" in shown
    assert "check: batch        2048 clips, 128 per chip" in shown
    assert "check: memory       NOT KNOWN: state and batch take 1.34 GiB of 15.75 GiB" in shown
    assert "`ivj check` without --quick does" in shown
    assert "(kinetics400, named in config.data.train: 240000 clips): at best" in shown
    assert "at 1.2 per chip-hour" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*BASE, GS, "--config.data.global_batch=9"], "the nearest sizes are 16 and 32"),
        ([*BASE, GS, "--config.optim.lrr=1"], "unknown field config.optim.lrr: did you mean 'lr'?"),
        ([*BASE, GS, "--wrkdir=3"], "Unknown command line flag 'wrkdir'"),
        ([*BASE, GS, "--config.log.trackers=('wandbb',)"], "unknown tracker 'wandbb'"),
        ([*BASE], "config.data.train is empty; expected the folder or address of shards"),
        ([*BASE, "--config.data.train=gs:/bucket/x"], "expected two slashes, gs://"),
        (["--config=videomae/pretrian", "--workdir=x"], "no such file or recipe; did you mean"),
        (["ivj", "evaluate", "--checkpoint=/mnt/x", "--outt=r.json"], "flag 'outt'"),
        (["ivj", "extrct"], "'extrct' is no command of ivj: did you mean 'extract'?"),
        (["launch", "--", "ivj", "train"], "ivj launch is what starts the processes of a job"),
        (["ivj"], "no command after ivj"),
        (
            ["ivj", "extract", "--checkpoint=/a", "--out=b"],
            "ivj extract works in one process, and here 4 would do the same work",
        ),
    ],
)
def test_what_would_come_to_nothing_is_refused(preflight, words, message):
    done = preflight(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr


def test_options_of_an_ingest_are_read(preflight):
    done = preflight("ivj", "ingest", "--source=x", options=("--here",))
    assert done.returncode == 2
    assert done.stderr == "error: the following arguments are required: --out\n"


def test_a_state_larger_than_the_memory_is_refused(preflight):
    done = preflight(
        "--config=configs/slices.py:preset=pretrain-giant-v5e-256", "--workdir=/mnt/shared/run",
        GS, "--config.mesh.fsdp=1", "--config.mesh.data=-1", "--config.data.global_batch=512",
        "--config.optim.accumulate=1", "--config.optim.ema_decay=0.999",
        options=("--slice=v5e:1x1", "--jax=tpu"),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "error: the run does not fit v5e:1x1:\n" in done.stderr
    assert "DOES NOT FIT: state and batch take" in done.stderr


def test_a_python_without_the_libraries_is_named(tmp_path):
    """As the system's own, which starts the scripts where no environment is active."""
    module = "internvideo_jax.launch.preflight"
    done = subprocess.run(
        [sys.executable, "-S", "-m", module, "--dry-run", "--", *BASE, GS],
        capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: the check needs the libraries of this package, and ")
    assert "set PYTHON to its Python, or leave the check out with --no-check" in done.stderr
    assert done.stdout.splitlines()[1] == "remote"


def test_a_dry_run_warns_only(preflight):
    done = preflight(*BASE, options=("--slice=v5e:4x4", "--dry-run"))
    assert done.returncode == 0 and done.stdout.count("\n") == 2
    assert done.stderr.startswith("warning: config.data.train is empty")
    assert done.stderr.endswith("without --dry-run this is an error\n")


def test_a_checkpoint_that_only_the_workers_see(preflight):
    done = preflight(
        "ivj", "extract", "--checkpoint=gs://bucket/run", "--out=/mnt/out", "--config.seed=3",
        options=("--slice=v5e:2x4", "--jax=tpu"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "check: recipe       the config is that of the checkpoint" in done.stderr
    assert done.stdout.splitlines()[1] == "tpu,remote"
    assert "--config.seed=3" in done.stdout


def test_folders_of_this_machine_are_pointed_out(preflight):
    done = preflight(*BASE, "--config.data.train=shards/")
    assert "config.data.train=shards/ is a folder of this machine" in done.stderr
    here = preflight(*BASE, "--config.data.train=shards/", options=("--here",))
    assert here.returncode == 0 and "of this machine" not in here.stderr


@pytest.mark.parametrize(
    ("word", "extra"),
    [
        ("--config.data.train=gs://a/b", "remote"),
        ("--source=s3://a/b", "remote"),
        ("--config.data.train=https://host/shards", "remote"),
        ("--config.init_from=https://host/a.safetensors", None),
        ("--config.init_from=/a/b.pth", "torch"),
        ("--source=clips.parquet", "parquet"),
        ("--source=tfds:ucf101", "tfds"),
        ("--runner=beam", "beam"),
        ("--config.data.tokenizer=clip", "text"),
        ("--config.data.tokenizer=bert:vocab.txt", "text"),
        ("--config.data.train=/mnt/shards", None),
        ("--config.init_from=hf://owner/repo/file", None),
    ],
)
def test_extras_of_paths(word, extra):
    assert list(needed(flag_values([word]))) == ([extra] if extra else [])


def test_extras_are_those_of_the_package():
    assert {"tpu", "cuda", "remote", "wandb", "mlflow"} <= set(known_extras())
    assert joined("tpu", ["text", "tpu"], {"remote": "x", "text": "y"}) == "tpu,text,remote"
    assert joined("", []) == "" and parse_extras(" text,,remote ") == ["text", "remote"]
    with pytest.raises(ValueError, match="'remot' is no extra: did you mean 'remote'"):
        parse_extras("text,remot")
    assert flag_values(["--a", "b", "--c=d", "--e", "--f"]) == [
        ("--a", "b"), ("--c", "d"), ("--e", ""), ("--f", ""),
    ]  # fmt: skip


def test_the_worker_of_any_command():
    assert command_of(["ivj", "extract", "--a"]) == ("extract", ["--a"])
    assert command_of(["--config=c"]) == ("train", ["--config=c"])
    assert worker_command(["ivj", "search", "a dog"], restarts=2, python="p") == [
        *("p", "-m", "internvideo_jax.launch", "--restarts=2", "--"),
        *("p", "-m", "internvideo_jax.search", "search", "a dog"),
    ]
    assert worker_command(["ingest", "--x"]) == ["python", "-m", "data_pipelines.ingest", "--x"]


def test_a_sweep_over_another_command():
    made = Experiment.from_sets(
        "a", "c.py", "w", ["seed=0,1"], command=("ivj", "evaluate", "--checkpoint=r")
    )
    assert [job.arguments for job in made.jobs()] == [
        ("evaluate", "--checkpoint=r", "--config=c.py", f"--out=w/seed={n}/result.json",
         f"--config.seed={n}")
        for n in (0, 1)
    ]  # fmt: skip
    (job,) = Experiment.from_sets("a", "", "", [], command=("search", "a dog")).jobs()
    assert job.arguments == ("search", "a dog")
    with pytest.raises(ValueError, match="ivj search has no one flag for its results"):
        Experiment.from_sets("a", "", "w", ["seed=0,1"], command=("search",)).jobs()
