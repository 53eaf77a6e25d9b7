"""The frozen backbone of a probe: once beside its checkpoints, and whole wherever they are read."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

from internvideo_jax.checkpoint.apart import KEY, Apart
from internvideo_jax.checkpoint.initial import load_params
from internvideo_jax.checkpoint.manager import Checkpoints, together
from internvideo_jax.checkpoint.reading import DamagedStep, step_of
from internvideo_jax.config import CheckpointConfig
from internvideo_jax.parallel import multihost
from internvideo_jax.run.build import build
from internvideo_jax.run.step import init_state, make_train_step
from internvideo_jax.types import flatten_paths
from tests.internvideo_jax.families.test_probe import CLASSES, batch_of, config_of, probe


@pytest.fixture(scope="module")
def prepared():
    """A run, its step, and its states after each of two steps; the average is kept, too."""
    config = config_of(probe(head="linear"), ema_decay=0.9)
    run = build(config, records=100, classes=CLASSES, devices=jax.devices()[:1])
    step, state, states = make_train_step(run), init_state(run), {}
    for number in (1, 2):
        state, _ = step(state, batch_of(number, run.config.model))
        states[number] = jax.device_get(state)
    return run, step, states


@pytest.fixture(scope="module")
def stored(prepared, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("apart"), prepared)


def saved(folder, prepared, layout=lambda state: state):
    """A run directory with both steps."""
    run, _, states = prepared
    checkpoints = Checkpoints(folder, CheckpointConfig(asynchronous=False))
    for number, state in states.items():
        placed = jax.tree.map(jax.device_put, state, run.plan.shardings)
        checkpoints.save(number, layout(placed), {})
    checkpoints.close()
    return folder


def assert_equal(found, wanted):
    found, wanted = flatten_paths(found), flatten_paths(wanted)
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def averaged(prepared, number):
    run, _, states = prepared
    return run.parametrisation.of(states[number], averaged=True)


def restored(folder, prepared, number):
    run = prepared[0]
    checkpoints = Checkpoints(folder, CheckpointConfig())
    assert checkpoints.latest() == 2
    state = checkpoints.restore(number, run.plan.shapes, run.plan.shardings)
    checkpoints.close()
    return state


def holds_backbone(folder):
    return any("backbone" in path for path in step_of(folder).meta["tree"])


def test_the_backbone_is_stored_once_and_comes_back_with_every_step(stored, prepared):
    _, step, states = prepared
    apart = [path.name for path in (stored / "checkpoints").iterdir() if not path.name.isdigit()]
    assert len(apart) == 1 and apart[0].startswith("frozen-")
    assert not holds_backbone(stored)
    for number, state in states.items():
        assert_equal(restored(stored, prepared, number), state)
    # The state can be trained on: no buffer is in it twice.
    _, metrics = step(restored(stored, prepared, 2), batch_of(3, prepared[0].config.model))
    assert np.isfinite(metrics["train/loss"])
    assert_equal(load_params(str(stored)), averaged(prepared, 2))
    assert_equal(load_params(str(stored / "checkpoints/1")), averaged(prepared, 1))


def test_a_checkpoint_of_an_earlier_version_resumes_and_reads(tmp_path, prepared):
    """It holds the backbone itself; the next step that is saved does not."""
    run, _, states = prepared
    folder = saved(tmp_path, prepared, together)
    assert holds_backbone(folder) and not list((folder / "checkpoints").glob("frozen-*"))
    assert_equal(load_params(str(folder)), averaged(prepared, 2))
    checkpoints = Checkpoints(folder, CheckpointConfig(asynchronous=False))
    state = checkpoints.restore(2, run.plan.shapes, run.plan.shardings)
    assert_equal(state, states[2])
    checkpoints.save(3, state, {})
    checkpoints.close()
    assert not holds_backbone(folder)
    assert_equal(load_params(str(folder)), averaged(prepared, 2))


def test_a_backbone_that_is_away_or_changed_is_named_and_a_new_start_mends_it(
    tmp_path, stored, prepared
):
    folder = tmp_path / "run"
    shutil.copytree(stored, folder)
    (place,) = (folder / "checkpoints").glob("frozen-*")
    aside = place.rename(tmp_path / "aside")
    readers = (lambda: load_params(str(folder)), lambda: restored(folder, prepared, 2))
    for read in readers:
        with pytest.raises(DamagedStep, match=r"(?s)missing: .*frozen-.*no other step is complete"):
            read()
    shutil.copytree(aside, place)
    largest = max((place / "d").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))
    for read in readers:
        with pytest.raises(DamagedStep, match="no other step is complete"):
            read()
    for number in (1, 2):
        shutil.rmtree(folder / f"checkpoints/{number}")
    saved(folder, prepared)
    assert_equal(load_params(str(folder)), averaged(prepared, 2))


def test_one_process_that_finds_damage_makes_all_write_anew(tmp_path, monkeypatch):
    frozen = {"backbone": {"kernel": jax.numpy.arange(6.0)}}
    stored = Apart(tmp_path).store(frozen)
    manifest = tmp_path / stored[KEY]["folder"] / "manifest.ocdbt"
    first = manifest.read_bytes()
    assert Apart(tmp_path).store(frozen) == stored and manifest.read_bytes() == first
    monkeypatch.setattr(multihost, "any_process", lambda found_none: True)
    assert Apart(tmp_path).store(frozen) == stored and manifest.read_bytes() != first
