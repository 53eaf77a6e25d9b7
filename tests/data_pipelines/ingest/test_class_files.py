"""Class lists in the forms that datasets ship them in."""

import json

import pytest

from data_pipelines.ingest.class_files import ClassList, read

KINETICS = ("abseiling", "air drumming", 'the "macarena"')


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "classes.txt") -> str:
        path = tmp_path / name
        path.write_bytes(text.encode())
        return str(path)

    return write


@pytest.mark.parametrize(
    ("name", "text", "first"),
    [
        ("a.txt", 'abseiling\nair drumming\nthe "macarena"\n', None),
        ("a.json", json.dumps(KINETICS), None),
        ("a.csv", 'name\nabseiling\nair drumming\nthe "macarena"\n', None),
        ("a.txt", '\ufeff0 abseiling\r\n1 air drumming\r\n\r\n2 the "macarena"', 0),
        ("a.txt", '1 abseiling\n2 air drumming\n3 the "macarena"\n', 1),
        ("a.txt", '1. abseiling\n2. air drumming\n3. the "macarena"\n', 1),
        ("a.txt", '2: the "macarena"\n0: abseiling\n1: air drumming\n', 0),
        ("a.txt", 'abseiling 0\nair drumming 1\nthe "macarena" 2\n', 0),
        ("a.txt", 'abseiling,0\nair drumming,1\nthe "macarena",2\n', 0),
        ("a.csv", 'id,name\n0,abseiling\n1,air drumming\n2,"the ""macarena"""\n', 0),
        ("a.csv", 'name,id\nabseiling,0\nair drumming,1\nthe "macarena",2\n', 0),
        ("a.csv", 'id;name;clips\n1;abseiling;9\n2;air drumming;9\n3;the "macarena";8\n', 1),
        ("a.tsv", '0\tabseiling\n1\tair drumming\n2\tthe "macarena"\n', 0),
        ("a.json", json.dumps({name: i for i, name in enumerate(KINETICS)}), 0),
        ("a.json", json.dumps({name: str(i) for i, name in enumerate(KINETICS)}), 0),
        ("a.json", json.dumps({str(i): name for i, name in enumerate(KINETICS, 1)}), 1),
        ("a.json", json.dumps([{"id": i, "name": name} for i, name in enumerate(KINETICS)]), 0),
        # As PyTorchVideo ships the names of Kinetics.
        ("a.json", json.dumps({f'"{name}"': float(i) for i, name in enumerate(KINETICS)}), 0),
    ],
)
def test_forms(write, name, text, first):
    assert read(write(text, name)) == ClassList(KINETICS, first)


@pytest.mark.parametrize(
    "names",
    [
        ("3 point shot", "5 km run", "yoga"),
        ("100 metres", "200 metres", "5000 metres"),
        ("Putting something upright on the table, so it falls", "Moving something, slowly"),
        ("bend/bow (at the waist)", "talk to (e.g., self, a person)"),
        ("a\x85b", "c\u2028d"),  # which are no ends of lines
    ],
)
def test_names_that_look_like_something_else_are_names(write, names):
    assert read(write("\n".join(names))) == ClassList(names)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0 a\n1 b\n1 c\n", "gives the number 1 to 'b' and to 'c'"),
        ("0 a\n1 b\n3 c\n", "go from 0 to 3 and lack 2"),
        ("id,name\n5,a\n6,b\n", "begin at 5, expected 0 or 1"),
        ("id,name\n0,a\n1,\n", "gives the number 1 no name"),
        ("0,a,x\n1,b,y\n", "expected a number and a name per line, found 3 columns"),
        ("0 a\n1 b\n2 c\nd\n", "3 of its 4 lines begin with a number.*'d'"),
        ('{"a": 0, "a": 1}', "lists class 'a' twice"),
        ('{"a": 0, "b": 0}', "gives the number 0 to 'a' and to 'b'"),
        ('{"0": "1", "1": "0"}', "both sides of its object are numbers"),
        ('{"labels": {"a": 0}}', "expected an object of names with their numbers"),
        ('{"a": true}', "expected an object of names"),
        ("{'a': 0}", "not a readable class list"),
        ("{}", "lists no classes"),
        ('{"a": ' + "9" * 5000 + "}", "not a readable class list"),
        ('{"a": 1' + "0" * 400 + "}", "begin at 1000"),
        ('[{"id": 0}]', "expected a JSON list of names, or of objects"),
        ("[" * 100_000, "not a readable class list"),
        ("names:\n  0: a\n  1: b\n  2: c\n", None),  # a header, and all other lines numbered
    ],
)
def test_what_is_no_class_list_is_explained(write, text, complaint):
    if complaint is None:
        assert read(write(text)).names == ("a", "b", "c")
        return
    with pytest.raises(ValueError, match=complaint):
        read(write(text))


def test_a_file_of_gigabytes_is_refused_by_its_size(tmp_path):
    path = tmp_path / "classes.txt"
    with path.open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(ValueError, match="8589934592 bytes, which is no list of classes"):
        read(str(path))
