"""Places that cannot be written are found before the work."""

from __future__ import annotations

import os

import pytest

from data_pipelines.records.outputs import check_file, check_folder


def test_places_that_can_be_written_pass_and_nothing_is_left_there(tmp_path):
    check_file("--out", tmp_path / "new" / "deep" / "r.json", (".json",))
    check_folder("--out", tmp_path / "new")
    check_folder("--out", tmp_path)
    (tmp_path / "old.JSON").write_text("{}")
    check_file("--out", tmp_path / "old.JSON", (".json",))
    assert os.listdir(tmp_path) == ["old.JSON"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("results", "expected the name of a file that ends in .json or .csv"),
        ("results.txt", "ends in .json or .csv"),
        (".json", "ends in .json or .csv"),
        ("folder.json", "is a folder, expected the name of a file"),
        ("file/r.json", "file is a file, nothing can be written below it"),
        ("file/a/b/r.json", "file is a file, nothing can be written below it"),
        ("pipe.json", "is no regular file"),
    ],
)
def test_a_file_that_cannot_be_written(tmp_path, name, message):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match=message) as found:
        check_file("--out", tmp_path / name, (".json", ".csv"))
    assert str(found.value).startswith(f"--out={tmp_path / name}: ")


@pytest.mark.parametrize("place", ["/proc/x", "/sys/kernel"])
def test_a_file_system_that_takes_nothing(place):
    with pytest.raises(ValueError, match=rf"^--out={place}/r.json: cannot be written \("):
        check_file("--out", f"{place}/r.json")


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        check_folder("--workdir", tmp_path / "file")
    with pytest.raises(ValueError, match="nothing can be written below it"):
        check_folder("--workdir", tmp_path / "file" / "run")
