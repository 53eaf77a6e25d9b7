"""Columns that are stored as they are: one type each, since readers declare a type per key."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from data_pipelines.ingest.cells import shown
from data_pipelines.text.caption import replace_surrogates

# Leading zeros mark an identifier, not a number.
_INT = re.compile(r"-?(0|[1-9]\d{0,17})")
_FLOAT = re.compile(r"-?(0|[1-9]\d{0,39})(\.\d{1,40}([eE][-+]?\d{1,3})?|[eE][-+]?\d{1,3})")
_NOT_FINITE = frozenset(("nan", "inf", "-inf", "infinity", "-infinity"))
_ORDER = (type(None), int, float, str)


def typed(rows: Sequence[dict[str, Any]], notes: list[str]) -> list[dict[str, int | float | str]]:
    """Give every extra column one type.

    Integers where all cells are, numbers where all are, text otherwise; what is neither a number
    nor text (JSONL only) is stored as JSON text. NaN and infinity in a column of numbers are left
    out, as an empty cell is.

    Args:
      notes: what was left out, and columns of numbers that are text for a few cells.
    """
    kinds: dict[str, type] = {}
    numbers: dict[str, int] = {}
    texts: dict[str, list[Any]] = {}
    left_out: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            kind = _kind(value)
            before = kinds.get(name, type(None))
            kinds[name] = kind if _ORDER.index(kind) > _ORDER.index(before) else before
            numbers[name] = numbers.get(name, 0) + (kind in (int, float))
            if kind is type(None):
                left_out[name] = left_out.get(name, 0) + 1
            elif kind is str and len(texts.setdefault(name, [])) < 10:
                texts[name].append(value)
    for name, kind in kinds.items():
        some = texts.get(name, [])
        if kind is not str and name in left_out:
            notes.append(f"column {name!r}: left out {left_out[name]} values that are not finite")
        elif kind is str and len(some) < 10 and numbers[name] > 9 * len(some):
            notes.append(
                f"column {name!r} is stored as text, since {shown(some[0])} is no number, while "
                f"{numbers[name]} others are"
            )
    return [
        {
            name: _convert(value, kinds[name])
            for name, value in row.items()
            if kinds[name] is str or _kind(value) is not type(None)
        }
        for row in rows
    ]


def _kind(value: Any) -> type:
    """int, float, str; NoneType for what is no finite number."""
    if isinstance(value, int):  # bool too: stored as 0 or 1
        return int if abs(value) < 2**63 else str
    if isinstance(value, str):
        if _INT.fullmatch(value):
            return int
        if value.lower() in _NOT_FINITE:
            return type(None)
        if not _FLOAT.fullmatch(value):
            return str
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return type(None)
    # Records hold single precision.
    return float if isinstance(value, float) and abs(value) < 3.4e38 else str


def _convert(value: Any, kind: type) -> int | float | str:
    if kind is not str:
        return kind(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return replace_surrogates(text)
