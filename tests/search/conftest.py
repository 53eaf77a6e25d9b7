"""A folder of coloured videos with a damaged one among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.search.colours import paint


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
