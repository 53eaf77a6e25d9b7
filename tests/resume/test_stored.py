"""A set and a run that an earlier version wrote are read and go on (tests/stored).

The run has four steps; its checkpoint of step 2 and its metrics of all four are stored. It was made
with the settings of `ARGUMENTS`.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.config import ClipConfig, DataConfig, ReaderConfig
from data_pipelines.stream.pipeline import TrainStream
from internvideo_jax.checkpoint.digests import examine
from internvideo_jax.checkpoint.reading import step_of
from tests.conftest import ROOT

VERSIONS = sorted((ROOT / "tests/stored").glob("version_*.tar.gz"))
# Losses of other processors differ in the last digits, see objectives/curves.py.
TOLERANCE = 5e-5
ARGUMENTS = (
    "--config=configs/videomae/pretrain.py:size=tiny",
    *(
        f"--config.model.{part}.{field}={value}"
        for part, depth in (("encoder", 2), ("decoder", 1))
        for field, value in (("width", 16), ("hidden", 32), ("depth", depth), ("heads", 2))
    ),
    "--config.model.resolution=32",
    "--config.model.frames=4",
    "--config.data.clip.frames=4",
    "--config.data.clip.stride=2",
    "--config.data.clip.resolution=32",
    "--config.data.global_batch=4",
    "--config.data.reader.threads=1",
    "--config.steps=4",
    "--config.optim.warmup_steps=1",
    "--config.optim.ema_decay=0.9",
    "--config.log.every=1",
    "--config.log.report=False",
    "--config.checkpoint.every=2",
    "--config.evals.reconstruction.every=-1",
    "--config.data.train=shards",
)


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda path: path.name.partition(".")[0])
def stored(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    return folder


def losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows]


def test_every_byte_of_the_stream_is_as_it_was(stored):
    config = DataConfig(
        train=str(stored / "shards"),
        global_batch=4,
        clip=ClipConfig(frames=4, stride=2, resolution=32),
        crop="center",
        flip="off",
        reader=ReaderConfig(threads=1),
    )
    stream = TrainStream(config)
    expected = json.loads((stored / "stream.json").read_text())
    assert stream.fingerprint == expected["fingerprint"]
    for digest in expected["batches"]:
        batch, found = next(stream), hashlib.sha256()
        assert sorted(batch) == expected["names"]
        for name in sorted(batch):
            found.update(name.encode())
            found.update(batch[name].tobytes())
        assert found.hexdigest() == digest
    stream.close()


def test_every_bit_of_the_checkpoint_is_as_it_was(stored):
    step = step_of(stored / "run")
    flat = step.parameters()  # compared with the digests that were stored
    found = examine({f"ema/{path}": value for path, value in flat.items()}).digests
    digests = {path: each for path, each in step.meta["digests"].items() if path[:4] == "ema/"}
    assert digests and found == digests


def test_the_run_goes_on(stored, command):
    before = losses(stored / "run")
    assert len(before) == 4
    done = command("internvideo_jax", "train", *ARGUMENTS, "--workdir=run", cwd=stored)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "continuing at step 2" in done.stdout
    np.testing.assert_allclose(losses(stored / "run"), before, rtol=0, atol=TOLERANCE)
