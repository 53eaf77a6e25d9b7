"""Prompts of class names."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.text.caption import clean_caption
from internvideo_jax.evaluators.published import templates
from internvideo_jax.evaluators.published import video_text as video_text_presets
from internvideo_jax.evaluators.zero_shot import ZeroShot


def test_the_published_lists():
    assert [len(templates.named(name)) for name in ("plain", "kinetics28", "actionclip16")] == [
        1,
        28,
        16,
    ]
    for name, texts in templates.TEMPLATES.items():
        assert templates.check_templates(texts) == texts, name
        assert len(set(texts)) == len(texts)
    assert templates.named("kinetics28")[18] == "A photo of a person practicing {}."
    with pytest.raises(ValueError, match="unknown templates 'k28'; known: plain"):
        templates.named("k28")


# What the released evaluation of InternVideo2 makes of "Playing Guitar", run and written down.
GUITAR = (
    "a photo of action playing guitar",
    "a picture of action playing guitar",
    "human action of playing guitar",
    "playing guitar an action",
    "playing guitar this is an action",
    "playing guitar a video of action",
    "playing action of playing guitar",
    "playing guitar",
    "playing a kind of action playing guitar",
    "doing a kind of action playing guitar",
    "look the human is playing guitar",
    "can you recognize the action of playing guitar",
    "video classification of playing guitar",
    "a video of playing guitar",
    "the man is playing guitar",
    "the woman is playing guitar",
)


@pytest.mark.parametrize("name", video_text_presets.ZERO_SHOT)
def test_each_family_is_asked_with_its_own_templates(name):
    family, _, _ = name.partition("/")
    test = ZeroShot.of_preset(name, resolution=224, batch=4)
    _, count, texts = test.prompts(["Playing Guitar", "sit"])
    assert count == {"viclip": 28, "internvideo1": 16, "internvideo2_clip": 16}[family]
    if family == "internvideo2_clip":
        assert tuple(clean_caption(text) for text in texts[:count]) == GUITAR
        assert test.merge == "cosine" and test.clean
        assert (test.views.clip.frames, test.views.crop_rule) == (8, "squash")
        assert len(video_text_presets.ZERO_SHOT[name].reported) == 5


def test_prompts_are_grouped_by_class_and_leave_other_braces_alone():
    made = templates.prompts(["run {fast}", "sit"], ["{} {x}", "a {}"])
    assert made == ["run {fast} {x}", "a run {fast}", "sit {x}", "a sit"]


@pytest.mark.parametrize(
    ("classes", "texts", "message"),
    [
        (["a"], ["A video."], "'A video.' has 0 slots"),
        (["a"], ["{} and {}"], "has 2 slots"),
        (["a"], [], "no templates"),
        (["a", " "], ["{}"], "class 1 has no name"),
        (["a", "b", "a"], ["{}"], "two classes are called 'a'"),
    ],
)
def test_bad_prompts_are_errors(classes, texts, message):
    with pytest.raises(ValueError, match=message):
        templates.prompts(classes, texts)


def test_merge_rules_by_hand():
    video = np.array([[2.0, 0.0]])
    text = np.array([[[3.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [5.0, 0.0]]])  # cosines 1 0, -1 1
    np.testing.assert_allclose(templates.class_scores(video, text), [[0.5, 0.0]])
    first = np.exp([2.0, -2.0]) / np.exp([2.0, -2.0]).sum()
    second = np.exp([0.0, 2.0]) / np.exp([0.0, 2.0]).sum()
    np.testing.assert_allclose(
        templates.class_scores(video, text, "probability", 2.0)[0], (first + second) / 2
    )
    with pytest.raises(ValueError, match="unknown merge rule"):
        templates.class_scores(video, text, "max")
    with pytest.raises(ValueError, match="has no cosine"):
        templates.class_scores(video * 0, text)
