"""RandAugment: every operation against PIL, policy strings, what the draws look like."""

from __future__ import annotations

import collections

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from data_pipelines.clips import colour, rand_augment, warp

# Operation -> (largest difference in levels, mean difference, largest share of pixels more than
# 2 levels off). The colour operations are PIL's level for level. So are translations, except where
# the interpolated level is a whole number: PIL's sum falls just below some of them and is cut off.
# In rotations and shears OpenCV rounds where PIL cuts off, which makes half a level of the mean;
# the rest is the position rounded to 1/32 pixel and the cubic kernel (a = -0.75, PIL has -1).
EXACT = (0, 0.0, 0.0)
WHOLE = (1, 0.05, 0.0)
BICUBIC = (12, 0.7, 0.03)
BILINEAR = (2, 0.55, 0.0)
TOLERANCE = {
    "AutoContrast": EXACT,
    "Equalize": EXACT,
    "Invert": EXACT,
    "Rotate": BICUBIC,
    "Posterize": EXACT,
    "PosterizeIncreasing": EXACT,
    "Solarize": EXACT,
    "SolarizeIncreasing": EXACT,
    "SolarizeAdd": EXACT,
    "Color": EXACT,
    "ColorIncreasing": EXACT,
    "Contrast": EXACT,
    "ContrastIncreasing": EXACT,
    "Brightness": EXACT,
    "BrightnessIncreasing": EXACT,
    "Sharpness": EXACT,
    "SharpnessIncreasing": EXACT,
    "ShearX": BICUBIC,
    "ShearY": BICUBIC,
    "TranslateXRel": WHOLE,
    "TranslateYRel": WHOLE,
}
GEOMETRIC = [name for name, entry in rand_augment.OPERATIONS.items() if entry.matrix]
MAGNITUDES = (0.0, 1.3, 3.0, 5.0, 7.0, 8.6, 10.0)


def scene(height: int = 96, width: int = 128, seed: int = 3) -> np.ndarray:
    """Smooth light, overlapping discs with soft edges, and sensor noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    light = [90 + 80 * np.sin(x / 23) + 40 * np.cos(y / 17), 40 + 150 * x / width, 60 + y]
    image = np.ascontiguousarray(np.stack(light, axis=-1))
    for _ in range(25):
        centre = int(rng.integers(width)), int(rng.integers(height))
        shade = tuple(int(level) for level in rng.integers(0, 256, 3))
        cv2.circle(image, centre, int(rng.integers(3, 20)), shade, -1, cv2.LINE_AA)
    image = cv2.GaussianBlur(image, (0, 0), 0.7) + rng.normal(0, 3, image.shape)
    return np.clip(image, 8, 243).round().astype(np.uint8)


def by_pil(name: str, frame: np.ndarray, value: float, interpolation: str) -> np.ndarray:
    """The operation as timm 0.4 and the reference write it."""
    image = Image.fromarray(frame)
    width, height = image.size
    settings = {
        "resample": Image.Resampling[interpolation.upper()],
        "fillcolor": (128, 128, 128),
    }

    def affine(*data):
        return image.transform(image.size, Image.Transform.AFFINE, data, **settings)

    def posterized():  # new releases refuse 0 bits, older ones gave black
        return ImageOps.posterize(image, int(value)) if value else image.point([0] * 768)

    added = [min(255, level + int(value)) if level < 128 else level for level in range(256)]
    return np.asarray(
        {
            "AutoContrast": lambda: ImageOps.autocontrast(image),
            "Equalize": lambda: ImageOps.equalize(image),
            "Invert": lambda: ImageOps.invert(image),
            "Rotate": lambda: image.rotate(value, **settings),
            "Posterize": posterized,
            "Solarize": lambda: ImageOps.solarize(image, int(value)),
            "SolarizeAdd": lambda: image.point(added * 3),
            "Color": lambda: ImageEnhance.Color(image).enhance(value),
            "Contrast": lambda: ImageEnhance.Contrast(image).enhance(value),
            "Brightness": lambda: ImageEnhance.Brightness(image).enhance(value),
            "Sharpness": lambda: ImageEnhance.Sharpness(image).enhance(value),
            "ShearX": lambda: affine(1, value, 0, 0, 1, 0),
            "ShearY": lambda: affine(1, 0, 0, value, 1, 0),
            "TranslateXRel": lambda: affine(1, 0, value * width, 0, 1, 0),
            "TranslateYRel": lambda: affine(1, 0, 0, 0, 1, value * height),
        }[name.removesuffix("Increasing")]()
    )


def compare(name: str, interpolation: str, tolerance: tuple[float, float, float]) -> None:
    frame = scene()
    for magnitude in MAGNITUDES:
        for sign in (1.0, -1.0):
            value = rand_augment.argument(name, magnitude, sign)
            ours = rand_augment.apply([frame], [(name, value)], interpolation)[0]
            theirs = by_pil(name, frame, value, interpolation)
            difference = np.abs(ours.astype(int) - theirs)
            found = difference.max(), difference.mean(), (difference > 2).mean()
            assert all(np.less_equal(found, tolerance)), (name, value, found)


@pytest.mark.parametrize("name", rand_augment.OPERATIONS)
def test_operations_agree_with_pil(name):
    compare(name, "bicubic", TOLERANCE[name])


@pytest.mark.parametrize("name", GEOMETRIC)
def test_bilinear_geometry_agrees_with_pil(name):
    compare(name, "bilinear", WHOLE if name.startswith("Translate") else BILINEAR)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Rotate", 21.0),
        ("Posterize", 2),
        ("PosterizeIncreasing", 2),
        ("Solarize", 179),
        ("SolarizeIncreasing", 77),
        ("SolarizeAdd", 77),
        ("Color", 1.36),
        ("ContrastIncreasing", 1.63),
        ("ShearX", 0.21),
        ("TranslateYRel", 0.315),
    ],
)
def test_arguments_at_magnitude_7(name, expected):
    """Worked out by hand from the recipes' level maps."""
    assert rand_augment.argument(name, 7.0) == pytest.approx(expected)
    negative = {"ContrastIncreasing": 0.37}.get(name, -expected)
    signed = rand_augment.OPERATIONS[name].signed
    assert rand_augment.argument(name, 7.0, -1.0) == pytest.approx(negative if signed else expected)


@pytest.mark.parametrize("flat", [0, 7, 255])
def test_flat_frames_stay_flat(flat):
    frame = np.full((20, 30, 3), flat, np.uint8)
    for name in ("AutoContrast", "Equalize", "Sharpness", "Contrast"):
        ours = rand_augment.apply([frame], [(name, 1.9)], "bicubic")[0]
        assert (ours == by_pil(name, frame, 1.9, "bicubic")).all(), name


def test_equalize_of_a_frame_with_few_levels():
    """So few pixels that PIL's step is one level: the table runs past 255 and is clipped."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 40, (20, 26, 3), dtype=np.uint8)
    assert (colour.equalize(frame) == by_pil("Equalize", frame, 0, "bicubic")).all()


def test_hue_turns_like_pil_hsv():
    frame = scene()
    for turn in (0.0, 0.1, -0.25, 0.5):
        hsv = np.array(Image.fromarray(frame).convert("HSV"))
        hsv[..., 0] += np.uint8(round(turn * 256) % 256)
        theirs = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
        difference = np.abs(colour.hue(frame, turn).astype(int) - theirs)
        assert difference.mean() < 1.5 and difference.max() <= 12, turn


def test_hsv_shift_moves_whole_levels():
    frame = np.array([[[200, 100, 100], [0, 200, 0]]], np.uint8)
    brighter = colour.shift_hsv(frame, 0, 0, 30)
    assert brighter[0].max(axis=-1).tolist() == [230, 230]
    turned = colour.shift_hsv(frame, 60, 0, 0)  # 60 of 180: red to green, green to blue
    assert turned[0, 0].argmax() == 1 and turned[0, 1].tolist() == [0, 0, 200]


def test_policy_strings():
    policy = rand_augment.parse_policy("rand-m7-n4-mstd0.5-inc1")
    assert policy == rand_augment.Policy(7.0, 4, 0.5, increasing=True)
    assert policy.probability == 0.5 and policy.limit == 10
    assert "SolarizeIncreasing" in policy.choices and "Solarize" not in policy.choices
    assert len(policy.choices) == 15
    plain = rand_augment.parse_policy("rand-m9-w0-mmax9.5-p0.7")
    assert plain == rand_augment.Policy(9.0, 2, weights=0, limit=9.5, probability=0.7)
    assert plain.choices == rand_augment.CHOICES
    assert sum(rand_augment.WEIGHTS[0]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmix-m3", "starts with 'augmix'"),
        ("rand-m7-x4", "part 'x4'"),
        ("rand-m", "part 'm'"),
        ("rand-m11", "m must be at most 10"),
        ("rand-n0", "n must be at least 1"),
        ("rand-n1.5", "whole numbers"),
        ("rand-m3-m4", "gives 'm' twice"),
        ("rand-inc2", "inc must be 0 or 1"),
        ("rand-p1.5", "p must be at most 1"),
        ("rand-w1", "w must be below 1"),
        ("rand-w0-n14", "n must be at most 13"),
        ("rand-m9-n99999999", "n must be at most 100"),
        ("rand-m9-n101", "n must be at most 100"),
        (f"rand-n{'9' * 400}", "part 'n9+' .* a number of at most 9 digits"),
        (f"rand-m{'9' * 10**6}", "part 'm9{39}' .* a number of at most 9 digits"),
        (f"rand-mstd1.{'0' * 400}", "a number of at most 9 digits"),
        ("rand-mstd101", "mstd must be at most 100"),
        ("rand-mmax999999999", "mmax must be at most 10"),
        ("rand-w999999999", "w must be below 1"),
        ("rand-n\u0663", "part 'n\u0663'"),
        ("rand-" + "m" * 10**6, "part 'm{40}'"),
    ],
)
def test_wrong_policies(text, message):
    with pytest.raises(ValueError, match=message):
        rand_augment.parse_policy(text)


def test_draws_have_the_wanted_statistics():
    policy = rand_augment.parse_policy("rand-m7-n4-mstd0.5-inc1")
    rng = np.random.default_rng(0)
    drawn = [entry for _ in range(3000) for entry in rand_augment.draw(policy, rng)]
    assert 1.9 < len(drawn) / 3000 < 2.1  # four, each with probability one half
    counts = collections.Counter(name for name, _ in drawn)
    assert set(counts) == set(policy.choices)
    assert max(counts.values()) / min(counts.values()) < 1.5
    turns = np.array([value for name, value in drawn if name == "Rotate"])
    assert 0.4 < (turns > 0).mean() < 0.6
    assert np.abs(turns).mean() == pytest.approx(21, abs=0.5)
    assert np.abs(turns).std() == pytest.approx(1.5, abs=0.25)


def test_magnitudes_are_clipped():
    rng = np.random.default_rng(0)
    policy = rand_augment.Policy(9.0, 4, std=5.0, limit=9.5, probability=1.0)
    drawn = [entry for _ in range(300) for entry in rand_augment.draw(policy, rng)]
    turns = np.abs([value for name, value in drawn if name == "Rotate"])
    assert turns.max() == pytest.approx(28.5) and turns.min() >= 0


def test_weighted_policies_never_repeat_an_operation():
    rng = np.random.default_rng(0)
    policy = rand_augment.parse_policy("rand-m7-n5-w0-p1")
    counts = collections.Counter()
    for _ in range(200):
        names = [name for name, _ in rand_augment.draw(policy, rng)]
        assert len(set(names)) == 5
        counts.update(names)
    assert counts["Solarize"] < counts["Color"] < counts["Rotate"]
    assert not {"Posterize", "Invert"} & set(counts)


def test_frames_are_worked_on_once_and_never_modified():
    one, two = scene(seed=1), scene(seed=2)
    before = one.copy(), two.copy()
    for name in rand_augment.OPERATIONS:
        drawn = [(name, rand_augment.argument(name, 6.0)), ("Invert", 0.0)]
        result = rand_augment.apply([one, one, two, one], drawn, "bicubic")
        assert result[0] is result[1] is result[3] and result[2] is not result[0]
        alone = rand_augment.apply([two], drawn, "bicubic")[0]
        assert (alone == result[2]).all(), name
        assert (one == before[0]).all() and (two == before[1]).all(), name
    assert rand_augment.apply([one], [], "bicubic")[0] is one


def test_what_comes_from_outside_is_grey():
    frame = np.zeros((20, 30, 3), np.uint8)
    moved = warp.warp([frame], warp.translation_x(0.5, 20, 30), "bicubic")[0]
    assert (moved[:, :15] == 0).all() and (moved[:, 15:] == warp.FILL).all()
    moved = warp.warp([frame], warp.translation_y(-0.25, 20, 30), "bilinear")[0]
    assert (moved[5:] == 0).all() and (moved[:5] == warp.FILL).all()
    for share in (1.5, -1.5):
        gone = warp.warp([frame], warp.translation_x(share, 20, 30), "bicubic")[0]
        assert (gone == warp.FILL).all()
