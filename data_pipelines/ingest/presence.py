"""Whether the files of a source are still there: a mount that drops out is no bad file.

A file that is missing from the beginning is a rejected row. A file that was there and is gone means
that the source is going: no row after it can be judged, so the run stops and the next one tries
again. What was there is known of a few witnesses, chosen when the run begins, and of the rows of a
shard, looked at when that shard begins.
"""

import os
from collections.abc import Iterable, Sequence

from data_pipelines.ingest import alone, tfds
from data_pipelines.ingest.frames import FrameFolder
from data_pipelines.ingest.rows import Row

_WITNESSES = 32
# So many rows of which not one file is there are no list of a few missing files.
_ALL_MISSING = 5


class SourceVanished(RuntimeError):
    """Files that were there are gone."""


def missing(path: str) -> bool:
    """Whether nothing is there of what a row's path names, or it cannot be reached."""
    if path.startswith(alone.SCHEME):
        return False
    try:
        if path.startswith(FrameFolder.SCHEME):
            with os.scandir(FrameFolder.parse(path).folder) as entries:
                return next(entries, None) is None
        if path.startswith(tfds.TFDSExample.SCHEME):
            path = os.path.join(tfds.TFDSExample.parse(path).directory, tfds.FEATURES_FILE)
        os.stat(path)
    except OSError:
        return True
    except ValueError:  # no name that a file could have
        return False
    return False


def choose_witnesses(rows: Sequence[Row]) -> tuple[str, ...]:
    """Paths of files that are there, spread over the rows; none if not one file is there."""
    step = max(1, len(rows) // _WITNESSES)
    for offset in range(step):
        found = [row.path for row in rows[offset::step] if not missing(row.path)]
        if found:
            return tuple(found)
    return ()


def away(rows: Sequence[Row], witnesses: Sequence[str]) -> str:
    """What to say of a source of which not one file is there; empty otherwise.

    A few missing files are rejected rows, also where the source lists no others.
    """
    if witnesses or len(rows) < _ALL_MISSING:
        return ""
    return (
        f"none of the {len(rows)} files that the source lists is there, for example "
        f"{_named(rows[0].path)}: mount the storage, or correct the paths (--root)"
    )


class Presence:
    """What is known to have been there while a shard is written.

    Args:
      rows: of the shard; looked at now.
      witnesses: paths from elsewhere in the source that were there.
      away: of `away`, when the run began.
    """

    def __init__(self, rows: Iterable[Row], witnesses: Sequence[str], away: str):
        self._seen = {row.path for row in rows if not missing(row.path)}
        self._witnesses = witnesses
        self._away = away

    def check(self, path: str) -> bool:
        """Whether a file, about which something is wrong, is missing.

        Raises:
          SourceVanished: it was there before, or a witness is gone, or nothing ever was there.
        """
        if not missing(path):
            return False
        if self._away:
            raise SourceVanished(self._away)
        known = [path] if path in self._seen else []
        gone = next((each for each in (*known, *self._witnesses) if missing(each)), None)
        if gone is not None:
            raise SourceVanished(
                f"the source vanished: {_named(gone)} was there when the run began and is missing "
                "now; the rows that were not read yet will be tried again"
            )
        return True


def _named(path: str) -> str:
    """A path as a person knows it."""
    if path.startswith(FrameFolder.SCHEME):
        return FrameFolder.parse(path).folder
    if path.startswith(tfds.TFDSExample.SCHEME):
        return tfds.TFDSExample.parse(path).directory
    return path
