"""Contrastive losses between two sets of embeddings, over the whole batch of all devices.

Symmetric InfoNCE (van den Oord et al. 2018; Radford et al. 2021, CLIP) with targets shared by rows
of equal ids, and the pairwise sigmoid loss (Zhai et al. 2023, SigLIP). No form holds the (B, B)
similarities: both directions go through them in tiles, and the backward pass computes each tile
again. Sums over rows and columns carry their own running maximum, so no scale overflows.

Forms, equal in value and gradients:
  global  written for the whole arrays under jit; the compiler splits rows over the batch axes and
          gathers one tile of texts at a time.
  ring    texts and their sums pass from device to device (shard_map); a device never has more than
          its own texts and one neighbour's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from internvideo_jax.ops.attention import free_axes
from internvideo_jax.types import Mean, Tree

KINDS = ("softmax", "sigmoid")
FORMS = ("global", "ring")
# Instead of -inf, which would make NaN of sums that have met no logit yet.
LOWEST = -1e30
TILE = 2**21  # logits of one tile on one device
# Bytes of the texts of a tile, which every device holds, and of the sums for their gradient. With
# smaller tiles the TPU compiler gathers by all-reduces, at twice the traffic.
GATHERED = 80 * 10**6


def contrastive_loss(
    video: jax.Array,
    text: jax.Array,
    temperature: jax.Array,
    *,
    ids: jax.Array | None = None,
    valid: jax.Array | None = None,
    bias: jax.Array | None = None,
    kind: str = "softmax",
    form: str = "global",
    dtype: str = "float32",
    batch_axes: Sequence[str] = (),
    tile: int = TILE,
) -> tuple[Mean, dict[str, Mean]]:
    """The loss of a batch of pairs, and how often the nearest candidate is a right one.

    softmax: with S = V T' / temperature, M = rows of equal ids, P = M / (row sums of M), the mean
    over rows of (-sum_j P log softmax(S) - sum_j P log softmax(S')) / 2.
    sigmoid: the mean over rows of -sum_j log sigmoid(Z (S + bias)), Z = 1 where M, else -1.

    Args:
      video, text: (B, E), not normalised; row i of both belongs together. A row of zeros has
        similarity 0 with everything; one with NaN makes the loss NaN.
      temperature: () positive; clamping is the caller's.
      ids: (B,) or (B, K) int32; rows with equal ids are right for each other. None: all differ.
      valid: (B,) bool; False rows are neither asked nor candidates. None: all count.
      bias: () added to the logits; for kind `sigmoid`.
      kind, form: of KINDS and FORMS.
      dtype: of the normalised embeddings as they are sent and multiplied. Sums and logits are
        float32, and with "float32" so is every product, also on devices that would round it.
      batch_axes: mesh axes that B is split over, where the mesh in use has them.
      tile: about how many logits a device holds at a time.

    Returns:
      The loss, and the means `accuracy_video_to_text` and `accuracy_text_to_video`; a tie between a
      right and a wrong candidate counts as wrong.

    Raises:
      ValueError: an unknown kind or form, shapes that do not fit, a batch that the devices of
        `batch_axes` cannot share evenly.
    """
    for value, known, what in ((kind, KINDS, "kind"), (form, FORMS, "form")):
        if value not in known:
            raise ValueError(f"unknown {what} {value!r} of contrastive loss; known: {known}")
    if video.ndim != 2 or video.shape != text.shape:
        raise ValueError(
            f"a contrastive loss compares two (B, E) arrays of one shape; found video "
            f"{video.shape} and text {text.shape}"
        )
    rows, width = video.shape
    mesh = jax.sharding.get_abstract_mesh()
    axes = free_axes(mesh, batch_axes)
    devices = math.prod(mesh.shape[name] for name in axes)
    if rows % devices:
        raise ValueError(
            f"a contrastive batch of {rows} rows cannot be shared by the {devices} devices of "
            f"{axes}; use a multiple of {devices}"
        )
    numbers = jnp.arange(rows, dtype=jnp.int32) if ids is None else ids
    local = rows // devices
    widest = max(1, tile // local)
    if form == "global":
        column = width * (jnp.dtype(dtype).itemsize + 4)
        parts = _parts(local, math.ceil(rows / min(widest, max(1, GATHERED // column))))
    else:
        parts = _parts(local, math.ceil(local / widest))
    plan = _Plan(kind, form, axes, devices, parts, valid is not None)
    weight = jnp.ones(rows, jnp.float32) if valid is None else valid.astype(jnp.float32)
    v, t = (_normalised(x).astype(jnp.dtype(dtype)) for x in (video, text))
    offset = jnp.zeros(()) if bias is None else jnp.asarray(bias, jnp.float32)
    scale = 1.0 / jnp.asarray(temperature, jnp.float32)
    found: Any = _loss(plan, v, t, scale, offset, numbers.reshape(rows, -1), weight)
    total, hits = found
    counted = weight.sum()
    metrics = {
        f"accuracy_{way}": Mean(count, counted)
        for way, count in zip(("video_to_text", "text_to_video"), hits, strict=True)
    }
    return Mean(total, counted), metrics


def _normalised(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    # Not max(norm, e): its gradient at a row of zeros would be NaN.
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def _parts(rows: int, least: int) -> int:
    """The smallest divisor of `rows` that is at least `least`, or `rows`."""
    return next((n for n in range(max(least, 1), rows) if rows % n == 0), rows)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How a loss is computed; static."""

    kind: str
    form: str
    axes: tuple[str, ...]  # mesh axes of the rows
    devices: int  # of these
    parts: int  # tiles of the texts: of all of them (global), of those of a device (ring)
    masked: bool  # whether some rows may not count


class _Side(NamedTuple):
    """Rows or columns of a tile: what their logits are made of and how they count."""

    features: jax.Array  # (n, E)
    ids: jax.Array  # (n, K)
    weight: jax.Array  # (n,), 0 or 1


class _Sums(NamedTuple):
    """What a row or column of logits comes to, over the tiles so far; each (n,) float32."""

    highest: jax.Array  # logit
    total: jax.Array  # softmax: of exp(logit - highest); sigmoid: of the losses
    right: jax.Array  # highest logit of a right candidate
    wrong: jax.Array  # highest logit of a wrong one
    attraction: jax.Array  # sum of the logits of right candidates
    count: jax.Array  # number of right candidates

    @classmethod
    def start(cls, n: int) -> _Sums:
        lowest, zero = jnp.full(n, LOWEST), jnp.zeros(n)
        return cls(lowest, zero, lowest, lowest, zero, zero)

    def log_total(self) -> jax.Array:
        return self.highest + jnp.log(self.total)

    def hits(self) -> jax.Array:
        return (self.right > self.wrong).astype(jnp.float32)


def _tile(
    plan: _Plan, rows: _Side, columns: _Side, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(r, c) logits, and which are of right candidates; of rows that do not count, LOWEST."""
    logits = _product(rows.features, columns.features, (1, 1)) * scale
    if plan.kind == "sigmoid":
        logits = logits + bias
    same = functools.reduce(
        jnp.logical_and,
        [rows.ids[:, None, k] == columns.ids[None, :, k] for k in range(rows.ids.shape[1])],
    )
    if plan.masked:
        known = (rows.weight[:, None] * columns.weight) > 0
        logits, same = jnp.where(known, logits, LOWEST), same & known
    return logits, same


def _product(left: jax.Array, right: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Matrix product over one axis of each, float32 as far as its factors are."""
    return jax.lax.dot_general(
        left,
        right,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _added(plan: _Plan, sums: _Sums, logits: jax.Array, same: jax.Array, axis: int) -> _Sums:
    """The sums after one more tile; those nobody reads are not computed."""
    right = jnp.where(same, logits, LOWEST).max(axis=axis)
    wrong = jnp.where(same, LOWEST, logits).max(axis=axis)
    highest = jnp.maximum(sums.highest, logits.max(axis=axis))
    if plan.kind == "softmax":
        shifted = jnp.exp(logits - jnp.expand_dims(highest, axis)).sum(axis=axis)
        total = sums.total * jnp.exp(sums.highest - highest) + shifted
    else:
        total = sums.total + jax.nn.softplus(jnp.where(same, -logits, logits)).sum(axis=axis)
    return _Sums(
        highest,
        total,
        jnp.maximum(sums.right, right),
        jnp.maximum(sums.wrong, wrong),
        sums.attraction + jnp.where(same, logits, 0.0).sum(axis=axis),
        sums.count + same.sum(axis=axis, dtype=jnp.float32),
    )


class _Known(NamedTuple):
    """What the backward pass of a softmax knows of rows or columns."""

    log_total: jax.Array
    share: jax.Array  # 1 / number of right candidates

    @classmethod
    def of(cls, sums: _Sums) -> _Known:
        return cls(sums.log_total(), 1.0 / jnp.maximum(sums.count, 1.0))


def _known(plan: _Plan, across: _Sums, down: _Sums) -> tuple[_Known, _Known] | None:
    return (_Known.of(across), _Known.of(down)) if plan.kind == "softmax" else None


def _slopes(
    plan: _Plan, logits: jax.Array, same: jax.Array, rows: _Side, columns: _Side, known: Tree
) -> jax.Array:
    """(r, c) derivative of the summed loss by the logits."""
    if plan.kind == "sigmoid":
        slopes = jax.nn.sigmoid(logits) - same
        return slopes * (rows.weight[:, None] * columns.weight) if plan.masked else slopes
    row, column = known
    by_row = jnp.exp(logits - row.log_total[:, None])
    by_column = jnp.exp(logits - column.log_total)
    if plan.masked:
        by_row, by_column = by_row * rows.weight[:, None], by_column * columns.weight
    # Rows of equal ids have equally many right candidates, so one share serves both directions.
    return 0.5 * (by_row + by_column) - jnp.where(same, row.share[:, None], 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(plan: _Plan, v, t, scale, bias, ids, weight):
    return _loss_forward(plan, v, t, scale, bias, ids, weight)[0]


def _loss_forward(plan: _Plan, v, t, scale, bias, ids, weight):
    run = _global_forward if plan.form == "global" else _ring_forward
    rows, columns, column_weight, known = run(
        plan, _Side(v, ids, weight), _Side(t, ids, weight), scale, bias
    )
    if plan.kind == "softmax":
        # Zero times LOWEST is fine, that is why it is finite.
        attraction = rows.attraction / jnp.maximum(rows.count, 1.0)
        total = (weight * (0.5 * rows.log_total() - attraction)).sum()
        total = total + 0.5 * (column_weight * columns.log_total()).sum()
    else:
        total = (weight * rows.total).sum()
    hits = (weight * rows.hits()).sum(), (column_weight * columns.hits()).sum()
    return (total, hits), (v, t, scale, bias, ids, weight, known)


def _loss_backward(plan: _Plan, residuals, gradients):
    v, t, scale, bias, ids, weight, known = residuals
    run = _global_backward if plan.form == "global" else _ring_backward
    dv, dt, row_slopes = run(plan, _Side(v, ids, weight), _Side(t, ids, weight), scale, bias, known)
    gradient, _ = gradients  # the hits have none
    # sum_ij slope_ij (v_i . t_j) = sum_i v_i . dv_i, dv and dt being without the scale yet.
    d_scale = gradient * (v.astype(jnp.float32) * dv).sum()
    # Slopes of a softmax sum to zero up to rounding, which is no gradient.
    d_bias = gradient * row_slopes.sum() if plan.kind == "sigmoid" else jnp.zeros_like(bias)
    factor = gradient * scale
    return (factor * dv).astype(v.dtype), (factor * dt).astype(t.dtype), d_scale, d_bias, None, None


_loss.defvjp(_loss_forward, _loss_backward)


def _tile_backward(
    plan: _Plan, rows: _Side, columns: _Side, scale: Tree, bias: Tree, known: Tree
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a tile adds to the gradients of rows (r, E) and columns (c, E), and sums of slopes."""
    logits, same = _tile(plan, rows, columns, scale, bias)
    slopes = _slopes(plan, logits, same, rows, columns, known)
    factors = slopes.astype(rows.features.dtype)
    return (
        _product(factors, columns.features, (1, 0)),
        _product(factors, rows.features, (0, 0)),
        slopes.sum(axis=1),
    )


# Global form.


def _pin(plan: _Plan, x: jax.Array, axis: int | None) -> jax.Array:
    """Splits one axis of `x` over the devices of the batch, or none."""
    if not plan.axes:
        return x
    spec = [plan.axes if i == axis else None for i in range(x.ndim)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def _dealt(plan: _Plan, x: jax.Array) -> jax.Array:
    """(B, ...) -> (parts, B / parts, ...); every device keeps its rows, a share in each part."""
    parts = x.reshape(-1, plan.parts, *x.shape[1:]).swapaxes(0, 1)
    return _pin(plan, parts, 1)


def _global_forward(plan: _Plan, rows: _Side, columns: _Side, scale: Tree, bias: Tree) -> Any:
    def add(sums: _Sums, part: _Side) -> tuple[_Sums, _Sums]:
        part = jax.tree.map(lambda x: _pin(plan, x, None), part)
        logits, same = _tile(plan, rows, part, scale, bias)
        logits = _pin(plan, logits, 0)
        down = _added(plan, _Sums.start(len(part.weight)), logits, same, 0)
        return _added(plan, sums, logits, same, 1), down

    parts = jax.tree.map(lambda x: _dealt(plan, x), columns)
    start = jax.tree.map(lambda x: _pin(plan, x, 0), _Sums.start(len(rows.weight)))
    across, down = jax.lax.scan(add, start, parts)
    return across, down, parts.weight, _known(plan, across, down)


def _global_backward(
    plan: _Plan, rows: _Side, columns: _Side, scale: Tree, bias: Tree, known: Tree
) -> Any:
    def add(sums: Tree, item: Tree) -> Any:
        part, of_part = item
        part = jax.tree.map(lambda x: _pin(plan, x, None), part)
        both = None if known is None else (known[0], of_part)
        dv, dt, slopes = _tile_backward(plan, rows, part, scale, bias, both)
        return (sums[0] + _pin(plan, dv, 0), sums[1] + slopes), _pin(plan, dt, 0)

    parts = jax.tree.map(lambda x: _dealt(plan, x), columns)
    start = _pin(plan, jnp.zeros(rows.features.shape), 0), _pin(plan, jnp.zeros(len(rows.ids)), 0)
    of_parts = None if known is None else known[1]
    (dv, slopes), dt = jax.lax.scan(add, start, (parts, of_parts))
    return dv, _pin(plan, dt.swapaxes(0, 1).reshape(dv.shape), 0), slopes


# Ring form. A device keeps its rows; texts, and what is summed over the columns, go round.


def _ring(plan: _Plan, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` on every device with its rows; all its arguments and results are split."""
    mesh = jax.sharding.get_abstract_mesh()
    free = {name for name in mesh.axis_names if name not in mesh.manual_axes}
    if not free:
        return function
    split = PartitionSpec(plan.axes or None)

    def mapped(sides: Tree, numbers: Tree) -> Any:
        return jax.shard_map(
            function,
            in_specs=(split, PartitionSpec()),
            out_specs=split,
            axis_names=free,
            check_vma=False,
        )(sides, numbers)

    return mapped


def _passed_on(plan: _Plan, tree: Tree) -> Any:
    """What the previous device of the ring holds."""
    if plan.devices == 1:
        return tree
    pairs = [(i, (i + 1) % plan.devices) for i in range(plan.devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, plan.axes, pairs), tree)


def _in_parts(plan: _Plan, tree: Tree) -> Any:
    return jax.tree.map(lambda x: x.reshape(plan.parts, -1, *x.shape[1:]), tree)


def _joined(tree: Tree) -> Any:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _ring_forward(plan: _Plan, rows: _Side, columns: _Side, scale: Tree, bias: Tree) -> Any:
    def on_device(sides: tuple[_Side, _Side], numbers: tuple[jax.Array, jax.Array]) -> Any:
        rows, columns = sides

        def add(across: _Sums, item: tuple[_Side, _Sums]) -> tuple[_Sums, _Sums]:
            part, down = item
            logits, same = _tile(plan, rows, part, *numbers)
            return _added(plan, across, logits, same, 1), _added(plan, down, logits, same, 0)

        def turn(carry: Tree, _: None) -> tuple[Any, None]:
            visiting, down, across = carry
            following = _passed_on(plan, visiting)  # on its way while this one is used
            across, down = jax.lax.scan(add, across, (visiting, down))
            return (following, _passed_on(plan, down), across), None

        start = _Sums.start(len(rows.weight))
        carry = _in_parts(plan, columns), _in_parts(plan, start), start
        (_, down, across), _ = jax.lax.scan(turn, carry, None, length=plan.devices)
        down = _joined(down)
        return across, down, _known(plan, across, down)

    across, down, known = _ring(plan, on_device)((rows, columns), (scale, bias))
    return across, down, columns.weight, known


def _ring_backward(
    plan: _Plan, rows: _Side, columns: _Side, scale: Tree, bias: Tree, known: Tree
) -> Any:
    def on_device(sides: Tree, numbers: tuple[jax.Array, jax.Array]) -> Any:
        rows, columns, known = sides

        def add(sums: Tree, item: Tree) -> Any:
            part, of_part = item
            both = None if known is None else (known[0], of_part)
            dv, dt, slopes = _tile_backward(plan, rows, part, *numbers, both)
            return (sums[0] + dv, sums[1] + slopes), dt

        def turn(carry: Tree, _: None) -> tuple[Any, None]:
            visiting, arriving, sums = carry
            following, arrived = _passed_on(plan, (visiting, arriving))
            sums, dt = jax.lax.scan(add, sums, visiting)
            return (following, arrived + dt, sums), None

        visiting = _in_parts(plan, (columns, None if known is None else known[1]))
        zeros = jnp.zeros(rows.features.shape)
        carry = visiting, _in_parts(plan, zeros), (zeros, jnp.zeros(len(rows.ids)))
        (_, dt, (dv, slopes)), _ = jax.lax.scan(turn, carry, None, length=plan.devices)
        # One step behind the texts, so that sending it need not wait for the tile.
        return dv, _joined(_passed_on(plan, dt)), slopes

    return _ring(plan, on_device)((rows, columns, known), (scale, bias))
