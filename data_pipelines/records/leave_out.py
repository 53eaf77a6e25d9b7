"""Records of a split that are left out of training and evaluation: a file made by an audit.

It names records by their numbers and says of which shards these are the numbers, so nothing is read
to use it, and numbers of other shards are never taken for them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from data_pipelines.records import storage
from data_pipelines.records.manifest import Manifest

VERSION = 1


@dataclass(frozen=True, slots=True)
class Records:
    """Of one split.

    Attributes:
      fingerprint: of the split whose numbers these are.
      directory, ids: for people.
    """

    fingerprint: str
    directory: str
    split: str
    records: tuple[int, ...]
    ids: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, manifest: Manifest, split: str, records: Sequence[int], ids: Sequence[str]
    ) -> Records:
        """Those numbers of a split."""
        return cls(
            manifest.fingerprint(split), manifest.directory, split, tuple(records), tuple(ids)
        )


def write(path: str, found: Sequence[Records]) -> None:
    """Writes the file, atomically."""
    content = {"version": VERSION, "splits": [asdict(each) for each in found]}
    storage.write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def read(path: str) -> tuple[Records, ...]:
    """What the file says; ValueError for one that is not there or is no such file."""
    try:
        content = json.loads(storage.read_text(path))
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}, expected {VERSION}")
        return tuple(
            Records(
                each["fingerprint"],
                each["directory"],
                each["split"],
                tuple(map(int, each["records"])),
                tuple(each["ids"]),
            )
            for each in content["splits"]
        )
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; `ivj data audit` writes it") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: is no list of records as `ivj data audit` writes it ({error})"
        ) from error


def is_about(path: str, manifest: Manifest, split: str) -> bool:
    """Whether the file speaks of this split, if only to say that nothing is left out of it."""
    wanted = manifest.fingerprint(split)
    return any(each.fingerprint == wanted for each in read(path))


def kept(path: str, manifest: Manifest, split: str) -> np.ndarray | None:
    """(K,) numbers of the records that stay; None where the file leaves out none of this split.

    Raises:
      ValueError: as `read`; the file is about this directory and split as it was before; nothing
        would be left.
    """
    if not path:
        return None
    found, wanted = read(path), manifest.fingerprint(split)
    mine = [each for each in found if each.fingerprint == wanted]
    if not mine:
        same = [
            each for each in found if (each.directory, each.split) == (manifest.directory, split)
        ]
        if same:
            raise ValueError(
                f"{path} is about other records of {manifest.directory}, split {split}: it was "
                "ingested anew since; run the audit again"
            )
        return None
    total = manifest.split(split).records
    stays = np.ones(total, bool)
    for each in mine:
        stays[list(each.records)] = False
    if stays.all():
        return None
    if not stays.any():
        raise ValueError(f"{path} leaves out all {total} records of {manifest.directory} {split}")
    return np.flatnonzero(stays)
