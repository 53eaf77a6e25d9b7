"""Views of video files are those of the shards that the ingest makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.config import ClipConfig, ViewConfig
from data_pipelines.ingest.file_views import FileViews, list_files
from data_pipelines.stream.pipeline import ViewPass
from data_pipelines.synthetic import World, encode_mp4


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for number, name in enumerate(("b/one.mp4", "a/two.mp4", "a/three.mp4")):
        path = folder / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        encode_mp4(path, World(size=64, frames=9 + number).clip(number).video, fps=12)
    return folder / "videos"


@pytest.fixture(scope="module")
def ingested(videos) -> Path:
    from data_pipelines.ingest.__main__ import main as ingest

    out = videos.parent / "shards"
    assert ingest([f"--source={videos}", f"--out={out}", "--workers=0"]) == 0
    return out


def read(stream) -> dict[tuple[int, int], np.ndarray]:
    """(number, view) -> clip."""
    found = {}
    for batch in stream:
        for row in np.flatnonzero(batch["valid"]):
            found[int(batch["index"][row]), int(batch["view"][row])] = batch["video"][row].copy()
    stream.close()
    return found


@pytest.mark.parametrize(
    "views",
    [
        ViewConfig(clip=ClipConfig(4, 2, 32, "dense"), clips=2, crops=3, batch=2),
        ViewConfig(clip=ClipConfig(4, 1, 48, "uniform"), crop_rule="squash", batch=1),
        ViewConfig(clip=ClipConfig(8, 1, 32, "stepped"), crops=3, crop_rule="slowfast", batch=4),
    ],
)
def test_the_pixels_are_those_of_a_pass_over_shards(videos, ingested, views):
    rows = list_files(str(videos))
    files = read(FileViews(rows, views))
    stream = ViewPass(str(ingested), "train", views)
    names = [stream.dataset.load(number).media_id for number in range(len(stream.dataset))]
    shards = read(stream)
    assert len(files) == len(shards) == 3 * views.clips * views.crops
    for (number, view), clip in shards.items():
        (place,) = [i for i, row in enumerate(rows) if row.id == names[number]]
        np.testing.assert_array_equal(files[place, view], clip)


def test_damaged_files_are_listed_and_the_others_used(videos, tmp_path):
    good = (videos / "a/two.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 3])
    (tmp_path / "good.mp4").write_bytes(good)
    (tmp_path / "text.avi").write_text("no video")
    views = ViewConfig(clip=ClipConfig(4, 2, 32, "dense"), batch=2)
    stream = FileViews(list_files(str(tmp_path)), views)
    assert len(stream) == 2 and set(read(stream)) == {(1, 0)}
    assert set(stream.problems) == {0, 2} and "not a readable video" in stream.problems[2]


def test_files_come_from_folders_lists_and_names(videos, tmp_path):
    (tmp_path / "list.csv").write_text(f"path,start,end\n{videos}/a/two.mp4,0.1,0.5\n")
    (row,) = list_files(str(tmp_path / "list.csv"))
    assert (row.start, row.end) == (0.1, 0.5)
    (row,) = list_files(str(videos / "b/one.mp4"))
    assert row.path == row.name == str(videos / "b/one.mp4")
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        list_files("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="lists no videos"):
        list_files(str(tmp_path / "empty"))
