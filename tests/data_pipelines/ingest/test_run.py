"""A whole ingest in this process: what ends up in the directory."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import pytest

from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.pool import Outcome, run_tasks
from data_pipelines.ingest.run import IngestError, ingest, summary
from data_pipelines.records import manifest, schema
from data_pipelines.records.reader import build_index, write_index
from tests.data_pipelines.ingest.clips import make_audio, make_splits, make_video


def run(source, out, **changes):
    options = {"workers": 0, "shards": 2, **changes}
    return ingest(IngestOptions(source=str(source), out=str(out), **options), quiet=True)


def records(out, split="train") -> dict[str, schema.Record]:
    _, source = manifest.open_split(out, split)
    decoded = [schema.decode(data) for data in source]
    return {record.media_id: record for record in decoded}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    """All files but the lock, which holds a process number."""
    return {p.name: p.read_bytes() for p in Path(out).iterdir() if p.name != "ingest.lock"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """SPLIT/CLASS/file, with some bad ones."""
    root = tmp_path_factory.mktemp("videos")
    make_splits(root, {"train": 4, "test": 2}, ("run", "sit, ü"))
    make_audio(root / "test" / "run" / "audio.mp4")
    make_video(root / "test" / "run" / "one.mp4", 1)
    (root / "notes.txt").touch()
    return root


@pytest.fixture(scope="module")
def finished(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, run(videos, out, name="toy")


def test_records_hold_what_the_folders_say(videos, finished):
    train = records(finished[0])
    assert len(train) == 9
    record = train["train/run/clip 2.mp4"]
    assert record.labels == (0,) and record.label_names == ("run",)
    assert record.filename == "train/run/clip 2.mp4"
    assert len(record.frames) == 8 and record.timestamps_us[3] == 300_000
    assert (record.height, record.width, record.fps) == (48, 64, 10.0)
    assert (record.start_us, record.end_us) == (0, 800_000)
    assert train["train/sit, ü/clip 0.mp4"].labels == (1,)


def test_manifest_sums_up(finished):
    out, report = finished
    found = manifest.load(out)
    assert found.name == "toy" and found.classes == ("run", "sit, ü")
    assert {name: split.records for name, split in found.splits.items()} == {"test": 4, "train": 9}
    assert found.split("test").frames == 26 and found.split("test").label_counts == (2, 2)
    assert (found.rejected, found.partial) == (3, 1)
    assert report.manifest == found and report.rows == 16
    assert json.loads((out / "classes.json").read_text()) == ["run", "sit, ü"]
    assert not list(out.glob("*.tmp"))


def test_rejected_and_partial_files_are_listed(finished):
    out, report = finished
    rejected = lines(out / "rejected.jsonl")
    assert {(line["path"], line["stage"]) for line in rejected} == {
        ("test/run/audio.mp4", "empty"),
        ("test/run/one.mp4", "short"),
        ("train/run/page.mp4", "open"),
    }
    page = next(line for line in rejected if "page" in line["path"])
    assert set(page) == {"path", "id", "split", "stage", "error", "bytes"}
    assert page["bytes"] == 6 and page["split"] == "train" and "not a readable" in page["error"]
    [partial] = lines(out / "warnings.jsonl")
    assert partial["path"] == "train/run/half.mkv" and partial["kind"] == "partial"
    assert report.bad_share == pytest.approx(3 / 16)


def test_summary_names_counts_and_files(finished):
    text = "\n".join(summary(finished[1]))
    assert "train" in text and "rejected 3 (18.8%)" in text and "rejected.jsonl" in text
    assert "warnings: partial 1" in text and "frames/s" in text
    assert "\n  train/run/page.mp4: open: not a readable" in text


def test_the_same_source_gives_the_same_bytes(videos, finished, tmp_path):
    copy = tmp_path / "moved" / "videos"
    shutil.copytree(videos, copy)
    run(copy, tmp_path / "out", name="toy", workers=2)
    assert contents(tmp_path / "out") == contents(finished[0])


def test_running_again_changes_nothing(videos, finished):
    out, _ = finished
    before = contents(out)
    report = run(videos, out, name="toy")
    assert report.reused == 4 and report.frames_written == 0
    assert contents(out) == before


def damaged_shard(out: Path) -> None:
    shard = next(out.glob("*train-00000*.tfrecord"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


def other_index(out: Path) -> None:
    shard = next(out.glob("*train-00000*.tfrecord"))
    scanned = build_index(shard)  # valid, but without the frame counts
    write_index(shard, scanned.entries, scanned.shard_bytes)


@pytest.mark.parametrize(
    "damage",
    [
        damaged_shard,
        other_index,
        lambda out: next(out.glob("*train-00000*.tfrecord")).unlink(),
        lambda out: next(out.glob("*train-00000*.idx")).unlink(),
        lambda out: next(out.glob("*train-00000*.done")).unlink(),
        lambda out: next(out.glob("*train-00000*.done")).write_text("[]"),
        lambda out: (out / "manifest.json").unlink(),
        lambda out: (out / "toy-train-00000-of-00002.tfrecord.tmp").write_text("left behind"),
        lambda out: (out / "classes.json").unlink(),
    ],
)
def test_what_is_missing_or_damaged_is_made_again(videos, finished, tmp_path, damage):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    damage(out)
    report = run(videos, out, name="toy")
    assert contents(out) == contents(finished[0])
    assert report.reused >= 3


def test_done_file_of_another_plan_is_not_believed(videos, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    done = next(out.glob("*train-00000*.done"))
    done.write_text(json.dumps({**json.loads(done.read_text()), "plan": "0" * 64}))
    assert run(videos, out, name="toy").reused == 3
    assert contents(out) == contents(finished[0])


def table(tmp_path, rows: list[dict]) -> Path:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_table_columns_reach_the_record(tmp_path):
    make_video(tmp_path / "a.mp4", 30)
    source = table(
        tmp_path,
        [
            {
                "path": "a.mp4",
                "labels": ["run", "jump"],
                "captions": ["eins", "две"],
                "start": 1,
                "end": 2,
                "split": "val",
                "id": "seg 1",
                "score": 0.5,
                "region": [1, 2],
            }
        ],
    )
    run(source, tmp_path / "out")
    [(key, record)] = records(tmp_path / "out", "val").items()
    assert key == "seg 1" and record.label_names == ("run", "jump") and record.labels == (1, 0)
    assert record.captions == ("eins", "две") and record.extra == {"score": 0.5, "region": "[1, 2]"}
    assert (record.start_us, record.end_us) == (1_000_000, 2_000_000)
    assert record.timestamps_us[0] == 1_000_000 and len(record.frames) == 10


def test_unknown_and_missing_labels_are_rejected_without_opening(tmp_path):
    make_video(tmp_path / "a.mp4", 5)
    (tmp_path / "classes.txt").write_text("run\nsit\n")
    source = table(
        tmp_path,
        [
            {"path": "a.mp4", "label": "run"},
            {"path": "b.mp4", "label": "rum"},
            {"path": "c.mp4"},
        ],
    )
    report = run(source, tmp_path / "out", classes_file=str(tmp_path / "classes.txt"))
    assert report.manifest.classes == ("run", "sit")
    rejected = {line["path"]: line for line in lines(tmp_path / "out" / "rejected.jsonl")}
    assert {line["stage"] for line in rejected.values()} == {"label"}
    assert "did you mean 'run'?" in rejected["b.mp4"]["error"]
    assert "t.jsonl line 3: has no label" in rejected["c.mp4"]["error"]
    assert rejected["c.mp4"]["bytes"] is None


def test_source_of_bad_files_only_gives_an_empty_dataset(tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").touch()
    report = run(tmp_path / "v", tmp_path / "out")
    assert report.bad_share == 1.0 and report.manifest.split("train").records == 0
    with pytest.raises(ValueError, match="has no records"):
        manifest.open_split(tmp_path / "out", "train")


def test_clip_that_killed_two_workers_is_left_out(videos, tmp_path, monkeypatch):
    """As memory exhaustion would: the worker is gone, in every run, at the same clip."""

    def dying(job, tasks, workers, **options):
        for number, task in enumerate(tasks):
            names = [row.name for row in task.rows]
            position = names.index(victim) if victim in names else None
            if position is not None and position not in task.crashed:
                yield Outcome(number, failure="the worker was killed", died=True, item=position)
            else:
                [outcome] = run_tasks(job, [task], 0)
                yield dataclasses.replace(outcome, number=number)

    victim = "train/run/clip 1.mp4"
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("data_pipelines.ingest.run.run_tasks", dying)
        for _ in range(2):
            with pytest.raises(IngestError, match=f"was killed, at {victim}"):
                run(videos, out, shards=1)
        report = run(videos, out, shards=1)
    assert report.rejected["decode"] == 1
    [line] = [x for x in lines(out / "rejected.jsonl") if x["stage"] == "decode"]
    assert line["path"] == victim and "2 workers were killed" in line["error"]


def test_only_own_temporary_files_are_removed(videos, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    for name in ("mine.tmp", "other-train-00000-of-00002.tfrecord.tmp", "plan.json.tmp"):
        (out / name).touch()
    run(videos, out, name="toy")
    assert {p.name for p in out.glob("*.tmp")} == {
        "mine.tmp",
        "other-train-00000-of-00002.tfrecord.tmp",
    }


def test_wrong_input_leaves_no_directory(tmp_path):
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_directory_that_cannot_be_written(videos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(IngestError, match=r"cannot write .*file"):
        run(videos, tmp_path / "file" / "out")


def test_flip_and_options_are_in_the_manifest(tmp_path):
    make_video(tmp_path / "v.mp4", 5)
    source = table(tmp_path, [{"path": "v.mp4"}])
    report = run(source, tmp_path / "out", flip_changes_label=True, quality=70, fps=5.0)
    assert report.manifest.flip_changes_label
    assert report.manifest.options == {
        "short_side": 256,
        "pixels": "stored",
        "storage": "jpeg",
        "quality": 70,
        "fps": 5.0,
        "max_seconds": None,
        "min_frames": 2,
        "partial": "accept",
        "audio": "off",
        "media": "video",
    }


def test_a_folder_of_images_is_told_how_it_is_read(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match=r"1 \.jpg.*Of images --media image makes shards$"):
        run(tmp_path, tmp_path / "out")


def test_a_place_that_is_not_to_be_written_is_a_wrong_option(tmp_path, monkeypatch):
    make_video(tmp_path / "a.mp4", 4)

    def refuse(path):
        raise OSError(errno.EROFS, "Read-only file system", path)

    monkeypatch.setattr("data_pipelines.records.storage.make_directory", refuse)
    with pytest.raises(ValueError, match="cannot write .*Read-only.*; give another --out"):
        run(tmp_path, tmp_path / "out")
