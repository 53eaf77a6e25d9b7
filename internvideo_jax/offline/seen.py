"""The pixels that a command showed its model, where every shard may be the work of another process.

Each shard leaves the digest of its clips in a small file of its own, before the shard itself; who
finds all shards finished adds them up. So the digest of a split is the same whoever made which part
of it, and when.
"""

from __future__ import annotations

import json
import os
from typing import Any

from data_pipelines.records import storage
from internvideo_jax.inference.pixels import PixelDigest
from internvideo_jax.offline.by_shard import say

PIXELS = "pixels"  # of the file that says what a split was made with


class SeenShards:
    """Digests of the shards of one split.

    Args:
      out: where the command writes.
      name: of what it writes.
      shards: of the split.
    """

    def __init__(self, out: str | os.PathLike[str], name: str, split: str, shards: int):
        self._about = storage.join(out, f"{name}-{split}.json")
        self._paths = [
            storage.join(out, f"{name}-{split}-{number:05d}-of-{shards:05d}.{PIXELS}.json")
            for number in range(shards)
        ]

    def keep(self, number: int, seen: PixelDigest) -> None:
        """Of one shard; it must be called before the shard counts as finished."""
        storage.write_atomic(self._paths[number], (json.dumps(seen.content()) + "\n").encode())

    def finish(self) -> None:
        """Says what was seen, and adds it to what the output was made with; all shards are there.

        Shards of an earlier version have no digest, and the split then has none.
        """
        whole, without = PixelDigest(), 0
        for path in self._paths:
            content = _read(path)
            if content is None:
                without += 1
            else:
                whole.merge(PixelDigest.of_content(content))
        if without:
            say(
                f"pixels: {without} of {len(self._paths)} shards have no readable digest (older "
                "versions stored none), so there is none of the whole"
            )
            return
        if not whole.clips:
            return
        say(f"pixels: {whole.hex} of {whole.clips} clips")
        about = json.loads(storage.read_text(self._about))
        if about.get(PIXELS) != whole.content():
            text = json.dumps({**about, PIXELS: whole.content()}, indent=1, sort_keys=True) + "\n"
            storage.write_atomic(self._about, text.encode())


def _read(path: str) -> dict[str, Any] | None:
    """What `keep` wrote; None where that cannot be read."""
    try:
        content = json.loads(storage.read_text(path))
        PixelDigest.of_content(content)
    except (FileNotFoundError, AttributeError, ValueError, TypeError, KeyError):
        return None
    return content
