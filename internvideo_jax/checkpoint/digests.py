"""A digest per array that does not depend on how the array is split over devices and hosts.

Every element's bits are mixed with its place in the whole array, and the results are added modulo
2^32, in two lanes. A sum does not care about order: each shard adds its own elements, and the parts
add up to the same digest on any mesh, on the host or on the devices, without any array being
gathered. The mixing is a bijection of the element's bits, so one changed element always shows;
several show but for a chance of 2^-64, as do elements or blocks that changed places.

It tells damage, not forgery.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from internvideo_jax.parallel.mesh import replicated
from internvideo_jax.types import (
    Leaf,
    Tree,
    flatten_paths,
)

# Spreads positions over all words: odd, 2^32 by the golden ratio.
_SPREAD = 0x9E3779B1
_CHUNK = 1 << 15  # elements that are mixed at once on the host: what its caches hold
_THREADS = min(4, os.cpu_count() or 1)
# Bits of the largest values: of any array the largest finite one, of parameters and averages 2^63,
# the squares of more than which are not finite.
_FINITE = {"float32": 0x7F7FFFFF, "bfloat16": 0x7F7F, "float16": 0x7BFF}
_SANE = {"float32": 0x5F000000, "bfloat16": 0x5F00}
_PARAMETERS = ("params", "ema")  # fields of the train state

# First position, number of positions, distance between them in the array.
_Axis = tuple[int, int, int]


class Examined(NamedTuple):
    """Attributes:
    digests: 16 hexadecimal digits by path.
    wrong: arrays that hold a value that is not finite, or, among parameters and averages, beyond
      2^63.
    """

    digests: dict[str, str]
    wrong: list[str]


def examine(tree: Tree) -> Examined:
    """Digests of all arrays of a tree, and which of them hold values that cannot be right.

    Collective over processes. Arrays on accelerators are read where they are, and three words for
    each of them come to the host.

    Args:
      tree: of jax arrays on any mesh, or of numpy arrays that this process has whole.
    """
    flat = flatten_paths(tree)
    limits = tuple(_limit(path, leaf) for path, leaf in flat.items())
    leaves = list(flat.values())
    if all(_on_host(leaf) for leaf in leaves):
        with ThreadPoolExecutor(_THREADS) as pool:  # numpy computes outside the interpreter's lock
            sums = np.stack(list(pool.map(_host_sums, leaves, limits)))
        if jax.process_count() > 1 and any(isinstance(leaf, jax.Array) for leaf in leaves):
            sums = multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint32)
    else:
        meshes = {leaf.sharding.mesh for leaf in leaves if isinstance(leaf.sharding, NamedSharding)}
        sums = np.asarray(_device_sums(*meshes)(leaves, limits))
    return Examined(
        {path: f"{one:08x}{two:08x}" for path, (one, two, _) in zip(flat, sums, strict=True)},
        [path for path, (_, _, large) in zip(flat, sums, strict=True) if large],
    )


def _limit(path: str, leaf: Leaf) -> int:
    """Bits of the largest absolute value that can be right; 0: all can."""
    kind = np.dtype(leaf.dtype).name
    finite = _FINITE.get(kind, 0)
    return _SANE.get(kind, finite) if path.split("/")[0] in _PARAMETERS else finite


def _on_host(leaf: Leaf) -> bool:
    return not isinstance(leaf, jax.Array) or all(
        device.platform == "cpu" for device in leaf.sharding.device_set
    )


def _sums(bits: Any, positions: Any, limit: int, xp: Any) -> Any:
    """(3,) uint32 for elements as unsigned integers: both lanes, and 1 where one is too large."""
    words = bits + positions  # uint32, whatever the width of the bits
    words = words ^ (words >> 16)
    words = words * np.uint32(0x7FEB352D)
    words = words ^ (words >> 15)
    words = words * np.uint32(0x846CA68B)
    words = words ^ (words >> 16)
    other = words * np.uint32(0xC2B2AE35)
    other = other ^ (other >> 15)
    large = False
    if limit:
        without_sign = bits.dtype.type((1 << (8 * bits.dtype.itemsize - 1)) - 1)
        large = xp.max(bits & without_sign, initial=0) > limit
    sums = (xp.sum(words, dtype=np.uint32), xp.sum(other, dtype=np.uint32))
    return xp.stack([*sums, xp.asarray(large, np.uint32)])


def _unsigned(dtype: np.typing.DTypeLike) -> Any:
    """The type that holds the bits of an element, or of half an element of eight bytes."""
    return {1: np.uint8, 2: np.uint16}.get(np.dtype(dtype).itemsize, np.uint32)


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


# --- on the host: shards of CPU devices are there without a copy


def _host_sums(leaf: Leaf, limit: int) -> np.ndarray:
    """(3,) uint32 of what this process has of an array, each element once over all processes."""
    if not isinstance(leaf, jax.Array):
        return _block_sums(np.asarray(leaf), leaf.shape, [0] * leaf.ndim, limit)
    total = np.zeros(3, np.uint32)
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            starts = [part.start or 0 for part in shard.index]
            total += _block_sums(np.asarray(shard.data), leaf.shape, starts, limit)
    return total


def _block_sums(
    block: np.ndarray, shape: Sequence[int], starts: Sequence[int], limit: int
) -> np.ndarray:
    """(3,) uint32 of a block that begins at `starts` in an array of `shape`."""
    whole = block.shape == tuple(shape)
    bits = np.ascontiguousarray(block).reshape(-1 if whole else block.shape)
    axes = list(zip(starts, block.shape, _strides(shape), strict=True))
    if whole:  # then as one row
        axes = [(0, block.size, 1)]
    bits = bits.view(_unsigned(block.dtype))
    if block.dtype.itemsize == 8:
        axes = [(2 * start, count, 2 * stride) for start, count, stride in axes]
        axes[-1] = (axes[-1][0], 2 * axes[-1][1], axes[-1][2] // 2)
    total = np.zeros(3, np.uint32)
    with np.errstate(over="ignore"):
        for piece, positions in _pieces(bits, axes):
            total += _sums(piece, positions, limit, np)
    return total


def _pieces(bits: np.ndarray, axes: list[_Axis]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts of a block of at most _CHUNK elements, with the spread positions of their elements."""
    if bits.size > _CHUNK:
        axis = next(axis for axis, size in enumerate(bits.shape) if size > 1)
        start, count, stride = axes[axis]
        half = count // 2
        one, two = np.split(bits, [half], axis)
        yield from _pieces(one, [*axes[:axis], (start, half, stride), *axes[axis + 1 :]])
        rest = (start + half, count - half, stride)
        yield from _pieces(two, [*axes[:axis], rest, *axes[axis + 1 :]])
        return
    first = sum(start * stride for start, _, stride in axes) * _SPREAD % 2**32
    ramps = [_ramp(stride)[:count] for _, count, stride in axes]
    yield bits, np.asarray(functools.reduce(np.add.outer, ramps, np.uint32(first)))


@functools.lru_cache(maxsize=64)
def _ramp(stride: int) -> np.ndarray:
    return np.arange(_CHUNK, dtype=np.uint32) * np.uint32(stride * _SPREAD % 2**32)


# --- on accelerators


@functools.cache
def _device_sums(mesh: Mesh | None = None) -> Any:
    """Jitted (leaves, limits) -> (number of leaves, 3) uint32, on all devices of the mesh."""

    def sums(leaves: Sequence[jax.Array], limits: Sequence[int]) -> jax.Array:
        return jnp.stack([one(leaf, top) for leaf, top in zip(leaves, limits, strict=True)])

    def one(leaf: jax.Array, limit: int) -> jax.Array:
        if leaf.dtype == jnp.bool_:
            leaf = leaf.astype(jnp.uint8)
        bits = jax.lax.bitcast_convert_type(leaf, _unsigned(leaf.dtype))
        positions = jnp.zeros(bits.shape, jnp.uint32)
        for axis, stride in enumerate(_strides(bits.shape)):
            spread = np.uint32(stride * _SPREAD % 2**32)
            positions += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * spread
        return _sums(bits, positions, limit, jnp)

    whole = None if mesh is None else replicated(mesh)
    return jax.jit(sums, static_argnums=1, out_shardings=whole)
