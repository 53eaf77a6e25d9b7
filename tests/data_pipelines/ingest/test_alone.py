"""Records without frames: from a table to the batch, and what the tools say of them."""

import json

import numpy as np
import pytest

from data_pipelines.config import ClipConfig, DataConfig, ReaderConfig, SetConfig
from data_pipelines.ingest import sources
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.run import ingest
from data_pipelines.records import manifest, schema
from data_pipelines.records.companion import CompanionWriter
from data_pipelines.records.reindex import reindex
from data_pipelines.records.schema import Segment, Turn
from data_pipelines.stream.parts.segments import Segments
from data_pipelines.stream.parts.sequences import Sequences
from data_pipelines.stream.pipeline import TrainStream
from data_pipelines.stream.views import FixedViews
from data_pipelines.tools import inspect, settings
from data_pipelines.tools.verify import verify

SAID = [{"role": "user", "text": "What is it?"}, {"role": "assistant", "text": "Tea."}]
ROWS = [
    {
        "path": "v_1.mp4",
        "start": 2,
        "end": 9,
        "segments": [{"start": 3, "end": 12, "label": "pour"}],
    },
    {"path": "v_2.mp4", "segments": [{"start": 0.5, "end": 4.5, "label": "drink"}], "score": 3},
    {"id": "text-1", "caption": "some tea"},
    {"id": "talk-1", "turns": SAID},
]


def table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    source, out = table(root / "t.jsonl", ROWS), str(root / "shards")
    ingest(IngestOptions(source=source, out=out, media="features", workers=0), quiet=True)
    writer = CompanionWriter(f"{out}/i3d", "i3d", manifest.load(out), "train")
    with writer.shard(0) as shard:
        for i in range(len(ROWS)):
            shard.append({"features": np.full((2 + i, 3), i, np.float16)})
    writer.finish()
    return out


@pytest.fixture(scope="module")
def records(shards):
    _, source = manifest.open_split(shards, "train")
    return {record.media_id: record for record in map(schema.decode, source)}


def test_a_record_holds_what_its_row_says(records):
    assert all(not len(r.frames) and r.media_type == "features" for r in records.values())
    cut = records["v_1.mp4#2-9"]
    assert (cut.filename, cut.start_us, cut.end_us) == ("v_1.mp4", 2_000_000, 9_000_000)
    assert cut.segments == (Segment(3_000_000, 9_000_000, 1, "pour"),)  # ends with the clip
    whole = records["v_2.mp4"]
    assert (whole.start_us, whole.end_us, whole.extra) == (0, 4_500_000, {"score": 3})
    assert records["text-1"].captions == ("some tea",) and records["text-1"].end_us == 0
    assert records["talk-1"].turns == tuple(Turn(**turn) for turn in SAID)


def test_the_set_declares_it_and_its_batches_have_no_pixels(shards):
    assert manifest.load(shards).media == "features"
    stream = TrainStream(
        DataConfig(
            mixture={"set": SetConfig(shards, media="features")},
            global_batch=4,
            clip=ClipConfig(frames=4, resolution=32),
            parts={"segments": Segments(most=2), "long": Sequences("i3d", length=6, width=3)},
            reader=ReaderConfig(threads=1, buffer=1),
        )
    )
    batch = next(stream)
    stream.close()
    assert "video" not in batch and batch["features/features_valid"].sum() == 2 + 3 + 4 + 5
    assert batch["segments_valid"].sum() == 2


def test_there_are_no_views_of_it(shards):
    sets = {"set": SetConfig(shards, media="features")}
    with pytest.raises(ValueError, match="media=features have no pixels, so there are no views of"):
        FixedViews(DataConfig(mixture=sets, fixed_views=1), "set")


def test_what_is_there_is_read_back_and_found_again(shards):
    assert verify(shards, 0, quiet=True) == ([], len(ROWS), 0)
    assert reindex(shards, print) == 0
    assert verify(shards, 0, quiet=True) == ([], len(ROWS), 0)


def test_the_tools_say_what_it_holds(shards, tmp_path):
    said = "\n".join(inspect.summary(DataConfig(train=shards), 64))
    for text in (
        "no frames: a set of media=features",
        "segments in 50%, at most 1",
        "turns in 25%, at most 2",
        "captions in 25%",
        "companion i3d, of the first record: features float16",
    ):
        assert text in said
    assert "sizes" not in said and "frames/s" not in said
    config = settings.data_config(shards, None, None, ["--config.data.global_batch=4"])
    page = inspect.train_page(settings.as_declared(config), 0, 4)
    assert len(page.rows) == 4 and all(row.frames is None for row in page.rows)
    picture, text = inspect.write(page, str(tmp_path / "look"))
    assert picture.stat().st_size and "no frames; 2 to 9 s" in text.read_text()
    assert "<img" not in text.read_text() and "<dt>assistant</dt><dd>Tea.</dd>" in text.read_text()
    with pytest.raises(ValueError, match="--views shows pixels, of which .* has none"):
        inspect.view_page(config, 0, 4, 1, 1)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([{"caption": "x"}], "has neither 'id' nor 'path'"),
        ([{"id": "a", "segments": [{"start": 5, "end": 6}], "end": 4}], "begins after the clip"),
        ([{"id": "a", "start": 4, "boxes": [{"time": 1, "y1": 0, "x1": 0, "y2": 1, "x2": 1}]}],
         "the box at 1 s is outside the clip"),
    ],
)  # fmt: skip
def test_rows_that_make_no_record(tmp_path, rows, complaint):
    source = table(tmp_path / "t.jsonl", [*rows, {"id": "good"}])
    options = IngestOptions(source=source, out=str(tmp_path / "out"), media="features", workers=0)
    report = ingest(options, quiet=True)
    assert report.rejected == {"label": 1}
    assert complaint in (tmp_path / "out/rejected.jsonl").read_text()


def test_only_a_table_can_be_without_files(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    for source in (tmp_path, tmp_path / "list.txt", "tfds:ucf101"):
        with pytest.raises(ValueError, match="is no table"):
            sources.read(IngestOptions(source=str(source), out="o", media="features"))
    with pytest.raises(ValueError, match="--audio: found pcm16, expected off with --media feat"):
        IngestOptions(source="t.csv", out="o", media="features", audio="pcm16")
