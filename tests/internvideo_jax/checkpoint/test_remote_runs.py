"""Runs on an object store: the same bits as on a disk, whatever stops them at whatever moment."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from data_pipelines.records import remote_lock, storage
from internvideo_jax import train
from internvideo_jax.checkpoint import run_folder
from internvideo_jax.checkpoint.initial import load_params
from internvideo_jax.checkpoint.steps import newest_step, safe_text
from internvideo_jax.config import CheckpointConfig, TrainConfig
from internvideo_jax.run import loop
from internvideo_jax.telemetry.report import main as report
from internvideo_jax.weights.remote import COMMITTED
from tests.data_pipelines.sets import write_set
from tests.faults import stepping

RUN = "memory://bucket/run"
STEPS = 6


def config(shards: Path, *, every: int, steps: int, **changes: object) -> TrainConfig:
    changes.setdefault("checkpoint", CheckpointConfig(every=every, keep=2, asynchronous=False))
    return stepping.config(shards, every=every, steps=steps, **changes)


class Killed(BaseException):
    """The process is gone: nothing that it does from now on reaches the storage."""


class Network:
    """Everything that is written to the storage, counted; `after` operations it kills."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.calls, self.after = 0, 0
        for name in ("upload", "write_atomic", "remove"):
            monkeypatch.setattr(storage, name, self._counted(getattr(storage, name)))

    def _counted(self, work: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: object) -> None:
            if any(storage.is_remote(str(each)) for each in arguments):
                self.calls += 1
                if self.after and self.calls > self.after:
                    raise Killed
            work(*arguments)

        return counted


def stored(url: str) -> list[str]:
    """Names below a URL that hold files: a store in memory remembers folders that held some."""
    return sorted({name.partition("/")[0] for name in storage.below(url)})


@pytest.fixture
def network(monkeypatch, tmp_path):
    fsspec.filesystem("memory").store.clear()
    monkeypatch.setattr(remote_lock, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(remote_lock, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "make_train_step", stepping.stepping())
    monkeypatch.setenv(run_folder.STAGING, str(tmp_path / "staging"))
    monkeypatch.setenv("IVJ_WEIGHTS", str(tmp_path / "weights"))
    return Network(monkeypatch)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("remote") / "set", 12)


@pytest.fixture(scope="module")
def local(shards, tmp_path_factory) -> dict[str, bytes | str]:
    """What an uninterrupted run on a disk leaves."""
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("remote") / "local"
    with patch.context() as patched:
        patched.setattr(loop, "make_train_step", stepping.stepping())
        assert train.train(config(shards, every=2, steps=STEPS), folder) == 0
    return left(str(folder))


def left(run: str) -> dict[str, bytes | str]:
    about = json.loads(storage.read_text(storage.join(run, "run.json")))
    metrics = storage.read_bytes(storage.join(run, "metrics.jsonl"))
    return {"metrics": metrics, "digest": about["params_digest"]}


def test_a_run_leaves_on_an_object_store_what_it_leaves_on_a_disk(network, shards, local, tmp_path):
    assert train.train(config(shards, every=2, steps=STEPS), RUN) == 0
    assert left(RUN) == local
    assert newest_step(RUN) == STEPS and stored(f"{RUN}/checkpoints") == ["4", "6"]
    assert "train.lock" not in storage.listdir(RUN)
    assert safe_text(RUN) == f"the newest complete checkpoint is step 6 in {RUN}/checkpoints"
    marker = json.loads(storage.read_text(f"{RUN}/checkpoints/6/{COMMITTED}"))
    assert {"meta/metadata", "state/manifest.ocdbt"} <= marker["files"].keys()
    assert not Path("memory:").exists()
    # The files of a step are those of a disk.
    weights = load_params(RUN)
    assert weights.keys() == load_params(f"{RUN}/checkpoints/6").keys()
    out = tmp_path / "report.html"
    report([RUN, "--out", str(out)])
    report([RUN, "--out", f"{RUN}/page.html"])
    assert (
        storage.read_bytes(f"{RUN}/page.html") == out.read_bytes() and b"<svg" in out.read_bytes()
    )


SHARES = [0.0, 0.1, 0.3, 0.5, 0.65, 0.95]


@pytest.mark.parametrize("share", [0.8, *(pytest.param(x, marks=pytest.mark.slow) for x in SHARES)])
def test_a_run_that_is_killed_goes_on_with_the_same_bits(network, shards, local, share):
    """Anywhere between its first and its last operation on the storage, on another machine then."""
    settings = config(shards, every=2, steps=STEPS)
    half = dataclasses.replace(settings, steps=2)
    assert train.train(half, RUN) == 0
    before = network.calls
    network.after = before + 1 + int(share * 1.9 * before)  # of twice as many
    with pytest.raises(Killed):
        train.train(settings, RUN)
    network.after = 0
    for step in stored(f"{RUN}/checkpoints"):  # none that is not whole counts as one
        whole = storage.exists(f"{RUN}/checkpoints/{step}/{COMMITTED}")
        assert whole or int(step) > newest_step(RUN) or int(step) == 2
    if share != 0.5:
        shutil.rmtree(run_folder.staging_folder(RUN))
    assert train.train(settings, RUN) == 0
    assert left(RUN) == local
    assert stored(f"{RUN}/checkpoints") == ["4", "6"]


@pytest.mark.slow
def test_an_asynchronous_save_is_whole_when_the_run_ends(network, shards, local):
    settings = config(shards, every=2, steps=STEPS)
    settings = dataclasses.replace(settings, checkpoint=CheckpointConfig(every=2, keep=1))
    assert train.train(settings, RUN) == 0
    assert left(RUN) == local and newest_step(RUN) == STEPS


def test_a_checkpoint_that_was_damaged_there_is_refused(network, shards):
    settings = config(shards, every=1, steps=2)
    assert train.train(settings, RUN) == 0
    name = f"{RUN}/checkpoints/2/meta/metadata"
    content = storage.read_text(name)
    shutil.rmtree(run_folder.staging_folder(RUN))
    storage.write_atomic(name, content[:-9].encode())
    further = dataclasses.replace(settings, steps=3)
    with pytest.raises(ValueError, match=r"checkpoints/2: is damaged: meta/metadata has \d+ by"):
        train.train(further, RUN)
    storage.write_atomic(name, content.replace('"step"', '"stop"').encode())
    with pytest.raises(ValueError, match="its digest is not") as error:
        train.train(further, RUN)
    assert f"remove {RUN}/checkpoints/2, and start the same command again" in str(error.value)
    assert str(error.value).endswith("which then goes on from step 1")


def test_what_is_read_from_a_run_follows_it(network, shards):
    settings = config(shards, every=1, steps=1)
    assert train.train(settings, RUN) == 0
    first = load_params(RUN)
    calls = network.calls
    again = load_params(RUN)
    assert all((again[name] == first[name]).all() for name in first) and network.calls == calls
    assert train.train(dataclasses.replace(settings, steps=2), RUN) == 0
    assert any((load_params(RUN)[name] != first[name]).any() for name in first)
    with pytest.raises(ValueError, match=r"checkpoints/7: no complete .* complete steps: 1, 2"):
        load_params(f"{RUN}/checkpoints/7")
    with pytest.raises(ValueError, match="memory://bucket/nothing: no weights here; expected"):
        load_params("memory://bucket/nothing")
    assert train.train(dataclasses.replace(settings, init_from=RUN), "memory://bucket/next") == 0


def test_two_processes_do_not_train_in_one_place(network, shards, monkeypatch):
    monkeypatch.setattr(remote_lock, "RENEW_SECONDS", 0.02)
    with (
        remote_lock.RemoteLock(RUN, run_folder.LOCK),
        pytest.raises(ValueError, match=r"bucket/run is in use by process \d+ on .* since"),
    ):
        train.train(config(shards, every=2, steps=2), RUN)


def test_storage_that_refuses_a_checkpoint_ends_the_run_with_one_message(
    network, shards, monkeypatch
):
    real = storage.upload

    def refused(source: object, path: str) -> None:
        if "/checkpoints/4/" in path:
            raise PermissionError(f"{path}: uploading: not allowed (Forbidden)")
        real(source, path)

    monkeypatch.setattr(storage, "upload", refused)
    with pytest.raises(RuntimeError, match="could not save the checkpoint") as error:
        train.train(config(shards, every=2, steps=STEPS), RUN)
    assert "not allowed (Forbidden)" in str(error.value)
    assert f"step 2 in {RUN}/checkpoints is complete" in str(error.value)
    assert newest_step(RUN) == 2


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("sftp://host/run", r"--workdir=sftp://host/run: sftp:// is only read"),
        ("gs://", "names no bucket"),
        ("az://c/run", r"--workdir=az://c/run: az:// needs another .*'internvideo-jax\[remote\]'"),
        ("nowhere://a/b", "nowhere:// is only read"),
    ],
)
def test_what_cannot_hold_a_run_is_refused(shards, workdir, message):
    with pytest.raises(ValueError, match=message):
        train.train(config(shards, every=1, steps=1), workdir)


def test_a_staging_folder_that_cannot_be_written_is_said_with_its_host(network, tmp_path, shards):
    (tmp_path / "staging").write_text("no folder")
    with pytest.raises(ValueError, match="cannot be written") as error:
        train.train(config(shards, every=1, steps=1), RUN)
    assert f"staging on {socket.gethostname()} cannot" in str(error.value)
    assert "set IVJ_STAGING to another one there" in str(error.value)
