"""Reading the text of compiled programs: trip counts, groups, bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from internvideo_jax.compile_check.program import Collective, group_size, read_program

# What the TPU compiler writes, cut down: a loop of 12 passes with one overlapped all-gather (three
# clones on one channel) and one reduce-scatter, and an all-reduce outside of it.
TPU = (Path(__file__).parent / "loop.hlo").read_text()


def test_collectives_of_a_loop():
    found = read_program(TPU, 16)
    gathered, scattered = 768 * 768 * 2 // 2, 384 * 384 * 2 // 2
    assert found.collectives == [
        Collective("all-gather", 2, "bf16", 12, 12.0 * gathered),
        Collective("reduce-scatter", 2, "bf16", 12, 12.0 * scattered),
        Collective("all-reduce", 16, "f32", 1, 2 * 15 / 16 * 4000),
    ]
    assert found.wire_bytes == 12 * (gathered + scattered) + 7500
    assert found.unknown_loops == 0
    # One layer at a time, twelve times; outside of the loop it would be all twelve at once.
    assert (found.gathered_largest, found.gathered) == (2 * gathered, 24 * gathered)


def test_hbm_traffic_counts_slices_and_leaves_out_what_stays_on_the_chip():
    layer, shard, sums = 768 * 384 * 2, 384 * 192 * 2, 2 * 4000
    assert read_program(TPU, 16).hbm_bytes == 12 * (layer + shard) + sums


def test_cycle_estimates_and_kernels_without():
    found = read_program(TPU, 16)
    assert (found.cycles, found.unestimated) == (12000, 12)


def test_a_stated_trip_count_wins_and_an_unknown_one_is_reported():
    stated = TPU.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert read_program(stated, 16).cycles == 3000
    unknown = TPU.replace("constant(12)", "custom-call()")
    found = read_program(unknown, 16)
    assert (found.cycles, found.unknown_loops) == (1000, 1)


def test_updates_in_place_write_only_the_update():
    text = """\
%store (a: f32[10,64], b: f32[1,64], i: s32[]) -> f32[10,64] {
  %a = f32[10,64]{1,0} parameter(0)
  %b = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %update = f32[10,64]{1,0} dynamic-update-slice(%a, %b, %i, %i)
}

ENTRY %main (x: f32[10,64], y: f32[1,64], n: s32[]) -> f32[10,64] {
  %x = f32[10,64]{1,0} parameter(0)
  %y = f32[1,64]{1,0} parameter(1)
  %n = s32[]{:S(6)} parameter(2)
  ROOT %f = f32[10,64]{1,0} fusion(%x, %y, %n), kind=kLoop, calls=%store
}
"""
    assert read_program(text, 1).hbm_bytes == 2 * 64 * 4


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, x=1", 4),
        ("replica_groups=[2,8]<=[16]", 8),
        ("replica_groups=[4,4]<=[4,4]T(1,0)", 4),
        ("replica_groups=mesh['a'=8,'b'=2] {'a'}, y", 8),
        ("replica_groups=mesh['a'=8,'b'=2] {'a','b'}", 16),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", 4),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}, x", 4),
        ("replica_groups={}, x", 32),
        ("channel_id=3", 32),
        ("channel_id=3, source_target_pairs={{0,1},{1,2}}", 2),
    ],
)
def test_groups(attributes, size):
    assert group_size(attributes, 32) == size


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="unknown form of replica groups"):
        group_size("replica_groups=<{0,1}>", 8)
    with pytest.raises(ValueError, match="no ENTRY"):
        read_program("", 1)


def test_permutes_by_hand_share_a_channel_and_are_counted_one_by_one():
    """`jax.lax.ppermute` gives all of its transfers channel 1."""
    text = """HloModule ring

ENTRY %main (x: f32[128], y: bf16[64]) -> (f32[128], f32[128], bf16[64]) {
  %x = f32[128]{0} parameter(0)
  %y = bf16[64]{0} parameter(1)
  %one = f32[128]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %two = f32[128]{0} collective-permute(%one), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %three = bf16[64]{0} collective-permute(%y), channel_id=1, source_target_pairs={{0,1},{1,0}}
  ROOT %out = (f32[128]{0}, f32[128]{0}, bf16[64]{0}) tuple(%one, %two, %three)
}
"""
    found = {item.dtype: (item.count, item.wire) for item in read_program(text, 2).collectives}
    assert found == {"f32": (2, 1024.0), "bf16": (1, 128.0)}
