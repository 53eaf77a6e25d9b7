"""A set of copies of some training clips of the small world, as other people would have them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.run import ingest
from data_pipelines.synthetic import World, encode_mp4
from tests.conftest import once

FPS = 12
# How a clip of the world (20, 64, 64, 3) comes back, and at which rate.
COPIES = {
    "again": (lambda video: video, FPS),
    "larger": (lambda video: np.stack([cv2.resize(each, (128, 96)) for each in video]), FPS),
    "mirrored": (lambda video: video[:, :, ::-1], FPS),
    "later": (lambda video: video[6:], FPS),
    "slower": (lambda video: video[::3], FPS // 3),
    "darker": (lambda video: (video * 0.7).astype(np.uint8), FPS),
}


@pytest.fixture(scope="session")
def copies(shards: Path, tmp_path_factory) -> Path:
    """Shards with split test: `NAME` is a copy of training clip number 3 * its place, and four
    clips of another world."""
    return once(tmp_path_factory, "copies", _write) / "shards"


def _write(folder: Path) -> None:
    rows, world, other = [], World(size=64, frames=20), World(size=64, frames=20, seed=99)
    (folder / "videos").mkdir()
    for place, (name, (change, fps)) in enumerate(COPIES.items()):
        video = np.ascontiguousarray(change(world.clip(3 * place).video))
        encode_mp4(folder / f"videos/{name}.mp4", video, fps)
        rows.append({"path": f"videos/{name}.mp4", "id": name, "split": "test"})
    for number in range(4):
        encode_mp4(folder / f"videos/other{number}.mp4", other.clip(number).video, FPS)
        rows.append({"path": f"videos/other{number}.mp4", "id": f"other{number}", "split": "test"})
    table = folder / "copies.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = IngestOptions(source=str(table), out=str(folder / "shards"), short_side=0, workers=0)
    ingest(options, quiet=True)
