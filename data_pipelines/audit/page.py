"""The pairs that were found, side by side, for a person to look at."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from data_pipelines.audit.run import Audit, Pair
from data_pipelines.records.dataset import Dataset, open_dataset
from data_pipelines.records.index import write_atomic
from data_pipelines.tools.sheet import Page, SheetRow, web_page

FRAMES = 8  # shown of each clip
HEIGHT = 96
SIDES = ("", "other_")  # how the columns of a pair begin


def write(result: Audit, path: str, most: int) -> None:
    """Writes the page with the `most` nearest pairs: eight frames of the one, then of the other."""
    facts = [
        ("pairs", f"{len(result.pairs)}, of which the {min(most, len(result.pairs))} nearest"),
        ("distance", f"up to {result.options.threshold:g}; 0 = equal"),
        *((side.name, f"{len(side.prints)} records") for side in result.sides),
    ]
    opened = {
        side.first: open_dataset(side.prints.manifest, side.prints.split)
        for side in result.sides
        if result.pairs[:most]
    }
    rows = [_row(pair, opened) for pair in result.pairs[:most]]
    write_atomic(path, web_page(Page("Clips that show the same", facts, rows)).encode())


def _row(pair: Pair, opened: Mapping[int, Dataset]) -> SheetRow:
    row = pair.row()
    title = f"{row['split']} {row['id']} | {row['other_split']} {row['other_id']}"
    facts = [
        ("distance", f"{row['distance']:.4f}" + (", mirrored" if pair.mirrored else "")),
        ("begins later by", f"{row['shift_seconds']:+.2f} s"),
        ("labels", f"{row['label'] or 'none'} | {row['other_label'] or 'none'}"),
        ("records", " | ".join(f"{row[f'{side}record']} of {row[f'{side}set']}" for side in SIDES)),
    ]
    sides = [
        _frames(opened[pair.one.first], pair.record),
        _frames(opened[pair.other.first], pair.other_record),
    ]
    width = max(frames.shape[2] for frames in sides)
    return SheetRow(title, facts, np.concatenate([_padded(frames, width) for frames in sides]))


def _frames(dataset: Dataset, record: int) -> np.ndarray:
    """(FRAMES, HEIGHT, W, 3), evenly spaced."""
    found = dataset.load(record)
    numbers = np.linspace(0, len(found.frames) - 1, FRAMES).round().astype(int)
    frames = dataset.frames(record, found, numbers)
    width = max(1, round(found.width * HEIGHT / found.height))
    return np.stack([cv2.resize(frame, (width, HEIGHT)) for frame in frames])


def _padded(frames: np.ndarray, width: int) -> np.ndarray:
    out = np.full((*frames.shape[:2], width, 3), 255, np.uint8)
    out[:, :, : frames.shape[2]] = frames
    return out
