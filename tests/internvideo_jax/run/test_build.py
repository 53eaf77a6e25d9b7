"""What a run refuses about its data before anything is allocated."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from data_pipelines.config import ClipConfig, DataConfig, ImageConfig
from internvideo_jax.config import TrainConfig
from internvideo_jax.families.videomae.model import PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.protocols import Inputs, TextInput
from internvideo_jax.run.build import build, check_reads
from tests.data_pipelines.sets import write_set

SMALL = {"frames": 4, "resolution": 16, "patch": 8, "dtype": "float32"}
CLIP = ClipConfig(frames=4, stride=1, resolution=16)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_set(root / "a", 12, classes=("run", "sit"))
    write_set(root / "b", 7, classes=("sit", "jump", "fall"))
    write_set(root / "p", 9, frames=1)
    return root


def pretrain(mixture: str, **data) -> TrainConfig:
    return TrainConfig(
        model=PretrainConfig.of_size("tiny", decoder_depth=1, **SMALL),
        objective=MaskedPixels(mask_ratio=0.5),
        data=DataConfig(mixture=mixture, global_batch=4, clip=CLIP, **data),
        epochs=4,
    )


def finetune(mixture: str, **data) -> TrainConfig:
    model = VideoMAEClassifierConfig.of_size("tiny", **SMALL)
    return dataclasses.replace(pretrain(mixture, **data), model=model, objective=Classification())


def test_an_epoch_of_a_mixture_is_that_of_all_its_records(sets):
    run = build(pretrain(f"a={sets}/a:1,b={sets}/b:9", repeats=2))
    assert run.records == 19 and run.steps == 4 * (19 * 2 // 4)
    assert "; 19 clips; 36 steps of 4 clips" in run.summary


def test_classes_of_a_mixture_must_agree_where_they_are_learnt(sets):
    text = f"a={sets}/a,b={sets}/b"
    with pytest.raises(ValueError, match=r"class lists \(a 2, b 3 classes\); join them with"):
        build(finetune(text))
    assert build(finetune(text, merge_classes="name")).config.model.classes == 4
    assert build(finetune(text, merge_classes="offset")).config.model.classes == 5
    assert build(pretrain(text)).records == 19


def test_images_need_a_model_that_takes_them(sets):
    text = f"a={sets}/a, p={sets}/p; media=image"
    with pytest.raises(ValueError, match="sets of media=image, config.model takes video only"):
        build(pretrain(text, image=ImageConfig(global_batch=4)))


def test_captions_need_a_model_that_reads_them(sets):
    with pytest.raises(ValueError, match="text = 'random', but config.model reads no text"):
        build(pretrain(f"a={sets}/a", text="random"))


def test_what_nothing_reads_is_refused(sets):
    for change, message in (
        ({"audio_seconds": 1.0}, "audio_seconds = 1.0, but config.model reads no audio; set it to"),
        ({"features": "t"}, "features = 't', but config.model reads no features; set it to ''"),
    ):
        with pytest.raises(ValueError, match=message):
            build(pretrain(f"a={sets}/a", **change))


def test_strings_are_for_no_device(sets):
    run = pretrain(f"a={sets}/a", text="first")

    class Reader:
        inputs = Inputs(text=TextInput(run.data.text_length, vocab=9))

    reading = SimpleNamespace(data=run.data, model=Reader(), objective=run.objective)
    with pytest.raises(ValueError, match="text = 'first' without config.data.tokenizer gives str"):
        check_reads(reading)  # type: ignore[arg-type]
    reading.data = dataclasses.replace(run.data, tokenizer="clip")
    check_reads(reading)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "accumulate", "repeats", "message"),
    [
        (5, 1, 1, r"global_batch = 5 gives 5 clips .*the nearest batch that is: 4 and 6\. Or"),
        (1, 1, 1, r"gives 1 clips .*the nearest batch that is: 2\. Or"),
        (6, 2, 1, r"= 6 over config.optim.accumulate = 2 gives 3 clips .* is: 4 and 8\. Or"),
        (9, 1, 3, r"gives 9 clips \(repeats counted\) .* is: 6 and 12\. Or"),
    ],
)
def test_clips_mixed_in_pairs_need_an_even_microbatch(sets, batch, accumulate, repeats, message):
    config = finetune(f"a={sets}/a", repeats=repeats)
    data = dataclasses.replace(config.data, global_batch=batch)
    optim = dataclasses.replace(config.optim, accumulate=accumulate)
    config = dataclasses.replace(config, data=data, optim=optim, steps=2, epochs=0.0)
    for objective in (Classification(mixup=0.0), Classification(cutmix=0.0)):
        with pytest.raises(ValueError, match=message):
            build(dataclasses.replace(config, objective=objective))
    unmixed = Classification(mixup=0.0, cutmix=0.0)
    assert build(dataclasses.replace(config, objective=unmixed)).classes == ("run", "sit")


def test_repeats_of_a_video_may_be_the_pairs(sets):
    config = finetune(f"a={sets}/a", repeats=2)
    data = dataclasses.replace(config.data, global_batch=6)
    assert build(dataclasses.replace(config, data=data)).steps == 4 * (12 * 2 // 6)
