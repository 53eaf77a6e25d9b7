"""What a set lacks of a published list is counted, and evaluations say so."""

from __future__ import annotations

import json
import shutil

import pytest

from data_pipelines.__main__ import main
from data_pipelines.audit.missing import missing, read
from data_pipelines.config import ViewConfig
from data_pipelines.records import published
from data_pipelines.records.dataset import open_dataset
from internvideo_jax.evaluators.base import describe_data


@pytest.fixture
def held(shards, tmp_path):
    """A set of its own, with the ids of its test split."""
    folder = tmp_path / "set"
    shutil.copytree(shards, folder)
    dataset = open_dataset(str(folder), "test")
    return folder, [dataset.load(number).media_id for number in range(len(dataset))]


def test_a_list_is_compared_by_class_and_split(held, tmp_path, capsys):
    folder, ids = held
    path = tmp_path / "list.csv"
    rows = [f"{name},{'run' if i % 2 else 'sit'},test" for i, name in enumerate(ids[:18])]
    rows += ["gone_a,run,test", "gone_b,run,test", "elsewhere,run,train"]
    path.write_text("id,label,split\n" + "\n".join(rows) + "\n")
    out = tmp_path / "missing.json"
    words = ["missing", str(folder), f"--list={path}", f"--out={out}"]
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert "18 of 20 clips" in shown and "run: 2 of 11 missing" in shown
    assert "2 records are not in the list" in shown
    content = json.loads(out.read_text())
    assert content["missing_ids"] == ["gone_a", "gone_b"] and content["share_missing"] == 0.1
    assert main([*words, "--most=0.1"]) == 0
    dataset = open_dataset(str(folder), "test")
    assert "published" not in describe_data(dataset, ViewConfig())
    assert main([*words, "--most=0.1", "--remember"]) == 0
    assert describe_data(dataset, ViewConfig())["published"] == f"18 of 20 of {path}"
    # Of records that were ingested anew nothing is known.
    place = folder / published.FILE_NAME
    place.write_text(place.read_text().replace(dataset.manifest.fingerprint("test"), "older"))
    assert "published" not in describe_data(dataset, ViewConfig())


@pytest.mark.parametrize(
    ("name", "text", "names", "label"),
    [("a.csv", "label,youtube_id,time_start,time_end,split\nrun,abc,10,20,test\n",
      ("abc_000010_000020",), "run"),
     ("a.jsonl", '{"video_id": "v/x.mp4", "label": "sit"}\n', ("v/x.mp4", "x"), "sit"),
     ("a.json", '[{"YoutubeID": "x", "category": 3}]', ("x",), "3"),
     ("a.txt", "run/x.avi 4\n", ("run/x.avi", "x"), "run"),
     ("a.csv", "val/x.mp4,4\n", ("val/x.mp4", "x"), "val"),
     ("a.tsv", "id\tlabel\nx.y\t\n", ("x.y",), "")],
)  # fmt: skip
def test_lists_as_they_are_published(tmp_path, name, text, names, label):
    path = tmp_path / name
    path.write_text(text)
    (clip,) = read(str(path))
    assert (clip.names, clip.label) == (names, label)


@pytest.mark.parametrize(
    ("text", "words", "reason"),
    [("clip_name,label\nx,1\n", {}, "has none of the columns id, clip_id"),
     ("id,label\nx,1\n", {"column": "ids"}, "has no column 'ids'; found id, label"),
     ("id,label\n,1\n", {}, "row 1 has no id"),
     ("id,split\nx,val\n", {"of_split": "dev"}, "no clip of split 'dev'; splits in it: val"),
     ("", {}, "is empty")],
)  # fmt: skip
def test_a_list_that_cannot_be_used_is_refused(held, tmp_path, text, words, reason):
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        missing(str(held[0]), "test", str(path), **words)
    with pytest.raises(ValueError, match="no such list"):
        missing(str(held[0]), "test", str(tmp_path / "none.csv"))
