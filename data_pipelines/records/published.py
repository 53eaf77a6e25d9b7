"""How much of a published list of clips a set holds: a file beside its manifest.

`ivj data missing --remember` writes it, evaluations repeat it in their protocols: a number on
19,404 of 19,881 published test clips is not the published number.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from data_pipelines.records import storage
from data_pipelines.records.manifest import Manifest

FILE_NAME = "published.json"


def remember(manifest: Manifest, split: str, name: str, sha256: str, held: int, listed: int) -> str:
    """Writes down that a split holds `held` of the `listed` clips of a list; where."""
    place = storage.join(manifest.directory, FILE_NAME)
    splits = {
        **_splits(manifest),
        split: {
            "fingerprint": manifest.fingerprint(split),
            "list": name,
            "sha256": sha256,
            "held": held,
            "listed": listed,
        },
    }
    storage.write_atomic(place, (json.dumps({"splits": splits}, indent=1) + "\n").encode())
    return place


def describe(manifest: Manifest, split: str) -> dict[str, Any]:
    """`published` and what was written down of a split; empty where nothing was of these records.

    Records that were ingested since are others, of which nothing is known.
    """
    found = _splits(manifest).get(split)
    if not isinstance(found, dict) or found.get("fingerprint") != manifest.fingerprint(split):
        return {}
    return {"published": f"{found['held']} of {found['listed']} of {found['list']}"}


def _splits(manifest: Manifest) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError, ValueError):
        place = storage.join(manifest.directory, FILE_NAME)
        found = json.loads(storage.read_text(place))
        if isinstance(found, dict) and isinstance(found.get("splits"), dict):
            return found["splits"]
    return {}
