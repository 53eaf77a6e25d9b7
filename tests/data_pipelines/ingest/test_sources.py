"""Listing a folder of videos."""

import os

import pytest

from data_pipelines.ingest import sources
from data_pipelines.ingest.options import IngestOptions


def tree(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return str(root)


def read(source, **changes):
    return sources.read(IngestOptions(source=source, out="out", **changes))


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


def splits(source, **changes):
    found = {}
    for row in read(source, **changes).rows:
        found.setdefault(row.split, []).append((row.name, row.labels))
    return {split: sorted(rows) for split, rows in found.items()}


@pytest.mark.parametrize("real", ["val", "Validation", "testing"])
@pytest.mark.parametrize("link", ["test", "dev_is_no_split", "training"])
def test_a_split_that_is_a_link_hides_no_other(tmp_path, real, link):
    source = tree(tmp_path, "train/run/0.mp4", f"{real}/run/1.mp4")
    os.symlink(real, tmp_path / link)
    found = splits(source)
    assert found["train"] == [("train/run/0.mp4", ("run",))]
    assert found[real] == [(f"{real}/run/1.mp4", ("run",))]
    listing = read(source)
    if link == "dev_is_no_split":
        assert set(found) == {"train", real}
        assert any(f"{link!r}, which is {real!r}" in note for note in listing.notes)
    else:
        assert found[link] == [(f"{link}/run/1.mp4", ("run",))]
        assert any("that another split has too" in note for note in listing.notes)


def test_a_class_that_is_a_link_is_listed_by_its_own_name(tmp_path):
    source = tree(tmp_path, "z/run/a.mp4", "sit/b.mp4")
    os.symlink("z/run", tmp_path / "a_link")
    os.symlink("../z", tmp_path / "sit" / "up")
    listing = read(source)
    assert [(row.name, row.labels) for row in listing.rows] == [
        ("sit/b.mp4", ("sit",)),
        ("z/run/a.mp4", ("run",)),
    ]
    assert "left out 2 links to folders that are listed anyway" in listing.notes[0]


def test_a_class_of_another_split_may_be_a_link(tmp_path):
    source = tree(tmp_path, "train/run/a.mp4", "val/sit/b.mp4")
    os.symlink("../train/run", tmp_path / "val" / "run")
    found = splits(source)
    assert found["val"] == [("val/run/a.mp4", ("run",)), ("val/sit/b.mp4", ("sit",))]


def test_links_in_circles_and_into_nothing(tmp_path):
    source = tree(tmp_path, "run/a.mp4", "sit/b.mp4")
    os.symlink("..", tmp_path / "run" / "up")
    os.symlink("../sit", tmp_path / "run" / "across")
    os.symlink("../run", tmp_path / "sit" / "back")
    os.symlink("/nowhere", tmp_path / "val")
    os.symlink("gone.mp4", tmp_path / "sit" / "c.mp4")
    listing = read(source)
    assert [row.name for row in listing.rows] == ["run/a.mp4", "sit/b.mp4", "sit/c.mp4"]
    text = " ".join(listing.notes)
    assert "links to a folder around them, for example 'run/up'" in text
    assert "2 links lead nowhere" in text and "no suffix" not in text


def test_a_folder_that_may_not_be_read_is_left_out_and_said(tmp_path, monkeypatch):
    source = tree(tmp_path, "run/a.mp4", "sit/b.mp4")
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("sit"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    listing = read(source)
    assert [row.name for row in listing.rows] == ["run/a.mp4"]
    assert "left out 1 folders that may not be read" in listing.notes[0]


@pytest.mark.parametrize("two", [("train", "val"), ("training", "testing"), ("Train", "Val")])
@pytest.mark.parametrize("other", ["replacement/x/c.mp4", "c.mp4", "annotations/c.mp4"])
def test_split_folders_beside_another(tmp_path, two, other):
    source = tree(tmp_path, f"{two[0]}/run/a.mp4", f"{two[1]}/run/b.mp4", other)
    listing = read(source)
    assert {(row.split, row.labels) for row in listing.rows} == {(s, ("run",)) for s in two}
    assert "left out 1 videos beside the split folders, in" in listing.notes[0]


@pytest.mark.parametrize("one", ["train", "test", "Validation"])
def test_one_split_folder_with_classes_beside_another_is_refused(tmp_path, one):
    source = tree(tmp_path, f"{one}/run/a.mp4", "videos/run/b.mp4")
    with pytest.raises(
        ValueError, match=f"has a split folder '{one}' with classes in it, and 'vid"
    ):
        read(source)


@pytest.mark.parametrize("above", ["videos", "data/k400"])
def test_split_folders_one_level_down(tmp_path, above):
    source = tree(tmp_path, f"{above}/train/run/a.mp4", f"{above}/val/b.mp4")
    assert splits(source) == {
        "train": [(f"{above}/train/run/a.mp4", ("run",))],
        "val": [(f"{above}/val/b.mp4", ())],
    }
    assert f"the split folders were found in '{above}'" in read(source).notes


@pytest.mark.parametrize(
    "names",
    [
        ("k400/train/run/a.mp4", "k400/val/run/b.mp4", "ucf/run/c.mp4"),
        ("run/train/a.mp4", "run/test/b.mp4", "sit/train/c.mp4"),
    ],
)
def test_split_folders_that_would_be_classes_are_refused(tmp_path, names):
    with pytest.raises(
        ValueError, match="lie in .*would be taken for classes; expected SPLIT/CLASS"
    ):
        read(tree(tmp_path, *names))


@pytest.mark.parametrize("other", ["./a.mp4", "x//a.mp4", "x/../a.mp4", "link.mp4", "folder/a.mp4"])
def test_one_file_in_two_splits_under_two_names_is_noted(tmp_path, other):
    tree(tmp_path, "a.mp4", "x/a.mp4")
    os.symlink("a.mp4", tmp_path / "link.mp4")
    os.symlink(".", tmp_path / "folder")
    path = tmp_path / "t.csv"
    first = "x/a.mp4" if other == "x//a.mp4" else "a.mp4"
    path.write_text(f"path,split\n{first},train\n{other},test\nb.mp4,test\n")
    [note] = read(str(path)).notes
    assert "1 rows have a file that another split has too" in note and repr(other) in note
    path.write_text(f"path,split\n{first},train\n{other},train\nb.mp4,test\n")
    assert read(str(path)).notes == []
