"""Pre-training goes on with a folder, is probed before and after in one way, and says the truth."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from data_pipelines.records import manifest
from internvideo_jax.adapt import data, run, verdict
from internvideo_jax.adapt.going_on import continued
from internvideo_jax.adapt.run import Asked, adapt
from internvideo_jax.checkpoint.reading import step_of
from internvideo_jax.checkpoint.steps import complete_steps
from tests.recipes import shipped

STEPS = 4


def asked(source, start, **changes) -> Asked:
    return Asked(str(source), str(start), steps=STEPS, minutes=0.0, **changes)


@pytest.fixture(scope="module")
def done(recipe, start, shards, tmp_path_factory):
    """An adaptation of two seeds that nobody interrupted."""
    folder = tmp_path_factory.mktemp("adapt")
    assert adapt(recipe, asked(shards, start, seeds=(1, 2), probes=LABELLED), folder) == 0
    return folder


LABELLED = ("linear_probe", "knn")


@pytest.mark.slow
def test_both_sides_are_probed_alike_for_every_seed(done, start, shards):
    found = json.loads((done / "adapt.json").read_text())
    assert found["start"] == str(step_of(start).path) and found["steps"] == STEPS
    assert found["seeds"] == [1, 2] and found["data"]["directory"] == str(shards)
    assert set(found["metrics"]) == {"linear_probe", "knn", "reconstruction"}
    top1 = found["metrics"]["linear_probe"]["top1"]
    assert len(top1["before"]) == len(top1["after"]) == 2
    assert found["verdict"]["before"] == top1["before"]
    for seed in (1, 2):
        sides = [
            json.loads((done / place / "probed.json").read_text())
            for place in (f"before/seed-{seed}", f"seed-{seed}/after")
        ]
        assert sides[0]["results"]["linear_probe"]["protocol"]["steps"] == 500
        one, other = (each["results"]["knn"]["protocol"] for each in sides)
        assert one == other and one["split"] == "test"
        assert sides[0]["params_digest"] != sides[1]["params_digest"]
        hits = sides[1]["results"]["linear_probe"]["hits"]
        assert np.mean(hits) == top1["after"][seed - 1] and len(hits) == 20
        trained = json.loads((done / f"seed-{seed}/run.json").read_text())
        assert trained["params_digest"] == sides[1]["params_digest"]
        assert trained["config"]["seed"] == trained["config"]["data"]["seed"] == seed
        assert trained["config"]["objective"]["name"] == "masked_pixels"
    page = (done / "report.html").read_text()
    assert found["verdict"]["text"] in page and "data:image/png" in page and "<svg" in page


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_to_the_same_end(
    done, recipe, start, shards, tmp_path, monkeypatch
):
    ask = asked(shards, start, seeds=(1, 2), probes=("knn",))
    probed, train = run.Prober.run, run.train
    left = iter([0, 1, 0, 0, 0, 1])  # which calls of a probe or of a training die

    def dies(work):
        def called(*words, **named):
            if next(left, 0):
                raise KeyboardInterrupt
            return work(*words, **named)

        return called

    monkeypatch.setattr(run.Prober, "run", dies(probed))
    monkeypatch.setattr(run, "train", dies(train))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            adapt(recipe, ask, tmp_path)
    assert adapt(recipe, ask, tmp_path) == 0
    one, other = (json.loads((each / "adapt.json").read_text()) for each in (done, tmp_path))
    for name in ("knn", "reconstruction"):
        assert one["metrics"][name] == other["metrics"][name]
    assert one["params_digest"] == other["params_digest"] and one["steps"] == other["steps"]


@pytest.mark.slow
def test_another_adaptation_in_the_same_place_is_refused(done, recipe, start, shards):
    with pytest.raises(ValueError, match=r"another seeds: \[1, 2\] there, \[1\] here"):
        adapt(recipe, asked(shards, start, seeds=(1,), probes=LABELLED), done)


@pytest.mark.slow
def test_minutes_become_steps_once(recipe, start, shards, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(run, "say", said.append)
    monkeypatch.setattr(run, "LEAST_STEPS", STEPS)
    ask = dataclasses.replace(asked(shards, start, probes=("knn",)), steps=0, minutes=1e-6)
    assert adapt(recipe, ask, tmp_path) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["steps"] == STEPS and any("a step takes" in line for line in said)
    assert not (tmp_path / "timing").exists()
    assert complete_steps(tmp_path / "seed-0/checkpoints")[-1] == STEPS


def test_the_schedule_is_new_and_lower_and_flags_stay(recipe, shards):
    clips = data.clips_of(str(shards))

    def optim(config, given=()):
        return continued(config, clips, "run", steps=400, seed=3, rate=0.5, given=given).optim

    found = optim(recipe)
    assert (found.lr, found.min_lr) == (recipe.optim.lr / 2, recipe.optim.min_lr / 2)
    assert (found.warmup_steps, found.weight_decay) == (20, recipe.optim.weight_decay)
    assert optim(recipe, ("optim.lr",)).lr == recipe.optim.lr
    large = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, global_batch=4096))
    small = continued(large, clips, "run", steps=400, seed=3, rate=0.5, given=())
    assert small.data.global_batch == 0 and (small.seed, small.data.seed) == (3, 3)


def test_a_folder_keeps_whole_videos_from_training(shards, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number, video in enumerate(sorted((shards.parent / "videos").rglob("*.mp4"))[:8]):
        shutil.copy(video, folder / f"{'abcd'[number // 2]}_{number:06d}_{number + 1:06d}.mp4")
    directory = data.shards_of(str(folder), tmp_path / "shards", 48, 0.3, False)
    found = manifest.load(directory)
    assert set(found.splits) == {"train", "test"} and found.options["short_side"] == 72
    clips = data.clips_of(directory)
    assert clips.records + clips.tested == 8 and clips.records % 2 == clips.tested % 2 == 0
    assert clips.classes == 0 and clips.probes() == ("reconstruction",)
    assert f"no labels, and {clips.tested} clips" in clips.why()
    with pytest.raises(ValueError, match="without labels expected 8"):
        data.check_probes(clips.probes(), clips, "alignment")


def test_what_cannot_be_done_is_said(recipe, shards, tmp_path):
    start = tmp_path / "weights.safetensors"  # nobody gets as far as reading it
    start.touch()
    (tmp_path / "videos").mkdir()
    video = next((shards.parent / "videos").rglob("*.mp4"))
    with pytest.raises(ValueError, match="lists no videos"):
        adapt(recipe, asked(tmp_path / "videos", start), tmp_path / "a")
    shutil.copy(video, tmp_path / "videos")
    with pytest.raises(ValueError, match="source videos found: 1, of which none"):
        adapt(recipe, asked(tmp_path / "videos", start), tmp_path / "b")
    with pytest.raises(ValueError, match="no checkpoint here"):
        adapt(recipe, asked(shards, tmp_path / "videos"), tmp_path / "c")
    with pytest.raises(ValueError, match="--config.steps is decided here: give --steps"):
        adapt(recipe, asked(shards, start), tmp_path / "c", ("steps",))
    tuned = shipped.config("videomae-finetune-tiny", "smoke")
    with pytest.raises(ValueError, match="was trained for classification, which is no pre-train"):
        adapt(tuned, asked(shards, start), tmp_path / "d")
    with pytest.raises(ValueError, match="--probes=linear_prob: did you mean"):
        adapt(recipe, asked(shards, start, probes=("linear_prob",)), tmp_path / "e")
    whole = manifest.load(str(shards))
    only = dataclasses.replace(whole, splits={"train": whole.splits["train"]})
    alone = tmp_path / "alone"
    shutil.copytree(shards, alone)
    manifest.save(dataclasses.replace(only, directory=str(alone)))
    with pytest.raises(ValueError, match="`ivj ingest --hold-out 0.2` keeps a part back"):
        adapt(recipe, asked(alone, start), tmp_path / "f")


@pytest.mark.parametrize(
    ("after", "answer"),
    [((0.9, 0.9, 0.8), "helped"), ((0.5, 0.5, 0.6), "no clear difference"),
     ((0.1, 0.2, 0.1), "hurt")],
)  # fmt: skip
def test_a_difference_counts_beyond_two_standard_errors(after, answer):
    found = verdict.judge("linear_probe", "top1", (0.5, 0.5, 0.5), after, None, 200)
    assert found.answer == answer
    assert ("sd" in found.text()) and f"{found.gain:+.3f}" in found.text()
    runs = {0: "a", 1: "b", 2: "c"}
    take = verdict.to_take(found, "start", runs, (0.1, 0.3, 0.2))
    assert take == ("b" if answer == "helped" else "start")


def test_the_error_is_of_the_same_videos_on_both_sides():
    rng = np.random.default_rng(0)
    easy = (rng.random(400) < 0.5).astype(int)
    better = easy.copy()
    better[np.flatnonzero(easy == 0)[:30]] = 1
    hits = np.stack([easy] * 3), np.stack([better] * 3)
    shares = [tuple(side.mean(axis=1)) for side in hits]
    paired = verdict.judge("p", "top1", *shares, hits, 400)
    apart = verdict.judge("p", "top1", *shares, None, 400)
    assert paired.error == pytest.approx(np.std(better - easy, ddof=1) / 20)
    assert paired.error < apart.error / 2
    loss = verdict.judge("reconstruction", "loss", (1.0, 1.0), (0.5, 0.6), None, 9)
    assert loss.answer == "helped"
    rank = verdict.judge("collapse", "features/effective_rank", (2.0,), (3.0,), None, 9)
    assert rank.answer == "no clear difference"
    one = verdict.judge("p", "top1", (0.5,), (0.6,), None, 100)
    assert "one seed: luck of the seed is not in it" in one.text()


def test_few_labels_let_neighbours_vote():
    def clips(*counts, tested=10):
        return data.Clips("d", "train", "test", 100, tested, counts)

    assert clips(50, 60).probes() == ("linear_probe", "knn")
    assert clips(5, 6).probes() == ("knn",) and "too few" in clips(5, 6).why()
    assert "one class only" in clips(50, 0).why()
    with pytest.raises(ValueError, match="needs labels of two classes"):
        data.check_probes(("knn",), clips(), "masked_pixels")
    assert clips().probes() == ("collapse",) and "no labels" in clips().why()
    assert clips(tested=7).probes() == ("reconstruction",)
