"""A run says how many seconds its clips span, and where its weights learned from others."""

from __future__ import annotations

import pytest

from data_pipelines import recipe_files
from data_pipelines.clips.seconds import Spans
from data_pipelines.config import ClipConfig
from internvideo_jax.checkpoint.learned import Learned
from internvideo_jax.config import TrainConfig, to_typed
from internvideo_jax.run import seconds
from internvideo_jax.weights import zoo

VIDEOMAE = to_typed(TrainConfig, recipe_files.load("videomae/finetune:size=base"))


def spans(fps: float) -> Spans:
    return Spans(8, 64 / fps, 64 / fps, 64 / fps, 0.0, (fps, fps, fps))


@pytest.mark.parametrize(
    ("fps", "said"),
    [
        (12, "2.5 times apart: everything moves faster for the model than it learned; "
             "--config.data.clip.stride=2 spans about 2.7 s"),
        (25, ""),
        (30, ""),
        (60, "2.0 times apart: everything moves slower for the model than it learned; "
             "--config.data.clip.stride=8 spans about 2.1 s"),
    ],
)  # fmt: skip
def test_another_span_is_a_warning(fps, said):
    weights = Learned("videomae/b_k400_800e_pretrained", 64 / 30, "16 frames of K400")
    first, *rest = seconds.lines(VIDEOMAE, {"set": spans(fps)}, weights)
    assert first.startswith("a clip of set, 16 frames (sampling dense, stride 4), spans ")
    assert [line.startswith("warning: ") and said in line for line in rest] == [True] * bool(said)
    assert len(seconds.lines(VIDEOMAE, {"set": spans(fps)}, None)) == 1


def test_what_is_not_known_is_said():
    weights = Learned("x.pth", 0.0, "no published file has this name")
    *_, last = seconds.lines(VIDEOMAE, {"set": spans(12)}, weights)
    assert last == "what a clip spanned for x.pth is not known: no published file has this name"


def test_the_zoo_says_what_clips_spanned():
    def of(name: str) -> float:
        return zoo.find(name).seconds

    assert of("videomae/b_k400_1600e_pretrained") == pytest.approx(64 / 30)
    assert of("videomae/b_ssv2_2400e_pretrained") == pytest.approx(32 / 12)
    assert of("viclip-l14") == pytest.approx(11.7)
    assert of("videomae/b_ssv2_2400e") == 4.03  # spread over the whole video
    for unknown in ("v2/vit_g_hybrid_pt_1200e", "clip-b16", "internvideo2-1b"):
        assert of(unknown) == 0


def test_the_strides_of_the_zoo_are_those_of_the_recipes():
    """Of every entry that a recipe made: by index at its stride, or spread over the video."""
    clips: dict[str, ClipConfig] = {}
    for entry in zoo.entries():
        if not (entry.config and entry.made):
            continue
        if entry.config not in clips:
            clip = recipe_files.load(entry.config)["data"]["clip"]
            clips[entry.config] = ClipConfig(**clip)
        clip = clips[entry.config]
        given = [word.partition("=")[2] for word in entry.settings if "data.clip.stride" in word]
        stride = int(given[0]) if given else clip.stride
        by_index = clip.sampling in ("window", "dense")
        assert entry.stride == (stride if by_index else 0), entry.name
