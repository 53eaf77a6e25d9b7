"""Tables, lists and folders as strangers have them, through the command to the records."""

import json
import shutil
from pathlib import Path

import pytest

from data_pipelines.ingest import __main__ as cli
from data_pipelines.records import manifest, schema
from tests.data_pipelines.ingest.clips import make_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return make_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 4)


@pytest.fixture
def run(tmp_path, monkeypatch, clip, capsys):
    """Writes files (None: the clip), runs the command in their folder; (code, errors, records)."""
    monkeypatch.chdir(tmp_path)

    def run(files: dict[str, str | None], *arguments: str):
        for name, text in files.items():
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                shutil.copy(clip, path)
            else:
                path.write_text(text, encoding="utf-8")
        options = ("--out", "out", "--workers", "0", "--shards", "1", "--max-bad", "0.9")
        code = cli.main([*options, "--source", *arguments])
        err = capsys.readouterr().err
        records = {}
        if code == 0:
            found = manifest.load("out")
            for split, info in found.splits.items():
                if info.records:
                    _, source = manifest.open_split("out", split)
                    records |= {(split, r.media_id): r for r in map(schema.decode, source)}
        return code, err, records

    return run


def labels(records) -> dict[str, tuple]:
    return {name: (r.labels, r.label_names) for (_, name), r in records.items()}


def rejected() -> list[dict]:
    return [json.loads(line) for line in Path("out/rejected.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("form", ["{}", "{}.0"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.txt"])
def test_integer_labels_keep_their_value(run, name, form):
    """Of a table, JSONL and a list; one row has -1."""
    written = [(f"{i}.mp4", form.format(i)) for i in (0, 1, 2, 10, 11)] + [("x.mp4", "-1")]
    head, line = {
        "t.csv": ("path,label\n", "{},{}\n"),
        "t.jsonl": ("", '{{"path": "{}", "label": {}}}\n'),
        "t.txt": ("", "{} {}\n"),
    }[name]
    files: dict[str, str | None] = dict.fromkeys((path for path, _ in written))
    files[name] = head + "".join(line.format(*pair) for pair in written)
    code, _, records = run(files, name)
    assert code == 0 and manifest.load("out").classes == tuple(map(str, range(12)))
    assert labels(records) == {f"{i}.mp4": ((i,), (str(i),)) for i in (0, 1, 2, 10, 11)}
    [row] = rejected()
    assert row["path"] == "x.mp4" and row["stage"] == "label" and "has no label" in row["error"]


@pytest.mark.parametrize("name", ["labels.json", "labels.csv", "labels.txt", "index.json"])
def test_class_files(run, name):
    text = {
        "labels.json": '{\n "abseiling": 0,\n "air drumming": 1\n}',
        "labels.csv": "id,name\n0,abseiling\n1,air drumming\n",
        "labels.txt": "0 abseiling\n1 air drumming\n",
        "index.json": '{"0": "abseiling", "1": "air drumming"}',
    }[name]
    files = {
        name: text,
        "clips.csv": "path,label\na.mp4,0\nb.mp4,1\n",
        "a.mp4": None,
        "b.mp4": None,
    }
    code, _, records = run(files, "clips.csv", "--classes", name)
    assert code == 0 and manifest.load("out").classes == ("abseiling", "air drumming")
    assert labels(records) == {"a.mp4": ((0,), ("abseiling",)), "b.mp4": ((1,), ("air drumming",))}


@pytest.mark.parametrize("name", ["trainlist01.txt", "testlist01.txt"])
def test_official_lists_of_ucf101(run, name):
    files: dict[str, str | None] = {"classInd.txt": "1 Run\n2 Sit\n3 Yo Yo\n"}
    files |= dict.fromkeys(("Run/a.mp4", "Sit/b.mp4", "Yo Yo/c.mp4"))
    ends = ("", "", "") if name.startswith("test") else (" 1", " 2", " 3")
    files[name] = "Run/a.mp4{}\r\nSit/b.mp4{}\r\nYo Yo/c.mp4{}\r\n".format(*ends)
    code, _, records = run(files, name, "--classes", "classInd.txt")
    assert code == 0 and rejected() == []
    assert {split for split, _ in records} == {name[:-10]}
    assert labels(records) == {
        "Run/a.mp4": ((0,), ("Run",)),
        "Sit/b.mp4": ((1,), ("Sit",)),
        "Yo Yo/c.mp4": ((2,), ("Yo Yo",)),
    }


def test_labels_from_one_are_refused_or_said(run):
    files = {"t.csv": "path,label\na.mp4,1\nb.mp4,2\n", "c.txt": "run\nsit\n"}
    files |= {"a.mp4": None, "b.mp4": None}
    code, err, _ = run(files, "t.csv", "--classes", "c.txt")
    assert code == 2 and "the labels begin at 1" in err and err.count("\n") == 1
    code, err, _ = run({}, "t.csv")
    assert code == 0 and "note: no row has the label 0 (they go from 1 to 2)" in err


def test_bad_rows_are_rejected_and_named(run):
    text = (
        '{"path": "a.mp4", "start": 0, "end": 0.3}\n'
        '{"path": "a.mp4", "start": 3, "end": 3}\n'
        '{"path": "a.mp4", "start": 0.1, "end": 0.3, "caption": "a dog \\ud83d", "score": 0.5}\n'
        '{"path": "a.mp4", "start": 5, "end": 2}\n'
        '{"path": "a.mp4", "id": "x", "score": NaN}\n'
        '{"path": "a.mp4", "id": "y", "caption": NaN}\n'
    )
    code, err, records = run({"clips.jsonl": text, "a.mp4": None}, "clips.jsonl")
    assert code == 0 and "left out 1 values that are not finite" in err
    assert len(records) == 3
    second = records["train", "a.mp4#0.100-0.300"]
    assert second.captions == ("a dog \ufffd",) and second.extra == {"score": 0.5}
    assert not records["train", "x"].extra
    assert [(row["error"][:18], row["stage"]) for row in rejected()] == [
        (f"clips.jsonl line {n}", "label") for n in (2, 4, 6)
    ]


def test_a_list_that_a_csv_writer_wrote(run):
    files = {"train.csv": '"a, b.mp4",1\nc.mp4,0\n', "a, b.mp4": None, "c.mp4": None}
    code, _, records = run(files, "train.csv")
    assert code == 0 and labels(records)["a, b.mp4"] == ((1,), ("1",))


def test_hmdb51(run):
    files: dict[str, str | None] = dict.fromkeys(("run/a.avi", "run/b.avi", "sit/a.avi"))
    files["run_test_split1.txt"] = "a.avi 1 \nb.avi 2 \n"
    files["sit_test_split1.txt"] = "a.avi 2 \n"
    code, err, records = run(files, "run_test_split1.txt")
    assert code == 0 and "read as split 1 of HMDB51" in err
    assert {key: r.label_names for key, r in records.items()} == {
        ("train", "run/a.avi"): ("run",),
        ("test", "run/b.avi"): ("run",),
        ("test", "sit/a.avi"): ("sit",),
    }


def test_a_forgotten_header_keeps_its_video_and_labels(run):
    files = {"t.csv": "run/0.mp4,run\nsit/1.mp4,sit\n", "run/0.mp4": None, "sit/1.mp4": None}
    code, err, _ = run(files, "t.csv")
    assert code == 2 and "--format kinetics" in err and "--columns" not in err
    code, _, records = run({}, "t.csv", "--format", "kinetics")
    assert code == 0
    assert labels(records) == {"run/0.mp4": ((0,), ("run",)), "sit/1.mp4": ((1,), ("sit",))}


def test_links_and_folders_beside_the_splits(run, tmp_path):
    files = dict.fromkeys(("v/train/run/0.mp4", "v/val/run/1.mp4", "v/replacement/x/2.mp4"))
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "test").symlink_to("val")
    code, err, records = run(files, "v")
    assert code == 0 and "left out 1 videos beside the split folders, in 'replacement'" in err
    assert "that another split has too" in err
    assert set(records) == {
        ("train", "train/run/0.mp4"),
        ("val", "val/run/1.mp4"),
        ("test", "test/run/1.mp4"),
    }
    assert manifest.load("out").classes == ("run",)
