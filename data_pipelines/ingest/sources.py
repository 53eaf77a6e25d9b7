"""What to ingest: a folder, a table, a list, a JSON file or a TFDS dataset as rows."""

import os

from data_pipelines.ingest import alone, cells, folders, lists, table_files, tables, tfds
from data_pipelines.ingest.frames import FrameFolder
from data_pipelines.ingest.image import IMAGE_SUFFIXES
from data_pipelines.ingest.options import IngestOptions, check_name
from data_pipelines.ingest.rows import Listing, Row
from data_pipelines.ingest.suffixes import VIDEO_SUFFIXES

# What --media asks for in a folder.
_WANTED = {
    "video": ("videos", VIDEO_SUFFIXES),
    "image": ("images", IMAGE_SUFFIXES),
    "auto": ("videos or images", VIDEO_SUFFIXES | IMAGE_SUFFIXES),
    "features": ("rows", frozenset()),
}


class NothingListed(ValueError):
    """A source without a single row."""


def read(options: IngestOptions) -> Listing:
    """List the source of an ingest.

    Raises:
      FileNotFoundError: the source does not exist.
      ValueError: it lists nothing, lists something twice, or cannot be understood; the message
        names file and line.
      SourceVanished: a folder cannot be listed to its end.
    """
    source = options.source
    prepared = source.startswith(tfds.PREFIX) and not os.path.exists(source)
    if not prepared and not os.path.exists(source):
        raise FileNotFoundError(
            f"{source}: no such file or folder; --source takes a folder of videos, a .csv/.tsv or "
            "a .jsonl file, a list (.csv, .txt), a .json file, or tfds:NAME"
        )
    if options.media == "features":
        listing = _read_table(options)
    elif prepared:
        listing = tfds.read(options)
    elif os.path.isdir(source):
        if options.columns:
            raise ValueError(f"--columns is for tables, and {source} is a folder; leave it out")
        wanted, suffixes = _WANTED[options.media]
        listing = folders.read(source, options.split, suffixes, wanted)
    else:
        listing = _READERS[detect(options)](source, options)
    if not listing.rows:
        wanted, suffixes = _WANTED[options.media]
        raise NothingListed(
            f"{source}: lists no {wanted}"
            + "".join(f"; {note}" for note in listing.notes)
            + (f". Expected files ending in {' '.join(sorted(suffixes))}" if suffixes else "")
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


def _read_table(options: IngestOptions) -> Listing:
    """The rows of a source without files."""
    if not os.path.isfile(options.source) or detect(options) != "table":
        raise ValueError(
            f"{options.source}: is no table, and --media features has no other source: the columns "
            "of a .csv, .tsv or .jsonl are all that its records hold"
        )
    return tables.read(options.source, options)


def detect(options: IngestOptions) -> str:
    """The format of a source file: what `options.format` says, or what the file looks like.

    By the suffix `.json`, `.jsonl` and `.tsv`. A `.csv` is a table if its first line has a
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
    names, _ = table_files.header(line, options.source, tables.wanted(options))
    if set(names).intersection(tables.COLUMNS) or options.path_template is not None:
        return "table"
    return "kinetics" if lists.looks_like(line) else "table"


def _first_line(path: str) -> str:
    """The first line that is not empty, as far as it can be read."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        lines = cells.read_lines(file, os.path.basename(path))
        return next((line.strip() for line in lines if line.strip()), "")


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
    elif len(set(splits.values())) > 1:
        _note_shared_files(listing)


def _note_shared_files(listing: Listing) -> None:
    """One file in two splits under two names, such as a.mp4 and ./a.mp4 or a link to it."""
    first: dict[str, Row] = {}
    shared: list[tuple[Row, Row]] = []
    folder_of: dict[str, str] = {}
    for row in listing.rows:
        other = first.setdefault(_real(row.path, folder_of), row)
        if other.split != row.split:
            shared.append((other, row))
    if shared:
        one, two = shared[0]
        listing.notes.append(
            f"{len(shared)} rows have a file that another split has too, for example {one.name!r} "
            f"in {one.split} and {two.name!r} in {two.split}: make sure that no test clip is "
            "trained on"
        )


def _real(path: str, folder_of: dict[str, str]) -> str:
    """The file behind a path of a row; `folder_of` keeps what each folder really is."""
    if path.startswith((tfds.TFDSExample.SCHEME, alone.SCHEME)):
        return path
    if path.startswith(FrameFolder.SCHEME):
        path = FrameFolder.parse(path).folder
    folder, name = os.path.split(path)
    try:
        if folder not in folder_of:
            folder_of[folder] = os.path.realpath(folder)
        real = os.path.join(folder_of[folder], name)
        return os.path.realpath(real) if os.path.islink(real) else real
    except ValueError:  # no name that a file can have
        return path
