"""The class list and the rows that do not fit it."""

import json
from dataclasses import replace

import pytest

from data_pipelines.ingest.labels import read_classes, resolve
from data_pipelines.ingest.rows import Row, RowBox, RowSegment


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


def test_class_file_of_another_dataset_is_refused(classes_file):
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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("0", "2", "10", "-1"), (0, 2, 10, None)),
        (("0.0", "2.0", "10.0", "-1.0"), (0, 2, 10, None)),
        (("0", "1e1", "2", "nan"), (0, 10, 2, None)),
        (("0", "2", "3", "NaN"), (0, 2, 3, None)),
    ],
)
def test_numbers_keep_their_value_however_they_are_written(given, expected):
    found, classes = resolve(rows(*given), None)
    assert classes == tuple(str(i) for i in range(max(e or 0 for e in expected) + 1))
    for row, value in zip(found, expected, strict=True):
        if value is None:
            assert row.labels == () and "has no label, while 3 rows" in row.problem
        else:
            assert classes.index(row.labels[0]) == value and not row.problem


def test_minus_one_is_no_label_anywhere():
    """Of several labels, of segments and boxes, and beside names."""
    row = Row("a", "a", "a", "train", ("3", "-1"), where="l0")
    row = replace(
        row,
        segments=(RowSegment(0, 1, "-1"), RowSegment(0, 1, "2.0")),
        boxes=(RowBox(0, 0, 0, 1, 1, ("-1", "1")),),
    )
    [found], classes = resolve([row], None)
    assert classes == ("0", "1", "2", "3") and found.labels == ("3",)
    assert [s.label for s in found.segments] == ["", "2"] and found.boxes[0].labels == ("1",)
    found, classes = resolve(rows("run", "-1", "sit"), None)
    assert classes == ("run", "sit") and "has no label" in found[1].problem
    found, classes = resolve(rows("-1", "-1", split="test"), None)
    assert classes == () and not any(row.problem for row in found)


@pytest.mark.parametrize("bad", ["2.5", "1e-3", "9" * 5000 + ".5"])
def test_a_number_that_is_no_class_costs_its_row(bad):
    if len(bad) < 64:
        found, classes = resolve(rows("0", bad, "3"), None)
        assert classes == ("0", "1", "2", "3") and not found[0].problem
        assert "is not a whole number" in found[1].problem
    else:
        with pytest.raises(ValueError, match="too large for class indices"):
            resolve(rows("0", bad), None)


def test_only_fractions_are_no_classes():
    with pytest.raises(ValueError, match="of which none is whole"):
        resolve(rows("0.5", "2.5"), None)


def test_labels_and_class_list_from_one(classes_file):
    """UCF101's own files."""
    notes = []
    path = classes_file("1 run\n2 sit\n3 jump\n")
    found, classes = resolve(rows("1", "3", "2"), path, notes=notes)
    assert classes == ("run", "sit", "jump") and not notes
    assert [row.labels for row in found] == [("run",), ("jump",), ("sit",)]
    found, _ = resolve(rows("run", "3", "jump"), path)  # names and a stranger
    assert "'3' is not one of the 3 classes" in found[1].problem
    found, _ = resolve(rows("0", "2", "1"), path, notes=notes)
    assert [row.labels for row in found] == [("run",), ("jump",), ("sit",)]
    assert "label 0 is taken for 'run'" in notes[0]
    with pytest.raises(ValueError, match="go from 0 to 3; expected 1 to 3"):
        resolve(rows("0", "3"), path)
    found, _ = resolve(rows("1", "4"), path)
    assert found[0].labels == ("run",) and "'4' is not one of" in found[1].problem


@pytest.mark.parametrize(
    "text", ["run\nsit\njump\n", "0 run\n1 sit\n2 jump\n", "id,name\n0,run\n1,sit\n2,jump"]
)
def test_labels_from_one_and_a_list_from_zero_are_refused(classes_file, text):
    with pytest.raises(ValueError, match="no row has 0.*labels begin at 1.*'1 run'"):
        resolve(rows("1", "2", "3"), classes_file(text))


def test_labels_from_one_without_a_class_list_are_said():
    notes = []
    found, classes = resolve(rows("1", "2"), None, notes=notes)
    assert classes == ("0", "1", "2") and found[0].labels == ("1",)
    assert "no row has the label 0 (they go from 1 to 2)" in notes[0]


def test_templates_of_something_something(classes_file):
    path = classes_file('{"Approaching something with your camera": "0", "Bending something": "1"}')
    found, classes = resolve(
        rows("Bending [something]", "Approaching something with your camera"), path
    )
    assert [classes.index(row.labels[0]) for row in found] == [1, 0]


def test_names_that_are_digits_may_be_written_as_floats(classes_file):
    found, _ = resolve(rows("1.0", "2"), classes_file('["2", "1"]'))
    assert [row.labels for row in found] == [("1",), ("2",)]
