"""Times from stamps of which some are wrong."""

from fractions import Fraction

import numpy as np
import pytest

from data_pipelines.ingest.clock import (
    FrameClock,
    Timeline,
    TimesBroken,
    longest_step,
    microseconds,
    repair,
)

MS = 1000
STEADY = [40 * MS * i for i in range(100)]
# 25 per second for a second, then 5 per second.
VARIABLE = [40 * MS * min(i, 25) + 200 * MS * max(0, i - 25) for i in range(50)]


def repaired(stamps, keys=(0,), spoilt=(), spliced=False) -> Timeline | None:
    places = range(len(stamps))
    return repair(
        stamps, [i in keys for i in places], [i in spoilt for i in places], spliced, 40 * MS
    )


@pytest.mark.parametrize("spliced", [False, True])
@pytest.mark.parametrize("times", [STEADY, VARIABLE], ids=["steady", "variable"])
def test_times_that_are_right_stay(times, spliced):
    found = repaired(times, keys=range(0, 50, 12), spliced=spliced)
    assert found == Timeline(times, 0, ()) and found.remark() == ""


@pytest.mark.parametrize(
    "wrong",
    [None, 0, -40 * MS, -(10**9), 36_000_000 * MS, "before", "behind"],
)
@pytest.mark.parametrize("at", [10, 24, 49])
@pytest.mark.parametrize("times", [STEADY[:50], VARIABLE], ids=["steady", "variable"])
def test_one_wrong_stamp_costs_that_one_only(times, wrong, at):
    if at == 49 and wrong == "behind":
        return  # a last frame that is held
    beside = {"before": times[at - 1], "behind": times[min(at + 1, 49)]}
    stamps = [*times[:at], beside.get(wrong, wrong), *times[at + 1 :]]
    found = repaired(stamps)
    assert [*found.times[:at], *found.times[at + 1 :]] == [*times[:at], *times[at + 1 :]]
    assert times[at - 1] < found.times[at] and (at == 49 or found.times[at] < times[at + 1])
    assert (found.wrong, found.jumps) == (1, ()) and found.remark().startswith("1 of 50 frame")
    if times is not VARIABLE:
        assert found.times == times


@pytest.mark.parametrize(
    ("places", "shift"),
    [
        ((0,), 400),
        ((0, 1), 4000),
        ((3, 4, 5), -400),
        ((7, 20, 33, 47, 48), -400),
        ((97, 98, 99), -400),
    ],
)
def test_several_wrong_stamps_in_a_steady_stream(places, shift):
    stamps = list(STEADY)
    for i in places:
        stamps[i] += shift * MS
    found = repaired(stamps)
    assert found.times == STEADY and found.wrong == len(places) and not found.jumps


@pytest.mark.parametrize(
    ("jump", "spliced"),
    [
        (36_000_000, False),
        (36_000_000, True),
        (20_000, True),
        (1_500, True),
        (-2_000, False),
        (-1_000, True),
        (-36_000_000, True),
    ],
)
def test_a_clock_that_is_set_anew_goes_on(jump, spliced):
    stamps = [t + (jump * MS if i >= 50 else 0) for i, t in enumerate(STEADY)]
    found = repaired(stamps, keys=(0, 50), spliced=spliced)
    assert found.times == STEADY and found.wrong == 0
    [only] = found.jumps
    assert (only.before, only.after) == (stamps[49], stamps[50])
    assert only.shift == -jump * MS and "the clock jumps (" in found.remark()


def test_clocks_set_anew_several_times():
    stamps = [t % (25 * 40 * MS) + 7_200_000 * MS * (i // 75) for i, t in enumerate(STEADY)]
    found = repaired(stamps, keys=range(0, 100, 25), spliced=True)
    assert found.times == STEADY and len(found.jumps) == 3


@pytest.mark.parametrize(("pause", "spliced"), [(600, False), (3000, False), (8, True)])
def test_a_pause_stays_a_pause(pause, spliced):
    stamps = [t + (pause * 1_000_000 if i >= 50 else 0) for i, t in enumerate(STEADY)]
    assert repaired(stamps, spliced=spliced) == Timeline(stamps, 0, ())


def test_a_pause_in_a_stream_of_variable_rate_stays_also_where_clocks_may_jump():
    steps = np.random.default_rng(0).choice([40, 80, 200, 1000, 5000], 99)
    times = [0, *map(int, np.cumsum(steps) * MS)]
    times = times[:50] + [t + 300_000 * MS for t in times[50:]]
    assert repaired(times, keys=(0, 50), spliced=True).times == times


def test_slow_frames_are_no_jumps():
    hours = [3_600_000 * MS * 2 * i for i in range(20)]
    assert repaired(hours).times == hours


def test_the_order_of_decoding_is_sorted():
    order = [0, *(i + d for i in range(0, 96, 3) for d in (3, 1, 2)), 97, 98, 99]
    found = repaired([STEADY[i] for i in order])
    assert found.times == STEADY and found.reordered and "sorted" in found.remark()


def test_two_swapped_stamps_are_sorted():
    for times in (STEADY, VARIABLE):
        stamps = [*times[:30], times[31], times[30], *times[32:]]
        assert repaired(stamps).times == times


@pytest.mark.parametrize(
    "stamps", [[0] * 50, [None] * 50, [7] + [None] * 49, list(range(50, 0, -1))]
)
def test_stamps_that_tell_nothing_are_given_up(stamps):
    assert repaired(stamps) is None
    counted = Timeline.counted(3, Fraction(30))
    assert counted.times == [0, 33333, 66667] and "counted at 30 per s" in counted.remark()


def test_stamps_of_every_second_frame_are_enough():
    found = repaired([t if i % 2 == 0 else None for i, t in enumerate(STEADY)])
    assert found.times[:99] == STEADY[:99] and found.wrong == 50


def test_stamps_of_damaged_frames_do_not_count():
    stamps = [*STEADY[:40], *(5 * MS,) * 8, *STEADY[48:]]
    found = repaired(stamps, spoilt=range(40, 48))
    assert found.times == STEADY and found.remark() == ""


def test_a_long_video_is_repaired_in_time():
    stamps = [40 * MS * i for i in range(20_000)]
    stamps[5_000] = None
    assert repaired(stamps).times[-1] == stamps[-1]


def test_rounding_is_that_of_round():
    unit = Fraction(1001, 30_000)
    assert [microseconds(i, unit) for i in range(-50, 500)] == [
        round(i * unit * 1_000_000) for i in range(-50, 500)
    ]


@pytest.mark.parametrize("stamps", [[0, 0], [0, None], [0, -40_000], [0, 4_000_000_000]])
def test_a_live_clock_refuses_what_is_no_time(stamps):
    clock = FrameClock(None, 0, longest_step(False, 40 * MS), 40 * MS)
    clock.go_on(clock.time(stamps[0]))
    with pytest.raises(TimesBroken):
        clock.time(stamps[1])


def test_a_live_clock_begins_with_the_file():
    clock = FrameClock(None, 1_000_000, longest_step(True, 40 * MS), 40 * MS)
    assert [clock.time(1_500_000), clock.time(1_540_000)] == [500_000, 540_000]
    early = FrameClock(None, 1_000_000, longest_step(True, 40 * MS), 40 * MS)
    assert early.time(900_000) == 0 and early.origin_us == 900_000
