"""Attention of tokens that are split over devices: keys and values go round a ring.

Liu et al. 2023 (Ring Attention). A device keeps its queries; the keys and values of its neighbours
pass by one after another, and the softmax over all of them is put together from their parts. So a
device never holds the keys of a whole clip, nor do the transfers wait for each other: a block is
sent on while it is computed with. The backward pass goes round once more: with the logarithm of the
whole sum known, the gradient of a part needs nothing of the others, and the sums for keys and
values travel along with these. What is kept from the forward pass is local.

All below runs inside `jax.shard_map`. The products of a device are those of one of the two forms
for one device, in its layout (`Blocked`, `Flash`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from internvideo_jax.ops import blocked_attention as blocked
from internvideo_jax.ops import flash_attention as flash
from internvideo_jax.ops.blocked_attention import RESIDUALS

Found = tuple[jax.Array, jax.Array]  # output, logarithm of the sum of exponentials
Pulled = tuple[jax.Array, jax.Array, jax.Array]  # gradients of queries, keys, values


class Seen(NamedTuple):
    """Which of the keys that are here are no padding; None where all are seen."""

    count: jax.Array | None  # () int32, the first so many
    mask: jax.Array | None  # (B, S) bool


class Kernel(Protocol):
    """How a device computes with the keys that are with it, in a layout of its own."""

    def queries(self, x: jax.Array) -> jax.Array:
        """(B, N, K, C) in the layout of queries."""
        ...

    def keys(self, x: jax.Array) -> jax.Array:
        """(B, S, K, C) in the layout of keys and values."""
        ...

    def output(self, x: jax.Array, queries: int) -> jax.Array:
        """The first so many of an output as (B, N, K, C)."""
        ...

    def forward(self, q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen) -> Found:
        """Attention over these keys; the logarithm has a last or next to last axis of 1."""
        ...

    def backward(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        seen: Seen,
        found: Found,
        into: jax.Array,
    ) -> Pulled:
        """Gradients through these keys.

        Args:
          found: of the softmax over the keys of all devices.
          into: gradient of its output.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Blocked:
    """`blocked_attention` on (H, blocks, N / blocks, C) queries, (H, S, C) keys; H = B * K."""

    heads: int

    def queries(self, x: jax.Array) -> jax.Array:
        return blocked.in_blocks(x)

    def keys(self, x: jax.Array) -> jax.Array:
        return blocked.per_head(x)

    def output(self, x: jax.Array, queries: int) -> jax.Array:
        return blocked.as_tokens(x, self.heads, queries)

    def _mask(self, k: jax.Array, seen: Seen) -> jax.Array | None:
        mask = None if seen.mask is None else jnp.repeat(seen.mask, self.heads, axis=0)
        if seen.count is None:
            return mask
        real = jnp.broadcast_to(jnp.arange(k.shape[1]) < seen.count, k.shape[:2])
        return real if mask is None else mask & real

    def forward(self, q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen) -> Found:
        out, log_total = blocked.forward(q, k, v, self._mask(k, seen))
        return out, log_total[..., None]

    def backward(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        seen: Seen,
        found: Found,
        into: jax.Array,
    ) -> Pulled:
        out, log_total = found
        residuals = q, k, v, self._mask(k, seen), out.astype(v.dtype), log_total[..., 0]
        return blocked.backward(residuals, into)


@dataclasses.dataclass(frozen=True)
class Flash:
    """The Pallas kernel on (B, K, C, N) queries, and keys in parts that fit on a chip."""

    tokens: int  # keys of a device
    block: int  # queries of one pass of the kernel
    interpret: bool

    def queries(self, x: jax.Array) -> jax.Array:
        return flash.tokens_last(x, self.block)

    def keys(self, x: jax.Array) -> jax.Array:
        return flash.tokens_last(x, flash.LANES)

    def output(self, x: jax.Array, queries: int) -> jax.Array:
        return x[..., :queries].transpose(0, 3, 1, 2)

    def _parts(self, k: jax.Array, seen: Seen) -> list[tuple[slice, int | jax.Array]]:
        """Where each part lies, and how many of its keys are no padding."""
        found = []
        for start in range(0, k.shape[-1], flash.MOST_KEYS):
            stop = min(start + flash.MOST_KEYS, k.shape[-1])
            count: int | jax.Array = min(self.tokens, stop) - start
            if seen.count is not None:
                count = jnp.clip(seen.count - start, 0, stop - start)
            found.append((slice(start, stop), count))
        return found

    def forward(self, q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen) -> Found:
        found = None
        for part, count in self._parts(k, seen):
            new = flash.forward(q, k[..., part], v[..., part], count, self.block, self.interpret)
            found = new if found is None else _together(_exact(found), new)
        assert found is not None  # noqa: S101  (there are keys)
        return found

    def backward(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        seen: Seen,
        found: Found,
        into: jax.Array,
    ) -> Pulled:
        out, log_total = found
        pulled = [
            flash.backward(
                q, k[..., part], v[..., part], out.astype(v.dtype), log_total, into, count,
                self.block, self.interpret,
            )
            for part, count in self._parts(k, seen)
        ]  # fmt: skip
        into_q = functools.reduce(jnp.add, (each[0].astype(jnp.float32) for each in pulled))
        into_k, into_v = (jnp.concatenate([each[i] for each in pulled], axis=-1) for i in (1, 2))
        return into_q, into_k, into_v


@dataclasses.dataclass(frozen=True)
class Ring:
    """The devices that share the tokens, and how many tokens there are without padding."""

    axes: tuple[str, ...]
    devices: int
    keys: int  # of all devices, without padding
    local: int  # of one device, with padding

    def next(self, tree: Any) -> Any:
        """What the next device has."""
        sent = [(source, (source - 1) % self.devices) for source in range(self.devices)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, sent), tree)

    def seen(self, turn: jax.Array | int, mask: jax.Array | None) -> Seen:
        """Of the keys that are here in a turn, which began on the device `turn` places on."""
        if self.keys == self.devices * self.local:
            return Seen(None, mask)
        owner = (jax.lax.axis_index(self.axes) + turn) % self.devices
        return Seen(jnp.clip(self.keys - owner * self.local, 0, self.local), mask)


def ring_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    *,
    ring: Ring,
    kernel: Kernel,
    scale: float,
) -> jax.Array:
    """Softmax attention over the keys of all devices of a ring, on one of these.

    Args:
      q: (B, N, K, C) queries of this device.
      k: (B, S, K, C) keys of this device, S the same on all; behind the last one there is padding.
      v: (B, S, K, C) values of this device.
      mask: (B, S) bool of these keys, False for what is not seen.
      kernel: what computes on one device.
      scale: factor on the logits.

    Returns:
      (B, N, K, C) in the dtype of `v`.
    """
    arrays = kernel.queries(q * scale), kernel.keys(k), kernel.keys(v)
    arrays = [checkpoint_name(x, RESIDUALS) for x in arrays]
    out: Any = _attend(*arrays, mask, ring, kernel)
    return kernel.output(out, q.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q, k, v, mask, ring: Ring, kernel: Kernel):
    return _forward(q, k, v, mask, ring, kernel)[0]


def _forward(q, k, v, mask, ring: Ring, kernel: Kernel) -> Found:
    """Output in the dtype of `v`, and float32 logarithm of the sum over the keys of all devices."""

    def compute(here: tuple[Any, ...], turn: jax.Array | int) -> Found:
        k, v, mask = here
        return kernel.forward(q, k, v, ring.seen(turn, mask))

    def pass_by(carry: Any, turn: jax.Array) -> tuple[Any, None]:
        here, found = carry
        # Sent before it is computed with, so that both go on at the same time.
        return (ring.next(here), _together(found, compute(here, turn))), None

    first = k, v, mask
    carry = ring.next(first), _exact(compute(first, 0))
    (last, found), _ = jax.lax.scan(pass_by, carry, jnp.arange(1, ring.devices - 1))
    out, log_total = _together(found, compute(last, ring.devices - 1))
    return out.astype(v.dtype), log_total


def _attend_forward(q, k, v, mask, ring: Ring, kernel: Kernel):
    out, log_total = (checkpoint_name(x, RESIDUALS) for x in _forward(q, k, v, mask, ring, kernel))
    return out, (q, k, v, mask, out, log_total)


def _attend_backward(ring: Ring, kernel: Kernel, residuals, gradient):
    q, k, v, mask, out, log_total = residuals

    def compute(here: tuple[Any, ...], turn: jax.Array | int) -> list[jax.Array]:
        k, v, mask = here
        found = kernel.backward(q, k, v, ring.seen(turn, mask), (out, log_total), gradient)
        return [x.astype(jnp.float32) for x in found]

    def pass_by(carry: Any, turn: jax.Array) -> tuple[Any, None]:
        here, into_q, sums = carry
        following, sums = ring.next((here, sums))
        new, *parts = compute(here, turn)
        return (following, into_q + new, jax.tree.map(jnp.add, sums, parts)), None

    first = k, v, mask
    into_q, *sums = compute(first, 0)
    carry = ring.next(first), into_q, sums
    (last, into_q, sums), _ = jax.lax.scan(pass_by, carry, jnp.arange(1, ring.devices - 1))
    new, *parts = compute(last, ring.devices - 1)
    sums = jax.tree.map(jnp.add, ring.next(sums), parts)
    into_k, into_v = ring.next(sums)  # home
    return (into_q + new).astype(q.dtype), into_k.astype(k.dtype), into_v.astype(v.dtype), None


_attend.defvjp(_attend_forward, _attend_backward)


def _exact(found: Found) -> Found:
    out, log_total = found
    return out.astype(jnp.float32), log_total


def _together(found: Found, new: Found) -> Found:
    """Attention over the keys of both, in float32."""
    (out, log_total), (more, log_more) = found, new
    both = jnp.logaddexp(log_total, log_more)
    out = out * jnp.exp(log_total - both) + more.astype(jnp.float32) * jnp.exp(log_more - both)
    return out, both
