"""An ingest that is killed, stopped, short of disk, or run twice; and the run after it."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipelines.tools.verify import verify
from tests.data_pipelines.ingest.clips import make_video

ROOT = Path(__file__).parents[3]
CLIPS, FRAMES = 24, 40

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Enough work for a second or two: one clip under many names."""
    root = tmp_path_factory.mktemp("videos")
    clip = make_video(root / "0.mp4", FRAMES, height=240, width=426, codec="mpeg4")
    for i in range(1, CLIPS):
        shutil.copy(clip, root / f"{i}.mp4")
    return root


def command(videos: Path, out: Path, *extra: str) -> list[str]:
    return [
        *(sys.executable, "-m", "data_pipelines.ingest", "--name", "k", "--shards", "6"),
        *("--source", str(videos), "--out", str(out), "--workers", "2", *extra),
    ]


def start(videos: Path, out: Path, *extra: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        command(videos, out, *extra),
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(videos: Path, out: Path, *extra: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command(videos, out, *extra), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done


def contents(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(out).iterdir() if p.name != "ingest.lock"}


@pytest.fixture(scope="module")
def undisturbed(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    finish(videos, out, "--workers", "1")
    return contents(out)


def wait_until_in_the_middle(process: subprocess.Popen, out: Path) -> None:
    """A shard is finished and another one has data on disk but is not finished."""
    end = time.monotonic() + 60
    while True:
        assert process.poll() is None and time.monotonic() < end, "missed the middle"
        if list(out.glob("*.done")) and any(map(size_of, out.glob("*.tfrecord.tmp"))):
            return
        time.sleep(0.005)


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # renamed in the meantime
        return 0


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_worker_count_does_not_show_in_the_result(videos, undisturbed, tmp_path):
    finish(videos, tmp_path / "out", "--workers", "3")
    assert contents(tmp_path / "out") == undisturbed


def test_killing_the_whole_process_tree_in_mid_shard(videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):  # twice, so that a resumed run is killed as well
        process = start(videos, out)
        wait_until_in_the_middle(process, out)
        worker_in_mid_shard(process, out, shard_size(undisturbed))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert list(out.glob("*.tmp")) and not (out / "manifest.json").exists()
    done = finish(videos, out)
    assert contents(out) == undisturbed
    assert "continuing an earlier run" in done.stderr
    assert re.search(r"[1-5] shards were complete from an earlier run", done.stdout)


def test_killing_only_the_parent_leaves_no_orphans(videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = start(videos, out)
    wait_until_in_the_middle(process, out)
    workers = children(process.pid)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)  # slow to notice that nobody listens any more
    process.kill()
    process.wait()
    before = set(out.iterdir())
    try:
        second = start(videos, out)
        time.sleep(1.2)  # enough to write shards, if it did not wait for those who still might
        assert second.poll() is None and set(out.iterdir()) == before
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert workers and all(gone(worker) for worker in workers)
    assert contents(out) == undisturbed


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_stopping_is_tidy_and_tells_how_to_go_on(videos, undisturbed, tmp_path, name):
    out = tmp_path / "out"
    process = start(videos, out)
    wait_until_in_the_middle(process, out)
    workers = children(process.pid)
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # what ctrl-c does: everybody gets it
    else:
        process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.Signals[name]
    assert "run the same command again to continue" in err and "Traceback" not in err
    assert not list(out.glob("*.tmp"))
    wait_for(lambda: all(gone(worker) for worker in workers))
    finish(videos, out)
    assert contents(out) == undisturbed


def worker_in_mid_shard(process: subprocess.Popen, out: Path, shard_bytes: int) -> int:
    """A worker that has written between nothing and half of its shard."""
    end = time.monotonic() + 60
    while True:
        assert process.poll() is None and time.monotonic() < end, "missed the middle"
        for worker in children(process.pid):
            try:
                links = [os.readlink(link) for link in Path(f"/proc/{worker}/fd").iterdir()]
                sizes = [os.path.getsize(link) for link in links if link.endswith(".tmp")]
            except FileNotFoundError:
                continue
            if any(0 < size < 0.5 * shard_bytes for size in sizes):
                return worker
        time.sleep(0.005)


def shard_size(contents: dict[str, bytes]) -> int:
    return min(len(data) for name, data in contents.items() if name.endswith(".tfrecord"))


def test_killed_worker_is_reported_with_its_shard(videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = start(videos, out)
    os.kill(worker_in_mid_shard(process, out, shard_size(undisturbed)), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert re.search(r"k-train-0000\d-of-00006\.tfrecord: the worker process was killed", err)
    assert re.search(r", at \d+\.mp4", err)
    assert "kernel ran out of memory" in err and "5 of 6 shards are finished" in err
    assert not (out / "manifest.json").exists() and not list(out.glob("*.tmp"))
    finish(videos, out)
    (out / "killed.json").unlink()
    assert contents(out) == undisturbed


def test_crashing_decoder_costs_one_clip(videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = start(videos, out, "--max-bad", "0.5")
    os.kill(worker_in_mid_shard(process, out, shard_size(undisturbed)), signal.SIGSEGV)
    process.communicate(timeout=60)
    assert process.returncode == 0
    [line] = (out / "rejected.jsonl").read_text().splitlines()
    assert '"stage": "decode"' in line and "the decoder crashed (SIGSEGV)" in line
    assert verify(str(out), 0, quiet=True)[0] == []


def test_full_disk_is_one_message_and_the_next_run_finishes(videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    half = shard_size(undisturbed) // 2

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))

    process = start(videos, out, preexec_fn=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert err.count("error:") == 1 and "Traceback" not in err and "more shards" not in err
    assert re.search(r"cannot write .*tfrecord: File too large.*run the same command again", err)
    assert not list(out.glob("*.tmp"))
    finish(videos, out)
    assert contents(out) == undisturbed


def test_two_ingests_into_one_directory(videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    first = start(videos, out)
    wait_until_in_the_middle(first, out)
    os.kill(first.pid, signal.SIGSTOP)  # else it could be done before the second one looks
    second = subprocess.run(
        command(videos, out), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    os.kill(first.pid, signal.SIGCONT)
    assert second.returncode == 3
    assert f"another ingest is writing there (process {first.pid}" in second.stderr
    first.communicate(timeout=60)
    assert first.returncode == 0 and contents(out) == undisturbed


@pytest.mark.slow
def test_killed_ingest_of_frame_folders_and_a_list(tmp_path):
    """SIGKILL to everybody in the middle of shards of images that must be encoded."""
    frame = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    data = cv2.imencode(".png", frame)[1].tobytes()
    for clip in range(12):
        (tmp_path / f"c {clip} ü").mkdir()
        for number in range(1, 21):
            (tmp_path / f"c {clip} ü" / f"{number}.png").write_bytes(data)
    listed = tmp_path / "train.csv"
    listed.write_text("".join(f"c {clip} ü 20 {clip % 3}\n" for clip in range(12)))
    extra = ("--frame-fps", "12", "--frame-template", "{:d}.png")
    finish(listed, tmp_path / "calm", *extra)
    out = tmp_path / "out"
    process = start(listed, out, *extra)
    wait_until_in_the_middle(process, out)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert not (out / "manifest.json").exists()
    finish(listed, out, *extra)
    faults, *_ = verify(str(out), 0, quiet=True)
    assert not faults
    assert contents(out) == contents(tmp_path / "calm")
