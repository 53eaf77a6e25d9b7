"""Embeddings kept on disk by content, so that what was embedded once costs nothing again."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import os
import tempfile
from pathlib import Path

import numpy as np

from data_pipelines.records import storage
from data_pipelines.records.outputs import check_folder

VERSION = 1  # of the layout of an entry


@dataclasses.dataclass(frozen=True)
class CachedFile:
    """What is known of one file's content.

    Attributes:
      embeddings: (W, E) float32 of its clips, as the model gives them.
      windows_us: (W, 2) int64, start and end of each in microseconds.
      thumbnails: a JPEG file for each.
      note: what was wrong with the file; mostly empty.
    """

    embeddings: np.ndarray
    windows_us: np.ndarray
    thumbnails: tuple[bytes, ...]
    note: str = ""


def default_folder() -> Path:
    """Where embeddings are kept, in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "internvideo_jax" / "search"


def content_digest(path: str | os.PathLike[str]) -> tuple[str, os.stat_result]:
    """sha256 of the bytes of a file, and what the system says of it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno())


class EmbeddingCache:
    """Entries by (bytes of the file, weights, sampling); names and times of files play no part.

    Every entry is a file of its own that is replaced whole, so that several commands may share a
    folder. One that cannot be read counts as missing, and in `damaged`.

    Args:
      folder: where, a URL of an object store as well; None keeps nothing.
      weights: digest of the model's parameters and settings.
      sampling: `clips.Sampling.identity`.
    """

    def __init__(self, folder: Path | str | None, weights: str, sampling: str):
        self.folder: Path | str | None = folder
        self.damaged = 0
        self._made_with = f"{VERSION}\n{weights}\n{sampling}\n"
        if folder is not None and storage.is_remote(folder):
            check_folder("--cache", folder, remote=True)
        elif folder is not None:
            self.folder = folder = Path(folder)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                writable = os.access(folder, os.W_OK)
            except OSError:
                writable = False
            if not writable:
                raise ValueError(
                    f"--cache={folder} cannot be written to; give another folder or off"
                )

    def path(self, content: str) -> Path | str | None:
        """The file of an entry.

        Args:
          content: `content_digest` of the video file.
        """
        if self.folder is None:
            return None
        key = hashlib.sha256((self._made_with + content).encode()).hexdigest()
        name = f"{key[:2]}/{key}.npz"
        if isinstance(self.folder, Path):
            return self.folder / name
        return storage.join(self.folder, name)

    def get(self, content: str) -> CachedFile | None:
        """What was put for this content; None for nothing, or for a damaged file."""
        path = self.path(content)
        if path is None or not storage.exists(path):
            return None
        try:
            return _unpack(storage.read_bytes(path))
        except storage.StorageError:
            raise
        except Exception:  # noqa: BLE001  (what zip, zlib and numpy raise for damage is no list)
            self.damaged += 1
            return None

    def put(self, content: str, entry: CachedFile) -> None:
        """Keeps an entry for the next start; nothing without a folder."""
        path = self.path(content)
        if path is None:
            return
        if not isinstance(path, Path):
            storage.write_atomic(path, _pack(entry))
            return
        path.parent.mkdir(exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with open(handle, "wb") as file:
                file.write(_pack(entry))
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


def _pack(entry: CachedFile) -> bytes:
    data = io.BytesIO()
    np.savez(
        data,
        embeddings=entry.embeddings,
        windows_us=entry.windows_us,
        thumbnails=np.frombuffer(b"".join(entry.thumbnails), np.uint8),
        lengths=np.array([len(picture) for picture in entry.thumbnails], np.int64),
        note=np.frombuffer(entry.note.encode(), np.uint8),
    )
    return data.getvalue()


def _unpack(data: bytes) -> CachedFile:
    """ValueError and errors of the zip format where the bytes are no entry."""
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        embeddings, windows = found["embeddings"], found["windows_us"]
        bounds = np.concatenate([[0], np.cumsum(found["lengths"])])
        joined = found["thumbnails"].tobytes()
        note = found["note"].tobytes().decode()
    count = len(embeddings)
    if (
        embeddings.ndim != 2
        or embeddings.dtype != np.float32
        or not np.isfinite(embeddings).all()
        or windows.shape != (count, 2)
        or len(bounds) != count + 1
        or bounds[-1] != len(joined)
        or (np.diff(bounds) < 0).any()
    ):
        raise ValueError("not an entry of this cache")
    pictures = [joined[a:b] for a, b in itertools.pairwise(bounds)]
    return CachedFile(embeddings, windows, tuple(pictures), note)
