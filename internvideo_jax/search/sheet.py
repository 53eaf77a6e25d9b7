"""What a search on the command line leaves: tables, and a page that opens offline."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np

from data_pipelines.records import storage
from internvideo_jax.search.answers import FoundClips, clock
from internvideo_jax.search.index import VideoIndex

TEMPLATE = Path(__file__).with_name("sheet.html")
BARS = 3  # labels shown for a clip


def found_table(found: FoundClips, index: VideoIndex) -> str:
    """Rank, similarity, file and time of each clip, one a line."""
    rows: list[Sequence[str]] = [("rank", "similarity", "file", "time")]
    for hit in found.hits:
        clip = index.clips[hit.clip]
        name = index.videos[clip.video].name
        rows.append((str(hit.rank), f"{hit.similarity:.4f}", name, span(clip.start, clip.end)))
    return _table(rows)


def label_table(index: VideoIndex, labels: Sequence[str], probabilities: np.ndarray) -> str:
    """The likeliest class of every clip, and the next one.

    Args:
      probabilities: (N, K) of all clips.
    """
    rows: list[Sequence[str]] = [("file", "time", "label", "p", "next", "p")]
    for clip, row in zip(index.clips, probabilities, strict=True):
        best = top(labels, row, 2)
        cells = [cell for name, p in best for cell in (name, f"{p:.3f}")]
        cells += [""] * (4 - len(cells))
        name = index.videos[clip.video].name
        rows.append((name, span(clip.start, clip.end), *cells))
    return _table(rows)


def top(labels: Sequence[str], row: np.ndarray, count: int) -> list[tuple[str, float]]:
    """The `count` likeliest labels with their probabilities; equal ones in the given order."""
    order = np.argsort(-row, kind="stable")[:count]
    return [(labels[int(i)], float(row[i])) for i in order]


def span(start: float, end: float) -> str:
    """Start and end in seconds as text."""
    return f"{clock(start)}-{clock(end)}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def write_sheet(
    out: str | os.PathLike[str],
    title: str,
    index: VideoIndex,
    found: Sequence[FoundClips],
    labels: Sequence[str] = (),
    probabilities: np.ndarray | None = None,
) -> None:
    """Writes one HTML file with everything inside: the clips of each query, then all with labels.

    Args:
      probabilities: (N, K) of all clips, where there are labels.
    """

    def card(number: int) -> dict[str, object]:
        clip = index.clips[number]
        bars = [] if probabilities is None else top(labels, probabilities[number], BARS)
        return {
            "picture": "data:image/jpeg;base64," + base64.b64encode(clip.thumbnail).decode(),
            "file": index.videos[clip.video].name,
            "time": span(clip.start, clip.end),
            "bars": bars,
        }

    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    sections = [
        (each, [{**card(hit.clip), "rank": hit.rank, "similarity": hit.similarity}
                for hit in each.hits])
        for each in found
    ]  # fmt: skip
    everything = [] if probabilities is None else [card(i) for i in range(len(index.clips))]
    text = page.render(title=title, index=index, sections=sections, everything=everything)
    storage.make_directory(os.path.dirname(os.fspath(out)) or ".")
    storage.write_atomic(out, text.encode())
