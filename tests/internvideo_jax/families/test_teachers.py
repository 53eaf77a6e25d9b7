"""Teachers: picked tokens, unit length, frames of other sizes, low precision, their weights."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.config import to_typed
from internvideo_jax.families.clip.teacher import CLIPTeacherConfig, ViCLIPTeacherConfig
from internvideo_jax.families.internvideo2.teacher import InternVideo2TeacherConfig, InternVLConfig
from internvideo_jax.families.videomae.teacher import VideoMAETeacherConfig
from internvideo_jax.layers.tower import tower
from internvideo_jax.ops.resize import resize_frames
from internvideo_jax.registry import TEACHERS, resolve
from internvideo_jax.types import flatten_paths, unflatten_paths

TOWER = tower(32, 4, 4)
SMALL: dict[str, Any] = {
    "encoder": TOWER,
    "frames": 4,
    "resolution": 16,
    "patch": 8,
    "dtype": "float32",
}
TEACHER: dict[str, Any] = {
    # One of the returned layers is the last but one, from whose output the last block's attention
    # is taken, of CLIP; of ViCLIP none is.
    "clip": CLIPTeacherConfig(**SMALL, embedding=12, layers=(2, 3)),
    "viclip": ViCLIPTeacherConfig(**SMALL, embedding=12, layers=(1, 3)),
    "videomae_v2": VideoMAETeacherConfig(**SMALL, layers=(1, 3)),
    "internvl": InternVLConfig(**SMALL, embedding=12, pool_heads=4, layers=(1, 3)),
    "internvideo2": InternVideo2TeacherConfig(**SMALL, embedding=12, pool_heads=4, layers=(1, 3)),
}
NAMES = list(TEACHER)
BATCH = 2
# Compiling is what these tests wait for.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
VIDEO = np.random.default_rng(0).integers(0, 256, (BATCH, 4, 16, 16, 3), np.uint8)


def drawn(config: Any) -> Any:
    """Every parameter drawn, so that no table or norm is at its initial value."""
    rng = np.random.default_rng(1)
    return unflatten_paths(
        {
            path: (0.2 * rng.normal(size=leaf.shape) + path.endswith("scale")).astype(np.float32)
            for path, leaf in sorted(flatten_paths(model(config).shapes()).items())
        }
    )


@functools.cache
def weights(name: str):
    return drawn(TEACHER[name])


@functools.cache
def model(config: Any):
    return config.model()


@functools.cache
def applied(config: Any):
    return jit(model(config).apply)


@functools.cache
def every(name: str):
    return applied(TEACHER[name])(weights(name), VIDEO)


def picks(config: Any, count: int) -> np.ndarray:
    """(B, count) increasing numbers of patch tokens, others for every clip."""
    rng, tokens = np.random.default_rng(2), int(np.prod(config.grid))
    rows = [np.sort(rng.choice(tokens, count, replace=False)) for _ in range(BATCH)]
    return np.stack(rows).astype(np.int32)


@pytest.mark.parametrize("name", NAMES)
def test_targets_of_visible_tokens_are_those_of_all(name):
    config = TEACHER[name]
    full, visible = every(name), picks(config, 5)
    seen = []

    def draw(attention):
        seen.append(None if attention is None else attention.shape)
        return jnp.asarray(visible)

    part = jit(
        lambda params, video: model(config).apply(params, video, draw, method="visible_targets")
    )(weights(name), VIDEO)
    lead, (t, h, w) = int(config.class_token), config.grid
    rows, patches = (t, h * w) if config.per_frame else (1, t * h * w)
    assert seen == [None if name == "videomae_v2" else (BATCH, rows, patches)]
    assert full["middle"].shape == (2, BATCH, lead + t * h * w, config.width)
    assert full["middle"].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(full["middle"], axis=-1), 1.0, rtol=1e-5)
    index = np.concatenate([np.zeros((BATCH, lead), int), visible + lead], axis=1)
    wanted = np.take_along_axis(np.asarray(full["middle"]), index[None, :, :, None], axis=2)
    np.testing.assert_allclose(part["middle"], wanted, atol=1e-6)
    np.testing.assert_array_equal(part["visible"], visible)
    assert set(part) == {*full, "visible"}
    assert ("final" in full) == (config.final_width > 0)
    if config.final_width:
        assert full["final"].shape == (BATCH, config.final_width)
        np.testing.assert_allclose(np.linalg.norm(full["final"], axis=-1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(part["final"], full["final"], atol=1e-6)
    if name != "videomae_v2":
        np.testing.assert_allclose(part["attention"], full["attention"], atol=1e-6)
        assert float(full["attention"].min()) > 0
        assert float(full["attention"].sum(axis=-1).max()) < 1  # the class token has a share


@pytest.mark.parametrize("name", ["clip", "internvl"])
def test_frames_are_read_apart(name):
    """Other pixels in the last frame change its tokens, and nothing of the patches before."""
    changed = VIDEO.copy()
    changed[:, -1] = 255 - changed[:, -1]
    other = applied(TEACHER[name])(weights(name), changed)["middle"]
    lead, (_, h, w) = int(TEACHER[name].class_token), TEACHER[name].grid
    same = np.isclose(other, every(name)["middle"], atol=1e-6).all(axis=(0, 1, 3))
    assert same[lead : -h * w].all()
    assert not same[-h * w :].any()
    assert not same[:lead].any()


def test_only_the_last_block_of_videomae_is_normalised():
    config = TEACHER["videomae_v2"]
    params = weights("videomae_v2")
    other = unflatten_paths(
        {
            path: leaf + 0.5 if path.startswith("encoder/norm/") else leaf
            for path, leaf in flatten_paths(params).items()
        }
    )
    before = every("videomae_v2")["middle"]
    after = applied(config)(other, VIDEO)["middle"]
    np.testing.assert_allclose(after[0], before[0], atol=1e-6)
    assert np.abs(after[1] - before[1]).max() > 0.01


def test_attention_of_the_last_block_does_not_depend_on_what_is_returned():
    config = dataclasses.replace(TEACHER["clip"], layers=(0,))
    targets = applied(config)(weights("clip"), VIDEO)
    np.testing.assert_allclose(targets["attention"], every("clip")["attention"], atol=1e-6)


def in_half(name: str):
    """A teacher in bfloat16 with its targets at a few tokens, as function of weights and video."""
    config = dataclasses.replace(TEACHER[name], dtype="bfloat16")
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), weights(name))
    visible = picks(config, 3)
    targets = functools.partial(
        model(config).apply, draw=lambda _: jnp.asarray(visible), method="visible_targets"
    )
    return config, params, visible, targets


@pytest.mark.parametrize(
    "name",
    [name if name == "internvl" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_in_bfloat16(name):
    """With weights and activations in half precision the targets are float32, and near."""
    config, params, visible, targets = in_half(name)
    found = jit(targets)(params, VIDEO)["middle"]
    assert found.dtype == np.float32
    lead = int(config.class_token)
    index = np.concatenate([np.zeros((BATCH, lead), int), visible + lead], axis=1)
    wanted = np.take_along_axis(np.asarray(every(name)["middle"]), index[None, ..., None], axis=2)
    assert (np.asarray(found) * wanted).sum(axis=-1).min() > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_the_stack_of_all_tokens_is_never_made_in_float32(name):
    config, params, _, targets = in_half(name)
    width = config.encoder.width
    full = 2 * BATCH * int(np.prod(config.grid)) * width
    shapes = arrays(jax.make_jaxpr(targets)(params, VIDEO).jaxpr)
    stacks = {
        dtype
        for shape, dtype in shapes
        if len(shape) > 3 and shape[-1] == width and np.prod(shape) >= full
    }
    assert stacks == {"bfloat16"}


def arrays(jaxpr: Any) -> set[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of everything that a program with stacked layers computes."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {(each.aval.shape, each.aval.dtype.name) for each in equation.outvars}
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found |= arrays(inner)
    return found


def test_frames_of_another_size_are_resized():
    params, apply = weights("clip"), applied(TEACHER["clip"])
    video = np.random.default_rng(3).integers(0, 256, (BATCH, 4, 20, 24, 3), np.uint8)
    resized = resize_frames(jnp.asarray(video), 16)
    assert resized.shape == VIDEO.shape
    np.testing.assert_allclose(
        apply(params, video)["middle"], apply(params, resized)["middle"], atol=1e-5
    )


def test_another_number_of_frames_is_refused():
    config = TEACHER["internvl"]
    with pytest.raises(ValueError, match="'internvl' reads 4 frames"):
        model(config).apply(weights("internvl"), VIDEO[:, :2])


@pytest.mark.parametrize("layers", [(), (3, 1), (1, 1), (2, 4), (-1, 2)])
def test_layers_must_be_blocks_in_order(layers):
    with pytest.raises(
        ValueError, match="expected ascending numbers of blocks, one at least, 0 to 3"
    ):
        dataclasses.replace(TEACHER["videomae_v2"], layers=layers)


def test_literal_attention_is_another_network():
    config = dataclasses.replace(TEACHER["videomae_v2"], literal=True)
    other = applied(config)(weights("videomae_v2"), VIDEO)["middle"]
    assert np.abs(other - every("videomae_v2")["middle"]).max() > 0.1


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (InternVLConfig.of_size("6b"), 5_936_000_768),
        (CLIPTeacherConfig.of_size("base16"), 86_192_640),
        # CLIP L/14 without 60 of its 257 places.
        (CLIPTeacherConfig.of_size("large14"), 303_966_208 - 60 * 1024),
        (InternVideo2TeacherConfig.of_size("1b"), 1_013_666_432 + 7_042_176),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_published_parameter_counts(config, parameters):
    count = sum(leaf.size for leaf in jax.tree.leaves(config.model().shapes()))
    assert count == parameters
    assert config.forward_flops() > 2 * config.tokens * parameters * 0.8


@pytest.mark.parametrize("name", NAMES)
def test_configs(name):
    """By name from plain values, as in a recipe; in small, with every layer that is left."""
    assert set(TEACHERS) == set(NAMES)
    kind = resolve("teacher", name)
    config = kind.of_size("tiny", init_from="random")
    plain = {**dataclasses.asdict(config), "layers": list(config.layers)}
    assert to_typed(kind, plain, "config.objective.clip_teacher") == config
    small = config.smallest()
    assert (small.layers, small.encoder.depth) == ((0, 1), 2)
    assert small.class_token == config.class_token
    assert small.width == (32 if name != "clip" else small.embedding)
    with pytest.raises(ValueError, match="unknown"):
        kind.of_size("tinny")


def test_stage_one_aligns_with_the_last_layers():
    assert InternVLConfig.of_size("6b").layers == (42, 43, 44, 45, 46, 47)
    assert VideoMAETeacherConfig.of_size("giant").layers == (36, 37, 38, 39)
    assert VideoMAETeacherConfig.of_size("giant").grid == (8, 16, 16)
    assert CLIPTeacherConfig.of_size("large14").grid == (8, 14, 14)


# Weights


def stated(config: Any) -> dict[str, Any]:
    """What a run says about its model."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def test_a_run_that_computed_something_else_is_refused():
    videomae, internvl = TEACHER["videomae_v2"], TEACHER["internvl"]
    for config in TEACHER.values():
        config.check_source(stated(config))
        config.check_source({"tubelet": 2, "patch": 8})  # what a file says
    with pytest.raises(ValueError, match="'separable'.*other positions than pos_table = 'sincos'"):
        videomae.check_source(stated(videomae) | {"pos_table": "separable"})
    with pytest.raises(ValueError, match="pos_table = learnable there, sincos in the teacher"):
        videomae.check_source(stated(videomae) | {"pos_table": "learnable"})
    with pytest.raises(ValueError, match="activation = gelu there, gelu_tanh in the teacher"):
        internvl.check_source(stated(internvl) | {"activation": "gelu"})
    with pytest.raises(ValueError, match="pixel_mean = "):
        TEACHER["clip"].check_source(stated(TEACHER["clip"]) | {"pixel_mean": [0.5, 0.5, 0.5]})


def test_two_names_of_one_table():
    """At its own length and size the published table is the plain one."""
    giant = VideoMAETeacherConfig.of_size("giant")
    assert giant.pos_table == "resized"
    giant.check_source({"pos_table": "sincos"})
    longer = VideoMAETeacherConfig.of_size("giant", frames=32)
    with pytest.raises(ValueError, match="other positions"):
        longer.check_source({"pos_table": "sincos"})
