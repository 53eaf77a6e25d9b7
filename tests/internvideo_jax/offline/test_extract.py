"""Features of sliding windows: against a direct forward pass, cut off and continued, shared."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.clips.transforms import resize
from data_pipelines.records import manifest
from data_pipelines.records.companion import open_companion
from data_pipelines.records.dataset import open_dataset
from internvideo_jax.config import MeshConfig
from internvideo_jax.families.videomae.model import PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.inference.pixels import PixelDigest
from internvideo_jax.layers.tower import tower
from internvideo_jax.offline.by_shard import check_same
from internvideo_jax.offline.extract import Extractor, Windows, extract, window_frames
from internvideo_jax.parallel.mesh import make_mesh
from tests.conftest import QUICK, ROOT, environment

SMALL = {"encoder": tower(16, 1, 2), "frames": 4, "resolution": 32, "patch": 16, "dtype": "float32"}


def test_windows_start_at_multiples_while_they_end_inside():
    assert window_frames(10, 4, 1, 3).tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert window_frames(9, 4, 1, 3).tolist() == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert window_frames(8, 4, 2, 1).tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    # As many as in the reference: floor((n - T) / s) + 1.
    for n in range(16, 60):
        assert len(window_frames(n, 16, 1, 4)) == (n - 16) // 4 + 1


@pytest.mark.parametrize("n", range(1, 7))
@pytest.mark.parametrize("r", [1, 2, 3])
def test_a_shorter_video_is_padded_as_test_clips_of_the_reference(n: int, r: int):
    sampled = list(range(0, n, r))
    padded = sampled + [sampled[-1]] * (7 - len(sampled))
    assert window_frames(n, 7, r, 5).tolist() == [padded]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three shards of videos of 13 frames."""
    from data_pipelines.ingest.__main__ import main as ingest
    from data_pipelines.synthetic import World, write_world

    folder = tmp_path_factory.mktemp("long")
    write_world(World(size=48, frames=13), folder / "videos", {"test": 7})
    arguments = [f"--source={folder}/videos/annotations.jsonl", f"--out={folder}/shards"]
    assert ingest([*arguments, "--name=w", "--workers=1", "--shards=3"]) == 0
    return folder / "shards"


def make(data: Path, config=None, **windows) -> Extractor:
    model = (config or PretrainConfig(decoder=tower(16, 1, 2), **SMALL)).model()
    params = model.init(jax.random.key(0))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    options = Windows(**{"stride": 4, "batch": 4, **windows})
    return Extractor(model, params, mesh, open_dataset(str(data), "test"), options)


def settings(extractor: Extractor) -> dict:
    return {"windows": vars(extractor.windows), "params_digest": "a", "data_fingerprint": "b",
            "model": "c"}  # fmt: skip


def written(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.parametrize(
    ("frame_stride", "starts", "pool"), [(1, (0, 4, 8), "mean"), (5, (0,), "head")]
)
def test_features_are_those_of_a_forward_pass(data, tmp_path, frame_stride, starts, pool):
    """Frame stride 5 makes a window longer than the videos."""
    config = VideoMAEClassifierConfig(classes=3, **SMALL) if pool == "head" else None
    tool = make(data, config, frame_stride=frame_stride, crop="squash", pool=pool)
    assert extract(tool, tmp_path, settings(tool)) == 3
    companion = open_companion(tmp_path, manifest.load(str(data)), "test")
    assert len(companion) == len(tool.dataset) == 7

    @jax.jit
    def direct(video):
        tokens = tool.model.apply(tool.params, video, method="features")
        if pool == "head":
            return tool.model.apply(tool.params, tokens, method="pool")
        return tokens.mean(axis=1)

    for index in (0, 6):
        found, record = companion[index], tool.dataset.load(index)
        assert len(record.frames) == 13
        decoded = tool.dataset.frames(index, record, np.arange(13))
        frames = np.stack([resize(frame, 32, 32, "bilinear") for frame in decoded])
        assert found["features"].dtype == np.float32
        assert found["features"].shape == (len(starts), 16)
        for row, start in enumerate(starts):
            wanted = start + frame_stride * np.arange(4)
            wanted = np.where(wanted < 13, wanted, 10)
            expected = direct(frames[wanted][None])[0]
            np.testing.assert_allclose(found["features"][row], expected, rtol=1e-4, atol=1e-5)
            begin, end = found["windows_us"][row]
            assert begin == record.timestamps_us[start]
            assert end == record.timestamps_us[wanted[-1]] + round(1e6 / record.fps)


def test_windows_of_one_video_differ_and_the_centre_is_cut(data, tmp_path):
    tool = make(data)
    extract(tool, tmp_path, settings(tool))
    features = open_companion(tmp_path, manifest.load(str(data)), "test")[0]["features"]
    assert not np.allclose(features[0], features[1], atol=1e-4)


def test_features_that_are_not_finite_are_not_written(data, tmp_path):
    tool = make(data)
    tool.params = jax.tree.map(lambda leaf: leaf * np.nan, tool.params)
    with pytest.raises(ValueError, match=r"record 0 .*the features of this video are not finite"):
        extract(tool, tmp_path, settings(tool))
    assert not list(tmp_path.glob("*.tfrecord"))


def test_processes_share_the_shards(data, tmp_path, capsys):
    tool = make(data)
    extract(tool, tmp_path / "one", settings(tool))
    assert extract(tool, tmp_path / "two", settings(tool), part=1, parts=2) == 1
    assert "2 shards are left to other processes" in capsys.readouterr().out
    assert not (tmp_path / "two/companion.json").exists()
    assert extract(tool, tmp_path / "two", settings(tool), part=0, parts=2) == 2
    assert written(tmp_path / "one") == written(tmp_path / "two")
    with pytest.raises(ValueError, match="--part=2: expected 0 to 1"):
        extract(tool, tmp_path / "two", settings(tool), part=2, parts=2)


def seen_by_hand(tool: Extractor) -> PixelDigest:
    """Every window decoded by itself."""
    seen = PixelDigest()
    for index in range(len(tool.dataset)):
        record = tool.dataset.load(index)
        for numbers in window_frames(len(record.frames), 4, 1, 4):
            frames = tool.dataset.frames(index, record, numbers)
            seen.add_clip(np.stack([resize(each, 32, 32, "bilinear") for each in frames]), index)
    return seen


def test_what_was_seen_is_the_same_for_all_parts_batches_and_devices(data, tmp_path, capsys):
    squash = {"crop": "squash"}  # the clips of this set are squares
    expected = seen_by_hand(make(data, **squash)).content()
    assert expected["clips"] == 7 * 3
    for parts, batch in ((1, 4), (2, 5), (4, 64)):
        out = tmp_path / str(parts)
        for part in reversed(range(parts)):
            tool = make(data, batch=batch, **squash)
            extract(tool, out, settings(tool), part=part, parts=parts)
        assert json.loads((out / "features-test.json").read_text())["pixels"] == expected
    assert f"pixels: {expected['digest']} of 21 clips" in capsys.readouterr().out
    other = make(data, stride=3, **squash)
    extract(other, tmp_path / "other", settings(other))
    found = json.loads((tmp_path / "other/features-test.json").read_text())
    assert found["pixels"]["digest"] != expected["digest"]


def test_shards_of_earlier_versions_have_no_digest_and_that_is_said(data, tmp_path, capsys):
    tool = make(data)
    extract(tool, tmp_path, settings(tool))
    whole = written(tmp_path)
    (tmp_path / "features-test-00001-of-00003.pixels.json").unlink()
    capsys.readouterr()
    assert extract(tool, tmp_path, settings(tool)) == 0
    assert "1 of 3 shards have no readable digest" in capsys.readouterr().out
    (tmp_path / "features-test-00002-of-00003.pixels.json").write_text('{"clips": 3')
    assert extract(tool, tmp_path, settings(tool)) == 0
    assert "2 of 3 shards have no readable digest" in capsys.readouterr().out
    # A shard that is made again has one again.
    for path in tmp_path.glob("*-0000[12]-of-00003*.idx"):
        path.unlink()
    assert extract(tool, tmp_path, settings(tool)) == 2
    assert written(tmp_path) == whole


def test_killed_and_continued_gives_the_same_bytes(data, tmp_path):
    tool, out = make(data), tmp_path / "killed"
    extract(tool, tmp_path / "whole", settings(tool))
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.internvideo_jax.offline.slow_extract", str(data), str(out)],
        cwd=ROOT,
        env=environment() | QUICK,  # with the flags of this process, hence its bits
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("*.idx")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.idx")}
    assert 1 <= len(before) < 3 and not (out / "companion.json").exists()
    assert extract(tool, out, settings(tool)) == 3 - len(before)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    whole = written(tmp_path / "whole")
    assert {name: data for name, data in written(out).items() if name in whole} == whole
    assert extract(tool, out, settings(tool)) == 0


def test_other_settings_are_refused(tmp_path):
    tool = {"windows": {"stride": 4}, "params_digest": "a", "data_fingerprint": "b", "model": {}}
    path = tmp_path / "features-test.json"
    check_same(path, tool, "windows")
    check_same(path, {**tool, "git": "newer"}, "windows")
    for name in tool:
        with pytest.raises(ValueError, match=f"made with another {name}"):
            check_same(path, {**tool, name: "other"}, "windows")
    assert json.loads(path.read_text())["params_digest"] == "a"


def test_bad_settings(data):
    for field in ("stride", "frame_stride", "batch"):
        with pytest.raises(ValueError, match=f"--{field}=0: expected at least 1"):
            Windows(**{field: 0})
    with pytest.raises(ValueError, match="--crop=left: expected one of center, squash"):
        Windows(crop="left")
    with pytest.raises(ValueError, match="PretrainConfig has no pooling before a head"):
        make(data, pool="head")


def test_an_unreadable_record_stops_or_is_counted(data, monkeypatch):
    from data_pipelines.records.dataset import Dataset, UnreadableRecordError

    load = Dataset.load

    def damaged(self, index):
        if index == 1:
            raise UnreadableRecordError("record 1 is damaged")
        return load(self, index)

    monkeypatch.setattr(Dataset, "load", damaged)
    with pytest.raises(UnreadableRecordError, match="record 1 is damaged"):
        list(make(data).shard(range(3)))
    tool = make(data, skip_unreadable=True)
    found = list(tool.shard(range(3)))
    assert [len(one["features"]) for one in found] == [3, 0, 3] and tool.skipped == 1
    assert found[1]["features"].shape == (0, 16) and found[1]["windows_us"].shape == (0, 2)
