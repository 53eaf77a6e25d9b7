"""The published checkpoints of all families: finding one, and what the shapes of a file tell.

`find` takes a name, `match` the name of a file or the shapes of its weights. The rows are in
`zoo.py` of every family; weights are never touched here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from internvideo_jax.weights.entry import Entry
from internvideo_jax.weights.family import Facts, agree, families, kinds

SUFFIXES = (".pth", ".pyth", ".pt", ".bin", ".safetensors")
COMMON = ("pretrain", "pytorch_model")  # file names that say nothing without their folder


def sources() -> dict[str, Sequence[Entry]]:
    """The part of a name before the slash -> its entries."""
    return {name: rows for family in families() for name, rows in family.sources.items()}


def entries() -> tuple[Entry, ...]:
    """All published checkpoints that are known."""
    return tuple(entry for rows in sources().values() for entry in rows)


def find(name: str) -> Entry:
    """The entry `name`, by its full or short name or, where only one has it, by the last part.

    Raises:
      ValueError: no such entry, with the near matches.
    """
    stem = _stem(name)
    found = _called(name) or [each for each in entries() if each.name.partition("/")[2] == stem]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{name!r} is ambiguous: {', '.join(entry.name for entry in found)}")
    names = [each for entry in entries() for each in (entry.name, entry.short) if each]
    near = " or ".join(map(repr, difflib.get_close_matches(name, names)))
    hint = f"did you mean {near}? " if near else ""
    raise ValueError(
        f"no published checkpoint {name!r}: {hint}`ivj weights list` shows all {len(entries())}"
    )


def named(name: str) -> Entry | None:
    """The entry of exactly this name: full, short, or the last part of only one."""
    found = _called(name)
    return found[0] if len(found) == 1 else None


def _called(name: str) -> list[Entry]:
    """Entries of exactly this full or short name, else those with this last part."""
    if not name:
        return []
    found = [entry for entry in entries() if name in (entry.name, entry.short)]
    return found or [entry for entry in entries() if entry.name.partition("/")[2] == name]


def match(name: str = "", facts: Facts | None = None) -> tuple[Entry, ...]:
    """Entries that a file may be: those whose name fits, else those whose shapes fit.

    A name is believed only as far as the shapes agree. A file name that several entries share
    (`ViT-H.pth`) is told apart by its folders, and by the shapes.

    Args:
      name: path of the file; empty = unknown.
      facts: of `facts_of_params`; None = unknown, only the name counts.
    """
    fits = [entry for entry in entries() if facts is None or agree(facts_of_entry(entry), facts)]
    named = [entry for entry in fits if name and is_named(entry, name)]
    deepest = max((_depth(entry, name) for entry in named), default=0)
    named = [entry for entry in named if _depth(entry, name) == deepest]
    return tuple(named or (fits if facts is not None else ()))


def is_named(entry: Entry, name: str) -> bool:
    """Whether the file `name` has the published name, of file or model, whatever its ending."""
    stem = _stem(name)
    if entry.url and PurePath(name).as_posix().endswith(entry.url.partition("://")[2]):
        return True  # where it lies when it was fetched
    if entry.file and stem == _stem(entry.file):
        return stem not in COMMON or _depth(entry, name) > 0
    return stem == entry.name.partition("/")[2]


def facts_of_entry(entry: Entry) -> Facts:
    """What the shapes of a published model's parameters tell."""
    return kinds()[entry.kind].facts_of_entry(entry)


def facts_of_config(config: Any) -> Facts:
    """What the shapes of this model's parameters will tell."""
    return kinds()[config.name].facts_of_config(config)


def facts_of_params(kind: str, params: Mapping[str, Any], geometry: Mapping[str, Any]) -> Facts:
    """What the shapes of these parameters tell; see `Kind.facts_of_params`."""
    return kinds()[kind].facts_of_params(params, geometry)


def size_of(facts: Facts) -> str:
    """The size name of these facts, empty when no published model has these shapes."""
    return kinds()[facts["kind"]].size_of(facts)


def table(source: str) -> list[str]:
    """The entries of a source as the lines of a Markdown table."""
    rows = [
        "| name | file | model | trained on | input | test | reported | recipe |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in sources()[source]:
        file = entry.file
        if file == entry.name.partition("/")[2] + PurePath(file).suffix:
            file = f"…{PurePath(file).suffix}"  # the name says it
        test = entry.protocol
        kind = "pre-trained" if entry.pretrained else f"{entry.classes} classes"
        recipe = (entry.config or entry.finetune).removeprefix("configs/")
        cells = (
            f"`{entry.name}`" + (f" or `{entry.short}`" if entry.short else ""),
            _linked(file, entry) if file or entry.url else "no address",
            f"{entry.size}, {kind}",
            entry.data,
            f"{entry.frames} x {entry.pixels}², {_seconds(entry)}",
            f"{test.clips} x {test.crops}, {test.sampling}" if test else "",
            entry.reported,
            f"`{recipe}`{'' if entry.made else ' *'}",
        )
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _seconds(entry: Entry) -> str:
    """Seconds of a training clip; of images none."""
    if entry.frames == 1:
        return "images"
    return f"{entry.seconds:.2g} s" if entry.seconds else "seconds unknown"


def _linked(file: str, entry: Entry) -> str:
    """The file with a link to it, or a word that none is known."""
    shown = f"`{file or '(unnamed)'}`"
    if not entry.url:
        return f"{shown}, no address"
    stated = f", sha256 `{entry.sha256[:8]}…`" if entry.sha256 else ""
    return f"[{shown}]({entry.url}){stated}"


def notes(source: str) -> list[str]:
    """The licence of a source and the notes of its entries as Markdown lines.

    Entries that share a note stand together.
    """
    shared: dict[str, list[str]] = {}
    for entry in sources()[source]:
        if entry.note:
            shared.setdefault(entry.note, []).append(f"`{entry.name.partition('/')[2]}`")
    licences = sorted({entry.licence for entry in sources()[source]})
    first = f"- Licence of the repository: {', '.join(licences)}; the terms of a file may differ."
    return [first, *(f"- {', '.join(names)}: {note}." for note, names in shared.items())]


def _stem(name: str) -> str:
    path = PurePath(name)
    return path.name.removesuffix(path.suffix) if path.suffix in SUFFIXES else path.name


def _depth(entry: Entry, name: str) -> int:
    """How many folders at the end of `name` are those of the published file."""
    here, there = PurePath(name).parent.parts[::-1], PurePath(entry.file).parent.parts[::-1]
    same = 0
    for one, other in zip(here, there, strict=False):
        if one != other:
            break
        same += 1
    return same
