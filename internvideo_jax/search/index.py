"""The clips of a folder with their embeddings, and how they are made."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data_pipelines.ingest.container import VideoError, check_file
from data_pipelines.ingest.rows import Row
from data_pipelines.stream.prefetch import in_order
from internvideo_jax.inference.vectors import no_direction, unit
from internvideo_jax.search.cache import CachedFile, EmbeddingCache, content_digest
from internvideo_jax.search.clips import Decoded, Sampling, decode
from internvideo_jax.search.encoder import SearchEncoder

Identity = tuple[int, int, int, int]


def identity_of(info: os.stat_result) -> Identity:
    """What tells a file from another one, or from itself after a change."""
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


@dataclasses.dataclass(frozen=True)
class IndexedVideo:
    """A file of the index.

    Attributes:
      path: without links.
      name: within the folder, for people to read.
      identity: of the file whose content was indexed.
    """

    path: str
    name: str
    note: str = ""
    identity: Identity = (0, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class IndexedClip:
    """A part of a video, seconds from its start."""

    video: int
    start: float
    end: float
    thumbnail: bytes


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A file that is not in the index."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class VideoIndex:
    """What can be found.

    Attributes:
      embeddings: (N, E) float32 of length 1, one row per clip.
      embedded: files that went through the model; `reused`: files whose content was known.
    """

    videos: tuple[IndexedVideo, ...]
    clips: tuple[IndexedClip, ...]
    embeddings: np.ndarray
    skipped: tuple[Skipped, ...]
    embedded: int = 0
    reused: int = 0

    def nearest(self, text: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Clips by falling similarity; equal ones in the order of the index.

        Args:
          text: (E,) any length.

        Returns:
          Numbers of at most `count` clips, and their cosines.

        Raises:
          ValueError: `text` is zero or not finite, so it has no direction.
        """
        similarity = self.embeddings @ directions(text[None])[0]
        order = np.argsort(-similarity, kind="stable")[:count]
        return order, similarity[order]


Progress = Callable[[int, int, str], None]  # files done, of how many, name of the last one


class Stopped(Exception):
    """The building of an index was called off."""


def directions(rows: np.ndarray) -> np.ndarray:
    """(N, E) float32 of length 1; ValueError for a row that is zero or not finite."""
    if no_direction(rows).any():
        raise ValueError("the model gives an embedding that is zero or not finite for this")
    return unit(rows)


def build_index(
    rows: Sequence[Row],
    encoder: SearchEncoder,
    sampling: Sampling,
    cache: EmbeddingCache,
    *,
    threads: int = 2,
    progress: Progress = lambda done, total, name: None,
    stop: threading.Event | None = None,
    within: str | os.PathLike[str] = "",
) -> VideoIndex:
    """Embeds every file whose content is not in the cache; equal files are embedded once.

    Files that cannot be used are listed in `skipped`, with the reason.

    Args:
      threads: files decoded at a time.
      stop: checked between files; set, it ends the work.
      within: files that links lead to outside of this folder cannot be used; empty: they can.

    Raises:
      Stopped: `stop` was set. What was embedded before is in the cache.
    """
    stop = stop or threading.Event()
    known: dict[str, CachedFile] = {}
    reasons: dict[str, str] = {}  # of files, and of contents
    contents: dict[str, str] = {}  # path -> digest
    places: dict[str, tuple[str, Identity]] = {}  # path -> without links, and what was there
    wanted: dict[str, Row] = {}  # digest -> a file that has it
    for row in rows:
        if stop.is_set():
            raise Stopped
        try:
            check_file(row.path)
            place = _place(row.path, within)
            digest, info = content_digest(place)
            contents[row.path], places[row.path] = digest, (place, identity_of(info))
        except (VideoError, OSError) as error:
            reasons[row.path] = str(error)
            continue
        if digest not in known and digest not in wanted:
            entry = cache.get(digest)
            if entry is None:
                wanted[digest] = row
            else:
                known[digest] = entry
    done = 0
    fresh = set(wanted)
    progress(done, len(wanted), "")
    for digest, outcome in _embedded(wanted, encoder, sampling, threads, stop):
        if isinstance(outcome, str):
            reasons[digest] = outcome
        else:
            known[digest] = outcome
            cache.put(digest, outcome)
        done += 1
        progress(done, len(wanted), wanted[digest].name)
    return _assemble(rows, contents, known, reasons, fresh, places)


def _place(path: str, within: str | os.PathLike[str]) -> str:
    """The path without links; VideoError where it leaves the folder."""
    place = os.path.realpath(path)
    folder = os.path.realpath(within) if within else os.sep
    if os.path.commonpath([folder, place]) != folder:
        raise VideoError("open", "is a link out of the folder, which is not followed")
    return place


def _embedded(
    wanted: dict[str, Row],
    encoder: SearchEncoder,
    sampling: Sampling,
    threads: int,
    stop: threading.Event,
) -> Iterator[tuple[str, CachedFile | str]]:
    """(digest, entry or the reason why there is none); clips of different files share a step."""
    waiting: list[tuple[str, np.ndarray]] = []  # clips not embedded yet, with their file
    files: dict[str, Decoded] = {}
    vectors: dict[str, list[np.ndarray]] = {}

    def flush() -> Iterator[tuple[str, CachedFile | str]]:
        if not waiting:
            return
        part, waiting[:] = waiting[: encoder.clips], waiting[encoder.clips :]
        found = encoder.video(np.stack([pixels for _, pixels in part]))
        for (digest, _), vector in zip(part, found, strict=True):
            vectors[digest].append(vector)
            if len(vectors[digest]) == len(files[digest].windows_us):
                yield digest, _entry(files.pop(digest), np.stack(vectors.pop(digest)))

    for digest, decoded in _decoded(wanted, sampling, threads, stop):
        if isinstance(decoded, str):
            yield digest, decoded
            continue
        # The pixels go with the clips that wait, so that those of a finished clip are freed.
        files[digest] = dataclasses.replace(decoded, pixels=decoded.pixels[:0])
        vectors[digest] = []
        waiting += [(digest, pixels) for pixels in decoded.pixels]
        while len(waiting) >= encoder.clips:
            if stop.is_set():
                raise Stopped
            yield from flush()
    while waiting:
        yield from flush()


def _entry(decoded: Decoded, vectors: np.ndarray) -> CachedFile | str:
    if no_direction(vectors).any():
        return "the model gives an embedding that is zero or not finite for it"
    return CachedFile(vectors, decoded.windows_us, decoded.thumbnails, decoded.note)


def _decoded(
    wanted: dict[str, Row], sampling: Sampling, threads: int, stop: threading.Event
) -> Iterator[tuple[str, Decoded | str]]:
    """Files decoded a few ahead, in order."""

    def work(row: Row) -> Decoded | str:
        if stop.is_set():
            return ""
        try:
            return decode(row.path, sampling)
        except VideoError as error:
            return str(error)

    with ThreadPoolExecutor(threads) as pool:
        files = in_order(pool, lambda digest: work(wanted[digest]), wanted, threads + 1)
        for digest, outcome in files:
            if stop.is_set():
                raise Stopped
            yield digest, outcome


def _assemble(
    rows: Sequence[Row],
    contents: dict[str, str],
    known: dict[str, CachedFile],
    reasons: dict[str, str],
    fresh: set[str],
    places: dict[str, tuple[str, Identity]],
) -> VideoIndex:
    videos, clips, vectors, skipped = [], [], [], []
    embedded = reused = 0
    seen: set[str] = set()
    for row in rows:
        digest = contents.get(row.path, "")
        entry = known.get(digest)
        if entry is None:
            reason = reasons.get(digest) or reasons.get(row.path, "")
            skipped.append(Skipped(row.name, reason))
            continue
        if digest in fresh and digest not in seen:
            embedded += 1
        else:
            reused += 1
        seen.add(digest)
        for (start, end), picture in zip(entry.windows_us / 1e6, entry.thumbnails, strict=True):
            clips.append(IndexedClip(len(videos), float(start), float(end), picture))
        vectors.append(entry.embeddings)
        path, identity = places[row.path]
        videos.append(IndexedVideo(path, row.name, entry.note, identity))
    matrix = directions(np.concatenate(vectors)) if vectors else np.zeros((0, 0), np.float32)
    return VideoIndex(
        tuple(videos), tuple(clips), matrix, tuple(skipped), embedded=embedded, reused=reused
    )
