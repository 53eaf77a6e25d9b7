"""Reading the text of compiled programs: trip counts, groups, bytes."""

from __future__ import annotations

import pytest

from internvideo_jax.tools.program import Collective, group_size, read_program

# What the TPU compiler writes, cut down: a loop of 12 passes with one overlapped all-gather (three
# clones on one channel) and one reduce-scatter, and an all-reduce outside of it.
TPU = """\
HloModule jit_train_step, is_scheduled=true

%start (param_0: bf16[1,768,384]) -> (bf16[1,768,384], bf16[1,768,768]) {
  %param_0 = bf16[1,768,384]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[1,768,768]{2,1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=4, replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_1'}, dimensions={2}
  ROOT %custom-call.1 = (bf16[1,768,384]{2,1,0}, bf16[1,768,768]{2,1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%done (param_0.2: bf16[1,768,384]) -> bf16[1,768,768] {
  %param_0.2 = bf16[1,768,384]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.2 = bf16[1,768,768]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.2), channel_id=4, replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_1'}, dimensions={2}
  ROOT %custom-call.2 = bf16[1,768,768]{2,1,0} custom-call(%all-gather.2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (input: bf16[384,384]) -> bf16[384,192] {
  %input = bf16[384,384]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-reduce.3 = bf16[384,384]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=9, replica_groups={{0,1},{2,3}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %dynamic-slice.1 = bf16[384,192]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.3, %zero, %zero), dynamic_slice_sizes={384,192}
}

%layer (param_0.4: bf16[12,768,384], param_1: s32[]) -> bf16[1,768,384] {
  %param_0.4 = bf16[12,768,384]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero.1 = s32[] constant(0)
  ROOT %dynamic-slice.2 = bf16[1,768,384]{2,1,0:T(8,128)(2,1)S(1)} dynamic-slice(%param_0.4, %param_1, %zero.1, %zero.1), dynamic_slice_sizes={1,768,384}
}

%condition (arg: (s32[], bf16[12,768,384])) -> pred[] {
  %arg = (s32[]{:T(128)}, bf16[12,768,384]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %limit = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (arg.1: (s32[], bf16[12,768,384])) -> (s32[], bf16[12,768,384]) {
  %arg.1 = (s32[]{:T(128)}, bf16[12,768,384]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)S(6)} get-tuple-element(%arg.1), index=0
  %stack = bf16[12,768,384]{2,1,0:T(8,128)(2,1)} get-tuple-element(%arg.1), index=1
  %slice = bf16[1,768,384]{2,1,0:T(8,128)(2,1)S(1)} fusion(%stack, %i.1), kind=kLoop, calls=%layer, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %async-start = (bf16[1,768,384]{2,1,0:S(1)}, bf16[1,768,768]{2,1,0:S(1)}) fusion(%slice), kind=kCustom, calls=%start
  %async-done = bf16[1,768,768]{2,1,0:T(8,128)(2,1)S(1)} fusion(%slice), kind=kCustom, calls=%done
  %gradient = bf16[384,384]{1,0:T(8,128)(2,1)S(1)} custom-call(%async-done), custom_call_target="tpu_custom_call"
  %scattered = bf16[384,192]{1,0:T(8,128)(2,1)} fusion(%gradient), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %tuple = (s32[]{:T(128)}, bf16[12,768,384]{2,1,0:T(8,128)(2,1)}) tuple(%i.1, %stack)
}

ENTRY %main (p: bf16[12,768,384], q: f32[1000]) -> f32[1000] {
  %p = bf16[12,768,384]{2,1,0:T(8,128)(2,1)} parameter(0)
  %q = f32[1000]{0:T(1024)} parameter(1)
  %zero.2 = s32[]{:T(128)} constant(0)
  %init = (s32[]{:T(128)}, bf16[12,768,384]{2,1,0:T(8,128)(2,1)}) tuple(%zero.2, %p)
  %while.1 = (s32[]{:T(128)}, bf16[12,768,384]{2,1,0:T(8,128)(2,1)}) while(%init), condition=%condition, body=%body
  ROOT %all-reduce.7 = f32[1000]{0:T(1024)} all-reduce(%q), channel_id=12, replica_groups=[1,16]<=[16], to_apply=%add
}
"""


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
        ("channel_id=3", 32),
    ],
)
def test_groups(attributes, size):
    assert group_size(attributes, 32) == size


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        read_program("", 1)
