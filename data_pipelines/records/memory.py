"""Whether batches of the size that the settings ask for can be in memory at all."""

from __future__ import annotations

import os

from data_pipelines.config import ClipConfig, ReaderConfig

# Batches are made ahead only as far as reading is faster than training, and small machines swap:
# what is refused is what cannot be meant.
_SLACK = 4


def installed() -> int:
    """Bytes of memory of this machine; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def check_batches(
    clips: int, size: int, clip: ClipConfig | None, reader: ReaderConfig, *, name: str = "clip"
) -> None:
    """ValueError, with the numbers, for batches that no memory of this machine holds.

    Args:
      clips: of a batch of this process.
      size: bytes of one, all parts of its example.
      clip: the shape of its pixels; None for examples without.
      name: of the settings of the shape.
    """
    memory = installed()
    if not memory:
        return
    batch = clips * size
    if batch > memory:
        what = f"examples of {_text(size)}"
        if clip is not None:
            what = (
                f"clips of {clip.frames} frames of {clip.resolution}x{clip.resolution} pixels "
                f"({name}.frames, {name}.resolution)"
            )
        raise ValueError(
            f"a batch of {clips} {what} needs {_text(batch)} of memory in each process, this "
            f"machine has {_text(memory)}"
        )
    # Those that are made, that wait in this process and in every worker, and that are in use.
    ahead = (reader.buffer + 2) * (1 + reader.workers)
    if ahead * batch > _SLACK * memory:
        raise ValueError(
            f"reader.buffer = {reader.buffer} and reader.workers = {reader.workers} keep up to "
            f"{ahead} batches of {_text(batch)} in memory, this machine has {_text(memory)}; lower "
            "them"
        )


def _text(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.0f} TiB"
