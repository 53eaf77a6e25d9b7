"""Digests of arrays: the same however an array is split, another for every damage."""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.checkpoint import digests
from internvideo_jax.checkpoint.digests import examine
from tests.internvideo_jax.checkpoint.arrays import ARRAYS, RNG, split

WIDE = {**ARRAYS, "wide": RNG.integers(0, 2**62, (4, 5))}  # two words an element


def digest(array) -> str:
    return examine({"x": np.asarray(array)}).digests["x"]


def by_hand(array: np.ndarray) -> str:
    """The rule, element by element, in whole numbers."""
    words = array.reshape(-1).view(digests._unsigned(array.dtype)).tolist()
    lanes = [0, 0]
    for place, word in enumerate(words):
        x = (word + place * 0x9E3779B1) % 2**32
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        x ^= x >> 16
        lanes[0] += x
        y = x * 0xC2B2AE35 % 2**32
        lanes[1] += y ^ (y >> 15)
    return "".join(f"{lane % 2**32:08x}" for lane in lanes)


@pytest.mark.parametrize("path", WIDE)
def test_the_rule(path):
    assert examine({path: WIDE[path]}).digests == {path: by_hand(WIDE[path])}


@pytest.mark.parametrize("on_host", [True, False])
def test_arrays_on_a_device_have_the_digests_of_the_host(on_host, monkeypatch):
    expected = examine(ARRAYS)
    monkeypatch.setattr(digests, "_on_host", lambda _: on_host)  # False: as on an accelerator
    assert examine(split(1, 1)) == expected


def test_a_digest_does_not_depend_on_the_mesh(command):
    done = command("tests.internvideo_jax.checkpoint.arrays", devices=8)
    lines = re.findall(r"split (\d) same (\w+)", done.stdout)
    assert [same for _, same in lines] == ["True"] * 6, done.stdout + done.stderr[-3000:]
    assert all(int(parts) for parts, _ in lines)


def test_every_damage_shows():
    array = ARRAYS["params/matrix"]
    seen = {digest(array)}
    for place in (0, 1, 32767, 32768, array.size - 1):  # each bit, also of two places at once
        for bit in (0, 15, 22, 31):
            words = array.reshape(-1).view(np.uint32).copy()
            words[place] ^= np.uint32(1 << bit)
            seen.add(digest(words.view(np.float32).reshape(array.shape)))
    both = array.copy()
    both.reshape(-1)[[3, 70]] *= -1  # two signs: they cancel in a plain sum
    seen.add(digest(both))
    flat = array.reshape(-1)
    for first, last in ((0, 4), (1000, 1016), (0, array.size)):
        zeroed = flat.copy()
        zeroed[first:last] = 0
        seen.add(digest(zeroed))
    seen.add(digest(np.roll(flat, 1)))
    seen.add(digest(np.concatenate([flat[512:1024], flat[:512], flat[1024:]])))  # swapped blocks
    seen.add(digest(array[[1, 0, *range(2, 6)]]))
    seen.add(digest(array[::-1]))
    assert len(seen) == 1 + 20 + 1 + 3 + 4


@pytest.mark.parametrize(
    ("path", "dtype", "value", "wrong"),
    [
        ("params/a", np.float32, np.nan, True),
        ("params/a", np.float32, -np.inf, True),
        ("params/a", np.float32, 1e30, True),  # finite, but its square is not
        ("params/a", np.float32, -1e19, True),
        ("params/a", np.float32, 9e18, False),
        ("ema/a", np.float32, 1e30, True),
        ("opt_state/0/nu/a", np.float32, 1e30, False),  # squares of gradients
        ("opt_state/0/nu/a", np.float32, np.nan, True),
        ("params/a", jnp.bfloat16, 1e30, True),
        ("params/a", jnp.bfloat16, np.nan, True),
        ("opt_state/a", np.float16, np.inf, True),
        ("opt_state/a", np.float16, 65504, False),
        ("opt_state/count", np.int32, -1, False),
    ],
)
def test_values_that_cannot_be_right(path, dtype, value, wrong):
    array = np.ones(70000, dtype)
    array[-2] = value
    assert examine({path: array}).wrong == ([path] if wrong else [])
