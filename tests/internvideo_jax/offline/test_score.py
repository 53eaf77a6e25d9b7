"""Scores of clips and captions: against the embeddings, cut off and continued, read by `subset`."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.clips.sampling import uniform_center
from data_pipelines.clips.transforms import resize
from data_pipelines.records.dataset import open_dataset
from data_pipelines.text import make_tokenizer
from internvideo_jax.config import MeshConfig
from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.inference.pixels import PixelDigest
from internvideo_jax.layers.tower import tower
from internvideo_jax.offline.score import Scorer, Scoring, score
from internvideo_jax.parallel.mesh import make_mesh
from tests.internvideo_jax.evaluators.test_video_text import CONFIG, StandIn, data, unit

__all__ = ["data"]  # the fixture: 23 clips in 3 shards, 45 captions, 15 of them empty


def make(data: Path, **options) -> Scorer:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model = StandIn(CONFIG)
    settings = Scoring(**{"batch": 4, **options})
    return Scorer(model, model.init(), mesh, open_dataset(str(data), "test"), settings)


PROVENANCE = {"scoring": 1, "params_digest": "a", "data_fingerprint": "b", "model": "c"}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_are_the_cosines_of_clip_and_caption(data, tmp_path, capsys):
    tool = make(data)
    assert score(tool, tmp_path, PROVENANCE) == 3
    found = rows(tmp_path / "similarity-test.jsonl")
    expected = []
    for number in range(23):
        record = tool.dataset.load(number)
        frames = tool.dataset.frames(number, record, uniform_center(13, 4))
        video = np.stack([resize(frame, 32, 32, "bicubic") for frame in frames])[None]
        ids = make_tokenizer("clip", CONFIG.context, clean=True)(record.captions)
        text = unit(tool.model.apply(tool.params, ids, "encode_text"))
        cosines = text @ unit(tool.model.apply(tool.params, video, "encode_video"))[0]
        expected += [
            (record.media_id, caption, cosine)
            for caption, cosine in zip(record.captions, cosines, strict=True)
            if caption != "..."
        ]
    assert [(row["id"], row["caption"]) for row in found] == [each[:2] for each in expected]
    np.testing.assert_allclose(
        [row["similarity"] for row in found], [each[2] for each in expected], atol=2e-6
    )
    assert np.ptp([row["similarity"] for row in found]) > 0.1
    assert {row["colour"] for row in found} > {"red"}  # annotation columns are kept
    assert "15 captions are empty" in capsys.readouterr().out


def test_what_was_seen_is_the_same_for_all_parts_and_batches(data, tmp_path):
    expected, dataset = PixelDigest(), make(data).dataset
    for number in range(23):
        record = dataset.load(number)
        frames = dataset.frames(number, record, uniform_center(13, 4))
        clip = np.stack([resize(frame, 32, 32, "bicubic") for frame in frames])
        expected.add_clip(clip, number)
    for parts, batch in ((1, 4), (2, 3), (4, 64)):
        out = tmp_path / str(parts)
        for part in range(parts):
            score(make(data, batch=batch), out, PROVENANCE, part=part, parts=parts)
        about = json.loads((out / "similarity-test.json").read_text())
        assert about["pixels"] == expected.content() and expected.clips == 23


def test_a_subset_reads_the_scores(data, tmp_path, command):
    score(make(data), tmp_path / "s", PROVENANCE)
    source, out = tmp_path / "s/similarity-test.jsonl", tmp_path / "best.jsonl"
    done = command(
        "data_pipelines", "subset", f"--source={source}", f"--out={out}", "--top-share=0.5"
    )
    assert done.returncode == 0, done.stderr
    every = sorted((row["similarity"] for row in rows(source)), reverse=True)
    assert sorted((row["similarity"] for row in rows(out)), reverse=True) == every[:15]


def test_what_is_finished_is_kept_and_parts_join(data, tmp_path):
    score(make(data), tmp_path / "one", PROVENANCE)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    shared = tmp_path / "shared"
    assert score(make(data), shared, PROVENANCE, part=1, parts=2) == 1
    assert not (shared / "similarity-test.jsonl").exists()
    finished = shared / "similarity-test-00001-of-00003.jsonl"
    before = finished.stat().st_mtime_ns
    assert score(make(data), shared, PROVENANCE, part=0, parts=2) == 2
    assert finished.stat().st_mtime_ns == before
    assert {path.name: path.read_bytes() for path in shared.iterdir()} == whole
    assert score(make(data), shared, PROVENANCE) == 0
    with pytest.raises(ValueError, match=r"made with another params_digest \(a, now x\)"):
        score(make(data), shared, {**PROVENANCE, "params_digest": "x"})


def test_bad_weights_models_and_settings(data, tmp_path):
    tool = make(data)
    tool.params = {**tool.params, "text": tool.params["text"] * np.nan}
    with pytest.raises(ValueError, match=r"\(world-.*\): the embedding of its caption .* is NaN"):
        score(tool, tmp_path, PROVENANCE)
    assert not list(tmp_path.glob("*.jsonl"))
    with pytest.raises(ValueError, match="--sampling=x: expected one of dense"):
        Scoring(sampling="x")
    other = PretrainConfig(
        encoder=tower(16, 1, 2), decoder=tower(16, 1, 2), frames=4, resolution=32
    )
    with pytest.raises(ValueError, match="'videomae_pretrain' reads no text"):
        Scorer(other.model(), {}, tool.mesh, tool.dataset, Scoring())


def test_damaged_records_stop_or_are_counted(data, tmp_path, monkeypatch):
    from data_pipelines.records.dataset import Dataset, UnreadableRecordError

    true = Dataset.frames

    def frames(self, index, record, wanted, buffer=None):
        if index == 2:
            raise UnreadableRecordError(f"{self.address(index, record)}: broken")
        return true(self, index, record, wanted, buffer)

    monkeypatch.setattr(Dataset, "frames", frames)
    with pytest.raises(UnreadableRecordError, match="record 2 .*broken"):
        score(make(data), tmp_path / "a", PROVENANCE)
    tool = make(data, skip_unreadable=True)
    score(tool, tmp_path / "b", PROVENANCE)
    assert tool.unreadable == 1
    lost = tool.dataset.load(2).media_id
    names = {row["id"] for row in rows(tmp_path / "b/similarity-test.jsonl")}
    assert lost not in names and len(names) == 22


@pytest.mark.slow
def test_the_command_scores_with_a_checkpoint(shards, tmp_path, command):
    config = "--config=tests/sharding/video_text_config.py"
    data = f"--config.data.train={shards}"
    run = tmp_path / "run"
    done = command("internvideo_jax.train", config, data, f"--workdir={run}", "--config.steps=2")
    assert done.returncode == 0, done.stderr[-3000:]
    arguments = (config, data, f"--checkpoint={run}", f"--out={tmp_path}/s", "--batch=8")
    done = command("internvideo_jax.offline.score", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "complete: " in done.stdout
    assert len(rows(tmp_path / "s/similarity-train.jsonl")) == 60
    # What the model saw does not depend on batches, processes and devices.
    seen = json.loads((tmp_path / "s/similarity-train.json").read_text())["pixels"]
    assert seen["clips"] == 60 and f"pixels: {seen['digest']} of 60 clips" in done.stdout
    base = (config, data, f"--checkpoint={run}", f"--out={tmp_path}/others")
    for part, devices in ((1, 8), (0, 1)):
        words = (f"--part={part}", "--parts=2", "--batch=16")
        done = command("internvideo_jax.offline.score", *base, *words, devices=devices)
        assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "others/similarity-train.json").read_text())["pixels"]
    assert found == seen
    # Nothing of it depends on the command: extract shows windows, and says so in the same way.
    digests = set()
    for devices in (1, 8):
        out = tmp_path / f"features{devices}"
        words = (config, data, f"--checkpoint={run}", f"--out={out}", "--batch=8")
        done = command("internvideo_jax.offline.extract", *words, devices=devices)
        assert done.returncode == 0, done.stderr[-3000:]
        pixels = json.loads((out / "features-test.json").read_text())["pixels"]
        assert pixels["clips"] > 20 and f"of {pixels['clips']} clips" in done.stdout
        digests.add(pixels["digest"])
    assert len(digests) == 1
    names = [str(tmp_path / f"features{devices}/features-test.json") for devices in (1, 8)]
    done = command("internvideo_jax.offline.compare", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    again = command("internvideo_jax.offline.score", *arguments, "--crop=center")
    assert again.returncode and "made with another scoring" in again.stderr
