"""Products of eight bits, against their formulas in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from internvideo_jax.config import EIGHT_BITS
from internvideo_jax.ops.quantized import BACKWARD, MODES, Learning, Stored
from internvideo_jax.types import flatten_paths

ROWS, INNER, OUTER = 6, 16, 8


def operands(stack: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, ROWS, INNER)) * rng.uniform(0.1, 30, size=(2, ROWS, 1))
    kernel = rng.normal(size=(*stack, INNER, OUTER)) * rng.uniform(0.01, 9, size=(OUTER,))
    g = rng.normal(size=(2, ROWS, *stack, OUTER))
    return tuple(each.astype(np.float32) for each in (x, kernel, g))


def as_stated(x: np.ndarray, axis: int, mode: str) -> np.ndarray:
    """The rounded numbers by the formula of the module, as floats."""
    top = 127.0 if mode.startswith("int8") else 448.0
    scale = (np.abs(x).max(axis=axis, keepdims=True) / np.float32(top)).astype(np.float32)
    values = x / scale
    if mode.startswith("int8"):
        return np.rint(values) * scale
    return values.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale


def taken(x: np.ndarray, mode: str) -> np.ndarray:
    return as_stated(x, -1, mode) if MODES[mode].activations else x


@pytest.mark.parametrize("mode", EIGHT_BITS)
def test_products_are_those_of_the_rounded_operands(mode):
    x, kernel, _ = operands()
    found = Learning(jnp.asarray(kernel), mode, "float").product(jnp.asarray(x))
    expected = taken(x, mode) @ as_stated(kernel, -2, mode)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-4)
    assert np.abs(found - x @ kernel).max() > 1e-2  # and not those of the operands
    stored = Stored.of(jnp.asarray(kernel), mode)
    np.testing.assert_array_equal(stored.product(jnp.asarray(x)), found)  # rounded once, the same
    np.testing.assert_allclose(stored.whole(), as_stated(kernel, -2, mode), rtol=1e-6)
    assert {leaf.dtype.itemsize for leaf in jax.tree.leaves(stored.values)} == {1}


def test_a_stack_of_kernels_is_many_products_at_once():
    x, kernel, _ = operands((3,))
    for mode in EIGHT_BITS:
        together = Stored.of(jnp.asarray(kernel), mode)
        alone = [together[number].product(jnp.asarray(x)) for number in range(3)]
        np.testing.assert_allclose(
            together.product(jnp.asarray(x)), np.stack(alone, axis=-2), rtol=1e-5, atol=1e-3
        )


@pytest.mark.parametrize("backward", BACKWARD)
@pytest.mark.parametrize("mode", EIGHT_BITS)
def test_gradients_are_those_of_the_rounded_operands(mode, backward):
    x, kernel, g = operands((3,))

    def loss(x, kernel):
        return (Learning(kernel, mode, backward).product(x) * g).sum()

    dx, dw = jax.grad(loss, argnums=(0, 1))(jnp.asarray(x), jnp.asarray(kernel))
    values = as_stated(kernel, -2, mode)
    expected = np.einsum("brso,sio->bri", g, values)
    if backward == "rounded":
        error = np.abs(dx - expected).max() / np.abs(expected).max()
        assert 1e-4 < error < (0.02 if mode.startswith("int8") else 0.08)
    else:
        np.testing.assert_allclose(dx, expected, rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(
        dw, np.einsum("bri,brso->sio", taken(x, mode), g), rtol=2e-5, atol=2e-3
    )
    if backward == "float":  # a kernel that is stored passes the same gradient on to what feeds it
        stored = Stored.of(jnp.asarray(kernel), mode)
        through = jax.grad(lambda x: (stored.product(x) * g).sum())(jnp.asarray(x))
        np.testing.assert_allclose(through, dx, rtol=1e-6)


def test_products_of_whole_numbers_are_made_in_whole_numbers():
    x, kernel, _ = map(jnp.asarray, operands())
    for mode, kinds in (
        ("int8", ("i8", "i32")),
        ("fp8", ("f8_e4m3fn", "f32")),
        ("int8w", ("f32", "f32")),
    ):
        traced = str(jax.make_jaxpr(Stored.of(kernel, mode).product)(x))
        line = next(line for line in traced.split("\n") if "preferred_element_type" in line)
        product = next(line for line in traced.split("\n") if "= dot_general[" in line)
        assert kinds[1] in product.split("=")[0], (mode, product, line)
        if mode != "int8w":
            assert f":{kinds[0]}[2,6,16]" in traced


@pytest.mark.parametrize("mode", EIGHT_BITS)
def test_nothing_stays_nothing_and_what_is_not_finite_shows(mode):
    x, kernel, _ = operands()
    kernel[:, 0] = 0.0
    x[0, 1] = 0.0
    found = np.asarray(Stored.of(jnp.asarray(kernel), mode).product(jnp.asarray(x)))
    assert np.isfinite(found).all() and not found[..., 0].any() and not found[0, 1].any()
    for broken in (np.nan, np.inf):
        bad = x.copy()
        bad[1, 2, 3] = broken
        found = np.asarray(Stored.of(jnp.asarray(kernel), mode).product(jnp.asarray(bad)))
        assert not np.isfinite(found[1, 2, 1:]).any()
        assert np.isfinite(found[0]).all()
        bad = kernel.copy()
        bad[3, 2] = broken
        found = np.asarray(Stored.of(jnp.asarray(bad), mode).product(jnp.asarray(x)))
        assert not np.isfinite(found[1, :, 2]).any() and np.isfinite(found[..., 3:]).all()


def test_the_names_of_stored_arrays_tell_the_mode():
    kernel = jnp.ones((INNER, OUTER))
    tree = {"fc1": {"kernel": Stored.of(kernel, "int8w"), "bias": jnp.zeros(OUTER)}}
    assert list(flatten_paths(tree)) == ["fc1/bias", "fc1/kernel/int8w", "fc1/kernel/scale"]


def test_half_floats_do_not_overflow_in_sums():
    x = jnp.full((1, 4096), 100.0, jnp.float16)
    kernel = jnp.full((4096, 1), 0.1)
    for mode in EIGHT_BITS:
        found = float(Stored.of(kernel, mode).product(x)[0, 0])
        assert abs(found - 40960) < 32, mode
