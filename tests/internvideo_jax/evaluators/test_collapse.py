"""Features that become the same are found, said, and may end a run; others are left alone."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines import recipe_files
from data_pipelines.clips.seconds import Spans
from data_pipelines.commands.exit_codes import ExitCode, exit_code_of
from internvideo_jax.checkpoint.learned import learned
from internvideo_jax.config import TrainConfig, to_typed
from internvideo_jax.evaluators.collapse import Collapse
from internvideo_jax.evaluators.spread import effective_rank, neighbours, own_caption, spread
from internvideo_jax.inference.vectors import Rows
from internvideo_jax.objectives.contrastive import Contrastive
from internvideo_jax.recipes import loading
from internvideo_jax.run import seconds
from internvideo_jax.telemetry.writer import read_rows
from internvideo_jax.train import train
from internvideo_jax.types import Mean


def test_the_effective_rank_of_known_matrices():
    assert effective_rank(np.eye(6, 9)) == pytest.approx(6.0)
    assert effective_rank(np.tile(np.arange(1.0, 5.0), (6, 1))) == pytest.approx(1.0)
    assert effective_rank(np.zeros((6, 4))) == 0.0
    # Two directions, one of three times the size: exp of the entropy of 3/4 and 1/4.
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(4 / 3**0.75)


def test_the_spread_of_known_vectors():
    same = spread(np.tile(np.array([3.0, 4.0]), (5, 1)))
    assert same["cosine"] == pytest.approx(1.0)
    assert same["relative_std"] == same["std"] == 0.0 and same["still"] == 1.0
    apart = spread(np.array([[1.0, 0.0], [-1.0, 0.0]]))
    assert apart["cosine"] == pytest.approx(-1.0)
    assert apart["relative_std"] == pytest.approx(1.0) and apart["still"] == 0.5
    assert spread(np.zeros((4, 2)))["cosine"] == 0.0


def rows(values, record, view, label) -> Rows:
    return Rows(*(np.asarray(part) for part in (record, view, label)), np.asarray(values, float))


def test_neighbours_are_of_the_same_video_and_label():
    near = [[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0.9, 0.1], [0.2, 0.9, 0.8], [0.1, 0.8, 0.9]]
    found = neighbours(rows(near, [0, 0, 1, 1, 2, 2], [0, 1] * 3, [4, 4, 7, 7, 7, 7]))
    assert found == {"own_video": 1.0, "same_label": pytest.approx(2 / 3)}
    # Views that are the same vector say nothing of the video; without labels there are none.
    twice = np.repeat(np.eye(3), 2, axis=0)
    assert neighbours(rows(twice, [0, 0, 1, 1, 2, 2], [0, 1] * 3, [-1] * 6)) == {}


def test_the_own_caption_is_the_nearest_one():
    texts = np.eye(3)
    assert own_caption(texts[[0, 1, 2, 2]], texts, [0, 1, 2, 0]) == 0.75


def look(rank: float, cosine: float = 0.5, tower: str = "features") -> dict[str, float]:
    return {f"{tower}/effective_rank": rank, f"{tower}/cosine": cosine}


@pytest.mark.parametrize(
    ("earlier", "now", "said"),
    [
        ([], look(1.0), ""),  # once is not enough
        ([look(1.0)], look(1.0), "effective rank 1, below least_rank = 1.2"),
        ([look(1.0), look(9.0)], look(1.0), ""),
        ([look(8.0), look(1.9)], look(1.9), "rank_share = 0.25 of the 8 of the first look"),
        ([look(8.0), look(2.1)], look(1.9), ""),
        ([look(3.0, 0.99995)], look(3.0, 0.99999), "different clips 0.999990, above most_cosine"),
        # One rule after the other is no rule broken twice.
        ([look(9.0), look(3.0, 0.99999)], look(2.0, 0.5), ""),
        ([{**look(5.0, tower="video"), **look(1.1, tower="text")}],
         {**look(5.0, tower="video"), **look(1.1, tower="text")}, "text effective rank 1.1"),
    ],
)  # fmt: skip
def test_the_rules(earlier, now, said):
    found = Collapse().alarm(now, earlier)
    assert said in found and bool(found) == bool(said)
    assert Collapse(action="off").alarm(now, earlier) == ""


def tiny(recipe: str, shards, **changes) -> TrainConfig:
    """A recipe in small, with the monitor alone."""
    plain = recipe_files.load(recipe)
    evals = loading.added({**plain, "evals": {}}, ["collapse"])
    config = to_typed(TrainConfig, {**plain, "evals": evals})
    watch = dataclasses.replace(
        config.evals["collapse"], clips=16, **{"every": 1, "action": "stop", **changes}
    )
    return dataclasses.replace(
        config,
        evals={"collapse": watch},
        data=dataclasses.replace(config.data, train=str(shards)),
    )


VIDEOMAE = "videomae/pretrain:size=base,smoke"


def test_an_alarm_ends_the_run_with_everything_on_disk(shards, tmp_path, capsys):
    config = tiny(VIDEOMAE, shards, least_rank=1e3)
    config = dataclasses.replace(config, log=dataclasses.replace(config.log, report=True))
    with pytest.raises(RuntimeError, match="stopped at step 2 of 3: config.evals.collapse: the fea"
                       ) as ended:  # fmt: skip
        train(config, tmp_path)
    assert exit_code_of(ended.value) == ExitCode.FAILED
    assert "--config.evals.collapse.action=warn" in str(ended.value)
    assert (tmp_path / "checkpoints/2").is_dir() and (tmp_path / "report.html").exists()
    result = json.loads((tmp_path / "results/collapse.json").read_text())
    assert "below least_rank = 1000" in result["alarm"]
    assert result["protocol"]["looks_before"] == 1 and result["protocol"]["clips"] == 16
    assert result["alarm"] in (tmp_path / "report.html").read_text()
    assert "in 2 looks in a row)" in capsys.readouterr().out
    # What its clips spanned is there too, for the run and for those that start from it.
    spans = json.loads((tmp_path / "run.json").read_text())["seconds"]["world"]
    clip = config.data.clip
    assert spans["median"] == pytest.approx(clip.frames * clip.stride / 12, rel=0.01)
    assert result["protocol"]["seconds"]["fps"] == [12.0, 12.0, 12.0]
    before = learned(str(tmp_path))
    assert (before.seconds, before.why) == (spans["median"], "its data")
    told = seconds.lines(config, {"slow": Spans(1, 9.0, 9.0, 9.0)}, before)[-1]
    assert "everything moves faster for the model" in told and str(tmp_path) in told
    # Told to go on, it does; the earlier looks are those of the run, whoever started it.
    warned = dataclasses.replace(config.evals["collapse"], action="warn")
    assert train(dataclasses.replace(config, evals={"collapse": warned}), tmp_path) == 0
    steps = [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")]
    assert steps == [1, 1, 2, 2, 3, 3]
    result = json.loads((tmp_path / "results/collapse.json").read_text())
    assert result["alarm"] and result["protocol"]["looks_before"] == 2


def test_what_cannot_be_watched_is_said_before_the_first_step(shards, tmp_path):
    with pytest.raises(ValueError, match=r"collapse: action = 'halt'; expected one of off, warn"):
        train(tiny(VIDEOMAE, shards, action="halt"), tmp_path / "a")


class NoNegatives(Contrastive):
    """A clip is pulled to its caption, and pushed away from nothing."""

    def compare(self, params, embeddings, batch):
        sides = [x / (1e-6 + (x**2).sum(-1, keepdims=True) ** 0.5) for x in embeddings.values()]
        return Mean.of(1.0 - (sides[0] * sides[1]).sum(-1)), {}


@pytest.mark.slow
@pytest.mark.parametrize("collapses", [False, True])
def test_a_run_without_negatives_is_stopped_and_a_sound_one_is_not(shards, tmp_path, collapses):
    config = tiny("viclip/pretrain:size=base,tokenizer=world,text=trained,smoke", shards, every=5)
    optim = dataclasses.replace(
        config.optim, lr=3e-3, min_lr=1e-3, lr_batch=0, freeze=(), warmup_steps=1
    )
    config = dataclasses.replace(
        config,
        optim=optim,
        data=dataclasses.replace(config.data, global_batch=16),
        checkpoint=dataclasses.replace(config.checkpoint, every=1000),
        log=dataclasses.replace(config.log, every=100),
        steps=60,
    )
    if not collapses:
        assert train(config, tmp_path) == 0
        return
    config = dataclasses.replace(config, objective=NoNegatives(**vars(config.objective)))
    with pytest.raises(RuntimeError, match="the features collapse"):
        train(config, tmp_path)
