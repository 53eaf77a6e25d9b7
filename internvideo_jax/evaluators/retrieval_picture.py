"""Queries and the videos they find, as one picture."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.clips import transforms
from data_pipelines.records.dataset import UnreadableRecordError
from internvideo_jax.evaluators.video_text import Videos

SIDE = 96  # pixels of a video's square
GAP, EDGE, TEXT = 8, 4, 200  # between squares, of the frame, width of the text column
RIGHT, WRONG = (24, 140, 60), (205, 205, 205)
LINES, LETTERS = 5, 32


@dataclasses.dataclass(frozen=True)
class Answer:
    """A video that a query found, or its own where it did not."""

    video: int  # row of the embeddings
    name: str
    score: float  # cosine
    right: bool


@dataclasses.dataclass(frozen=True)
class Query:
    """A text, where its own video stands, and the videos that were found."""

    text: str
    rank: int  # of its own video, from 1
    answers: tuple[Answer, ...]  # best first; own video last where it is not among them

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        answers = [
            {"id": each.name, "score": round(each.score, 6), "right": each.right}
            for each in self.answers
        ]
        return {"text": self.text, "rank": self.rank, "found": answers}


def query_sheet(videos: Videos, queries: Sequence[Query]) -> np.ndarray:
    """A row per query: its text, then the middle frames of the videos it finds, best first.

    The right one has a green frame; one that was not found stands at the end, behind a gap.

    Returns:
      (H, W, 3) uint8.
    """
    columns = max(len(query.answers) for query in queries)
    cell = SIDE + 2 * EDGE + GAP
    size = (TEXT + columns * cell + 2 * GAP, len(queries) * cell + GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for line, query in enumerate(queries):
        top = GAP + line * cell
        lines = textwrap.wrap(query.text, LETTERS)[:LINES]
        # What the font lacks is drawn as a box; lone surrogates could not be drawn at all.
        text = "\n".join([*lines, f"rank {query.rank}"]).encode("utf-8", "replace").decode()
        draw.multiline_text((GAP, top), text, fill="black", font=font)
        for position, answer in enumerate(query.answers):
            lost = answer.right and position == len(query.answers) - 1 and query.rank > position
            left = TEXT + position * cell + (GAP if lost else 0)
            frame = RIGHT if answer.right else WRONG
            side = SIDE + 2 * EDGE
            draw.rectangle((left, top, left + side - 1, top + side - 1), fill=frame)
            sheet.paste(
                Image.fromarray(middle_frame(videos, answer.video)), (left + EDGE, top + EDGE)
            )
    return np.asarray(sheet)


def middle_frame(videos: Videos, video: int) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: the middle of a video's middle frame; black if it cannot be read."""
    number = int(videos.record[video])
    try:
        record = videos.dataset.load(number)
        middle = np.array([len(record.frames) // 2])
        (frame,) = videos.dataset.frames(number, record, middle)
    except UnreadableRecordError:
        return np.zeros((SIDE, SIDE, 3), np.uint8)
    small = transforms.resize_short_side(frame, SIDE, "area")
    y, x, height, width = transforms.center_box(small.shape[0], small.shape[1], SIDE)
    return small[y : y + height, x : x + width]
