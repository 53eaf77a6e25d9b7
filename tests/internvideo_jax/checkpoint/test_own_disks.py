"""Processes that share nothing but an object store make one checkpoint, and read parts of it."""

from __future__ import annotations

import shutil
import socket
from types import SimpleNamespace

import fsspec
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from data_pipelines.records import storage
from internvideo_jax.checkpoint import chunks, own_disks, remote_steps
from internvideo_jax.checkpoint.apart import KEY, Apart, targets
from internvideo_jax.checkpoint.chunks import Range, needed
from internvideo_jax.checkpoint.remote_steps import RemoteSteps
from internvideo_jax.weights import remote
from internvideo_jax.weights.remote import COMMITTED

URL = "memory://pod/run/checkpoints"
TREE = {
    "params": {
        "one": np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32),
        "two": {"kernel": np.random.default_rng(1).normal(size=(400,)).astype(np.float32)},
    },
    "step": np.int32(3),
}
MOVED = "params.two.kernel"  # the array that only the second process has


def placed(tree):
    return jax.tree.map(jax.numpy.asarray, tree)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of two processes after Orbax has saved step 3 in each of them."""
    folders = [tmp_path_factory.mktemp(f"process{number}") for number in range(2)]
    manager = own_disks.manager(folders[0], 2, asynchronous=False, own=True)
    manager.save(
        3,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(placed(TREE)),  # pyright: ignore[reportCallIssue]
            meta=ocp.args.JsonSave({"step": 3}),  # pyright: ignore[reportCallIssue]
        ),
    )
    manager.close()
    assert not (folders[0] / "3/state/manifest.ocdbt").exists()
    shutil.copytree(folders[0] / "3", folders[1] / "3")
    state = [folder / "3/state" for folder in folders]
    whole = content(state[0] / "ocdbt.process_0")
    (state[1] / "array_metadatas/process_0").rename(state[1] / "array_metadatas/process_1")
    for number, folder in enumerate(state):
        shutil.rmtree(folder / "ocdbt.process_0")
        store = opened(folder / f"ocdbt.process_{number}")
        for key, value in whole.items():
            if key.startswith(MOVED.encode()) == bool(number):
                store[key] = value
    return folders


def opened(folder):
    return ts.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/"}).result()


def content(folder):
    store = opened(folder)
    return {key: store[key] for key in store.list().result()}


@pytest.fixture
def pod(parts, tmp_path, monkeypatch):
    fsspec.filesystem("memory").store.clear()
    monkeypatch.setattr(remote_steps, "LOOK_SECONDS", 0.01)

    def local(number):
        folder = tmp_path / str(number)
        shutil.copytree(parts[number], folder)
        return RemoteSteps(URL, folder, 2, lambda: None, number, 2)

    return [local(number) for number in range(2)]


def stored(pod):
    for each in reversed(pod):
        each.start(3, lambda: None)
    for each in pod:
        each.wait()


def assert_equal(found):
    jax.tree.map(np.testing.assert_array_equal, found, TREE)


def wanted():
    tree = placed(TREE)
    return targets(tree, jax.tree.map(lambda leaf: leaf.sharding, tree))


def test_parts_of_processes_become_a_step_as_one_folder_holds_it(pod, tmp_path):
    stored(pod)
    assert pod[0].steps() == [3]
    files = storage.below(f"{URL}/3")
    for number in range(2):
        assert f"state/ocdbt.process_{number}/manifest.ocdbt" in files
        assert f"state/array_metadatas/process_{number}" in files
    assert {"state/manifest.ocdbt", "state/_METADATA", "meta/metadata", COMMITTED} <= files.keys()
    assert not any(name.startswith(remote_steps.PARTS) for name in files)
    remote.copy_committed(f"{URL}/3", tmp_path / "whole")
    assert_equal(own_disks.read(tmp_path / "whole/state", wanted()))
    assert files.keys() == {COMMITTED, *remote.committed_files(f"{URL}/3")}
    for key, value in content(tmp_path / "whole/state").items():
        assert value == content(tmp_path / f"whole/state/ocdbt.process_{MOVED in str(key):d}")[key]


def test_every_process_brings_what_it_needs_into_an_empty_folder(pod, tmp_path):
    stored(pod)
    fresh = RemoteSteps(URL, tmp_path / "fresh", 2, lambda: None, 1, 3)
    fresh.bring(fresh.prepare(), 7)
    state = tmp_path / "fresh/3/state"
    used = sum(path.stat().st_blocks for path in state.glob("ocdbt.process_*/d/*"))
    assert used == 0  # indices are not there
    fresh.bring_arrays("3/state", wanted())
    assert_equal(own_disks.read(state, wanted()))


def test_a_part_that_is_missing_is_waited_for_and_never_taken_for_a_step(pod):
    """Also where a process of an earlier start left its note."""
    storage.write_atomic(f"{URL}/3/parts/5-1.json", b"{}")
    pod[0].start(3, lambda: None)
    pod[0].stop()
    with pytest.raises(RuntimeError, match="before all others had stored"):
        pod[0].wait()
    assert pod[0].steps() == [] and storage.exists(f"{URL}/3/_CHECKPOINT_METADATA")
    assert pod[0].prepare() == 0 and not storage.below(URL)


def test_a_part_that_cannot_be_stored_leaves_no_step(pod, monkeypatch):
    real = storage.upload

    def refused(source, path):
        if "process_1/d" in path:
            raise storage.StorageError(f"{path}: uploading: gave up")
        real(source, path)

    monkeypatch.setattr(storage, "upload", refused)
    pod[0].start(3, lambda: None)
    pod[1].start(3, lambda: None)
    with pytest.raises(storage.StorageError, match="gave up"):
        pod[1].wait()
    pod[0].stop()
    with pytest.raises(RuntimeError):
        pod[0].wait()
    assert pod[0].steps() == []


def test_a_step_is_set_aside_where_it_is(pod):
    stored(pod)
    before = storage.below(f"{URL}/3")
    assert pod[0].set_aside(3, "3.unsound") == f"{URL}/3.unsound"
    assert pod[0].steps() == [] and storage.below(f"{URL}/3.unsound") == before
    assert pod[0].prepare() == 0 and storage.below(f"{URL}/3.unsound") == before


def test_nodes_below_the_root_are_read_too(tmp_path):
    config = {"max_decoded_node_bytes": 200, "max_inline_value_bytes": 10}
    base = f"file://{tmp_path}/"
    store = ts.KvStore.open({"driver": "ocdbt", "base": base, "config": config}).result()
    values = {f"params.layer{i:03d}/0.0": b"v" * (5 if i % 2 else 40) for i in range(60)}
    for key, value in values.items():
        store[key] = value
    asked = []
    found = chunks.read_index(tmp_path, asked.extend)
    assert found.keys() == values.keys() and len(asked) > 10
    for key, where in found.items():
        if isinstance(where, Range):
            where = (tmp_path / where.name).read_bytes()[where.start : where.end]
        assert where == values[key]


def test_only_chunks_that_overlap_with_shards_here_are_needed():
    grid = b'{"shape": [8, 6], "chunks": [4, 2], "dimension_separator": "."}'
    places = {(i, j): Range("d/x", 10 * (3 * i + j), 10 * (3 * i + j) + 10)
              for i in range(2) for j in range(3)}  # fmt: skip
    index = {f"a.b/{i}.{j}": where for (i, j), where in places.items()}
    index |= {"a.b/.zarray": grid, "c/.zarray": b'{"shape": [], "chunks": []}', "c/0": b"12"}

    def here(*slices, shape=(8, 6)):
        devices = dict(enumerate(slices))
        sharding = SimpleNamespace(addressable_devices_indices_map=lambda shape: devices)
        return SimpleNamespace(shape=shape, sharding=sharding)

    every = slice(None)
    scalar = {"c": here((), shape=())}
    one = {"a": {"b": here((slice(4, 6), slice(1, 3)))}}
    assert needed(index, one | scalar) == {places[1, 0], places[1, 1]}
    assert needed(index, {"a": {"b": here((slice(0, 4), every), (slice(0, 4), every))}}) == {
        where for (i, _), where in places.items() if i == 0
    }
    assert needed(index, scalar) == set()
    for unknown in ({"other": here((every, every))}, {"a": {"b": here((every,), shape=(8,))}}):
        assert needed(index, unknown) == set(places.values())


def test_a_disk_without_room_is_said_with_its_host(pod, tmp_path, monkeypatch):
    stored(pod)
    fresh = RemoteSteps(URL, tmp_path / "fresh", 2, lambda: None, 1, 3)
    fresh.bring(3, 7)
    monkeypatch.setattr(chunks.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(RuntimeError, match="0 MiB free, .* IVJ_STAGING") as error:
        fresh.bring_arrays("3/state", wanted())
    assert f"on {socket.gethostname()}: " in str(error.value)


def test_an_index_that_was_damaged_in_the_store_is_one_message(pod, tmp_path):
    stored(pod)
    name = f"{URL}/3/state/manifest.ocdbt"
    content = storage.read_bytes(name)
    storage.write_atomic(name, content[:20] + bytes(len(content) - 20))
    fresh = RemoteSteps(URL, tmp_path / "fresh", 2, lambda: None, 1, 3)
    with pytest.raises(ValueError, match="3/state: is damaged: the index of its .*; remove that"):
        fresh.bring(3, 7)


def test_frozen_parameters_are_merged_too_where_one_process_has_none_of_them(pod, tmp_path):
    stored_as = Apart(tmp_path / "0", pod[0]).store(placed(TREE))[KEY]
    name = stored_as["folder"]
    assert not (tmp_path / "0" / name / "manifest.ocdbt").exists()
    (tmp_path / "1" / name).mkdir()
    stored(pod)
    assert storage.exists(f"{URL}/{name}/{COMMITTED}")
    fresh = RemoteSteps(URL, tmp_path / "fresh", 2, lambda: None, 0, 2)
    fresh.bring(fresh.prepare(), 7)
    apart, like = Apart(tmp_path / "fresh", fresh), placed(TREE)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    apart.bring(stored_as, like, shardings)
    assert_equal(apart.restore(stored_as, like, shardings))
    before = storage.read_bytes(f"{URL}/{name}/{COMMITTED}")
    assert apart.store(like) == {KEY: stored_as}
    assert storage.read_bytes(f"{URL}/{name}/{COMMITTED}") == before  # these very arrays
