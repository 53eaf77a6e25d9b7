"""A folder of coloured videos with a damaged one among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from internvideo_jax.search.answers import Answers
from tests.search.colours import colour_encoder, index_of, paint


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    paint(folder / "a.mp4", "red")
    paint(folder / "b.mp4", "green")
    paint(folder / "deep" / "c <b>&.mp4", "blue")
    paint(folder / "d.mp4", "red", "blue")
    (folder / "damaged.mp4").write_bytes(b"no video at all")
    (folder / "notes.txt").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def answers(videos: Path) -> Answers:
    encoder = colour_encoder()
    return Answers(index_of(videos, encoder)[0], encoder)
