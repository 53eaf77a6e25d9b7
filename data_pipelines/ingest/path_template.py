"""File names made from the columns of a table: `--path-template '{YoutubeID}.mp4'`."""

import re
import string
from collections.abc import Mapping
from typing import Any

from data_pipelines.ingest.cells import RowError, shown, some

# No file system has longer paths.
MAX_PATH = 4096
# A format such as 05d, .3f or >11: one width and one precision, neither larger than a name.
_SPEC = re.compile(r"(.?[<>=^])?[-+ ]?#?0?(\d{1,3})?,?(\.\d{1,2})?[a-zA-Z%]?", re.DOTALL)


class PathTemplate:
    """A format string over the columns of a row.

    Fields are column names as the table spells them; `{start}` and `{end}`, unless the table
    has such columns of its own, are the times in seconds, so that `{start:.3f}` works.

    Args:
      text: the template.
      columns: our column name -> the table's, where they differ.

    Attributes:
      names: of the columns.
      has_times: the names contain the start or end, so each file is one clip already.

    Raises:
      ValueError: it is not a format string, names no column, or a field is more than a name and
        a format.
    """

    def __init__(self, text: str, columns: Mapping[str, str]):
        self._text = text
        self._fields = fields("--path-template", text, "{YoutubeID}.mp4")
        self.names = frozenset(self._fields)
        odd = [name for name in self._fields if not name]
        if odd or not self.names:
            raise ValueError(
                f"--path-template {shown(text)}: "
                + ("the field {} is not a column name" if odd else "names no column")
                + "; expected names of columns in braces, such as {YoutubeID}.mp4"
            )
        times = {"start", "end", columns.get("start"), columns.get("end")}
        self.has_times = not times.isdisjoint(self.names)

    def fill(
        self, where: str, values: Mapping[str, Any], start: float | None, end: float | None
    ) -> str:
        """The path of a row; RowError when it lacks a column that the template names."""
        known = {"start": start, "end": end, **values}
        for name in self._fields:
            if known.get(name) is None:
                raise RowError(
                    f"{where}: has no {name!r}, which --path-template {self._text!r} needs; "
                    f"found {some(values)}"
                )
            if not isinstance(known[name], (str, int, float)):
                raise RowError(
                    f"{where}: {name} is {shown(known[name])}, expected text or a number"
                )
        # A number in a table of texts is text; {start:.3f} is meant for the seconds.
        for name, seconds in (("start", start), ("end", end)):
            if seconds is not None and f"{{{name}:" in self._text:
                known[name] = seconds
        try:
            length = len(self._text) + sum(len(str(known[name])) for name in self._fields)
            if length <= MAX_PATH:  # widths are small, so what follows is
                return self._text.format_map(known)
        except (ValueError, TypeError, LookupError) as error:
            raise RowError(
                f"{where}: --path-template {self._text!r} does not fit its values: {error}"
            ) from error
        raise RowError(
            f"{where}: --path-template {self._text!r} makes a path of about {length} characters, "
            f"expected at most {MAX_PATH}"
        )


def fields(option: str, text: str, example: str) -> list[str]:
    """The names of the fields of a format string that makes file names.

    Raises:
      ValueError: it is none, too long, or a field is more than a plain name and a format of
        ordinary width: attributes, items, formats within formats.
    """
    if len(text) > MAX_PATH:
        raise ValueError(
            f"{option}: has {len(text)} characters, expected at most {MAX_PATH}, such as {example}"
        )
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{option} {text!r}: {error}") from error
    names = []
    for _, name, spec, _ in parts:
        if name is None:
            continue
        if any(c in name for c in ".[]"):
            raise ValueError(
                f"{option} {text!r}: the field {{{name}}} is not a column name; expected plain "
                f"names in braces, such as {example}"
            )
        if not _SPEC.fullmatch(spec or ""):
            raise ValueError(
                f"{option} {text!r}: the field {{{name}}} has the format {shown(spec)}, expected "
                f"one of ordinary width such as 05d or .3f"
            )
        names.append(name)
    return names
