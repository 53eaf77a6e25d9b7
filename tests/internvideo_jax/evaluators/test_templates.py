"""Prompts of class names."""

from __future__ import annotations

import numpy as np
import pytest

from internvideo_jax.evaluators import templates


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
