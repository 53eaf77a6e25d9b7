"""Listing a folder of videos."""

import os

import pytest

from data_pipelines.ingest import sources
from data_pipelines.ingest.options import Options


def tree(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return str(root)


def read(source, **changes):
    return sources.read(Options(source=source, out="out", **changes))


def test_class_is_the_parent_folder(tmp_path):
    rows = read(tree(tmp_path, "run/a.mp4", "run/b.MKV", "sit/deep/c.avi")).rows
    assert [(row.name, row.labels, row.split) for row in rows] == [
        ("run/a.mp4", ("run",), "train"),
        ("run/b.MKV", ("run",), "train"),
        ("sit/deep/c.avi", ("deep",), "train"),
    ]
    assert [row.id for row in rows] == [row.name for row in rows]
    assert rows[0].path == str(tmp_path / "run" / "a.mp4")


def test_split_folders_are_understood_when_all_top_folders_are_splits(tmp_path):
    rows = read(tree(tmp_path, "train/run/a.mp4", "Test/run/b.mp4", "train/c.mp4")).rows
    assert {(row.name, row.split, row.labels) for row in rows} == {
        ("train/run/a.mp4", "train", ("run",)),
        ("Test/run/b.mp4", "Test", ("run",)),
        ("train/c.mp4", "train", ()),
    }


def test_a_class_called_train_is_a_class(tmp_path):
    rows = read(tree(tmp_path, "train/a.mp4", "car/b.mp4"), split="val").rows
    assert {(row.split, row.labels) for row in rows} == {("val", ("train",)), ("val", ("car",))}


def test_flat_folder_has_no_labels(tmp_path):
    rows = read(tree(tmp_path, "a.mp4", "b.mp4")).rows
    assert [row.labels for row in rows] == [(), ()]


def test_other_files_are_counted_and_hidden_ones_and_folders_left_out(tmp_path):
    source = tree(tmp_path, "a.mp4", "notes.txt", "b.txt", "._a.mp4", ".git/c.mp4", "d.mp4/.keep")
    listing = read(source)
    assert [row.name for row in listing.rows] == ["a.mp4"]
    assert listing.notes == ["ignored 2 files that are not videos (2 .txt)"]


def test_odd_names_survive(tmp_path):
    names = ['a, "b".mp4', "中 ü.mp4", "line\nbreak.mp4"]
    rows = read(tree(tmp_path, *names)).rows
    assert sorted(row.name for row in rows) == sorted(names)
    assert all(os.path.exists(row.path) for row in rows)


def test_names_that_are_not_utf8_become_printable(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"clip \xff.mp4")).touch()
    except OSError:
        pytest.skip("this file system wants UTF-8")
    [row] = read(str(tmp_path)).rows
    assert row.name == "clip \\xff.mp4" and os.path.exists(row.path)
    row.id.encode()


def test_links_to_folders_are_followed_once(tmp_path):
    tree(tmp_path / "real", "run/a.mp4")
    (tmp_path / "source").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "source" / "linked")
    os.symlink(tmp_path / "source", tmp_path / "source" / "loop")
    assert [row.name for row in read(str(tmp_path / "source")).rows] == ["linked/run/a.mp4"]


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    source = tree(tmp_path, "b/2.mp4", "a/1.mp4", "a/3.mp4")
    expected = [row.name for row in read(source).rows]
    walk = os.walk

    def reversed_walk(*args, **kwargs):
        for folder, folders, files in walk(*args, **kwargs):
            folders.reverse()
            yield folder, folders, files[::-1]

    monkeypatch.setattr(os, "walk", reversed_walk)
    assert [row.name for row in read(source).rows] == expected


def test_empty_and_missing_sources(tmp_path):
    with pytest.raises(ValueError, match=r"lists no videos.*Expected files ending in"):
        read(str(tmp_path))
    tree(tmp_path, "readme.md")
    with pytest.raises(ValueError, match=r"ignored 1 files .*1 \.md"):
        read(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read(str(tmp_path / "none"))


def test_split_names_must_fit_file_names(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("path,split\na.mp4,val/1\n")
    with pytest.raises(ValueError, match="split: found 'val/1', expected letters"):
        read(str(path))


def test_columns_are_for_tables(tmp_path):
    with pytest.raises(ValueError, match="--columns is for tables"):
        read(tree(tmp_path, "a.mp4"), columns={"path": "video"})
