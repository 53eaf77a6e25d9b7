"""The class list and the rows that do not fit it."""

import json

import pytest

from data_pipelines.ingest.labels import read_classes, resolve
from data_pipelines.ingest.rows import Row


def rows(*labels: tuple[str, ...] | str, split: str = "train") -> list[Row]:
    return [
        Row(f"{i}.mp4", f"{i}.mp4", f"{i}", split, (x,) if isinstance(x, str) else x, where=f"l{i}")
        for i, x in enumerate(labels)
    ]


@pytest.fixture
def classes_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "classes"
        path.write_text(text)
        return str(path)

    return write


def test_classes_are_the_sorted_labels():
    found, classes = resolve(rows("sit", ("run", "sit"), "Jump"), None)
    assert classes == ("Jump", "run", "sit")
    assert [row.labels for row in found] == [("sit",), ("run", "sit"), ("Jump",)]
    assert not any(row.problem for row in found)


def test_integers_keep_their_value():
    found, classes = resolve(rows("10", "2"), None)
    assert classes == tuple(str(i) for i in range(11))
    assert [classes.index(row.labels[0]) for row in found] == [10, 2]


def test_integers_index_a_class_file(classes_file):
    found, classes = resolve(rows("1", "0", "3"), classes_file("run\nsit\njump\n"))
    assert classes == ("run", "sit", "jump")
    assert [row.labels for row in found[:2]] == [("sit",), ("run",)]
    assert "label '3' is not one of the 3 classes" in found[2].problem


def test_integers_that_are_names_of_the_file_are_names(classes_file):
    found, _ = resolve(rows("1", "2"), classes_file('["2", "1"]'))
    assert [row.labels for row in found] == [("1",), ("2",)]


def test_ids_are_no_class_indices():
    with pytest.raises(ValueError, match="integers up to 20200131, too large"):
        resolve(rows("20200131"), None)


def test_fixed_order_is_kept_and_strangers_are_marked(classes_file):
    found, classes = resolve(rows("walk", "wlak", ("run", "fly")), classes_file("walk\nrun\n"))
    assert classes == ("walk", "run")
    assert not found[0].problem
    assert "l1: label 'wlak' is not one of the 2 classes; did you mean 'walk'?" in found[1].problem
    assert "'fly'" in found[2].problem


def test_class_file_of_another_data_set_is_refused(classes_file):
    with pytest.raises(ValueError, match=r"knows none of the labels.*'walk'.*'run', 'sit'"):
        resolve(rows("run", "sit"), classes_file("walk\n"))


def test_unlabelled_rows_of_a_labelled_split_are_marked():
    found, _ = resolve([*rows("run", (), "sit"), *rows((), split="test")], None)
    assert [bool(row.problem) for row in found] == [False, True, False, False]
    assert "l1: has no label, while 2 rows of split train do" in found[1].problem


def test_unlabelled_source():
    found, classes = resolve(rows((), ()), None)
    assert classes == () and not any(row.problem for row in found)


def test_a_label_given_twice_counts_once():
    assert resolve(rows(("a", "b", "a")), None)[0][0].labels == ("a", "b")


@pytest.mark.parametrize("text", ["run\n sit \n\n", json.dumps(["run", "sit"]), "\ufeffrun\nsit"])
def test_class_files(classes_file, text):
    assert read_classes(classes_file(text)) == ("run", "sit")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "lists no classes"),
        ("a\nb\na\n", "lists class 'a' twice"),
        ("[1, 2]", "expected a JSON list of names"),
        ('["a"', "not a readable class list"),
    ],
)
def test_broken_class_files(classes_file, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_classes(classes_file(text))


def test_missing_class_file():
    with pytest.raises(FileNotFoundError, match=r"--classes none.txt"):
        read_classes("none.txt")
