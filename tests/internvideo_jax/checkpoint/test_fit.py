"""Weights of another size, patch, tubelet, depth or number of frames."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from internvideo_jax.checkpoint import initial
from internvideo_jax.families.uniformerv2.model import UniFormerV2Config
from internvideo_jax.families.videomae.model import VideoMAEClassifierConfig
from internvideo_jax.ops.resize import resize_table
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights import files
from tests.internvideo_jax.checkpoint.test_classes import random_params, write_run

CONFIG = VideoMAEClassifierConfig.of_size(
    "tiny", classes=3, frames=8, resolution=32, patch=8, dtype="float32", pos_table="learnable"
)
FIXED = dataclasses.replace(CONFIG, pos_table="sincos")


def changed(config, **changes):
    tower = {key: changes.pop(key) for key in ("width", "depth", "heads") if key in changes}
    if "width" in tower:
        tower["hidden"] = 4 * tower["width"]
    encoder = dataclasses.replace(config.encoder, **tower)
    return dataclasses.replace(config, encoder=encoder, **changes)


def sources(tmp_path, config):
    """The same weights as a file and as a run."""
    params = random_params(config)
    geometry = {"tubelet": config.tubelet, "patch": config.patch}
    path = tmp_path / "weights.safetensors"
    files.save_ours(path, files.Weights("videomae_classifier", params, geometry))
    return params, str(path), write_run(tmp_path / "run", config, params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 48}, "encoder.width 96 there, config.model.encoder.width = 48: matrices are"),
        ({"depth": 3}, "encoder.depth 4 there, config.model.encoder.depth = 3: layers are neither"),
        ({"depth": 5}, "encoder.depth 4 there, config.model.encoder.depth = 5: layers are neither"),
        ({"patch": 4}, "patch 8 there, config.model.patch = 4: the patch embedding has"),
        ({"tubelet": 4}, "tubelet 2 there, config.model.tubelet = 4: the patch embedding has"),
        # As many values in a patch of the embedding, in another arrangement.
        ({"tubelet": 8, "patch": 4}, "patch 8 there, config.model.patch = 4"),
    ],
)
def test_the_field_that_differs_is_named(tmp_path, changes, message):
    other = changed(FIXED, **changes)
    _, *places = sources(tmp_path, FIXED)
    for place in places:
        with pytest.raises(ValueError, match=message):
            initial.initialise(place, other.model().shapes(), other)


def test_other_heads_show_in_a_run_only(tmp_path):
    other = changed(FIXED, heads=8)
    _, path, run = sources(tmp_path, FIXED)
    initial.initialise(path, other.model().shapes(), other)  # nothing in the file tells
    with pytest.raises(ValueError, match=r"encoder.heads 4 there, config.model.encoder.heads = 8"):
        initial.initialise(run, other.model().shapes(), other)


@pytest.mark.parametrize(
    "changes", [{"resolution": 48}, {"frames": 16}, {"frames": 4, "resolution": 16}]
)
def test_fixed_tables_are_built_anew(tmp_path, changes):
    other = changed(FIXED, **changes)
    params, *places = sources(tmp_path, FIXED)
    for place in places:
        loaded, report = initial.initialise(place, other.model().shapes(), other)
        assert not report.fresh and not report.resized and not report.skipped
        found = flatten_paths(loaded)
        assert all(np.array_equal(found[name], value) for name, value in params.items())


def test_learnable_tables_are_resized_in_space(tmp_path):
    other = changed(CONFIG, resolution=48)
    params, *places = sources(tmp_path, CONFIG)
    expected = resize_table(params["encoder/pos_embed"], (4, 4, 4), (4, 6, 6))
    for place in places:
        loaded, report = initial.initialise(place, other.model().shapes(), other)
        assert report.resized == ("encoder/pos_embed",)
        np.testing.assert_array_equal(flatten_paths(loaded)["encoder/pos_embed"], expected)


# The second has as many tokens: a file cannot tell it from the first grid, a run can.
@pytest.mark.parametrize(("changes", "grid"), [({"frames": 4}, (2, 4, 4)), (
    {"frames": 32, "resolution": 16}, (16, 2, 2)),
])  # fmt: skip
def test_learnable_tables_of_other_lengths_need_a_run(tmp_path, changes, grid):
    other = changed(CONFIG, **changes)
    params, path, run = sources(tmp_path, CONFIG)
    loaded, report = initial.initialise(run, other.model().shapes(), other)
    assert report.resized == ("encoder/pos_embed",)
    np.testing.assert_array_equal(
        flatten_paths(loaded)["encoder/pos_embed"],
        resize_table(params["encoder/pos_embed"], (4, 4, 4), grid),
    )
    if grid[0] == 2:
        with pytest.raises(ValueError, match=r"64 rows, which is no square grid over the 2 time"):
            initial.initialise(path, other.model().shapes(), other)


def test_the_table_of_uniformerv2_is_not_resized(tmp_path):
    config = UniFormerV2Config.of_size("tiny", classes=3, frames=4, resolution=32, dtype="float32")
    run = write_run(tmp_path / "run", config, random_params(config))
    longer = dataclasses.replace(config, frames=8)
    _, report = initial.initialise(run, longer.model().shapes(), longer)
    assert not report.fresh and not report.resized  # it is one for all frames
    larger = dataclasses.replace(config, resolution=48)
    with pytest.raises(
        ValueError, match=r"resolution 32 there, config.model.resolution = 48: this position"
    ):
        initial.initialise(run, larger.model().shapes(), larger)


def test_what_a_later_stage_needs_of_the_one_before(tmp_path):
    params, _, run = sources(tmp_path, FIXED)
    shapes = FIXED.model().shapes()
    _, report = initial.initialise(run, shapes, FIXED)
    report.require(("^encoder/", "^head/"))
    with pytest.raises(ValueError, match=r"'\^text/' fits no parameter of the model"):
        report.require(("^text/",))

    del params["encoder/blocks/norm1/scale"]
    part = write_run(tmp_path / "part", FIXED, params)
    _, report = initial.initialise(part, shapes, FIXED)
    report.require(("^head/",))
    with pytest.raises(ValueError, match="lacks 1 parameters .* first encoder/blocks/norm1/scale"):
        report.require(("^encoder/",))
