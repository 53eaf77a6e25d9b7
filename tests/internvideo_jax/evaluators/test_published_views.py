"""The views of every published test, against the rules as the released readers have them.

The rules are written anew from their description, one frame at a time, so that the shared index
arithmetic of the pipeline is not compared with itself.
"""

from __future__ import annotations

import math

import pytest

from data_pipelines.clips import sampling, transforms
from internvideo_jax.evaluators.published import protocols
from tests.recipes import shipped

LENGTHS = range(1, 400)


def padded(frames: list[int], T: int) -> list[int]:
    return frames + [frames[-1]] * (T - len(frames))


def kinetics(n: int, T: int, r: int, S: int) -> list[list[int]]:
    """VideoMAE: every r-th frame of the video, then windows of this list."""
    listed = padded(list(range(0, n, r)), T)
    step = max((len(listed) - T) / (S - 1), 0)
    return [listed[int(c * step) : int(c * step) + T] for c in range(S)]


def ucf101(n: int, T: int, r: int, S: int) -> list[list[int]]:
    """InternVideo2: windows of T * r frames of the video, every r-th frame of them."""
    starts = [int(c * max((n - T * r) / (S - 1), 0)) for c in range(S)]
    return [padded(list(range(start, min(start + T * r, n), r)), T) for start in starts]


def something(n: int, T: int, r: int, S: int) -> list[list[int]]:
    """All offsets of all segments sorted, then dealt out in turn."""
    tick = n / T
    every = sorted(int(s * tick / S + tick * x) for s in range(S) for x in range(T))
    return [every[c::S] for c in range(S)]


def hmdb51(n: int, T: int, r: int, S: int) -> list[list[int]]:
    """InternVideo2: as Something-Something, with one frame less than the list says."""
    return something(n - 1, T, r, S)


def sparse(n: int, T: int, r: int, S: int) -> list[list[int]]:
    """UniFormerV2, Unmasked Teacher, InternVideo2: borders of T parts and a place in each."""
    length = max(0.0, (n - 1) / T)
    return [
        [min(round(length * i) + int(length / (S + 1) * (c + 1)), n - 1) for i in range(T)]
        for c in range(S)
    ]


def even(room: int, C: int) -> list[int]:
    return [int(c * room / (C - 1)) for c in range(C)]


def halved(room: int, C: int) -> list[int]:
    return [int(room / 2)] if C == 1 else even(room, C)


def slowfast(room: int, C: int) -> list[int]:
    return [math.ceil(room / 2)] if C == 1 else [0, math.ceil(room / 2), room]


# Protocol: (rule in time, stride, segments, rule in space, crops, how views are merged).
PUBLISHED = {
    "videomae/kinetics": (kinetics, 4, 5, even, 3, "probability"),
    "videomae/something": (something, 0, 2, even, 3, "probability"),
    "videomae/hmdb51": (kinetics, 2, 5, even, 3, "probability"),
    "videomae/distilled": (kinetics, 4, 7, even, 3, "probability"),
    "internvideo1/kinetics_h": (kinetics, 4, 7, even, 3, "probability"),
    "internvideo1/sparse_b": (something, 0, 2, even, 3, "probability"),
    "internvideo1/sparse_h": (something, 0, 5, even, 3, "probability"),
    "internvideo1/activitynet": (kinetics, 4, 5, even, 3, "probability"),
    "uniformerv2/kinetics": (sparse, 0, 4, slowfast, 3, "probability_sum"),
    "uniformerv2/kinetics_long": (sparse, 0, 2, slowfast, 3, "probability_sum"),
    "uniformerv2/frozen": (sparse, 0, 3, slowfast, 1, "probability_sum"),
    "uniformerv2/moments": (sparse, 0, 4, slowfast, 3, "probability_sum"),
    "uniformerv2/something": (sparse, 0, 1, slowfast, 3, "probability_sum"),
    "uniformerv2/activitynet": (sparse, 0, 10, slowfast, 3, "probability_sum"),
    "umt/kinetics": (sparse, 0, 4, halved, 3, "probability"),
    "umt/something": (something, 0, 2, even, 3, "probability"),
    "umt/something_4": (something, 0, 4, even, 3, "probability"),
    "internvideo2/kinetics": (sparse, 0, 4, halved, 3, "probability"),
    "internvideo2/something_1": (something, 0, 1, even, 3, "probability"),
    "internvideo2/something_2": (something, 0, 2, even, 3, "probability"),
    "internvideo2/something_4": (something, 0, 4, even, 3, "probability"),
    "internvideo2/something_5": (something, 0, 5, even, 3, "probability"),
    "internvideo2/probe": (sparse, 0, 1, halved, 3, "probability"),
    "internvideo2/ucf101": (ucf101, 4, 2, halved, 1, "probability"),
    "internvideo2/hmdb51": (hmdb51, 0, 2, halved, 1, "probability"),
    "internvideo2/activitynet": (sparse, 0, 4, halved, 3, "probability"),
}


def test_every_protocol_is_compared():
    assert {*PUBLISHED} == {*protocols.PROTOCOLS}


@pytest.mark.parametrize("T", [8, 16])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_frames_of_a_published_test(name, T):
    rule, r, S, _, _, merge = PUBLISHED[name]
    found = protocols.find(name)
    assert (found.clips, found.merge) == (S, merge)
    if r:
        assert found.stride == r
    for n in LENGTHS:
        frames = sampling.view_frames(found.sampling, [0] * n, 25.0, T, found.stride, S)
        assert frames.tolist() == rule(n, T, r, S), n


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("size", [224, 336])
def test_the_crops_of_a_published_test(name, size):
    _, _, _, rule, C, _ = PUBLISHED[name]
    found = protocols.find(name)
    assert found.crops == C
    for room in range(400):
        for upright in (False, True):
            shape = (size + room, size) if upright else (size, size + room)
            boxes = transforms.crop_boxes(*shape, size, C, found.crop_rule)
            places = [(s, 0, size, size) if upright else (0, s, size, size) for s in rule(room, C)]
            assert boxes == places, room


@pytest.mark.parametrize(
    "T, r, S", [(16, 4, 2), (8, 4, 3), (16, 1, 5), (4, 7, 2), (1, 1, 2), (32, 2, 4)]
)
def test_windows_at_other_settings(T, r, S):
    for n in LENGTHS:
        assert sampling.VIEWS["windows"](n, T, r, S).tolist() == ucf101(n, T, r, S), n
        assert sampling.VIEWS["but_last"](n, T, r, S).tolist() == hmdb51(n, T, r, S), n
        assert sampling.VIEWS["dense"](n, T, r, S).tolist() == kinetics(n, T, r, S), n


@pytest.mark.parametrize("crops", [2, 3, 4, 7])
def test_several_truncated_crops_are_the_even_ones(crops):
    for room in range(300):
        wide = (224, 224 + room, 224, crops)
        assert transforms.crop_boxes(*wide, "truncated") == transforms.crop_boxes(*wide)


def test_the_second_window_of_ucf101_begins_where_the_last_one_fits():
    views = sampling.view_frames("windows", [0] * 142, 25.0, 16, 4, 2)
    assert views[1].tolist() == list(range(78, 142, 4))
    # `dense`, VideoMAE's, counts steps of the stride: another phase.
    assert sampling.view_frames("dense", [0] * 142, 25.0, 16, 4, 2)[1][0] == 80


# (data, training rule, test rule, segments, crops) of the released scripts, by parts of a recipe's
# name; the first that fits counts. In Something-Something V2 the files of B and L are swapped.
SCRIPTS = {
    "internvideo2-probe": [
        ("ucf101", "dense", ucf101, 2, 1),
        ("hmdb51", "but_last", hmdb51, 2, 1),
        ("anet", "stepped", sparse, 4, 3),
        ("hacs", "stepped", sparse, 4, 3),
        ("ssv2", "segments", something, 1, 3),
        ("", "stepped", sparse, 1, 3),
    ],
    "internvideo2-finetune": [
        ("-1b_ssv", "segments", something, 2, 3),
        ("-l_ssv2", "segments", something, 2, 3),
        ("-6b_ssv2", "segments", something, 5, 3),
        ("ssv", "segments", something, 4, 3),
        ("", "stepped", sparse, 4, 3),
    ],
    "umt-finetune": [
        ("ssv2", "segments", something, None, 3),  # 2 or 4: script and zoo differ
        ("", "stepped", sparse, 4, 3),
    ],
    "videomae-finetune-internvideo1": [
        ("b_k400_sparse", "sparse", something, 2, 3),
        ("h_k400_sparse", "sparse", something, 5, 3),
        ("ssv", "segments", something, 2, 3),
        ("-h_k", "dense", kinetics, 7, 3),
        ("", "dense", kinetics, 5, 3),
    ],
    "videomae-finetune-v2": [
        ("distill", "dense", kinetics, 7, 3),
        ("ssv2", "segments", something, 2, 3),
        ("", "dense", kinetics, 5, 3),
    ],
    "videomae-finetune-videomae": [
        ("ssv2", "segments", something, 2, 3),
        ("", "dense", kinetics, 5, 3),
    ],
    "uniformerv2": [
        ("something", "stepped", sparse, 1, 3),
        ("activitynet", "stepped", sparse, 10, 3),
        ("frozen", "stepped", sparse, None, None),  # 3 x 1, the zoo 4 x 3 for 32 frames
        ("kinetics", "stepped", sparse, None, 3),  # 4, the zoo 2 for 32 and 64 frames
        ("moments", "stepped", sparse, 4, 3),
    ],
}
TESTED = [
    name
    for name in shipped.recipes()
    if name.startswith(tuple(SCRIPTS)) and not name.endswith("tiny")
]


@pytest.mark.parametrize("name", TESTED)
def test_a_recipe_is_stamped_with_what_its_script_gives(name):
    family = next(family for family in SCRIPTS if name.startswith(family))
    _, train, rule, segments, crops = next(row for row in SCRIPTS[family] if row[0] in name)
    config = shipped.config(name)
    test = config.evals["test"]
    published = PUBLISHED[test.protocol]
    assert published[0] is rule
    assert segments in (None, published[2]) and crops in (None, published[4])
    assert config.data.clip.sampling == train
    assert test.views.clip.frames == config.data.clip.frames
    found = protocols.values_of(test.views, test.merge, test.mean_ap)
    assert protocols.departures(test.protocol, found) == {}
