"""File names made from the columns of a table: ``--path-template '{YoutubeID}.mp4'``."""

import string
from collections.abc import Mapping
from typing import Any


class PathTemplate:
    """A format string over the columns of a row.

    Fields are column names as the table spells them; ``{start}`` and ``{end}``, unless the table
    has such columns of its own, are the times in seconds, so that ``{start:.3f}`` works.

    Args:
      text: the template.
      columns: our column name -> the table's, where they differ.

    Attributes:
      has_times: the names contain the start or end, so each file is one clip already.

    Raises:
      ValueError: it is not a format string, or names no column.
    """

    def __init__(self, text: str, columns: Mapping[str, str]):
        self._text = text
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        except ValueError as error:
            raise ValueError(f"--path-template {text!r}: {error}") from error
        odd = [name for name in names if not name or any(c in name for c in ".[]")]
        if odd or not names:
            raise ValueError(
                f"--path-template {text!r}: "
                + (f"the field {{{odd[0]}}} is not a column name" if odd else "names no column")
                + "; expected names of columns in braces, such as {YoutubeID}.mp4"
            )
        self._names = names
        times = {"start", "end", columns.get("start"), columns.get("end")}
        self.has_times = not times.isdisjoint(names)

    def fill(
        self, where: str, values: Mapping[str, Any], start: float | None, end: float | None
    ) -> str:
        """The path of a row; ValueError when it lacks a column the template names."""
        known = {"start": start, "end": end, **values}
        for name in self._names:
            if known.get(name) is None:
                raise ValueError(
                    f"{where}: has no {name!r}, which --path-template {self._text!r} needs; "
                    f"found {', '.join(values) or 'nothing'}"
                )
        # A number in a table of texts is text; {start:.3f} is meant for the seconds.
        for name, seconds in (("start", start), ("end", end)):
            if seconds is not None and f"{{{name}:" in self._text:
                known[name] = seconds
        try:
            return self._text.format_map(known)
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(
                f"{where}: --path-template {self._text!r} does not fit its values: {error}"
            ) from error
