"""A source that vanishes: the run stops, and the next one tries what it could not read."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import cv2
import pytest

from data_pipelines.ingest import beam, presence, sources, work
from data_pipelines.ingest.__main__ import main
from data_pipelines.ingest.frames import FrameFolder
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.rows import Row
from data_pipelines.ingest.run import IngestError
from data_pipelines.ingest.run import ingest as run_ingest
from data_pipelines.tools.verify import verify
from tests.data_pipelines.ingest.clips import make_video, picture

CLIPS = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("clip") / "a.mp4", 4)


@pytest.fixture
def source(clip, tmp_path) -> Path:
    """A table of CLIPS files in v/, all there."""
    (tmp_path / "v").mkdir()
    for i in range(CLIPS):
        shutil.copy(clip, tmp_path / "v" / f"{i}.mp4")
    return table(tmp_path, [f"v/{i}.mp4" for i in range(CLIPS)])


def table(folder: Path, names: list[str]) -> Path:
    path = folder / "clips.csv"
    path.write_text("path,label\n" + "".join(f"{name},a\n" for name in names))
    return path


def ingest(source: Path, *extra: str, out: str = "out", workers: int = 0) -> int:
    arguments = ("--source", str(source), "--out", str(source.parent / out), "--quiet")
    return main([*arguments, "--name", "s", "--shards", "3", "--workers", str(workers), *extra])


def contents(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.name != "ingest.lock"}


def when(monkeypatch, number: int, change) -> None:
    """Do something to the source before the clip with this number is read."""
    original, seen = work.load_clip, []

    def load(path, *rest):
        seen.append(path)
        if len(seen) == number + 1:
            change()
        return original(path, *rest)

    monkeypatch.setattr(work, "load_clip", load)


def moved(source: Path):
    return lambda: (source.parent / "v").rename(source.parent / "w")


def unmounted(source: Path):
    """What a mount leaves behind: the folder it was mounted on, empty."""

    def change() -> None:
        moved(source)()
        (source.parent / "v").mkdir()

    return change


def bring_back(source: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (source.parent / "v").rmdir()
    (source.parent / "w").rename(source.parent / "v")


@pytest.mark.parametrize("gone", [moved, unmounted])
@pytest.mark.parametrize("number", [0, 2, 6, CLIPS - 1])
def test_source_vanishes_and_comes_back(source, monkeypatch, capsys, gone, number):
    assert ingest(source, out="calm") == 0
    with monkeypatch.context() as patch:
        when(patch, number, gone(source))
        assert ingest(source) == 75
    said = capsys.readouterr().err
    assert said.count("error:") == 1 and "the source vanished" in said
    assert f"{number // 4} of 3 shards are finished" in said and "same command again" in said
    out = source.parent / "out"
    assert len(list(out.glob("*.done"))) == number // 4 and not (out / "manifest.json").exists()
    assert ingest(source) == 75  # still away
    assert "is there, for example" in capsys.readouterr().err
    bring_back(source)
    assert ingest(source) == 0
    assert contents(out) == contents(source.parent / "calm")


def test_source_vanishes_under_worker_processes(source, monkeypatch):
    """The witnesses were there when the run began; no worker ever read a file."""
    original = presence.choose_witnesses

    def then_vanish(rows):
        found = original(rows)
        unmounted(source)()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(presence, "choose_witnesses", then_vanish)
        assert ingest(source, workers=2) == 75
    assert not list((source.parent / "out").glob("*.done"))
    bring_back(source)
    assert ingest(source, workers=2) == 0
    assert verify(str(source.parent / "out"), 0, quiet=True)[0] == []


def test_source_vanishes_on_a_machine_of_beam(source, tmp_path, monkeypatch):
    def outcomes(options, tasks):
        for task in tasks:
            (tmp_path / "out" / (task.name + beam.TASK_SUFFIX)).write_bytes(beam.pickle.dumps(task))
        unmounted(source)()
        for number, task in enumerate(tasks):
            beam.write(task.path, 0, 60.0)
            yield beam._outcome(number, task, None)

    monkeypatch.setattr(beam, "run", outcomes)
    options = {"source": str(source), "out": str(tmp_path / "out"), "name": "s", "shards": 3}
    with pytest.raises(IngestError, match="the source vanished.* 0 of 3 shards are finished"):
        run_ingest(IngestOptions(**options, runner="beam", workers=0), quiet=True)
    monkeypatch.undo()
    bring_back(source)
    assert ingest(source) == 0


@pytest.mark.parametrize("max_bad", ["0.01", "1"])
def test_source_that_was_never_there(source, capsys, max_bad):
    """Nothing is begun: not even the number of shards could be estimated."""
    unmounted(source)()
    assert ingest(source, "--max-bad", max_bad) == 75
    said = capsys.readouterr().err
    assert "none of the 12 files that the source lists is there" in said and "--root" in said
    assert not list((source.parent / "out").glob("*.json"))
    bring_back(source)
    assert ingest(source) == 0


@pytest.mark.parametrize("gone", [moved, unmounted])
def test_folder_that_is_empty_when_the_run_goes_on(source, monkeypatch, capsys, gone):
    folder = source.parent / "v"
    arguments = ["--source", str(folder), "--out", str(source.parent / "out"), "--workers", "0"]
    with monkeypatch.context() as patch:
        when(patch, 5, gone(source))
        assert main([*arguments, "--shards", "3", "--quiet"]) == 75
    assert main([*arguments, "--shards", "3", "--quiet"]) == 75
    assert "found files there: is the storage mounted?" in capsys.readouterr().err
    bring_back(source)
    assert main([*arguments, "--shards", "3", "--quiet"]) == 0
    # Without a run to go on with, it is a wrong --source as ever.
    assert main(["--source", str(source.parent / "none"), "--out", str(source.parent / "x")]) == 2


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_single_missing_files_are_rejected_and_tried_again_when_they_are_there(source, capsys):
    out = source.parent / "out"
    for name in ("3", "7"):
        (source.parent / "v" / f"{name}.mp4").rename(source.parent / f"{name}.away")
    assert ingest(source, "--max-bad", "0.5") == 0
    assert "2 of them are not there; the same command tries them" in capsys.readouterr().out
    assert {(x["id"], x["stage"]) for x in lines(out / "rejected.jsonl")} == {
        ("v/3.mp4", "open"),
        ("v/7.mp4", "open"),
    }
    before = contents(out)
    assert ingest(source, "--max-bad", "0.5") == 0  # nothing is there, nothing is written
    assert contents(out) == before
    assert ingest(source) == 1 and "3 shards were complete" in capsys.readouterr().out
    for name in ("3", "7"):
        (source.parent / f"{name}.away").rename(source.parent / "v" / f"{name}.mp4")
    assert ingest(source) == 0 and not (out / "rejected.jsonl").read_text()
    assert ingest(source, out="calm") == 0
    assert contents(out) == contents(source.parent / "calm")


def test_most_files_missing_is_not_a_source_that_vanishes(source):
    """A list of the web, of which one file is left."""
    for i in range(1, CLIPS):
        (source.parent / "v" / f"{i}.mp4").unlink()
    assert ingest(source, "--max-bad", "1") == 0
    assert len(lines(source.parent / "out" / "rejected.jsonl")) == CLIPS - 1


def test_few_rows_of_which_none_is_there_are_rejected(tmp_path):
    source = table(tmp_path, ["v/0.mp4", "v/1.mp4"])
    assert ingest(source) == 1
    assert len(lines(tmp_path / "out" / "rejected.jsonl")) == 2


def test_finished_shards_need_no_source(source):
    assert ingest(source) == 0
    unmounted(source)()
    assert ingest(source) == 0
    next((source.parent / "out").glob("*.done")).unlink()  # this one has to be written again
    assert ingest(source) == 75


def test_file_that_goes_away_while_it_is_read_is_no_damaged_file(source, monkeypatch):
    """What came before the end looks like a partial video."""
    original = work.load_clip

    def load(path, *rest):
        if path.endswith("/5.mp4"):
            os.truncate(path, os.path.getsize(path) // 2)
            cut = original(str(half), *rest)
            unmounted(source)()
            return cut
        return original(path, *rest)

    half = source.parent / "half.mkv"
    make_video(half, 40)
    os.truncate(half, half.stat().st_size // 2)
    monkeypatch.setattr(work, "load_clip", load)
    assert ingest(source) == 75


def test_frame_folders_that_vanish(tmp_path, monkeypatch):
    for clip in range(8):
        (tmp_path / "v" / f"c{clip}").mkdir(parents=True)
        for number in range(1, 4):
            cv2.imwrite(str(tmp_path / "v" / f"c{clip}" / f"{number}.jpg"), picture(number))
    source = tmp_path / "train.txt"
    source.write_text("".join(f"v/c{clip} 3 0\n" for clip in range(8)))
    extra = ("--frame-fps", "12", "--frame-template", "{}.jpg")
    with monkeypatch.context() as patch:
        when(patch, 4, unmounted(source))
        assert ingest(source, *extra) == 75
    bring_back(source)
    (tmp_path / "v" / "c3").rename(tmp_path / "c3")
    assert ingest(source, *extra, "--max-bad", "0.5") == 0
    assert [x["stage"] for x in lines(tmp_path / "out" / "rejected.jsonl")] == ["open"]
    (tmp_path / "c3").rename(tmp_path / "v" / "c3")
    assert ingest(source, *extra) == 0


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("there.mp4", False),
        ("gone.mp4", True),
        ("there.mp4/below", True),
        ("a\0b", False),
        ("", True),
        (FrameFolder("frames", "{}.jpg", 0, 3, 10.0).address(), False),
        (FrameFolder("empty", "{}.jpg", 0, 3, 10.0).address(), True),
        (FrameFolder("gone", "{}.jpg", 0, 3, 10.0).address(), True),
    ],
)
def test_what_counts_as_missing(tmp_path, monkeypatch, path, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.mp4").touch()
    (tmp_path / "frames").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "frames" / "5.jpg").touch()
    assert presence.missing(path) is expected


def test_storage_that_does_not_answer_counts_as_missing(monkeypatch):
    def stale(path):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "stat", stale)
    assert presence.missing("a.mp4")


def test_witnesses_are_spread_over_the_rows(tmp_path):
    for i in range(200):
        if i % 2:
            (tmp_path / f"{i}").touch()
    rows = [Row(str(tmp_path / f"{i}"), str(i), str(i), "train") for i in range(200)]
    found = [int(Path(path).name) for path in presence.choose_witnesses(rows)]
    assert 5 <= len(found) <= 64 and all(i % 2 for i in found) and max(found) - min(found) > 150
    assert presence.choose_witnesses(rows[::2]) == ()


def test_folder_that_cannot_be_listed_to_its_end_shortens_no_list(source, monkeypatch):
    """A plan of the rows that were listed before the storage went away would be final."""

    def walk(root, followlinks, onerror):
        yield root, ["below"], ["0.mp4"]
        onerror(OSError(5, "Input/output error", f"{root}/below"))

    monkeypatch.setattr(sources.os, "walk", walk)
    out = source.parent / "out"
    folder = str(source.parent / "v")
    assert main(["--source", folder, "--out", str(out), "--workers", "0"]) == 75
    assert not out.exists()
