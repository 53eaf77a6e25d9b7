"""What the commands say when something is wrong, and that nothing is lost by it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.ingest.__main__ import main as ingest
from tests.conftest import ROOT, TINY, environment
from tests.smoke.conftest import EMA, FINETUNE, PRETRAIN, evaluation, training

ONLY_TRAINING = (
    "--config.checkpoint.every=4",
    "--config.log.report=False",
    "--config.evals.knn.every=-1",
    "--config.evals.reconstruction.every=-1",
)
ERRORS = {
    "unknown field": (
        ["--config.optim.lrr=1"],
        "unknown field config.optim.lrr: did you mean 'lr'?",
    ),
    "wrong type": (["--config.optim.lr=fast"], "flag --config.optim.lr=fast: could not convert"),
    "missing data": (["--config.data.train=/nowhere"], "/nowhere: no such directory"),
    "no data": (["--config.data.train="], "no data directory given"),
    "unknown split": (["--config.data.split=trian"], "did you mean 'train'"),
    "size and patch": (
        ["--config.model.resolution=50", "--config.data.clip.resolution=50"],
        "image size 50 is not divisible by the patch size 8; the nearest sizes are 48 and 56",
    ),
    "mask hides all": (["--config.objective.mask_ratio=1.0"], "leaves 0 of 144 tokens visible"),
    "clip and model": (
        ["--config.data.clip.frames=4"],
        "gives 4 frames of 48 pixels, config.model takes 8",
    ),
    "length twice": (["--config.epochs=2.0"], "exactly one of them to be positive"),
    "evaluator data": (
        ["--config.evals.knn.split=val"],
        "config.evals.knn: ",
    ),
    "stage without the one before": (
        ["--config.init_whole=('^encoder/',)"],
        "goes on from the weights of an earlier stage: set config.init_from to its run",
    ),
    "init from nothing": (["--config.init_from=/nowhere"], "no checkpoint here"),
    "mesh": (["--config.mesh.fsdp=3"], "asks for a multiple of 3 devices, found 1"),
    "non-integer heads": (["--config.model.encoder.heads=5"], "width 32 is not divisible by 5"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_one_clear_message(command, shards, tmp_path, case):
    overrides, message = ERRORS[case]
    done = command(*training(PRETRAIN, shards, tmp_path / "run", *overrides))
    assert done.returncode == 2, done.stderr[-2000:]
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run/checkpoints").exists() or case == "init from nothing"


def test_a_batch_that_devices_cannot_share(command, shards, tmp_path):
    words = training(PRETRAIN, shards, tmp_path / "run", "--config.data.global_batch=12")
    done = command(*words, devices=8)
    assert done.returncode == 2
    assert "global_batch = 12 cannot be split evenly over 8 devices" in done.stderr
    assert "8 and 16" in done.stderr


def test_unknown_recipe_and_option(command, shards, tmp_path):
    for config, message in (
        ("configs/videomae/pretrian.py", "did you mean 'configs/videomae/pretrain.py'"),
        ("configs/videomae/pretrain.py:sise=tiny", "did you mean 'size'"),
        ("configs/videomae/pretrain.py:size=bas", "did you mean 'videomae/base'"),
    ):
        done = command("internvideo_jax.train", f"--config={config}", f"--workdir={tmp_path}/run")
        assert done.returncode == 2 and message in done.stderr, done.stderr[-1500:]
        assert "Traceback" not in done.stderr


def test_a_checkpoint_of_another_model(command, runs, tmp_path):
    shutil.copytree(runs.folder / "pretrain", tmp_path / "run")
    words = training(PRETRAIN, runs.shards, tmp_path / "run")
    done = command(*[word for word in words if "decoder.depth" not in word])
    assert done.returncode == 2
    assert "does not fit this config" in done.stderr
    assert "decoder/blocks/attn/proj/bias: found float32(1, 32), expected float32(2, 32)" in (
        done.stderr
    )
    assert (tmp_path / "run/checkpoints/6").is_dir()


def test_a_checkpoint_with_another_data_stream(command, runs, tmp_path):
    shutil.copytree(runs.folder / "pretrain", tmp_path / "run")
    other = ("--config.data.seed=5", "--config.steps=8")
    arguments = training(PRETRAIN, runs.shards, tmp_path / "run", *other)
    done = command(*arguments)
    assert done.returncode == 2
    assert "the data stream is not the one of" in done.stderr
    assert "seed: found 5, the checkpoint has 0" in done.stderr
    done = command(*arguments, "--config.checkpoint.accept_new_data")
    assert done.returncode == 0, done.stderr[-2000:]


def test_weights_of_another_size(command, runs, tmp_path):
    start = f"--config.init_from={runs.folder}/pretrain"
    words = training(FINETUNE, runs.shards, tmp_path / "run", start)
    done = command(*[word for word in words if word not in TINY])
    assert done.returncode == 2
    assert "does not fit this model" in done.stderr
    assert "encoder/blocks/attn/proj/bias: found (2, 32), expected (4, 96)" in done.stderr


def test_classes_unlike_those_of_the_data(command, runs, tmp_path):
    done = command(*training(FINETUNE, runs.shards, tmp_path / "run", "--config.model.classes=7"))
    assert done.returncode == 2
    assert "config.model.classes = 7, the dataset has 10 classes" in done.stderr


@pytest.fixture(scope="module")
def renamed(shards, tmp_path_factory):
    """The same clips, with the first two classes in the other order."""
    folder = tmp_path_factory.mktemp("renamed")
    first, second, *others = json.loads((shards / "classes.json").read_text())
    (folder / "classes.txt").write_text("\n".join([second, first, *others]))
    source = shards.parent / "videos/annotations.jsonl"
    arguments = [f"--source={source}", f"--out={folder}/shards", "--name=world", "--workers=1"]
    arguments += [f"--classes={folder}/classes.txt", "--flip-changes-label"]
    assert ingest([*arguments, "--quiet"]) == 0
    return folder / "shards"


def test_going_on_with_classes_in_another_order(command, runs, renamed, tmp_path):
    """Refused even where other data are accepted: the labels would mean other rows."""
    shutil.copytree(runs.folder / "finetune", tmp_path / "run")
    others = (EMA, "--config.steps=8", "--config.checkpoint.accept_new_data")
    done = command(*training(FINETUNE, renamed, tmp_path / "run", *others))
    names = json.loads((renamed / "classes.json").read_text())
    assert done.returncode == 2, done.stderr[-2000:]
    assert f"class 0 is {names[0]!r} in the data, {names[1]!r} in the checkpoint" in done.stderr
    assert "their order is not" in done.stderr and "--config.head_rows=names" in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluation_data_with_classes_in_another_order(command, runs, renamed, tmp_path):
    other = f"--config.data.eval={renamed}"
    done = command(*training(FINETUNE, runs.shards, tmp_path / "run", other))
    assert done.returncode == 2, done.stderr[-2000:]
    assert f"config.evals.test: the classes of {renamed} are not those of the model" in done.stderr
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.slow
def test_starting_and_evaluating_with_classes_in_another_order(command, runs, renamed, tmp_path):
    start = f"--config.init_from={runs.folder}/finetune"
    done = command(*training(FINETUNE, renamed, tmp_path / "run", start))
    assert done.returncode == 2 and "not those of the checkpoint's head: class 0" in done.stderr
    out = tmp_path / "results.json"
    evaluate = evaluation(runs.folder / "finetune", renamed, out)
    done = command(*evaluate)
    assert done.returncode == 2 and "not those of the checkpoint's head: class 0" in done.stderr
    done = command(*evaluate, "--config.head_rows=names")
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads(out.read_text())
    assert content["head"] == "10 of 10 rows by name, from 10"
    # Every prediction is of the class that it was, by its name.
    before = json.loads((runs.folder / "finetune/results/test.json").read_text())["tables"]
    after, order = content["results"]["test"]["tables"], [1, 0, *range(2, 10)]
    assert after["classes"] == [before["classes"][i] for i in order]
    assert after["confusion"] == [[row[i] for i in order] for row in before["confusion"]]


def test_evaluating_a_checkpoint_without_a_head(command, runs, tmp_path):
    done = command(*evaluation(runs.folder / "pretrain", runs.shards, tmp_path / "results.json"))
    assert done.returncode == 2
    assert "lacks 4 parameters of the model, first fc_norm/bias" in done.stderr


def test_losses_that_are_not_finite_are_skipped_counted_and_end_the_run(command, shards, tmp_path):
    diverging = (
        "--config.steps=40",
        "--config.optim.lr=1e30",
        "--config.log.every=4",
        "--config.max_nonfinite=5",
        "--config.checkpoint.every=1000",
    )
    done = command(*training(PRETRAIN, shards, tmp_path / "run", *diverging))
    assert done.returncode == 3
    assert "warning: " in done.stderr and "changed nothing" in done.stderr
    assert "config.max_nonfinite allows 5; the last ones lie in steps" in done.stderr


def test_a_full_disk_loses_no_checkpoint(command, program, shards, tmp_path):
    """A limit on the file size stands in for the full disk: writes fail half-way."""
    workdir = tmp_path / "run"
    arguments = training(PRETRAIN, shards, workdir, *ONLY_TRAINING)
    done = command(*arguments, "--config.steps=4")
    assert done.returncode == 0, done.stderr[-2000:]
    code = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000));"
        "sys.argv = sys.argv[1:]; runpy.run_module('internvideo_jax.train', run_name='__main__')"
    )
    done = program(code, "train", *arguments[1:], "--config.steps=12")
    assert done.returncode == 75, done.stderr[-3000:]
    assert "could not save the checkpoint" in done.stderr
    assert f"step 4 in {workdir}/checkpoints is complete" in done.stderr
    done = command(*arguments, "--config.steps=12")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "continuing at step 4" in done.stdout


def test_reading_a_damaged_record_in_training(command, shards, tmp_path):
    from data_pipelines.records.reader import read_index

    copy = tmp_path / "damaged"
    shutil.copytree(shards, copy)
    (shard,) = copy.glob("*-train-*.tfrecord")
    data = bytearray(shard.read_bytes())
    data[int(read_index(str(shard)).entries[3]["offset"]) + 100] ^= 1
    shard.write_bytes(data)
    done = command(*training(PRETRAIN, copy, tmp_path / "a", "--config.steps=16"))
    assert done.returncode == 2
    assert "record 3 " in done.stderr and "checksum" in done.stderr
    substitute = (
        "--config.steps=16",
        "--config.data.reader.on_corrupt=substitute",
        "--config.evals.knn.views.reader.on_corrupt=substitute",
    )
    done = command(*training(PRETRAIN, copy, tmp_path / "b", *substitute))
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(row) for row in (tmp_path / "b/perf.jsonl").read_text().splitlines()]
    assert rows[-1]["perf/substituted"] == 2
    result = json.loads((tmp_path / "b/results/knn.json").read_text())
    assert result["protocol"]["train_clips"] == 59


def complete(run: Path) -> list[int]:
    """The steps that a run has saved; one that is being saved has another name."""
    return [int(step.name) for step in run.glob("checkpoints/*") if step.name.isdigit()]


@pytest.mark.slow
def test_a_reading_process_that_is_killed(command, shards, tmp_path):
    """The run ends with the cause instead of waiting for ever, and goes on when started again."""
    arguments = training(PRETRAIN, shards, tmp_path / "run", *ONLY_TRAINING)
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments, "--config.steps=9999", "--config.data.reader.workers=1"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not complete(tmp_path / "run"):
        time.sleep(0.05)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True
    )
    (worker,) = map(int, children.stdout.split())
    os.kill(worker, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err[-3000:]
    assert "worker process that reads data was ended by SIGKILL" in err and "Traceback" not in err
    saved = max(complete(tmp_path / "run"))
    done = command(*arguments, f"--config.steps={saved + 2}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"continuing at step {saved}" in done.stdout
