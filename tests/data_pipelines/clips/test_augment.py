"""The training transform: a pure function of frames, settings and generator."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest

from data_pipelines.clips import augment, transforms
from data_pipelines.clips.augment import TrainTransform
from data_pipelines.config import AugmentConfig

EVERYTHING = AugmentConfig(
    rand_augment="rand-m7-n4-mstd0.5-inc1-p1",
    area=(0.4, 1.0),
    short_side=(40, 60),
    resize="bicubic",
    jitter=(0.4, 0.3, 0.5, 0.1),
    hsv_shift=(10, 26, 26),
)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[1, seed]))


def clip(frames: int = 3, height: int = 48, width: int = 64) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (frames, height // 8, width // 8, 3), dtype=np.uint8)
    return list(coarse.repeat(8, axis=1).repeat(8, axis=2))


@pytest.mark.parametrize("crop", augment.CROPS)
@pytest.mark.parametrize("config", [AugmentConfig(short_side=(32, 40)), EVERYTHING])
def test_a_clip_depends_on_frames_settings_and_generator_only(crop, config):
    transform = TrainTransform(32, crop, True, config)
    a, b, c = clip()
    before = a.copy()
    frames = [a, a, b, c, a]
    result = transform(frames, generator())
    assert result.shape == (5, 32, 32, 3) and result.dtype == np.uint8
    assert (a == before).all()
    again = pickle.loads(pickle.dumps(transform))
    assert (again([frame.copy() for frame in frames], generator()) == result).all()
    batch = np.zeros((2, 5, 32, 32, 3), np.uint8)
    assert np.shares_memory(transform(frames, generator(), out=batch[1]), batch)
    assert (batch[1] == result).all() and not batch[0].any()
    assert (result[0] == result[1]).all() and (result[0] == result[4]).all()
    others = [transform(frames, generator(seed)) for seed in range(1, 6)]
    assert any((other != result).any() for other in others)


def test_every_frame_gets_the_same_change():
    transform = TrainTransform(32, "random", True, EVERYTHING)
    for seed in range(5):
        together = transform(clip(), generator(seed))
        for t, frame in enumerate(clip()):
            assert (transform([frame], generator(seed))[0] == together[t]).all()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", ["multiscale", "random_resized", "center"])
def test_the_default_stream_is_the_one_of_version_1(crop, flip):
    """Written out as it was before there were settings; a change needs a new STREAM_VERSION."""
    for seed in range(6):
        rng, frames = generator(seed), clip()
        if crop == "multiscale":
            y, x, h, w = transforms.multiscale_crop(48, 64, 24, rng)
        elif crop == "random_resized":
            y, x, h, w = transforms.random_resized_crop(48, 64, rng, (0.08, 1.0), (3 / 4, 4 / 3))
        else:
            y, x, h, w = 0, 8, 48, 48
        mirrored = flip and rng.random() < 0.5
        average = crop != "random_resized" and h > 24 and w > 24
        method = cv2.INTER_AREA if average else cv2.INTER_LINEAR
        expected = np.stack(
            [cv2.resize(f[y : y + h, x : x + w], (24, 24), interpolation=method) for f in frames]
        )
        used = generator(seed)
        ours = TrainTransform(24, crop, flip)(frames, used)
        assert (ours == (expected[:, :, ::-1] if mirrored else expected)).all()
        assert used.random() == rng.random()


def test_what_is_off_draws_nothing():
    assert augment.draw_jitter(AugmentConfig(), generator()) == []
    rng = generator()
    TrainTransform(32, "center", False)(clip(), rng)
    assert rng.random() == generator().random()


def test_ranges_reach_the_crop():
    frames = clip()
    narrow = AugmentConfig(area=(1.0, 1.0), ratio=(4 / 3, 4 / 3), resize="bilinear")
    whole = TrainTransform(32, "random_resized", False, narrow)(frames, generator())
    squashed = TrainTransform(32, "squash", False, narrow)(frames, generator())
    assert (whole == squashed).all()


def test_random_crop_shows_the_scales():
    """A ramp along the width tells how much of the frame the crop spans."""
    frame = np.broadcast_to(np.arange(128, dtype=np.uint8)[:, None], (96, 128, 3)).copy()
    transform = TrainTransform(32, "random", False, AugmentConfig(short_side=(32, 96)))
    spans = []
    for seed in range(60):
        row = transform([frame], generator(seed))[0, 0, :, 0].astype(int)
        spans.append(row[-1] - row[0])
    assert 28 <= min(spans) < 36 and 85 < max(spans) <= 100


def test_methods_of_resizing_differ():
    frames = clip()
    results = {
        method: TrainTransform(20, "squash", False, AugmentConfig(resize=method))(
            frames, generator()
        ).astype(int)
        for method in transforms.RESIZE
    }
    names = list(results)
    for i, name in enumerate(names):
        for other in names[:i]:
            assert (results[name] != results[other]).any(), (name, other)
    # The fast average stands in for PIL's filter.
    distance = {
        name: np.abs(results[name] - results["pil_bilinear"]).mean()
        for name in ("area", "bilinear")
    }
    assert distance["area"] < distance["bilinear"]


def test_jitter_stays_in_its_range():
    grey = [np.full((32, 32, 3), 100, np.uint8)]
    transform = TrainTransform(32, "center", False, AugmentConfig(jitter=(0.3, 0.0, 0.0, 0.0)))
    levels = [int(transform(grey, generator(seed))[0, 0, 0, 0]) for seed in range(100)]
    assert 69 <= min(levels) < 75 and 125 < max(levels) <= 130


@pytest.mark.parametrize(
    ("crop", "config", "message"),
    [
        ("centre", AugmentConfig(), "unknown config.data.crop 'centre'"),
        ("random", AugmentConfig(short_side=(16, 20)), "short_side"),
        ("center", AugmentConfig(resize="lanczos"), "resize 'lanczos'"),
        ("center", AugmentConfig(rand_augment="rand-z1"), "part 'z1'"),
        ("center", AugmentConfig(rand_augment_interpolation="random"), "interpolation 'random'"),
        ("center", AugmentConfig(area=(0.5, 0.2)), "area"),
        ("center", AugmentConfig(ratio=(0.5,)), "ratio"),
        ("center", AugmentConfig(jitter=(0.1, 0.1, 0.1, 0.6)), "jitter"),
        ("center", AugmentConfig(jitter=(0.1,)), "jitter"),
        ("center", AugmentConfig(hsv_shift=(1, 2)), "hsv_shift"),
    ],
)
def test_wrong_settings(crop, config, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(32, crop, False, config)
