"""What a cell of a table, a list or a JSON file may hold: texts, lists, numbers, times.

Everything is refused by its size before it becomes a number or memory.
"""

import ast
import json
import math
import re
import reprlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, TypeVar

from data_pipelines.text.caption import replace_surrogates

# A line or a cell. Boxes of a long clip take some MB; more is a file that is not what it seems.
MAX_LINE = 1 << 26
# Times are stored as microseconds in 64 bits; a video lasts 30 years at most.
MAX_SECONDS = 1e9
_LONGEST_NUMBER = 64

_CLOCK = re.compile(r"(?:(\d{1,6}):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")
# Leading zeros mark an identifier, not a number.
_NUMBER = re.compile(r"[-+]?(0|[1-9]\d*)(\.\d*)?([eE][-+]?\d+)?", re.ASCII)
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
# Items of a list as Python or numpy print it; numpy puts no commas.
_ITEM = re.compile(rf"\s*({_QUOTED}|[-+.\w]+)\s*,?\s*", re.DOTALL)
_MISSING = ("None", "nan", "NaN", "null")

_Text = TypeVar("_Text", str, bytes)

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80


class RowError(ValueError):
    """What is wrong with one row alone; it is rejected, and the others are kept."""


def shown(value: Any) -> str:
    """`repr` of a value for a message, shortened where it is long."""
    if isinstance(value, int) and abs(value) >= 10**_LONGEST_NUMBER:
        if abs(value) >= 10**4000:  # Python spells no more than 4300 digits
            return "a number of more than 4000 digits"
        return f"{str(value)[:20]}... ({len(str(abs(value)))} digits)"
    return _SHOWN.repr(value)


def some(names: Iterable[str]) -> str:
    """Names for a message: the first twenty, each cut where it is long; "nothing" of none."""
    names = list(names)
    texts = [name if len(name) <= 60 else f"{name[:50]}... (cut)" for name in names[:20]]
    return ", ".join(texts) + (", ..." if len(names) > 20 else "") or "nothing"


def read_lines(file: IO[_Text], name: str) -> Iterator[_Text]:
    """The lines of a file with their ends; ValueError for one beyond MAX_LINE."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise ValueError(
                f"{name} line {number}: is longer than {MAX_LINE >> 20} MiB; expected one clip per "
                "line"
            )
        yield line


def parse_json(where: str, text: str | bytes) -> Any:
    """The value of a JSON text; ValueError otherwise, also for numbers beyond Python's limit.

    Args:
      where: begins the message.
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error})") from error
    except ValueError as error:  # Python reads no more than 4300 digits
        raise ValueError(f"{where} is not JSON (a number of thousands of digits)") from error


def seconds(where: str, key: str, value: Any) -> float | None:
    """A time as tables have it; None for an empty cell, RowError for anything else."""
    if value is None or value == "":
        return None
    result = clock(value)
    if result is None:
        raise RowError(f"{where}: {key} is {shown(value)}, expected seconds from 0 or HH:MM:SS.mmm")
    return result


def clock(value: Any) -> float | None:
    """Seconds of a number or of `HH:MM:SS.mmm`; None for what is no time from 0 to MAX_SECONDS."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str):
        if len(value) > _LONGEST_NUMBER:
            return None
        if found := _CLOCK.fullmatch(value):
            hours, minutes, rest = found.groups()
            return int(hours or 0) * 3600 + int(minutes) * 60 + float(rest)
    try:
        result = float(value)
    except (ValueError, OverflowError):
        return None
    return result if 0 <= result <= MAX_SECONDS else None


def number(text: str) -> int | float | None:
    """The number that a label spells, whole ones as int; None for a name, inf for too large."""
    if not _NUMBER.fullmatch(text):
        return None
    value = math.inf if len(text) > _LONGEST_NUMBER else float(text)
    return int(value) if math.isfinite(value) and value.is_integer() else value


def plain(where: str, key: str, value: Any) -> str:
    """A text, or a whole number as one; "" for an empty cell, RowError for anything else."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(f"{where}: {key} is {shown(value)}, expected text")
    if isinstance(value, int) and abs(value) >= 10**_LONGEST_NUMBER:
        raise RowError(f"{where}: {key} is {shown(value)}, expected text")
    return str(value).strip()


def text(where: str, key: str, value: Any) -> str:
    """As `plain`, for what is stored and read: half surrogate pairs become U+FFFD."""
    return replace_surrogates(plain(where, key, value))


def label(where: str, key: str, value: Any) -> str:
    """A class name or number. 2.0, as one empty cell makes of 2, is 2; NaN is no label."""
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        if value.is_integer():
            value = int(value)
    return text(where, key, value)


def items(
    where: str,
    key: str,
    value: Any,
    separator: str = "",
    read: Callable[[str, str, Any], str] = text,
) -> tuple[str, ...]:
    """Several texts: a list, one printed by JSON, Python or numpy, or joined by `separator`.

    Raises:
      RowError: an item is no text, or a column of lists has a list that cannot be read.
    """
    many = key in ("labels", "captions")
    if isinstance(value, str) and key != "label" and value[:1] in ("[", "(" if many else "["):
        value = _printed(value, key == "labels")
        if isinstance(value, str) and many and _looks_printed(value):
            raise RowError(
                f"{where}: {key} is {shown(value)}, a list neither of JSON nor of Python; expected "
                'one such as ["a", "b"]'
            )
    if isinstance(value, str) and separator:
        value = value.split(separator)
    if value is None:
        return ()
    return tuple(read(where, key, item) for item in (value if isinstance(value, list) else [value]))


def _printed(cell: str, numbers: bool) -> Any:
    """The list that a cell spells; the cell where it is a text that begins with a bracket."""
    if cell.startswith("["):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            pass
    if cell[-1] != {"[": "]", "(": ")"}[cell[0]]:
        return cell
    found: list[str | None] = []
    place, end = 1, len(cell) - 1
    while place < end:
        item = _ITEM.match(cell, place, end)
        if item is None:
            return cell
        word, place = item[1], item.end()
        if word[0] in "'\"":
            unquoted = _unquoted(word)
            if unquoted is None:
                return cell
            found.append(unquoted)
        elif word in _MISSING:
            found.append(None)
        elif numbers and number(word) is not None:
            found.append(word)
        else:
            return cell
    quoted = any(item is not None for item in found)
    return found if quoted or (numbers and cell[0] == "[") else cell


def _looks_printed(cell: str) -> bool:
    inside = cell[1:-1].strip().rstrip(", \n")
    return cell[-1] in "])" and inside[:1] in ("'", '"') and inside[-1:] in ("'", '"')


def _unquoted(word: str) -> str | None:
    if "\\" not in word:
        return word[1:-1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash that escapes nothing
            return ast.literal_eval(word.replace("\n", "\\n").replace("\r", "\\r"))
    except (ValueError, SyntaxError, MemoryError):
        return None
