"""A folder of videos: the class is the parent folder; folders called train, val, test are splits.

Links are followed, each folder once per split: under its own name where it has one in the source,
since a class that is also listed as `run_link` would be two classes.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from data_pipelines.ingest.cells import shown
from data_pipelines.ingest.presence import SourceVanished
from data_pipelines.ingest.rows import Listing, Row, printable
from data_pipelines.records import split_names

_Parts = tuple[str, ...]


def read(root: str, default_split: str, suffixes: frozenset[str], wanted: str) -> Listing:
    """List the files of a folder that end in `suffixes`.

    Raises:
      ValueError: folders with names of splits lie where they would be taken for classes.
      SourceVanished: a folder cannot be listed to its end.
    """
    walk = _Walk(root)
    files: list[_Parts] = []
    ignored = Counter[str]()
    for parts in sorted(walk.files()):
        suffix = os.path.splitext(parts[-1])[1].lower()
        if suffix in suffixes:
            files.append(parts)
        elif parts not in walk.broken:
            ignored[suffix or "no suffix"] += 1
    depth, outside = _splits(root, files)
    rows = []
    for parts in files:
        if depth is not None and parts in outside:
            continue
        split = default_split if depth is None else parts[depth]
        inner = parts[0 if depth is None else depth + 1 : -1]
        name = printable("/".join(parts))
        rows.append(
            Row(
                path=os.path.join(root, *parts),
                name=name,
                id=name,
                split=split,
                labels=(printable(inner[-1]),) if inner else (),
                where=name,
            )
        )
    notes = walk.notes()
    if outside:
        folders = sorted({parts[0] for parts in outside})
        notes.append(
            f"left out {len(outside)} {wanted} beside the split folders, in "
            f"{', '.join(map(shown, folders[:3]))}{', ...' if len(folders) > 3 else ''}"
        )
    if depth:
        notes.append(f"the split folders were found in {shown('/'.join(files[0][:depth]))}")
    if ignored:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in ignored.most_common(5))
        notes.append(f"ignored {sum(ignored.values())} files that are not {wanted} ({kinds})")
    return Listing(rows, notes)


def _splits(root: str, files: Sequence[_Parts]) -> tuple[int | None, set[_Parts]]:
    """Which part of the paths is the split (None: none is), and the files that are in none.

    Folders are splits if all at the top, or two of them, have such names; a single one beside
    others may be a class of that name, unless it has classes itself.

    Raises:
      ValueError: it cannot be told, or split folders lie deeper.
    """
    depth = 0
    while files and all(len(parts) > depth + 1 for parts in files):
        found = {parts[depth] for parts in files if _is_split(parts[depth])}
        if found:
            inside = {parts for parts in files if parts[depth] in found}
            outside = set(files) - inside
            return _judged(root, depth, found, inside, outside)
        if len({parts[depth] for parts in files}) > 1:
            break  # not one folder around the splits
        depth += 1
    top = {parts[0] for parts in files if len(parts) > 1 and _is_split(parts[0])}
    if top:  # beside files, or folders of other names
        inside = {parts for parts in files if parts[0] in top and len(parts) > 1}
        return _judged(root, 0, top, inside, set(files) - inside)
    _check_deeper(root, files)
    return None, set()


def _judged(
    root: str, depth: int, found: set[str], inside: set[_Parts], outside: set[_Parts]
) -> tuple[int | None, set[_Parts]]:
    if not outside or len(found) > 1:
        return depth, outside
    (split,) = found
    if all(len(parts) == depth + 2 for parts in inside):
        return None, set()  # a class of that name: videos, and no classes, are in it
    other = min(outside)
    path = os.path.join(root, *next(iter(inside))[: depth + 1])
    raise ValueError(
        f"{root}: has a split folder {shown(split)} with classes in it, and {shown(other[depth])} "
        "beside it, whose split is not said. Put it into a folder 'train', 'val' or 'test', or "
        f"ingest one folder at a time, such as --source {path} --split {split.lower()}"
    )


def _check_deeper(root: str, files: Sequence[_Parts]) -> None:
    """Two split folders in one place further down: whoever has them means splits."""
    there: dict[_Parts, set[str]] = {}
    for parts in files:
        for depth in range(1, len(parts) - 1):
            if _is_split(parts[depth]):
                names = there.setdefault(parts[:depth], set())
                names.add(parts[depth])
                if len(names) > 1:
                    first, second = sorted(names)
                    place = os.path.join(root, *parts[:depth])
                    raise ValueError(
                        f"{root}: the folders {shown(first)} and {shown(second)} lie in {place}, "
                        "where they would be taken for classes; expected SPLIT/CLASS/file. Ingest "
                        f"that folder (--source {place}), or use a table with a column 'split'"
                    )


def _is_split(name: str) -> bool:
    return name.lower() in split_names.FOLDERS


_Seen = dict[tuple[int, int], dict[str, _Parts]]


@dataclass
class _Walk:
    """The files below a folder, hidden names left out, links followed.

    Attributes:
      broken: links that lead nowhere.
      aliases, circles: links to folders that are listed by another name, and back up.
      closed: folders that may not be read.
    """

    root: str
    broken: list[_Parts] = field(default_factory=list)
    aliases: list[tuple[_Parts, _Parts]] = field(default_factory=list)
    circles: list[_Parts] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def files(self) -> Iterator[_Parts]:
        """Every file once per split, as the parts of its path."""
        links: list[_Parts] = []
        # Folder -> split -> the name it was listed by. Real folders first, then what is linked.
        seen: _Seen = {}
        yield from self._below((), seen, links)
        while links:
            links.sort()
            parts = links.pop(0)
            identity = _identity(self._path(parts))
            if any(_identity(self._path(parts[:up])) == identity for up in range(len(parts))):
                self.circles.append(parts)
            elif known := _listed(seen.get(identity, {}), _split(parts)):
                self.aliases.append((parts, known[0]))
            else:
                yield from self._below(parts, seen, links)

    def _below(self, start: _Parts, seen: _Seen, links: list[_Parts]) -> Iterator[_Parts]:
        top = self._path(start)
        for folder, folders, names in os.walk(
            top, followlinks=False, onerror=self._check_reachable
        ):
            inner = os.path.relpath(folder, top)
            parts = start if inner == os.curdir else (*start, *inner.split(os.sep))
            names_of = seen.setdefault(_identity(folder), {})
            if names_of.setdefault(_split(parts), parts) != parts:
                folders.clear()  # reached through a link to a folder around it
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            links += [(*parts, name) for name in folders if os.path.islink(f"{folder}/{name}")]
            for name in sorted(names):
                if name.startswith("."):
                    continue
                path = os.path.join(folder, name)
                if os.path.islink(path) and not os.path.exists(path):
                    self.broken.append((*parts, name))
                yield (*parts, name)

    def _check_reachable(self, error: OSError) -> None:
        """Folders that may not be read are left out; storage that goes away shortens the list."""
        if not isinstance(error, PermissionError):
            raise SourceVanished(f"{error.filename}: cannot be listed: {error.strerror}") from error
        self.closed.append(str(error.filename))

    def _path(self, parts: _Parts) -> str:
        return os.path.join(self.root, *parts)

    def notes(self) -> list[str]:
        """What became of links and closed folders, one sentence each."""
        result = []
        if self.closed:
            result.append(
                f"left out {len(self.closed)} folders that may not be read, for example "
                f"{shown(self.closed[0])}"
            )
        if self.aliases:
            link, name = self.aliases[0]
            result.append(
                f"left out {len(self.aliases)} links to folders that are listed anyway, for "
                f"example {shown('/'.join(link))}, which is {shown('/'.join(name) or '.')}"
            )
        if self.circles:
            result.append(
                f"left out {len(self.circles)} links to a folder around them, for example "
                f"{shown('/'.join(self.circles[0]))}"
            )
        if self.broken:
            result.append(
                f"{len(self.broken)} links lead nowhere, for example "
                f"{shown('/'.join(self.broken[0]))}"
            )
        return result


def _split(parts: _Parts) -> str:
    """The split a folder belongs to, as far as its name tells."""
    return next((part for part in parts[:2] if _is_split(part)), "")


def _listed(names: Mapping[str, _Parts], split: str) -> list[_Parts]:
    """The names by which a folder is listed already; a split may list what another one does."""
    if split:
        return [names[split]] if split in names else []
    return list(names.values())


def _identity(path: str) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino
