"""S3 and Google Cloud Storage on loopback, each behind a proxy that can break requests."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_pipelines.records import storage
from tests.conftest import ROOT, TINY
from tests.services.proxy import Proxy, proxied

BUCKET = "bucket"
VIDEOS, STEPS = 24, 6


@dataclass
class Store:
    """Attributes:
    url: of its bucket.
    proxy: that all requests go through.
    """

    url: str
    proxy: Proxy


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="session")
def stores() -> Iterator[dict[str, Store]]:
    """By scheme; the environment says where they are, as it does to users' programs."""
    moto = pytest.importorskip("moto.server", reason="needs moto[server]: make test-services")
    gcs = pytest.importorskip("gcp_storage_emulator.server", reason="needs gcp-storage-emulator")
    for name in ("werkzeug", "gcp_storage_emulator"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    s3_server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    s3_server.start()
    gcs_port = free_port()
    gcs_server = gcs.create_server("127.0.0.1", gcs_port, in_memory=True, default_bucket=BUCKET)
    gcs_server.start()
    _, s3_port = s3_server.get_host_and_port()
    with proxied(s3_port) as s3, proxied(gcs_port) as gs:
        settings = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # of the library's own, so that ours are tested
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{gs.port}",
        }
        patch = pytest.MonkeyPatch()
        for name, value in settings.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem().mkdir(BUCKET)
        yield {"s3": Store(f"s3://{BUCKET}", s3), "gs": Store(f"gs://{BUCKET}", gs)}
        patch.undo()
    gcs_server.stop()
    s3_server.stop()
    storage._filesystems.clear()


@pytest.fixture(params=["s3", "gs"])
def store(request, stores) -> Iterator[Store]:
    found = stores[request.param]
    found.proxy.faults.clear()
    found.proxy.seen.clear()
    found.proxy.broken = 0
    yield found
    assert not found.proxy.faults, "a fault that no request met"


@pytest.fixture(scope="session", autouse=True)
def staging(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("staging")
    patch = pytest.MonkeyPatch()
    patch.setenv("IVJ_STAGING", str(folder))
    patch.setenv("IVJ_WEIGHTS", str(folder / "weights"))
    yield folder
    patch.undo()
    shutil.rmtree(folder, ignore_errors=True)


def lose(folder: Path) -> None:
    """As if the next command ran on another machine."""
    for path in folder.iterdir():
        shutil.rmtree(path)
    assert not os.listdir(folder)


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    from data_pipelines.synthetic import World, write_world

    folder = tmp_path_factory.mktemp("world")
    write_world(World(size=32, frames=8), folder, {"train": VIDEOS, "test": 8})
    return folder / "annotations.jsonl"


def ingest(videos: Path, out: str) -> list[str]:
    return [f"--source={videos}", f"--out={out}", "--name=w", "--workers=2", "--shards=3"]


def train(data: str, workdir: str, *more: str) -> list[str]:
    return [
        f"--config={ROOT}/configs/videomae/finetune.py:size=tiny",
        *TINY,
        f"--workdir={workdir}",
        f"--config.data.train={data}",
        f"--config.data.eval={data}",
        "--config.data.clip.stride=1",
        f"--config.steps={STEPS}",
        "--config.checkpoint.every=2",
        "--config.checkpoint.keep=2",
        "--config.log.every=1",
        *more,
    ]


@pytest.fixture(scope="session")
def local(videos, command, tmp_path_factory) -> Path:
    """The same on a disk, undisturbed."""
    folder = tmp_path_factory.mktemp("local")
    done = command("data_pipelines.ingest", *ingest(videos, str(folder / "set")))
    assert done.returncode == 0, done.stderr
    done = command("internvideo_jax.train", *train(str(folder / "set"), str(folder / "run")))
    assert done.returncode == 0, done.stderr
    return folder
