"""The documented commands, one after the other."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from safetensors.numpy import load_file

from tests.conftest import TINY_PRETRAIN
from tests.smoke.conftest import EMA, FINETUNE, SHORT, evaluation, training


def test_a_run_tells_what_it_does(runs):
    out = runs.pretrain_output
    assert "encoder/blocks/attn/qkv/kernel" in out and "Sharding" in out
    assert "per device: parameters, optimizer and average" in out
    assert "learning rate 0.001 x 1 = 0.001 after 2 steps" in out
    line = next(row for row in out.splitlines() if row.startswith("step 6/6 100%"))
    for part in ("loss", "lr", "clips/s", "data wait", "ETA"):
        assert part in line
    assert "step 4 | knn: top1" in out


def test_initial_weights_are_accounted_for(runs):
    out = runs.finetune_output
    assert "loaded: 15: encoder/blocks (13), encoder/patch_embed (2)" in out
    assert "skipped (not in this model)" in out and "decoder/blocks (13)" in out
    assert "fresh (not in the file): 4: fc_norm/bias, fc_norm/scale, head/bias, head/kernel" in out


def test_a_run_leaves_its_provenance_results_and_pictures(runs):
    folder = runs.folder / "pretrain"
    about = json.loads((folder / "run.json").read_text())
    assert about["config"]["objective"]["mask_ratio"] == 0.85
    assert {"jax", "flax", "grain"} <= about["versions"].keys()
    assert about["data"]["records"] and about["params_digest"]
    result = json.loads((folder / "results/reconstruction.json").read_text())
    assert result["metrics"]["clips"] == 20 and 0 < result["metrics"]["loss"] < 3
    assert result["protocol"]["split"] == "test" and result["protocol"]["mask_ratio"] == 0.85
    for picture in result["pictures"].values():
        assert (folder / picture).stat().st_size > 500
    page = (folder / "report.html").read_text()
    assert page.count("data:image/gif;base64") == 4 and "<svg" in page
    # It opens offline: nothing is fetched from elsewhere.
    assert not re.search(r'(src|href)="(?!data:|#)|<script|<link|@import', page)


def test_metrics_are_rows_of_the_documented_steps(runs):
    text = (runs.folder / "pretrain/metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 4, 4, 6, 6]
    assert rows[1]["clips_seen"] == 16 and rows[0]["train/lr"] == 0.0
    assert "eval/knn/top1" in rows[3] and "eval/reconstruction/loss" in rows[-1]


def test_starting_a_finished_run_again_changes_nothing(command, runs, tmp_path):
    workdir = shutil.copytree(runs.folder / "finetune", tmp_path / "finetune")
    before = (workdir / "metrics.jsonl").read_bytes()
    start = f"--config.init_from={runs.folder}/pretrain"
    again = command(*training(FINETUNE, runs.shards, workdir, start, EMA))
    assert again.returncode == 0, again.stderr[-2000:]
    assert "continuing at step 6" in again.stdout
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_evaluation_from_a_run_equals_the_one_in_training(command, runs, tmp_path):
    done = command(*evaluation(runs.folder / "finetune", runs.shards, tmp_path / "results.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads((tmp_path / "results.json").read_text())
    inside = json.loads((runs.folder / "finetune/results/test.json").read_text())
    assert content["results"]["test"]["metrics"] == inside["metrics"]
    assert content["results"]["test"]["protocol"] == inside["protocol"]
    assert (tmp_path / "results/pictures/test-confusion.png").exists()


def test_exported_weights_evaluate_the_same(command, runs, tmp_path):
    torch_file = tmp_path / "torch.safetensors"
    done = command(
        "internvideo_jax.weights", "export", runs.folder / "finetune", "--out", torch_file
    )
    assert done.returncode == 0, done.stderr
    assert "blocks.0.attn.qkv.weight" in load_file(torch_file)
    for views in ({"clips": 1, "crops": 1}, {"clips": 2, "crops": 3}):
        outs = []
        for i, checkpoint in enumerate((runs.folder / "finetune", torch_file)):
            out = tmp_path / f"{views['clips']}-{i}.json"
            flags = [f"--config.evals.test.views.{name}={count}" for name, count in views.items()]
            done = command(*evaluation(checkpoint, runs.shards, out, *flags))
            assert done.returncode == 0, done.stderr[-3000:]
            outs.append(json.loads(out.read_text())["results"]["test"])
        assert outs[0]["metrics"] == outs[1]["metrics"]
        assert outs[0]["protocol"]["clips"] == views["clips"]


def test_probes_run_offline(command, runs, tmp_path):
    done = command(
        "internvideo_jax.evaluate",
        "--config=configs/videomae/pretrain.py:size=tiny,probes",
        *TINY_PRETRAIN,
        "--only=linear_probe,attentive_probe",
        "--config.evals.linear_probe.steps=40",
        "--config.evals.attentive_probe.steps=10",
        "--config.evals.attentive_probe.heads=2",
        f"--checkpoint={runs.folder}/pretrain",
        f"--config.data.train={runs.shards}",
        f"--out={tmp_path}/probes.json",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "probes.json").read_text())["results"]
    for label in ("linear_probe", "attentive_probe"):
        assert 0.0 <= results[label]["metrics"]["top1"] <= 1.0
        assert results[label]["protocol"]["train_clips"] == 60
        assert len(results[label]["tables"]["grid"]) >= 3


def test_report_over_several_runs(command, runs, tmp_path):
    done = command(
        "internvideo_jax.telemetry.report",
        runs.folder / "pretrain",
        runs.folder / "finetune",
        f"--out={tmp_path}/report.html",
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_text()
    assert "Comparison" in page and page.count("<h2>") == 3


def test_a_run_s_folder_is_enough_to_evaluate_it_under_a_protocol(command, runs, tmp_path):
    arguments = ("internvideo_jax.evaluate", f"--checkpoint={runs.folder}/finetune")
    done = command(
        *arguments,
        "--protocol=videomae/kinetics",
        "--per_video=top5",
        f"--config.data.eval={runs.shards}",
        f"--out={tmp_path}/r.json",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "r.json").read_text())["results"]["test"]
    protocol = result["protocol"]
    assert (protocol["preset"], protocol["modified"]) == ("videomae/kinetics", {})
    assert (protocol["clips"], protocol["crops"]) == (5, 3)
    lines = (tmp_path / "r/results/test-videos.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert sum(row["rank"] == 1 for row in rows) / 20 == result["metrics"]["top1"]
    assert len((tmp_path / "r/results/test-videos.csv").read_text().splitlines()) == 21
    # The same scores without shards, from the files that they were made of.
    done = command(
        "internvideo_jax.offline.predict",
        runs.shards.parent / "videos/test",
        "--protocol=videomae/kinetics",
        *arguments[1:],
        f"--out={tmp_path}/p.json,{tmp_path}/p.csv",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "p.json").read_text())
    files = {str(row["top"]) for row in found["videos"]}
    assert files == {str(row["top"]) for row in rows} and found["skipped"] == []
    assert found["protocol"]["clips"] == 5 and len(found["labels"]) == 10
    assert "20 videos, 0 skipped" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol=videomae/kinetcs"], "did you mean 'videomae/kinetics'?"),
        (
            ["--protocol=videomae/kinetics", "--config.evals.test.views.crops=1"],
            "--config.evals.test.views.crops both decide the views",
        ),
        (["--only=tets"], "--only=tets: did you mean 'test'?"),
        (["--out=results"], "--out=results: expected the name of a file that ends in .json"),
        (["--out=README.md/r.json"], "README.md is a file, nothing can be written below it"),
        (["--config.evals.test.views.batch=0"], "config.evals.test.views.batch = 0: expected at"),
        (["--only=zero_shot"], "config.evals.zero_shot: the evaluator 'zero_shot' compares videos"),
    ],
)
def test_what_evaluate_refuses_before_the_first_clip(command, runs, tmp_path, arguments, message):
    out = [] if "--out" in arguments[0] else [f"--out={tmp_path}/r.json"]
    checkpoint = f"--checkpoint={runs.folder}/finetune"
    done = command("internvideo_jax.evaluate", checkpoint, *out, *arguments)
    assert done.returncode == 2 and message in done.stderr, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--help", "--helpfull", "-h"])
def test_help_explains_the_flags(command, flag):
    recipe = ["--config=videomae/pretrain:size=tiny"] if flag == "--helpfull" else []
    done = command("internvideo_jax.train", flag, *recipe)
    assert done.returncode == 0 and not done.stderr
    assert "--workdir" in done.stdout and "configs/x/y.py" in done.stdout
    assert ("--config.optim.lr=0.001" in done.stdout) == (flag == "--helpfull")


@pytest.mark.parametrize("module", ["evaluate", "extract", "predict"])
def test_help_of_the_other_commands(command, module):
    done = command("internvideo_jax", module, "--help")
    assert done.returncode == 0 and not done.stderr
    assert f"usage: ivj {module} " in done.stdout and "--checkpoint" in done.stdout


def test_a_run_without_labels_or_test_split(command, tmp_path):
    """A plain folder of videos is enough for pre-training."""
    from data_pipelines.synthetic import World, encode_mp4

    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(10):
        encode_mp4(videos / f"{i}.mp4", World().clip(i).video, fps=12)
    done = command("data_pipelines.ingest", f"--source={videos}", f"--out={tmp_path}/shards")
    assert done.returncode == 0, done.stderr[-2000:]
    recipe = "--config=configs/videomae/pretrain.py:size=tiny"
    arguments = (*TINY_PRETRAIN, *SHORT, f"--config.data.train={tmp_path}/shards")
    done = command("internvideo_jax.train", recipe, *arguments, f"--workdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "run/results/reconstruction.json").read_text())
    assert result["protocol"]["split"] == "train"
    done = command(
        "internvideo_jax.train", f"{recipe},monitor", *arguments, f"--workdir={tmp_path}/other"
    )
    assert done.returncode == 2
    assert "config.evals.knn: " in done.stderr and "has no labels" in done.stderr
    assert "--config.evals.knn.every=-1" in done.stderr
