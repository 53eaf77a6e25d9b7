"""Zero-shot recognition: prompts made of class names, and scores merged over prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from internvideo_jax.evaluators.metrics import softmax

_WAYS = ("doing", "performing", "practicing")

# {} is the class name. Wording as published, slips included ("A example of").
TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    # ViCLIP on Kinetics and Something-Something. InternVideo2 ships the list, and does not test
    # with it.
    "kinetics28": (
        "A photo of action {}.",
        "A video of action {}.",
        "He or she is {}.",
        "A person is doing {}.",
        "Look, the human is {}.",
        "Human action of {}.",
        "Playing action of {}.",
        "Video classification of {}.",
        "Doing a kind of action, {}.",
        "Playing a kind of action, {}.",
        "Can you recognize the action of {}?",
        "{}, an action.",
        "{} this is an action.",
        "{}, a video of action.",
        "An action of {} is in the video.",
        "There is a person doing {} in the video.",
        *(f"A photo of a person {way} {{}}." for way in _WAYS),
        *(f"A video of a person {way} {{}}." for way in _WAYS),
        *(f"A example of a person {way} {{}}." for way in _WAYS),
        *(f"A demonstration of a person {way} {{}}." for way in _WAYS),
    ),
    # ActionCLIP's. InternVideo1 and the released evaluation of InternVideo2 (stage 2 and CLIP).
    "actionclip16": (
        "a photo of action {}",
        "a picture of action {}",
        "Human action of {}",
        "{}, an action",
        "{} this is an action",
        "{}, a video of action",
        "Playing action of {}",
        "{}",
        "Playing a kind of action, {}",
        "Doing a kind of action, {}",
        "Look, the human is {}",
        "Can you recognize the action of {}?",
        "Video classification of {}",
        "A video of {}",
        "The man is {}",
        "The woman is {}",
    ),
}

# `cosine`: mean of the cosines (ViCLIP). `embedding`: cosine with the mean of the prompts of length
# 1, brought to length 1 again (CLIP). `probability`: mean of the softmax over the classes
# (InternVideo1).
MERGES = ("cosine", "embedding", "probability")


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates; ValueError if there is none, or one that has not exactly one slot {}."""
    if not templates:
        raise ValueError(
            f"no templates; name one of {', '.join(TEMPLATES)}, or give texts with {{}}"
        )
    for text in templates:
        if (slots := text.count("{}")) != 1:
            raise ValueError(
                f"template {text!r} has {slots} slots, expected exactly one {{}} for the class name"
            )
    return tuple(templates)


def named(name: str) -> tuple[str, ...]:
    """The templates of that name; ValueError for an unknown one."""
    if name not in TEMPLATES:
        raise ValueError(f"unknown templates {name!r}; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All prompts of the first class, then all of the second ...; A per class.

    Raises:
      ValueError: templates as in `check_templates`, a class without a name, a name twice.
    """
    checked = check_templates(templates)
    for number, name in enumerate(classes):
        if not name.strip():
            raise ValueError(f"class {number} has no name; zero-shot recognition reads the names")
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if list(classes).count(name) > 1)
        raise ValueError(f"two classes are called {twice!r}; no prompt can tell them apart")
    # Not str.format: class names and templates may hold other braces.
    return [text.replace("{}", name) for name in classes for text in checked]


def class_scores(
    video: np.ndarray, text: np.ndarray, how: str = "cosine", scale: float = 1.0
) -> np.ndarray:
    """Scores of every class from all its prompts.

    Args:
      video: (N, E), any length.
      text: (K, A, E): A prompts of each class, any length; `prompts` reshaped.
      how: one of MERGES.
      scale: what cosines are multiplied by before a softmax, exp(logit_scale) or 1 / temperature.

    Returns:
      (N, K) float64: mean cosine, cosine with the mean, or mean probability.
    """
    if how not in MERGES:
        raise ValueError(f"unknown merge rule {how!r}; known: {', '.join(MERGES)}")
    video, text = _unit(video), _unit(text)
    if how == "probability":
        scores = np.zeros((len(video), len(text)))
        for prompt in range(text.shape[1]):  # (N, K) at a time
            scores += softmax(scale * (video @ text[:, prompt].T))
        return scores / text.shape[1]
    # Every prompt has length 1; their mean, which is not normalised again, gives the mean cosine.
    mean = text.mean(axis=1)
    return video @ (mean if how == "cosine" else _unit(mean)).T


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("an embedding is zero or not finite, so it has no cosine")
    return rows / lengths
