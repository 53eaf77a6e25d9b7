"""Clips as a picture and as a page."""

from __future__ import annotations

import base64
import dataclasses
import html
import math
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg

_GAP = 2  # pixels between frames
_HEADING = 18  # pixels of the text line above a row of the contact sheet
_PICTURE = 112  # frames of the contact sheet and the page are at most this high
_NOTHING = np.empty((0, 0, 3), np.uint8)


@dataclasses.dataclass(frozen=True)
class SheetRow:
    """One clip of a sheet.

    Attributes:
      title: one line: where the clip comes from.
      facts: name and value of everything else that is known of it.
      frames: (T, H, W, 3) uint8; None of a record without.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    frames: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Page:
    """What a sheet shows: a title, remarks on the whole, and the clips."""

    title: str
    facts: Sequence[tuple[str, str]]
    rows: Sequence[SheetRow]


def strip(frames: np.ndarray, columns: int = 16) -> np.ndarray:
    """(T, H, W, 3) uint8 side by side on white, at most `columns` in a line; frames never grow."""
    count, height, width = frames.shape[:3]
    scale = min(1.0, _PICTURE / height)
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    lines = math.ceil(count / columns)
    shape = (lines * (height + _GAP), min(count, columns) * (width + _GAP), 3)
    out = np.full(shape, 255, np.uint8)
    for i, frame in enumerate(frames):
        y, x = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        if frame.shape[:2] != (height, width):
            frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        out[y : y + height, x : x + width] = frame
    return out


def contact_sheet(page: Page) -> bytes:
    """The page as a PNG file: one row of frames per clip below its title."""
    parts = []
    strips = [_NOTHING if row.frames is None else strip(row.frames) for row in page.rows]
    width = max([480, *(part.shape[1] for part in strips)])
    for text, part in zip([row.title for row in page.rows], strips, strict=True):
        heading = np.full((_HEADING, width, 3), 255, np.uint8)
        # OpenCV's fonts know ASCII only; the page shows all characters.
        plain = text.encode("ascii", "replace").decode()
        black = (0, 0, 0)
        cv2.putText(heading, plain, (2, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, black, 1, cv2.LINE_AA)
        wide = np.full((part.shape[0], width, 3), 255, np.uint8)
        wide[:, : part.shape[1]] = part
        parts += [heading, wide]
    good, data = cv2.imencode(".png", cv2.cvtColor(np.concatenate(parts), cv2.COLOR_RGB2BGR))
    if not good:
        raise RuntimeError("OpenCV could not encode the contact sheet as PNG")
    return data.tobytes()


_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; }
h1 { font-size: 1.3em; } h2 { font-size: 1em; margin: 1.5em 0 .3em; font-family: monospace;
  overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1em; margin: .3em 0; }
dt { color: #777; } dd { margin: 0; overflow-wrap: anywhere; } img { max-width: 100%; }
"""


def web_page(page: Page) -> str:
    """The page as one HTML file with its pictures inside."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(page.title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(page.title)}</h1>",
        _list(page.facts),
    ]
    for row in page.rows:
        parts += [
            f"<section><h2>{html.escape(row.title)}</h2>",
            *([] if row.frames is None else [_image(row.frames)]),
            _list(row.facts),
            "</section>",
        ]
    return "\n".join([*parts, "</body></html>\n"])


def _image(frames: np.ndarray) -> str:
    picture = strip(frames)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), 90, "RGB", "444")
    data = base64.b64encode(jpeg).decode()
    return (
        f'<img alt="{len(frames)} frames" width="{picture.shape[1]}" '
        f'src="data:image/jpeg;base64,{data}">'
    )


def _list(facts: Sequence[tuple[str, str]]) -> str:
    items = (f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts)
    return f"<dl>{''.join(items)}</dl>"
