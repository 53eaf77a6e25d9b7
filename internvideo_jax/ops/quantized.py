"""Matrix products with kernels of eight bits.

A kernel (..., in, out) is rounded by output channel (absolute maximum over `in`):
    scale = max|kernel[:, o]| / L,  values = round(kernel[:, o] / scale)
with L = 127 and whole numbers for int8, L = 448 and the nearest float8_e4m3fn for fp8; half goes to
even. Activations, where they are rounded as well, are by token, in every product anew:
    y = (round(x / s) @ values) * s * scale,  s = max|x| / L over the channels of the token
So neither the batch nor the devices that share it change a result, and products of whole numbers
add up exactly in int32. Without rounded activations the values are exact in the type of x, and
y = (x @ values) * scale. Sums and scales are float32.

Rounding counts as the identity in a backward pass (straight through, Bengio et al. 2013): with x'
and w' the rounded operands, dx = g @ w'^T and dw = x'^T @ g. `rounded` backward passes make the
first of these two in eight bits as well: the scales of the channels go into g, which is then
rounded by token. The second sums over all tokens of a step and stays as it is.

Kernels of a model become these classes in its parameter tree; layers multiply by whatever is there
(layers/linear.py), and loops, vmap, checkpointing and shardings see arrays.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LEAST = 1e-30  # of a maximum: below it numbers have no reciprocal everywhere, and count as zero


@dataclasses.dataclass(frozen=True)
class Mode:
    """Which numbers a product is made of."""

    dtype: Any
    largest: float
    activations: bool  # whether the other operand is rounded too

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return jnp.issubdtype(self.dtype, jnp.integer)


MODES = {
    "int8w": Mode(jnp.int8, 127.0, activations=False),
    "int8": Mode(jnp.int8, 127.0, activations=True),
    "fp8w": Mode(jnp.float8_e4m3fn, 448.0, activations=False),
    "fp8": Mode(jnp.float8_e4m3fn, 448.0, activations=True),
}
BACKWARD = ("float", "rounded")


def rounded(x: jax.Array, axes: tuple[int, ...], mode: Mode) -> tuple[jax.Array, jax.Array]:
    """Values of eight bits in the shape of x, and their scale, of size 1 along `axes`.

    What is not finite makes the scale so, and with it whatever is multiplied by it.
    """
    x = x.astype(jnp.float32)
    peak = jnp.abs(x).max(axis=axes, keepdims=True)
    scale = jnp.maximum(peak, LEAST) / mode.largest
    values = x / scale
    return (jnp.round(values) if mode.whole else values).astype(mode.dtype), scale


class _Kernel:
    """(..., in, out), `mode` one of MODES; slices along leading axes are kernels too."""

    mode: str

    def product(self, x: jax.Array) -> jax.Array:
        """(..., in) -> (..., out); of a kernel (S, in, out) the result is (..., S, out)."""
        raise NotImplementedError


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class Stored(_Kernel):
    """A kernel of which only the rounded values are left."""

    values: Any  # (..., in, out)
    scale: Any  # (..., 1, out) float32
    mode: str

    @classmethod
    def of(cls, kernel: jax.Array, mode: str) -> Stored:
        """A kernel (..., in, out) rounded."""
        values, scale = rounded(kernel, (kernel.ndim - 2,), MODES[mode])
        return cls(values, scale, mode)

    def __getitem__(self, index: Any) -> Stored:
        return Stored(self.values[index], self.scale[index], self.mode)

    def product(self, x: jax.Array) -> jax.Array:
        return _stored_product(x, self.values, self.scale, self.mode, "float")

    def whole(self) -> jax.Array:
        """The numbers that it stands for, float32."""
        return self.values.astype(jnp.float32) * self.scale

    # The names of the two arrays tell the mode, so that digests and tables of parameters do.
    def tree_flatten_with_keys(self) -> tuple[Any, str]:
        names = (jax.tree_util.DictKey(name) for name in (self.mode, "scale"))
        return tuple(zip(names, (self.values, self.scale), strict=True)), self.mode

    @classmethod
    def tree_unflatten(cls, mode: str, children: Any) -> Stored:
        values, scale = children
        return cls(values, scale, mode)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Learning(_Kernel):
    """A kernel that learns, rounded in every product."""

    kernel: Any  # (..., in, out) float32
    mode: str
    backward: str  # one of BACKWARD

    def __getitem__(self, index: Any) -> Learning:
        return dataclasses.replace(self, kernel=self.kernel[index])

    def product(self, x: jax.Array) -> jax.Array:
        return _learning_product(x, self.kernel, self.mode, self.backward)

    def tree_flatten(self) -> tuple[Any, tuple[str, str]]:
        return (self.kernel,), (self.mode, self.backward)

    @classmethod
    def tree_unflatten(cls, static: tuple[str, str], children: Any) -> Learning:
        return cls(children[0], *static)


Kernel = Stored | Learning


def is_kernel(node: Any) -> bool:
    """Whether a node of a parameter tree is a kernel of eight bits."""
    return isinstance(node, Kernel)


def _multiply(x: jax.Array, values: jax.Array, scale: jax.Array, mode: Mode) -> Any:
    """The product in the type of x, and x as it went into it: (values, scale or None)."""
    channel = values.ndim - 2
    dims = (((x.ndim - 1,), (channel,)), ((), ()))
    if mode.activations:
        taken = rounded(x, (x.ndim - 1,), mode)
        total = jnp.int32 if mode.whole else jnp.float32
        y = jax.lax.dot_general(taken[0], values, dims, preferred_element_type=total)
        # (..., 1) with an axis more for every leading axis of the kernel
        by_token = taken[1].reshape(*taken[1].shape, *(1,) * channel)
        y = y.astype(jnp.float32) * by_token
    else:
        taken = x, None
        y = jax.lax.dot_general(x, values.astype(x.dtype), dims, preferred_element_type=jnp.float32)
    return (y * scale.squeeze(channel)).astype(x.dtype), taken


def _to_input(
    g: jax.Array, values: jax.Array, scale: jax.Array, mode: Mode, backward: str
) -> jax.Array:
    """The gradient of x, in the type of g."""
    channel = values.ndim - 2
    last = tuple(range(g.ndim - channel - 1, g.ndim))
    dims = ((last, (*range(channel), channel + 1)), ((), ()))
    scaled = g.astype(jnp.float32) * scale.squeeze(channel)
    if backward == "rounded":
        total = jnp.int32 if mode.whole else jnp.float32
        taken, by_token = rounded(scaled, last, mode)
        dx = jax.lax.dot_general(taken, values, dims, preferred_element_type=total)
        by_token = by_token.reshape(*by_token.shape[: last[0]], 1)
        return (dx.astype(jnp.float32) * by_token).astype(g.dtype)
    scaled = scaled.astype(g.dtype)
    dx = jax.lax.dot_general(
        scaled, values.astype(g.dtype), dims, preferred_element_type=jnp.float32
    )
    return dx.astype(g.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _stored_product(
    x: jax.Array, values: jax.Array, scale: jax.Array, mode: str, backward: str
) -> jax.Array:
    return _multiply(x, values, scale, MODES[mode])[0]


def _stored_forward(x: Any, values: Any, scale: Any, mode: str, backward: str) -> Any:
    return _stored_product(x, values, scale, mode, backward), (values, scale)


def _stored_backward(mode: str, backward: str, kept: Any, g: jax.Array) -> Any:
    values, scale = kept
    nothing = jnp.zeros_like(values)
    if MODES[mode].whole:  # jax's gradient of whole numbers
        nothing = np.zeros(values.shape, jax.dtypes.float0)
    return _to_input(g, values, scale, MODES[mode], backward), nothing, jnp.zeros_like(scale)


_stored_product.defvjp(_stored_forward, _stored_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _learning_product(x: jax.Array, kernel: jax.Array, mode: str, backward: str) -> jax.Array:
    stored = Stored.of(kernel, mode)
    return _multiply(x, stored.values, stored.scale, MODES[mode])[0]


def _learning_forward(x: Any, kernel: Any, mode: str, backward: str) -> Any:
    stored = Stored.of(kernel, mode)
    y, taken = _multiply(x, stored.values, stored.scale, MODES[mode])
    return y, (taken, stored)


def _learning_backward(mode: str, backward: str, kept: Any, g: jax.Array) -> Any:
    (x, by_token), stored = kept
    dx = _to_input(g, stored.values, stored.scale, MODES[mode], backward)
    if by_token is not None:
        x = (x.astype(jnp.float32) * by_token).astype(g.dtype)
    rows = tuple(range(x.ndim - 1))
    dims = ((rows, rows), ((), ()))
    dw = jax.lax.dot_general(x, g, dims, preferred_element_type=jnp.float32)  # (in, ..., out)
    return dx, jnp.moveaxis(dw, 0, -2)


_learning_product.defvjp(_learning_forward, _learning_backward)
