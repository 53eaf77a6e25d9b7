"""`ivj data`: what each command says, writes and returns."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipelines import __main__ as cli
from data_pipelines.config import DataConfig, ReaderConfig
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.run import ingest
from data_pipelines.stream.pipeline import TrainStream, ViewPass
from data_pipelines.tools import feed, inspect, settings, sheet
from internvideo_jax.config import to_typed
from internvideo_jax.families.videomae.model import PretrainConfig
from tests.data_pipelines.ingest.clips import make_video

ROOT = Path(__file__).parents[3]
CLIP = [
    "--config.data.clip.frames=4",
    "--config.data.clip.resolution=32",
    "--config.data.global_batch=6",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six videos of two classes in `train`, one in `test`, with captions that need escaping."""
    root = tmp_path_factory.mktemp("made")
    lines = ["path,label,caption,split,grade"]
    for label in ("run", "sit"):
        for i in range(3):
            make_video(root / f"{label}{i}.mp4", 20)
            lines.append(f"{label}{i}.mp4,{label},<b>né {label}</b>,train,{i}")
    make_video(root / "late.mp4", 20)
    lines.append("late.mp4,run,,test,1")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    out = root / "shards"
    ingest(IngestOptions(source=str(root / "list.csv"), out=str(out), workers=0), quiet=True)
    return out


@pytest.fixture
def shards(made, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "shards"))


@pytest.fixture
def main(capsys):
    """Run the command line in this process; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_module_runs(made):
    done = subprocess.run(
        [sys.executable, "-m", "data_pipelines", "verify", made, "--workers", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "good; 7 records, 140 frames read, 0 faults" in done.stdout


@pytest.mark.parametrize("command", [*cli._COMMANDS, None])
def test_help(main, command):
    code, out, _ = main(*([command] if command else []), "--help")
    assert code == 0 and "Exit code" in out
    if command == "subset":  # reads a list of clips, not shards
        assert "--source FILE" in out
    elif command:
        assert "DIR" in out and "directory with the shards" in out
    else:
        assert all(re.search(rf"^ +{name} +\w", out, re.M) for name in cli._COMMANDS)


@pytest.mark.parametrize("command", ["inspect", "verify", "bench", "reindex"])
def test_missing_directory(main, tmp_path, command):
    code, out, err = main(command, tmp_path / "none")
    assert code == 2 and out == ""
    assert "none: no such directory" in err and err.count("\n") == 1


@pytest.mark.parametrize("command", ["inspect", "bench"])
@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        (["--split", "tain"], "no split 'tain'; found test, train; did you mean 'train'?"),
        (
            ["--config.data.clip.resolution=big"],
            "config.data.clip.resolution: found 'big', expected int",
        ),
        (["--config.data.clip.strid=8"], "field config.data.clip.strid: did you mean 'stride'"),
        (["--config.optim.lr=1"], "--config.optim.lr=1: expected --config.data.FIELD=VALUE"),
        (["--config.data.crop=round"], "unknown config.data.crop 'round'"),
        (["--config", "no.py"], "--config: no.py: no such file"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_wrong_use(main, made, command, extra, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = main(command, made, *extra)
    assert code == 2 and complaint in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_inspect_says_what_is_there_and_draws_it(main, made, tmp_path):
    path = tmp_path / "look" / "sheet"
    code, out, err = main("inspect", made, "--out", path, "--clips", 3, "--step", 7, *CLIP)
    assert code == 0, err
    for text in (
        "split train: 6 records, 120 frames",
        "split test: 1 records",
        "class run: 3",
        "sizes 64x48 (6)",
        "frames 20 to 20, median 20; 10 to 10 frames/s",
        "captions in 100%",
        "extra columns: grade",
    ):
        assert text in out, out
    picture = cv2.imread(f"{path}.png")
    assert picture is not None and picture.shape[0] == 3 * (18 + 32 + 2)
    page = Path(f"{path}.html").read_text(encoding="utf-8")
    assert page.count("<section>") == 3 and page.count("data:image/jpeg;base64,") == 3
    assert "&lt;b&gt;né" in page and "<b>" not in page
    assert "7: 3 clips of a batch of 6" in page and "<dt>position</dt><dd>42</dd>" in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_sheet_has_the_pixels_of_the_stream(made):
    reader = ReaderConfig(threads=1, buffer=1)
    clip = dataclasses.replace(DataConfig().clip, frames=4, resolution=32)
    config = DataConfig(train=str(made), global_batch=6, clip=clip, flip="on", reader=reader)
    stream = TrainStream(config, start_step=5)
    batch = next(stream)
    stream.close()
    page = inspect.train_page(config, 5, clips=2)
    assert len(page.rows) == 2
    positions = batch["position"].tolist()
    for row in page.rows:
        i = positions.index(int(dict(row.facts)["position"]))
        np.testing.assert_array_equal(row.frames, batch["video"][i])
    whole = inspect.train_page(config, 5, clips=100)
    shown = [int(dict(row.facts)["position"]) for row in whole.rows]
    assert shown == positions


def test_a_mixture_is_shown_and_measured(main, made, tmp_path):
    """Every set in the summary, each clip under the id of its own set."""
    mixture = f"--config.data.mixture=a={made}:1, b={made}:2; split=test"
    code, out, err = main("inspect", "--out", tmp_path / "s", mixture, *CLIP)
    assert code == 0, err
    assert f"{made}: dataset 'list'" in out and "split test, fingerprint" in out
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    ids = re.findall(r"<h2>(\w+)\.mp4", page)
    assert len(ids) == 6 and ids.count("late") == 4  # two thirds
    code, out, err = main("bench", mixture, "--seconds", 0.1, *CLIP)
    assert code == 0 and "whole stream" in out, err
    code, _, err = main("inspect", "--views", "--out", tmp_path / "s", mixture, *CLIP)
    assert code == 2 and "--views shows one dataset" in err
    code, _, err = main("inspect", "--out", tmp_path / "s")
    assert code == 2 and "no data directory given" in err


def test_repeated_crops_stand_side_by_side(made):
    clip = dataclasses.replace(DataConfig().clip, frames=4, resolution=32)
    config = DataConfig(train=str(made), global_batch=12, clip=clip, repeats=4, crop="multiscale")
    page = inspect.train_page(config, 0, clips=2)  # a record cannot be split: cut from one of four
    assert len(page.rows) == 2 and page.rows[0].title == page.rows[1].title
    assert (page.rows[0].frames != page.rows[1].frames).any()


def test_views_are_those_of_the_pass(made):
    clip = dataclasses.replace(DataConfig().clip, frames=4, resolution=32, sampling="dense")
    config = DataConfig(train=str(made), clip=clip)
    page = inspect.view_page(config, 1, clips=12, segments=2, crops=3)
    assert len(page.rows) == 12  # two videos
    views = inspect.ViewConfig(clip=clip, clips=2, crops=3, batch=2)
    expected = ViewPass(str(made), "train", views)
    next(expected)
    batch = next(expected)
    expected.close()
    np.testing.assert_array_equal([row.frames for row in page.rows], batch["video"])
    with pytest.raises(ValueError, match="found 3; a pass over 6 records .* has steps 0 to 2"):
        inspect.view_page(config, 3, clips=12, segments=2, crops=3)


def test_inspect_shows_a_pass(main, made, tmp_path):
    extra = ["--split", "test", "--views", "--segments", "2", "--crops", "2"]
    code, out, err = main("inspect", made, "--out", tmp_path / "s", *extra, *CLIP)
    assert code == 0, err
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert page.count("<section>") == 4 and "captions in 0%" in out


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        (["--step", "-1"], "--step: found -1, expected 0 or more"),
        (["--clips", "0"], "--clips, --sample, --segments and --crops must be at least 1"),
        (["--views", "--step", "1"], "found 1; a pass over 6 records with 8 videos per step"),
    ],
)
def test_inspect_refuses(main, made, tmp_path, extra, complaint):
    code, _, err = main("inspect", made, "--out", tmp_path / "s", *extra, *CLIP)
    assert code == 2 and complaint in err
    assert not (tmp_path / "s.png").exists()


def test_a_recipe_gives_the_settings_of_training(made):
    """Loaded by path, and the same as what training makes of the same flags."""
    recipe = f"{ROOT}/configs/videomae/pretrain.py:size=tiny"
    found = settings.data_config(str(made), None, recipe, ["--config.data.clip.stride=3"])
    sys.path.insert(0, str(ROOT))
    try:
        from configs.videomae.pretrain import get_config
    finally:
        sys.path.remove(str(ROOT))
    plain = get_config("size=tiny").to_dict()["data"]
    plain["clip"]["stride"], plain["train"] = 3, str(made)
    assert found == to_typed(DataConfig, plain)


def test_wrong_recipe(made, tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match="has no function get_config"):
        settings.data_config(str(made), None, str(path), [])
    path.write_text("def get_config(arg):\n    return {}\n")
    with pytest.raises(ValueError, match="gives no section `data`"):
        settings.data_config(str(made), None, str(path), [])


@dataclasses.dataclass(frozen=True)
class _Fields:
    share: float = 0.5
    on: bool = False
    limit: int | None = None
    names: tuple[str, ...] = ()
    reader: ReaderConfig = ReaderConfig()


def test_values_become_what_the_field_holds():
    texts = {
        "share": "1",
        "on": "true",
        "limit": "3",
        "names": "['a', 'b']",
        "reader": {"threads": "2"},
    }
    found = settings.overlay(_Fields(), texts, "config")
    assert found == _Fields(1.0, True, 3, ("a", "b"), ReaderConfig(threads=2))
    assert settings.overlay(found, {"limit": "none"}, "config").limit is None
    for name, value in (("share", "x"), ("on", "2"), ("limit", "1.5"), ("names", "3")):
        with pytest.raises(ValueError, match=rf"config\.{name}: found"):
            settings.overlay(_Fields(), {name: value}, "config")


def test_long_clips_break_into_lines_and_frames_never_grow():
    frames = np.zeros((20, 8, 8, 3), np.uint8)
    assert sheet.strip(frames).shape == (2 * 10, 16 * 10, 3)
    assert sheet.strip(np.zeros((2, 224, 112, 3), np.uint8)).shape == (114, 2 * 58, 3)


def test_verify_reports_damage(main, shards):
    path = sorted(shards.glob("*train*.tfrecord"))[0]
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    code, out, _ = main("verify", shards, "--workers", 0, "--quiet")
    assert code == 1
    assert out.count("fault: ") == 2 and "FAULTY" in out and "record 0 at byte 0" in out
    # Looking at it names the record as well.
    code, _, err = main("inspect", shards, "--out", shards / "x", *CLIP)
    assert code == 2 and f"{path}: record 0" in err


def test_reindex(main, shards):
    index = sorted(shards.glob("*.idx"))[0]
    before = index.read_bytes()
    index.unlink()
    code, out, _ = main("verify", shards, "--workers", 0, "--quiet")
    assert code == 1 and f"ivj data reindex {shards}" in out
    code, out, _ = main("reindex", shards)
    assert code == 0 and "0 shards with problems" in out
    assert index.read_bytes() == before
    os.truncate(sorted(shards.glob("*.tfrecord"))[0], 500)
    code, out, err = main("reindex", shards)
    assert code == 1 and "1 shards with problems" in out and "truncated" in err


def test_bench(main, made):
    code, out, err = main("bench", made, "--seconds", 0.2, "--cores", 100, *CLIP)
    assert code == 0, err
    numbers = dict(
        re.findall(r"^(bare functions|whole stream) +([\d.]+) clips/s per core", out, re.M)
    )
    assert all(float(number) > 0 for number in numbers.values()) and len(numbers) == 2
    shares = [int(s) for s in re.findall(r"(?:read|decode|crop) (\d+)%", out)]
    assert len(shares) == 3 and 98 <= sum(shares) <= 102
    # 32 pixels make tokens; every kind has a line.
    assert all(re.search(rf"^{kind} ", out, re.M) for kind in feed.PEAK_TFLOPS)
    code, out, _ = main("bench", made, "--seconds", 0.2, "--clips-per-second-per-chip", 1, *CLIP)
    assert code == 0 and "chips fed at 1 clips/s each: " in out and "TPU" not in out


@pytest.mark.parametrize(
    "extra", [["--seconds", "0"], ["--mfu", "1.5"], ["--clips-per-second-per-chip", "-1"]]
)
def test_bench_refuses(main, made, extra):
    code, _, err = main("bench", made, *extra, *CLIP)
    assert code == 2 and "error: --" in err


@pytest.mark.parametrize(
    ("name", "preset", "depth"),
    [
        ("ViT-S", "small", 4),
        ("ViT-B", "base", 4),
        ("ViT-L", "large", 12),
        ("ViT-H", "huge_nju", 12),
    ],
)
def test_flops_are_those_the_models_count(name, preset, depth):
    model = PretrainConfig.of_size(preset, decoder_depth=depth)
    visible = 8 * 20  # of 196 places, a tenth is 19.6
    expected = 3 * model.forward_flops(visible, model.tokens - visible)
    assert feed.train_flops(feed.MODELS[name], 16, 224) == pytest.approx(expected)


def test_flops_by_hand():
    """The numbers of ViT-B, GFLOP of the forward pass, from the formula on paper."""
    parts = 27.18 + 0.94 + 0.38 + 22.2 + 15.1 + 1.66 + 0.09
    assert feed.train_flops(feed.MODELS["ViT-B"], 16, 224) / 3e9 == pytest.approx(parts, rel=0.01)


def test_feed_counts_chips():
    options = {"frames": 16, "size": 224, "bytes_per_clip": 1e6}
    lines = list(feed.report(100.0, 112, mfu=0.4, **options))
    assert "9520 clips/s; reads 9520 MB/s" in lines[0]
    row = next(line for line in lines if line.startswith("TPU v5e"))
    rate = 197e12 * 0.4 / feed.train_flops(feed.MODELS["ViT-B"], 16, 224)
    assert f"{int(9520 // rate)} ({rate:.0f})" in row
    assert list(feed.report(1.0, 1, mfu=0.4, per_chip=1.7, **options))[-1].endswith("each: 0.50")
    odd = list(feed.report(1.0, 1, mfu=0.4, **{**options, "size": 100}))
    assert "does not divide into tokens" in odd[1] and not any("TPU" in line for line in odd)


def test_adopt_passes_on_what_it_was_told(main, tmp_path, monkeypatch):
    calls = []
    module = types.ModuleType("data_pipelines.ingest.adopt")
    module.adopt = lambda *args, **options: calls.append((args, options))
    monkeypatch.setitem(sys.modules, "data_pipelines.ingest.adopt", module)
    (tmp_path / "names.txt").write_text("run\nsit\n")
    splits = ["--split", "train=tr-*", "--split", "test=te-*"]
    code, out, err = main(
        "adopt", tmp_path, "--name", "k", *splits, "--classes", tmp_path / "names.txt"
    )
    assert code == 0 and "manifest.json" in out, err
    expected = {"train": "tr-*", "test": "te-*"}
    told = (str(tmp_path), expected, "k", ("run", "sit"))
    assert calls == [(told, {"flip_changes_label": False})]
    code, _, err = main("adopt", tmp_path, "--name", "k", "--split", "train")
    assert code == 2 and "--split: found 'train', expected NAME=GLOB" in err
    code, _, err = main("adopt", tmp_path, "--name", "k", "--split", "a=x", "--split", "a=y")
    assert code == 2 and "'a' is given twice" in err


def test_adopted_shards_are_a_dataset(main, made, tmp_path):
    for path in made.glob("*.tfrecord"):
        shutil.copy(path, tmp_path)
    splits = ["--split", "train=*-train-*", "--split", "test=*-test-*"]
    code, _, err = main("adopt", tmp_path, "--name", "k", *splits)
    assert code == 0, err
    code, out, _ = main("verify", tmp_path, "--workers", 0, "--quiet")
    assert code == 0 and "good; 7 records" in out
    code, _, err = main("adopt", tmp_path / "none", "--name", "k", *splits)
    assert code == 2 and "none" in err


def test_interrupt_is_a_message(main, made, monkeypatch):
    def stop(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli._COMMANDS, "verify", stop)
    code, _, err = main("verify", made)
    assert code == 130 and err == "stopped\n"
