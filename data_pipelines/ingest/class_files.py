"""Class lists in the forms that datasets ship them in.

========================  ===========================================================
names                     one per line, or a JSON list
numbered lines            `0 slicing onion`, `1 ApplyEyeMakeup` (UCF101), `clapping,0`
table                     CSV or TSV with a number and a name, such as `id,name`
JSON object               name -> number (Something-Something, Kinetics) or number -> name
JSON list of objects      `{"id": 0, "name": "abseiling"}`
========================  ===========================================================

Numbers begin at 0 or 1 and have no holes: the position of a name is the index stored.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.ingest import cells

_MAX_BYTES = 1 << 26
_NUMBERED = re.compile(r"(\d{1,9})(?:\s*[,;:.)]\s*|\s+)(\S.*)")
_ENDING = re.compile(r"(\S.*?)\s+(\d{1,9})")
_NUMBER_HEADERS = ("id", "index", "label_id", "class_id", "number", "label", "class")
_NAME_HEADERS = ("name", "class_name", "label_name", "label", "class", "text")
_HEADERS = frozenset(("name", "names", "class", "classes", "class_name", "label", "labels"))


@dataclass(frozen=True, slots=True)
class ClassList:
    """Class names by index; `first` is the number that the file gives the first of them, if any."""

    names: tuple[str, ...]
    first: int | None = None


def read(path: str) -> ClassList:
    """Read a class list in one of the forms above.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: it is none of them, has a name or a number twice, or numbers with holes.
    """
    text = _content(path)
    if text.lstrip()[:1] in ("[", "{"):
        try:
            content = json.loads(text, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: is not a readable class list ({error})") from error
        pairs, names = _of_json(path, content)
    else:
        pairs, names = _of_text(path, text)
    if pairs is None:
        return ClassList(_checked(path, names))
    return _numbered(path, pairs)


def _content(path: str) -> str:
    try:
        size = os.path.getsize(path)
        if size > _MAX_BYTES:
            raise ValueError(f"--classes {path}: has {size} bytes, which is no list of classes")
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--classes {path}: no such file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not a readable class list ({error})") from error


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with keys that may be there twice."""


_Found = tuple[list[tuple[int, str]] | None, list[str]]


def _of_json(path: str, content: Any) -> _Found:
    if isinstance(content, _Pairs):
        return _of_object(path, content), []
    if all(isinstance(name, str) for name in content):
        return None, content
    if all(isinstance(entry, _Pairs) for entry in content):
        rows = [dict(entry) for entry in content]
        number = next((key for key in _NUMBER_HEADERS if _whole(rows[0].get(key)) is not None), "")
        name = next((key for key in _NAME_HEADERS if isinstance(rows[0].get(key), str)), "")
        pairs = [(_whole(row.get(number)), row.get(name)) for row in rows]
        if number != name:
            known = [(n, text) for n, text in pairs if n is not None and isinstance(text, str)]
            if len(known) == len(pairs):
                return known, []
    raise ValueError(
        f"{path}: expected a JSON list of names, or of objects with 'id' and 'name'; found "
        f"{cells.shown(content[0])}"
    )


def _of_object(path: str, content: _Pairs) -> list[tuple[int, str]]:
    by_value = [(_whole(value), key) for key, value in content]
    by_key = [(_whole(key), value) for key, value in content]
    values = all(number is not None for number, _ in by_value)
    keys = all(number is not None and isinstance(value, str) for number, value in by_key)
    if values and keys and by_value != by_key:
        raise ValueError(
            f"{path}: both sides of its object are numbers, so it does not say which are the "
            "names; give a JSON list of the names in order"
        )
    if not (values or keys):
        odd = next((key, value) for key, value in content if _whole(value) is None)
        raise ValueError(
            f"{path}: expected an object of names with their numbers, such as "
            f'{{"abseiling": 0}}, or the other way round; found {cells.shown(odd[0])}: '
            f"{cells.shown(odd[1])}"
        )
    chosen = by_value if values else by_key
    return [(number, name) for number, name in chosen if number is not None]


def _whole(value: Any) -> int | None:
    """The number 0, 1, ... that a JSON value or a cell spells; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    number = cells.number(value.strip()) if isinstance(value, str) else value
    return number if isinstance(number, int) and number >= 0 else None


def _of_text(path: str, text: str) -> _Found:
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line]
    suffix = os.path.splitext(path)[1].lower()
    for delimiter in "\t,;":
        if found := _of_table(path, lines, delimiter):
            return found, []
    if suffix in (".csv", ".tsv") and lines and lines[0].lower().strip('"') in _HEADERS:
        lines = lines[1:]
        if all(len(row) == 1 for row in csv.reader(lines)):
            return None, [row[0] for row in csv.reader(lines)]
    matches = [_NUMBERED.fullmatch(line) for line in lines]
    if len(lines) > 1 and matches[0] is None and all(matches[1:]):
        matches = matches[1:]  # a header
    pairs = [(int(match[1]), match[2]) for match in matches if match]
    numbers = [number for number, _ in pairs]
    counted = (
        bool(numbers) and min(numbers) in (0, 1) and (len(set(numbers)) > 1 or len(lines) == 1)
    )
    if counted and len(pairs) == len(matches):
        return pairs, []
    if counted and 2 * len(pairs) > len(matches):
        odd = lines[matches.index(None)]
        raise ValueError(
            f"{path}: {len(pairs)} of its {len(matches)} lines begin with a number and others do "
            f"not, such as {cells.shown(odd)}; number all lines or none"
        )
    ends = [_ENDING.fullmatch(line) for line in lines]
    pairs = [(int(match[2]), match[1]) for match in ends if match]
    distinct = len({name for _, name in pairs}) == len(pairs) == len(lines) > 1
    numbers = sorted(number for number, _ in pairs)
    if distinct and numbers == list(range(numbers[0], numbers[0] + len(pairs))) and numbers[0] < 2:
        return pairs, []
    return None, lines


def _of_table(path: str, lines: list[str], delimiter: str) -> list[tuple[int, str]] | None:
    """(number, name) of each row; None where the lines are no table of both."""
    try:
        rows = [
            [cell.strip() for cell in row]
            for row in csv.reader(lines, delimiter=delimiter, strict=True)
        ]
    except csv.Error:
        return None
    width = len(rows[0]) if rows else 0
    if width < 2 or any(len(row) != width for row in rows):
        return None
    header = [cell.lower() for cell in rows[0]]
    if len(rows) > 1 and all(_whole(cell) is None for cell in header):
        rows = rows[1:]
    else:
        header = [""] * width
    numbers = [j for j in range(width) if all(_whole(row[j]) is not None for row in rows)]
    if not numbers:
        return None
    texts = [j for j in range(width) if j not in numbers]
    number = _column(header, numbers, _NUMBER_HEADERS)
    name = _column(header, texts or [j for j in numbers if j != number], _NAME_HEADERS)
    if number is None or name is None:
        raise ValueError(
            f"{path}: expected a number and a name per line, found {width} columns such as "
            f"{cells.shown(delimiter.join(rows[0]))}; keep 'id' and 'name' only"
        )
    return [(_whole(row[number]) or 0, row[name]) for row in rows]


def _column(header: Sequence[str], among: Sequence[int], known: Sequence[str]) -> int | None:
    named = [j for word in known for j in among if header[j] == word]
    return named[0] if named else among[0] if len(among) == 1 else None


def _numbered(path: str, pairs: list[tuple[int, str]]) -> ClassList:
    numbers = [number for number, _ in pairs]
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    if twice:
        names = [name for number, name in pairs if number == twice[0]]
        raise ValueError(
            f"{path}: gives the number {twice[0]} to {cells.shown(names[0])} and to "
            f"{cells.shown(names[1])}"
        )
    nameless = next((number for number, name in pairs if not name.strip()), None)
    if nameless is not None:
        raise ValueError(f"{path}: gives the number {nameless} no name")
    first = min(numbers, default=0)
    if first > 1:
        raise ValueError(f"{path}: its numbers begin at {first}, expected 0 or 1")
    there = set(numbers)
    hole = next((n for n in range(first, first + len(numbers)) if n not in there), None)
    if hole is not None:
        raise ValueError(
            f"{path}: its numbers go from {first} to {max(numbers)} and lack {hole}. The position "
            f"of a class is the index stored: give every number a name, such as 'unused {hole}', "
            "or a JSON list of the names in order"
        )
    return ClassList(_checked(path, [name for _, name in sorted(pairs)]), first)


def _checked(path: str, names: Sequence[str]) -> tuple[str, ...]:
    names = [_unquoted(name.strip()) for name in names]
    names = [name for name in names if name]
    if not names:
        raise ValueError(f"{path}: lists no classes")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: lists class {cells.shown(twice[0])} twice")
    return tuple(names)


def _unquoted(name: str) -> str:
    """Without the quotation marks around it that the Kinetics list has in its names."""
    quoted = len(name) > 1 and name[0] == name[-1] == '"'
    return name[1:-1].replace('""', '"').strip() if quoted else name
