"""Cells of tables that are lists, numbers, times and parts of names, or nothing of that."""

import math

import pytest

from data_pipelines.ingest import cells
from tests.data_pipelines.ingest.test_tables import read


def test_the_hint_for_another_column_names_the_one_with_files(table):
    with pytest.raises(ValueError, match=r"--columns path=clip,|--columns path=clip;"):
        read(table("class,clip\nrun,a.mp4\n"))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("['a man runs', 'someone runs']", ("a man runs", "someone runs")),
        ("[\"a man's dog\", 'x, y']", ("a man's dog", "x, y")),
        ("['a man runs'\n 'someone runs']", ("a man runs", "someone runs")),  # numpy
        ("('a', 'b')", ("a", "b")),
        ("['it\\'s', None, nan, 'tab\\there']", ("it's", "tab\there")),
        ("['one']", ("one",)),
        ("[music] plays", ("[music] plays",)),
        ("[music]", ("[music]",)),
        ("(a man runs)", ("(a man runs)",)),
        ("[]", ()),
    ],
)
def test_captions_as_python_prints_them(table, cell, expected):
    quoted = cell.replace('"', '""')
    [row] = read(table(f'path,captions\na.mp4,"{quoted}"\n')).rows
    assert row.captions == expected


@pytest.mark.parametrize("cell", ["['a' + 'b']", "['a', b']", "['a']['b']"])
def test_a_list_that_cannot_be_read_costs_its_row(table, cell):
    _, row = read(table([{"path": "a"}, {"path": "b", "captions": cell}])).rows
    assert "a list neither of JSON nor of Python" in row.problem


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("['run', 'jump']", ("run", "jump")),
        ("[1 2 -1]", ("1", "2", "-1")),
        ("[1.0, 2.0]", ("1", "2")),
        ("1|2.0|-1", ("1", "2.0", "-1")),  # labels.resolve knows what they mean
    ],
)
def test_lists_of_labels(table, cell, expected):
    [row] = read(table(f'path,labels\na.mp4,"{cell}"\n')).rows
    assert row.labels == expected


def test_half_a_surrogate_pair_becomes_the_replacement_character(table):
    captions = ["a dog \ud83d", "\ud83d\ude00"]
    [row] = read(table([{"path": "a\udcff.mp4", "captions": captions, "x": "\udc00"}])).rows
    assert row.captions == ("a dog \ufffd", "\U0001f600") and row.extra == {"x": "\ufffd"}
    assert row.name == "a\\xff.mp4" and row.path.endswith("a\udcff.mp4")  # a file of that name


def test_values_that_are_not_finite_are_left_out_of_numbers(table):
    listing = read(
        table(
            [
                {"path": "a", "score": 0.5, "count": 1, "none": math.nan},
                {"path": "b", "score": math.nan, "count": "nan"},
                {"path": "c", "score": math.inf, "count": 2},
            ]
        )
    )
    assert [dict(row.extra) for row in listing.rows] == [
        {"score": 0.5, "count": 1},
        {},
        {"count": 2},
    ]
    assert "column 'score': left out 2 values that are not finite" in listing.notes


def test_a_column_that_becomes_text_for_one_cell_is_said(table):
    lines = [{"path": str(i), "score": i / 4} for i in range(20)]
    lines.append({"path": "x", "score": "n/a"})
    listing = read(table(lines))
    assert listing.rows[0].extra == {"score": "0.0"}
    assert "is stored as text, since 'n/a' is no number, while 20 others are" in listing.notes[0]


def test_numbers_of_thousands_of_digits(table):
    for value in ("9" * 5000, "-" + "9" * 5000):
        with pytest.raises(ValueError, match=r"line 1: is not JSON \(a number of thousands"):
            read(table(f'{{"path": "a", "x": {value}}}\n', "t.jsonl"))
        with pytest.raises(ValueError, match=r"t\.json: is not JSON \(a number of thousands"):
            read(table(f'[{{"path": "a", "x": {value}}}]', "t.json"))
    [row] = read(table([{"path": "a", "x": 10**400, "y": -(10**400)}])).rows
    assert row.extra["x"] == str(10**400)


@pytest.mark.parametrize(
    "value",
    [10**400, "9" * 400 + ":00:00", "1" * 5000 + ":00:00", 1e300, "1e300", "-1", [1], "9" * 400],
)
def test_times_that_are_none(value):
    with pytest.raises(ValueError, match=r"^a line 3: start is .{1,100}, expected seconds from 0"):
        cells.seconds("a line 3", "start", value)


@pytest.mark.parametrize(
    "template",
    [
        "{path:>999999999}.mp4",
        "{path:09999999d}",
        "{start:.999999f}",
        "{path:{start}}",
        "{path.__class__}",
        "{path[0]}",
        "{path:>9999}" * 300,
        "{}",
    ],
)
def test_path_templates_that_are_none(table, template):
    with pytest.raises(ValueError, match="--path-template"):
        read(table([{"path": "a", "start": 1}]), path_template=template)


@pytest.mark.parametrize("value", ["x" * 5000, ["a"], {"a": 1}, None])
def test_a_value_that_makes_no_path_costs_its_row(table, value):
    path = table([{"name": "a"}, {"name": value}])
    good, bad = read(path, path_template="{name}-{name}.mp4").rows
    assert good.name == "a-a.mp4" and bad.problem.startswith("t.jsonl line 2: ")
