"""The same shards on Apache Beam's DirectRunner, byte for byte, whatever goes wrong."""

import importlib.util
import os
import signal
import sys

import pytest

from data_pipelines.ingest import beam, work
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.run import IngestError, ingest
from tests.data_pipelines.ingest.clips import make_splits

HAS_BEAM = importlib.util.find_spec("apache_beam") is not None


def needs_beam(test):
    absent = pytest.mark.skipif(not HAS_BEAM, reason="needs apache-beam (extra [beam])")
    return pytest.mark.beam(absent(test))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    make_splits(root, {"train": 5, "test": 2}, ("run", "sit ü"))
    return root


def run(source, out, **changes):
    options = {"workers": 0, "shards": 3, "name": "t", "max_bad": 1.0, **changes}
    return ingest(IngestOptions(source=str(source), out=str(out), **options), quiet=True)


def contents(out) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.name != "ingest.lock"}


@pytest.fixture(scope="module")
def expected(videos, tmp_path_factory):
    """The directory of a local run in one process."""
    out = tmp_path_factory.mktemp("local")
    run(videos, out)
    return contents(out)


def test_beam_that_is_missing_is_explained(videos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"pip install 'internvideo-jax\[beam\]'"):
        run(videos, tmp_path / "out", runner="beam")
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_options_for_beam_need_beam():
    with pytest.raises(ValueError, match="--beam-options: found --x=1"):
        IngestOptions(source="s", out="o", beam_options=("--x=1",))


def prepared(videos, out, monkeypatch) -> list[work.ShardTask]:
    """Tasks as a pipeline finds them, without a pipeline."""
    seen: list[work.ShardTask] = []

    def outcomes(options, tasks):
        seen.extend(tasks)
        yield from ()

    monkeypatch.setattr(beam, "run", outcomes)
    with pytest.raises(KeyError):
        run(videos, out, runner="beam")
    monkeypatch.undo()
    for task in seen:
        (out / (task.name + beam.TASK_SUFFIX)).write_bytes(beam.pickle.dumps(task))
    return seen


def test_element_writes_the_shard_of_a_local_run(videos, expected, tmp_path, monkeypatch):
    out = tmp_path / "out"
    tasks = prepared(videos, out, monkeypatch)
    assert len(tasks) == 6
    for task in tasks:
        beam.write(task.path, 0, 60.0)
        for suffix in ("", ".idx", ".done"):
            assert (out / (task.name + suffix)).read_bytes() == expected[task.name + suffix]
        stamp = beam._stamp(task)
        beam.write(task.path, 0, 60.0)  # a runner may try an element again
        assert beam._stamp(task) == stamp
    assert sorted(p.suffix for p in out.glob("*.tmp")) == [".tmp"] * 6  # the tasks alone


def test_attempts_of_one_element_do_not_meet(videos, expected, tmp_path, monkeypatch):
    out = tmp_path / "out"
    task = prepared(videos, out, monkeypatch)[0]
    original = work.ShardWriter.append
    entered = []

    def append(self, *arguments):
        if not entered:  # in the middle of the first attempt a second one runs to its end
            entered.append(True)
            beam.write(task.path, 0, 60.0)
        return original(self, *arguments)

    monkeypatch.setattr(work.ShardWriter, "append", append)
    beam.write(task.path, 0, 60.0)
    assert entered and (out / task.name).read_bytes() == expected[task.name]
    assert work.finished(task) is not None


def test_shard_that_cannot_be_written_leaves_a_note(videos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    task = prepared(videos, out, monkeypatch)[0]

    def append(self, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(work.ShardWriter, "append", append)
    beam.write(task.path, 0, 60.0)
    outcome = beam._outcome(0, task, None)
    assert outcome.result is None and not outcome.died
    assert "No space left on device" in outcome.failure
    assert not (out / task.name).exists() and not any(p.is_dir() for p in out.iterdir())


def test_shard_nobody_wrote_is_reported(videos, tmp_path, monkeypatch):
    task = prepared(videos, tmp_path / "out", monkeypatch)[0]
    assert "no machine finished it" in beam._outcome(0, task, None).failure


@needs_beam
@pytest.mark.parametrize("workers", [0, 2])
def test_same_bytes_as_a_local_run(videos, expected, tmp_path, workers):
    out = tmp_path / "out"
    changes = {"runner": "beam", "workers": workers}
    threads = ("--direct_num_workers=2", "--direct_running_mode=multi_threading")
    report = run(videos, out, beam_options=threads, **changes)
    assert report.reused == 0 and contents(out) == expected
    assert run(videos, out, **changes).reused == 6 and contents(out) == expected
    local = tmp_path / "local"
    run(videos, local, workers=2)
    assert contents(local) == expected


@needs_beam
def test_runners_can_be_changed_in_the_middle(videos, expected, tmp_path):
    out = tmp_path / "out"
    run(videos, out)
    (out / "manifest.json").unlink()
    (out / "t-train-00001-of-00003.tfrecord").unlink()
    (out / "t-test-00000-of-00003.tfrecord.0123456789abcdef0123456789abcdef.tmp").mkdir()
    assert run(videos, out, runner="beam").reused == 5
    assert contents(out) == expected


@needs_beam
def test_failures_on_machines_become_one_message(videos, expected, tmp_path, monkeypatch):
    out = tmp_path / "out"
    original = work.ShardWriter.append

    def append(self, *arguments):
        if "train-00002" in self.path:
            raise OSError(28, "No space left on device")
        return original(self, *arguments)

    monkeypatch.setattr(work.ShardWriter, "append", append)
    with pytest.raises(IngestError, match=r"No space left.*of 6 shards are finished"):
        run(videos, out, runner="beam")
    assert not list(out.glob("*.tmp")) and not (out / "manifest.json").exists()
    monkeypatch.undo()
    run(videos, out, runner="beam")
    assert contents(out) == expected


@needs_beam
def test_option_beam_does_not_know(videos, tmp_path):
    with pytest.raises(ValueError, match="Beam knows no '--direct_nun_workers=2'"):
        run(videos, tmp_path / "o", runner="beam", beam_options=("--direct_nun_workers=2",))


@needs_beam
def test_failed_pipeline_keeps_the_shards(videos, expected, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def write(path, workers, stall_seconds):
        raise RuntimeError("machine lost")

    monkeypatch.setattr(beam, "write", write)
    with pytest.raises(IngestError, match="the Beam pipeline failed.*run the same command again"):
        run(videos, out, runner="beam")
    monkeypatch.undo()
    run(videos, out)
    assert contents(out) == expected


@needs_beam
def test_crashing_decoder_costs_one_clip(videos, tmp_path, monkeypatch):
    """The worker process dies; neither Beam nor the other clips notice."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if any('ingest.worker' in a for a in sys.orig_argv):\n"
        "    from data_pipelines.ingest import work\n"
        "    original = work.load_clip\n"
        "    def load(path, *rest):\n"
        f"        if path.endswith('clip 3.mp4'): os.kill(os.getpid(), {int(signal.SIGSEGV)})\n"
        "        return original(path, *rest)\n"
        "    work.load_clip = load\n"
    )
    paths = [str(tmp_path), os.path.dirname(beam.__file__ + "/../../.."), os.getcwd()]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    report = run(videos, tmp_path / "out", runner="beam", workers=1, shards=1)
    assert report.rejected == {"decode": 2, "open": 1}
