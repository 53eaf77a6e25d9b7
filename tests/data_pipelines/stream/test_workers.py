"""Worker processes that die, and those whose parent does: an end with a message, nothing left."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.commands.exit_codes import ExitCode, exit_code_of
from data_pipelines.config import ClipConfig, DataConfig, ReaderConfig, ViewConfig
from data_pipelines.stream.pipeline import TrainStream, ViewPass
from tests.data_pipelines.sets import write_set

CLIP = ClipConfig(frames=2, stride=2, resolution=24)
# What is promised, and what a machine that is busy with other work may make of it.
ORPHAN_SECONDS, LOADED_SECONDS = 5.0, 60.0


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "a", 24, classes=("run", "sit"))


def children(pid: int) -> list[str]:
    """The reading processes among the children; multiprocessing has one that only tidies up."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [child for child, line in alive(found.stdout.split()).items() if "spawn_main" in line]


def alive(pids: list[str]) -> dict[str, str]:
    """Command lines of the processes that are neither gone nor only waiting to be collected."""
    commands = {}
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z":
                commands[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # ended between the two looks
    return commands


def readers(small: Path, kind: str):
    reader = ReaderConfig(threads=1, buffer=1, workers=2)
    if kind == "training":
        return TrainStream(DataConfig(train=str(small), global_batch=4, clip=CLIP, reader=reader))
    clip = ClipConfig(frames=2, stride=2, resolution=24, sampling="dense")
    return ViewPass(str(small), "train", ViewConfig(clip=clip, batch=1, reader=reader))


@pytest.mark.parametrize(
    ("kind", "name", "advice"),
    [
        ("training", "SIGKILL", "if the machine was out of memory"),  # as the kernel does
        ("evaluation", "SIGBUS", "/dev/shm is probably full"),
    ],
)
def test_a_worker_that_dies_ends_the_stream_with_its_cause(small, kind, name, advice):
    stream = readers(small, kind)
    next(stream)
    os.kill(int(children(os.getpid())[0]), signal.Signals[name])
    began = time.monotonic()
    cause = rf"worker process .* ended by {name} \(config.data.reader.workers = 2\); {advice}"
    with pytest.raises(RuntimeError, match=cause) as caught:
        list(itertools.islice(stream, 23))
    assert exit_code_of(caught.value) == ExitCode.AGAIN
    with pytest.raises(RuntimeError, match=cause):  # not the batches of the other worker
        next(stream)
    stream.close()
    assert time.monotonic() - began < LOADED_SECONDS
    assert not children(os.getpid())


def test_after_an_error_the_stream_does_not_go_on_elsewhere(small, monkeypatch):
    """Grain goes on with the next batch, which would be a gap nobody sees."""
    from data_pipelines.stream.assemble import TrainBatches

    call = TrainBatches.__call__

    def failing(self, step):
        if step == 1:
            raise ValueError("step 1 cannot be made")
        return call(self, step)

    monkeypatch.setattr(TrainBatches, "__call__", failing)
    reader = ReaderConfig(threads=1, buffer=1)
    stream = TrainStream(DataConfig(train=str(small), global_batch=4, clip=CLIP, reader=reader))
    next(stream)
    for _ in range(3):
        with pytest.raises(ValueError, match="step 1 cannot be made"):
            next(stream)
    stream.close()


@pytest.mark.parametrize("moment", ["starting", "reading"])
def test_workers_end_with_their_parent(small, moment):
    """A parent that is killed hard leaves no process behind, whatever its workers are doing."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "endless.py"), str(small)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        text=True,
    )
    assert process.stdout is not None
    if moment == "reading":
        assert process.stdout.readline().strip() == "ready"
    deadline = time.monotonic() + LOADED_SECONDS
    while len(workers := children(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) == 2
    limit = ORPHAN_SECONDS if os.getloadavg()[0] < (os.cpu_count() or 1) else LOADED_SECONDS
    began = time.monotonic()
    while (left := alive(workers)) and time.monotonic() - began < limit:
        time.sleep(0.05)
    assert not left
