"""InternVideo2 weights of other lengths, sizes, forms and tubelets, in files and in runs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from internvideo_jax.checkpoint import initial
from internvideo_jax.families.internvideo2.classifier import InternVideo2ClassifierConfig
from internvideo_jax.families.internvideo2.student import StudentConfig
from internvideo_jax.layers.clip import inflate
from internvideo_jax.layers.tower import SMALLEST
from internvideo_jax.ops.position_tables import resize_joint
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights import files
from tests.internvideo_jax.checkpoint.test_classes import random_params, write_run

COMMON = {
    "encoder": SMALLEST,
    "embedding": 16,
    "pool_heads": 2,
    "patch": 8,
    "resolution": 32,
    "frames": 4,
    "dtype": "float32",
}
CONFIG = InternVideo2ClassifierConfig(**COMMON, classes=3)
TABLE = "encoder/pos_embed/table"


def save(tmp_path, config, params):
    geometry = {"tubelet": config.tubelet, "patch": config.patch}
    path = tmp_path / "weights.safetensors"
    files.save_ours(path, files.Weights(config.name, params, geometry))
    return str(path)


def load(place, config):
    params, report = initial.initialise(place, config.model().shapes(), config)
    return flatten_paths(params), report


@pytest.mark.parametrize(
    "changes", [{"frames": 8}, {"resolution": 48}, {"frames": 2, "resolution": 16}]
)
def test_a_joint_table_is_stretched(tmp_path, changes):
    params = random_params(CONFIG)
    other = dataclasses.replace(CONFIG, **changes)
    expected = resize_joint(params[TABLE], 4, other.grid)
    assert len(expected) == 1 + other.tokens
    np.testing.assert_array_equal(expected[0], params[TABLE][0])  # the class token's
    run = write_run(tmp_path / "run", CONFIG, params)
    for place, taker in (
        (run, other),  # it says how long its clips were
        (save(tmp_path, CONFIG, params), dataclasses.replace(other, pos_frames=4)),
    ):
        found, report = load(place, taker)
        assert report.resized == (TABLE,) and not report.fresh and not report.skipped
        np.testing.assert_array_equal(found[TABLE], expected)


def test_as_many_rows_in_another_arrangement(tmp_path):
    """4 x 4 x 4 and 16 x 2 x 2: a run tells them apart, a file is taken as it is."""
    params = random_params(CONFIG)
    other = dataclasses.replace(CONFIG, frames=16, resolution=16)
    found, report = load(write_run(tmp_path / "run", CONFIG, params), other)
    assert report.resized == (TABLE,)
    np.testing.assert_array_equal(found[TABLE], resize_joint(params[TABLE], 4, (16, 2, 2)))
    found, report = load(save(tmp_path, CONFIG, params), other)
    assert not report.resized
    np.testing.assert_array_equal(found[TABLE], params[TABLE])


def test_the_length_that_a_file_does_not_say_is_asked_for(tmp_path):
    path = save(tmp_path, CONFIG, random_params(CONFIG))
    other = dataclasses.replace(CONFIG, frames=2)
    with pytest.raises(
        ValueError, match=r"64 rows is no square grid over 8 time steps; set config"
    ):
        load(path, other)


def test_separable_tables_are_stretched_one_by_one(tmp_path):
    config = dataclasses.replace(CONFIG, pos_table="separable")
    params = random_params(config)
    other = dataclasses.replace(config, frames=8, resolution=16)
    found, report = load(save(tmp_path, config, params), other)
    assert set(report.resized) == {"encoder/pos_embed/spatial", "encoder/pos_embed/temporal"}
    np.testing.assert_array_equal(found["encoder/pos_embed/cls"], params["encoder/pos_embed/cls"])
    spatial, temporal = (params[f"encoder/pos_embed/{leaf}"] for leaf in ("spatial", "temporal"))
    joint = (temporal[:, None] + spatial).reshape(-1, 32)
    expected = resize_joint(joint, 4, other.grid, leading=0)
    spatial, temporal = (found[f"encoder/pos_embed/{leaf}"] for leaf in ("spatial", "temporal"))
    np.testing.assert_allclose((temporal[:, None] + spatial).reshape(-1, 32), expected, atol=1e-5)


def test_the_two_forms_are_not_mixed_up(tmp_path):
    other = dataclasses.replace(CONFIG, pos_table="separable")
    place = save(tmp_path, CONFIG, random_params(CONFIG))
    with pytest.raises(ValueError, match=r"joint position table .* set config.model.pos_table to"):
        load(place, other)


def test_single_frames_become_the_middle_of_a_tubelet(tmp_path):
    params = random_params(CONFIG)
    other = dataclasses.replace(CONFIG, frames=8, tubelet=2)
    for place in (save(tmp_path, CONFIG, params), write_run(tmp_path / "run", CONFIG, params)):
        found, report = load(place, other)
        assert report.resized == ("encoder/patch_embed/kernel",)
        kernel = "encoder/patch_embed/kernel"
        np.testing.assert_array_equal(found[kernel], inflate(params[kernel], 2))


def test_a_classifier_starts_from_a_student_without_its_decoders(tmp_path):
    student = StudentConfig(
        **COMMON, clip_width=8, clip_layers=(0, 1), final_width=16, mae_width=8, mae_layers=(1,)
    )
    params = random_params(student)
    other = dataclasses.replace(CONFIG, frames=8, pos_frames=4)
    found, report = load(save(tmp_path, student, params), other)
    assert {path.split("/")[0] for path in report.fresh} == {"fc_norm", "head"}
    assert {path.split("/")[0] for path in report.skipped} == {
        "clip_decoder",
        "clip_pos_embed",
        "final_decoder",
        "mae_decoder",
        "mae_pos_embed",
    }
    np.testing.assert_array_equal(found["pool/q/kernel"], params["pool/q/kernel"])
    longer = dataclasses.replace(student, frames=8, pos_frames=4)
    _, report = load(save(tmp_path, student, params), longer)
    assert set(report.resized) == {TABLE, "clip_pos_embed/table", "mae_pos_embed/table"}
