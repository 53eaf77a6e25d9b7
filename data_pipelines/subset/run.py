"""One subset: read the list into columns on disk, select, write the rows that are left.

The list is read twice (three times to find near duplicates) and never held in memory; per row
some 30 bytes lie on disk while it runs. The output appears when it is complete. What an interrupted
run had read is kept in OUT.work, and the same command continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipelines.commands.lock import DirectoryLock
from data_pipelines.subset import near_duplicates, rows, sampling, selection, writing
from data_pipelines.subset.options import CODE, REASONS, SubsetOptions
from data_pipelines.text.caption import clean_caption

VERSION = 1
CHUNK = 1 << 17  # rows between two notes of how far the reading is
_EXAMPLES = 20
# state: number of the reason. video, clip: hashes of the source video, and of clip and times.
_COLUMNS = {
    "state": np.uint8,
    "similarity": np.float64,
    "aesthetic": np.float64,
    "video": np.uint64,
    "clip": np.uint64,
}


def build(options: SubsetOptions, quiet: bool = True) -> dict[str, Any]:
    """Makes the subset and its summary (OUT.summary.json); returns the summary.

    The result is a function of the sources and the options.

    Raises:
      ValueError: options or files that do not fit; the output is there and is another subset.
      RuntimeError: a list that changes, or cannot be read to its end.
    """
    options.check()
    kinds = {rows.kind(path) for path in (*options.sources, options.out)}
    if len(kinds) > 1:
        raise ValueError("sources and output must be of one format: all JSONL or all Parquet")
    if "parquet" in kinds:
        rows.pyarrow_parquet()
        if options.sample_by == "reference" and options.sample:
            raise ValueError(
                "--sample-by reference writes rows in the order drawn, which is for JSONL; "
                "use --sample-by video"
            )
    identity = _identity(options)
    if (done := _done(options, identity)) is not None:
        return done
    work = f"{options.out}.work"
    os.makedirs(work, exist_ok=True)
    with DirectoryLock(work):
        return _build(options, work, identity, quiet)


def _done(options: SubsetOptions, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The summary if the subset is there; ValueError if something else is."""
    if not os.path.exists(options.out):
        return None
    with contextlib.suppress(OSError, ValueError):
        with open(_summary_path(options), encoding="utf-8") as file:
            summary = json.load(file)
        if summary["identity"] == identity:
            return summary
    raise ValueError(
        f"{options.out}: is there and was made otherwise; remove it or choose another --out"
    )


def _summary_path(options: SubsetOptions) -> str:
    return f"{options.out}.summary.json"


def _build(
    options: SubsetOptions, work: str, identity: dict[str, Any], quiet: bool
) -> dict[str, Any]:
    note = _Note(os.path.join(work, "note.json"), identity)
    _scan(options, work, note, quiet)
    columns = {name: _column(work, name) for name in _COLUMNS}
    found = _select(options, work, columns, quiet)
    order = found.pop("order")
    path = os.path.join(work, "output")
    digest = writing.write(path, options, columns["state"], order, quiet)
    if _identity(options) != identity:
        raise RuntimeError("a source changed while it was read; start again")
    total = len(columns["state"])
    summary = {
        "identity": identity,
        "rows": total,
        "rows_per_source": note.data["rows_per_source"],
        "left_out": {
            reason: selection.count(columns["state"], CODE[reason]) for reason in REASONS[1:]
        },
        "kept": selection.count(columns["state"]),
        **found,
        "malformed_examples": note.data["malformed"],
        "sources_sha256": {path: _sha256(path) for path in options.sources},
        "sha256": digest,
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    writing.replace(_summary_path(options), text)
    os.replace(path, options.out)  # last: without it the same command starts where it can
    shutil.rmtree(work)
    return summary


def _identity(options: SubsetOptions) -> dict[str, Any]:
    """What a run must have in common with an earlier one to continue it."""
    stats = [os.stat(path) for path in options.sources]
    settings = {k: v for k, v in dataclasses.asdict(options).items() if k not in ("out", "max_bad")}
    return {
        "version": VERSION,
        "options": json.loads(json.dumps(settings)),
        "sources": [[s.st_size, s.st_mtime_ns] for s in stats],
    }


class _Note:
    """How far the reading is, on disk."""

    def __init__(self, path: str, identity: dict[str, Any]):
        self._path = path
        self.data: dict[str, Any] = {
            "identity": identity,
            "source": 0,  # the file being read
            "begin": 0,  # byte in it
            "rows": 0,  # read, all files
            "rows_per_source": [],  # of the files that are done
            "malformed": [],
        }
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                earlier = json.load(file)
            if earlier["identity"] == identity:
                self.data = earlier

    def save(self) -> None:
        writing.replace(self._path, json.dumps(self.data))


def _scan(options: SubsetOptions, work: str, note: _Note, quiet: bool) -> None:
    """Reads the sources into the columns, from where the note says."""
    data = note.data
    if data["source"] == len(options.sources):
        return
    files = {name: open(os.path.join(work, name), "ab") for name in _COLUMNS}  # noqa: SIM115
    try:
        for name, file in files.items():
            file.truncate(data["rows"] * np.dtype(_COLUMNS[name]).itemsize)
        chunk = _Chunk(options, files)
        with tqdm(desc="read", unit="row", initial=data["rows"], disable=quiet or None) as bar:
            while data["source"] < len(options.sources):
                path = options.sources[data["source"]]
                before = data["rows"] - sum(data["rows_per_source"])
                number = before
                for row, place in rows.stored(path, data["begin"]):
                    number += 1
                    chunk.add(row, f"{os.path.basename(path)} row {number}")
                    if len(chunk) == CHUNK and rows.resumable(path):
                        bar.update(chunk.flush(data))
                        data["begin"] = place
                        note.save()
                    elif len(chunk) == CHUNK:
                        bar.update(chunk.write())
                bar.update(chunk.flush(data))
                data["source"] += 1
                data["begin"] = 0
                data["rows_per_source"].append(number)
                note.save()
    finally:
        for file in files.values():
            file.close()


class _Chunk:
    """Rows on their way to the disk."""

    def __init__(self, options: SubsetOptions, files: dict[str, Any]):
        self._options, self._files = options, files
        self._values: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        self._malformed: list[str] = []
        self._written = 0  # since the last note

    def __len__(self) -> int:
        return len(self._values["state"])

    def add(self, row: rows.Stored, where: str) -> None:
        values = self._values
        try:
            clip = rows.read(row, where, self._options.columns)
        except ValueError as error:
            if len(self._malformed) < _EXAMPLES:
                self._malformed.append(str(error))
            entry = (CODE["malformed"], np.nan, np.nan, 0, 0)
        else:
            entry = (
                CODE[_reason(clip, self._options)],
                np.nan if clip.similarity is None else clip.similarity,
                np.nan if clip.aesthetic is None else clip.aesthetic,
                _hash(clip.video),
                _hash(f"{clip.video}\0{clip.name}\0{clip.start}\0{clip.end}"),
            )
        for column, value in zip(values.values(), entry, strict=True):
            column.append(value)

    def write(self) -> int:
        """Appends the rows to the columns; returns how many."""
        count = len(self)
        for name, values in self._values.items():
            np.asarray(values, _COLUMNS[name]).tofile(self._files[name])
            values.clear()
        self._written += count
        return count

    def flush(self, data: dict[str, Any]) -> int:
        """`write`, and everything written so far goes into the note."""
        count = self.write()
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        data["rows"] += self._written
        data["malformed"] = (data["malformed"] + self._malformed)[:_EXAMPLES]
        self._written, self._malformed = 0, []
        return count


def _hash(text: str) -> int:
    """64 bits; among 10 million different texts two agree once in 300 000 lists."""
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _reason(clip: rows.ListedClip, options: SubsetOptions) -> str:
    """Why the row is out by itself; `kept` if it is not."""
    if options.min_words is not None or options.max_words is not None:
        words = len(clean_caption(clip.caption).split())
        most = words if options.max_words is None else options.max_words
        if not (options.min_words or 0) <= words <= most:
            return "words"
    if options.min_seconds is not None or options.max_seconds is not None:
        if clip.end is None:
            return "duration"
        length = clip.end - (clip.start or 0.0)
        # Times have milliseconds: 12.1 - 2.1 is 10.
        low = -np.inf if options.min_seconds is None else options.min_seconds
        high = np.inf if options.max_seconds is None else options.max_seconds
        if not low <= round(length, 6) <= high:
            return "duration"
    if options.languages and (clip.language or "").lower() not in options.languages:
        return "language"
    for name, needed in (
        ("similarity", options.needs_similarity),
        ("aesthetic", options.needs_aesthetic),
    ):
        value, least = getattr(clip, name), getattr(options, f"min_{name}")
        if needed and value is None:
            return f"no_{name}"
        if least is not None and value < least:
            return name
    return "kept"


def _column(work: str, name: str) -> np.ndarray:
    """The column; `state` as a copy, so that a selection that was interrupted begins anew."""
    path = os.path.join(work, name)
    if name == "state":
        path = shutil.copyfile(path, f"{path}.selection")
    if not os.path.getsize(path):  # memmap refuses an empty file
        return np.zeros(0, _COLUMNS[name])
    return np.memmap(path, _COLUMNS[name], "r+")


def _scratch(work: str, name: str, dtype: Any, like: np.ndarray) -> np.ndarray:
    if not len(like):
        return np.zeros(0, dtype)
    return np.memmap(os.path.join(work, name), dtype, "w+", shape=like.shape)


def _select(
    options: SubsetOptions, work: str, columns: dict[str, np.ndarray], quiet: bool
) -> dict[str, Any]:
    """Everything that looks at more than one row; sets the states, returns facts."""
    state = columns["state"]
    facts: dict[str, Any] = {"order": None}
    repeats = state if options.repeated == "drop" else _scratch(work, "repeats", np.uint8, state)
    if repeats is not state:
        for part in selection.chunks(state, repeats):
            repeats[part] = state[part]
    facts["repeated_clips"] = selection.mark_repeats(
        columns["clip"], repeats, CODE["repeated_clip"]
    )
    if options.near_duplicates != "off":
        flags = _scratch(work, "flags", np.uint8, state)
        scratch = os.path.join(work, "bands")
        shutil.rmtree(scratch, ignore_errors=True)
        os.makedirs(scratch)
        size = sum(os.path.getsize(path) for path in options.sources)
        facts["near_duplicates"] = near_duplicates.find(
            _captions(options, state, quiet), flags, scratch, size
        )
        if options.near_duplicates == "drop":
            for part in selection.chunks(state, flags):
                some = state[part]
                some[(some == 0) & (flags[part] == 1)] = CODE["near_duplicate"]
    if options.top_share is not None:
        left = selection.count(state)
        wanted = int(left * options.top_share + 1e-9)  # 0.3 of 10 is 3
        facts["top_share_threshold"] = selection.keep_largest(
            columns["similarity"], state, wanted, CODE["top_share"]
        )
    if options.top_aesthetic is not None:
        facts["top_aesthetic_threshold"] = selection.keep_largest(
            columns["aesthetic"], state, options.top_aesthetic, CODE["top_aesthetic"]
        )
    if options.sample is not None:
        facts["order"] = _sample(options, work, columns)
    facts["videos"] = selection.occurrences(
        columns["video"], state, _scratch(work, "clips", np.uint32, state)
    )
    return facts


def _captions(options: SubsetOptions, state: np.ndarray, quiet: bool) -> Iterator[tuple[int, str]]:
    number = 0
    with tqdm(desc="compare", unit="row", total=len(state), disable=quiet or None) as bar:
        for path in options.sources:
            for row, _ in rows.stored(path):
                bar.update()
                if number < len(state) and state[number] == 0:
                    yield number, rows.read(row, path, options.columns).caption
                number += 1


def _sample(options: SubsetOptions, work: str, columns: dict[str, np.ndarray]) -> np.ndarray | None:
    """Marks what is not drawn; returns the rows in the order drawn if that is their order."""
    state, videos = columns["state"], columns["video"]
    left, wanted = selection.count(state), options.sample or 0
    if wanted > left:
        raise ValueError(f"--sample {wanted}: only {left} rows are left to draw from")
    if options.sample_by == "reference":
        inside = np.flatnonzero(np.asarray(state) == 0)
        drawn = inside[sampling.diverse(np.asarray(videos[inside]), wanted, options.seed)]
        state[inside] = CODE["not_sampled"]
        state[drawn] = 0
        return drawn
    clips = _scratch(work, "clips", np.uint32, state)
    if options.sample_by == "video":
        selection.occurrences(videos, state, clips)
    else:
        for part in selection.chunks(clips):
            clips[part] = 1
    keys = _scratch(work, "keys", np.float64, state)
    generator = np.random.Generator(np.random.Philox(options.seed))
    for part in selection.chunks(keys, clips):
        keys[part] = sampling.keys(clips[part], generator)
    selection.keep_largest(keys, state, wanted, CODE["not_sampled"])
    return None


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def report(summary: dict[str, Any]) -> Iterator[str]:
    """The summary as lines for a terminal."""
    yield f"{summary['rows']} rows, {summary['kept']} kept from {summary['videos']} videos"
    for reason, number in summary["left_out"].items():
        if number:
            yield f"  {number} left out: {reason.replace('_', ' ')}"
    yield f"  {summary['repeated_clips']} rows repeat the clip of an earlier one"
    if found := summary.get("near_duplicates"):
        yield f"  {found['near_duplicates']} captions are near duplicates of an earlier one"
    for example in summary["malformed_examples"][:3]:
        yield f"  malformed: {example}"
