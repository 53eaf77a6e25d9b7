"""What to ingest: a folder, a table, a list, a JSON file or a TFDS data set as rows."""

import os
from collections import Counter
from collections.abc import Iterator

from data_pipelines.ingest import lists, tables, tfds
from data_pipelines.ingest.image import IMAGE_SUFFIXES
from data_pipelines.ingest.options import Options, check_name
from data_pipelines.ingest.presence import SourceVanished
from data_pipelines.ingest.rows import Listing, Row, printable

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv",
))
# fmt: on
# What --media asks for in a folder.
_WANTED = {
    "video": ("videos", VIDEO_SUFFIXES),
    "image": ("pictures", IMAGE_SUFFIXES),
    "auto": ("videos or pictures", VIDEO_SUFFIXES | IMAGE_SUFFIXES),
}
SPLIT_FOLDERS = frozenset(("train", "val", "valid", "validation", "test"))


class NothingListed(ValueError):
    """A source without a single row."""


def read(options: Options) -> Listing:
    """List the source of an ingest.

    Raises:
      FileNotFoundError: the source does not exist.
      ValueError: it lists nothing, lists something twice, or cannot be understood; the message
        names file and line.
      SourceVanished: a folder cannot be listed to its end.
    """
    source = options.source
    if source.startswith(tfds.PREFIX) and not os.path.exists(source):
        listing = tfds.read(options)
    elif os.path.isdir(source):
        if options.columns:
            raise ValueError(f"--columns is for tables, and {source} is a folder; leave it out")
        listing = _read_folder(source, options.split, options.media)
    elif not os.path.exists(source):
        raise FileNotFoundError(
            f"{source}: no such file or folder; --source takes a folder of videos, a .csv/.tsv or "
            "a .jsonl file, a list (.csv, .txt), a .json file, or tfds:NAME"
        )
    else:
        listing = _READERS[detect(options)](source, options)
    if not listing.rows:
        raise NothingListed(
            f"{source}: lists no {_WANTED[options.media][0]}"
            + "".join(f"; {note}" for note in listing.notes)
            + ". Expected files ending in "
            + " ".join(sorted(_WANTED[options.media][1]))
        )
    for split in {row.split for row in listing.rows}:
        check_name("split", split)
    _check_ids(source, listing)
    return listing


_READERS = {
    "table": tables.read,
    "json": tables.read_json,
    "kinetics": lists.read,
    "rawframes": lists.read,
}


def detect(options: Options) -> str:
    """The format of a source file: what ``options.format`` says, or what the file looks like.

    By the suffix ``.json``, ``.jsonl`` and ``.tsv``. A ``.csv`` is a table if its first line has a
    column of a known name, a list if it ends with a number, otherwise a table; other text files
    are lists.
    """
    if options.format != "auto":
        return options.format
    suffix = os.path.splitext(options.source)[1].lower()
    if suffix == ".json":
        return "json"
    if suffix not in lists.SUFFIXES:
        return "table"
    if suffix != ".csv":
        return "kinetics" if _first_line(options.source) else "table"
    if options.columns:
        return "kinetics" if all(map(str.isdigit, options.columns.values())) else "table"
    line = _first_line(options.source)
    names = {name.strip().strip('"') for name in line.split(",")}
    if names.intersection(tables.COLUMNS) or options.path_template is not None:
        return "table"
    return "kinetics" if lists.looks_like(line) else "table"


def _first_line(path: str) -> str:
    """The first line that is not empty, as far as it can be read."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return next((line.strip() for line in file if line.strip()), "")


def _check_ids(source: str, listing: Listing) -> None:
    seen: dict[tuple[str, str], str] = {}
    splits: dict[str, str] = {}
    leaks: list[str] = []
    for row in listing.rows:
        key = (row.split, row.id)
        if key in seen:
            raise ValueError(
                f"{source}: {seen[key]} and {row.where} have the same id {row.id!r} in split "
                f"{row.split!r}; give them different ids in a column 'id', or remove one"
            )
        seen[key] = row.where
        if splits.setdefault(row.id, row.split) != row.split:
            leaks.append(row.id)
    if leaks:
        listing.notes.append(
            f"{len(leaks)} ids are in more than one split, for example {leaks[0]!r}: "
            "make sure that no test clip is trained on"
        )


def _read_folder(root: str, default_split: str, media: str) -> Listing:
    """Class = parent folder; SPLIT/CLASS/file when all top folders are split names."""
    wanted, suffixes = _WANTED[media]
    files, ignored = [], Counter[str]()
    for path in _walk(root):
        suffix = os.path.splitext(path)[1].lower()
        if suffix in suffixes:
            files.append(os.path.relpath(path, root))
        else:
            ignored[suffix or "no suffix"] += 1
    parts = [file.split(os.sep) for file in files]
    has_splits = bool(parts) and all(len(p) > 1 and p[0].lower() in SPLIT_FOLDERS for p in parts)
    rows = []
    for file, folders in zip(files, parts, strict=True):
        split, inner = (folders[0], folders[1:-1]) if has_splits else (default_split, folders[:-1])
        name = printable(file.replace(os.sep, "/"))
        rows.append(
            Row(
                path=os.path.join(root, file),
                name=name,
                id=name,
                split=split,
                labels=(printable(inner[-1]),) if inner else (),
                where=name,
            )
        )
    notes = []
    if ignored:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in ignored.most_common(5))
        notes.append(f"ignored {sum(ignored.values())} files that are not {wanted} ({kinds})")
    return Listing(rows, notes)


def _check_reachable(error: OSError) -> None:
    """Folders that may not be read are left out; storage that goes away would shorten the list."""
    if not isinstance(error, PermissionError):
        raise SourceVanished(f"{error.filename}: cannot be listed: {error.strerror}") from error


def _walk(root: str) -> Iterator[str]:
    """Files below ``root`` in a stable order; follows links, hidden names left out."""
    visited: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_check_reachable):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in visited:
            folders.clear()  # a link back up would never end
            continue
        visited.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield os.path.join(folder, name)
