"""Datasets as TFDS prepared them (``tfds_data/make.py``), read without TFDS or TensorFlow."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from data_pipelines.ingest import sources, tfds
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.run import ingest
from data_pipelines.records import manifest, schema

DATA = Path(__file__).parent / "tfds_data"
NAMES = ("toy_video", "toy_frames", "toy_tensor")  # PNG, JPEG, numbers; TFRecord, ArrayRecord


def options(name: str, root: Path = DATA, **changes) -> IngestOptions:
    changes = {"out": "out", "frame_fps": 8.0, **changes}
    return IngestOptions(source=f"tfds:{name}", root=str(root), **changes)


@pytest.fixture
def copy(tmp_path):
    """A copy of toy_video that may be damaged; its directory."""
    shutil.copytree(DATA / "toy_video", tmp_path / "d" / "toy_video")
    return tmp_path / "d" / "toy_video" / "1.0.0"


@pytest.mark.parametrize("name", NAMES)
def test_rows(name):
    listing = sources.read(options(name, columns={"id": "key"}))
    rows = {row.id: row for row in listing.rows if row.split == "train"}
    assert set(rows) == {"k0", "k1", "k2"} and listing.classes == ("sit", "run")
    row = rows["k1"]
    assert (row.labels, row.captions, row.extra["score"]) == (("run",), ("clip 1 ü",), 0.5)
    assert any("labels from 'label'" in note for note in listing.notes)


@pytest.mark.parametrize("name", NAMES)
def test_records(name, tmp_path):
    changes = {"out": str(tmp_path / "out"), "workers": 0, "columns": {"id": "key"}}
    ingest(options(name, **changes), quiet=True)
    info, source = manifest.open_split(tmp_path / "out", "train")
    assert info.classes == ("sit", "run")
    records = {record.media_id: record for record in map(schema.decode, source)}
    for i in range(3):
        record = records[f"k{i}"]
        assert (len(record.frames), record.fps) == (3 + i, 8.0)
        assert record.labels == (i % 2,) and record.captions == (f"clip {i} ü",)
        assert record.timestamps_us[1] == 125_000
        for j, frame in enumerate(record.frames):
            pixels = simplejpeg.decode_jpeg(frame)
            assert pixels.shape == (32, 48, 3)
            assert np.abs(pixels.astype(int) - (40 * i + 10 * j)).max() <= 2
    assert "tensorflow" not in sys.modules and "tensorflow_datasets" not in sys.modules


def test_encoded_frames_are_not_encoded_again(tmp_path):
    sources.read(options("toy_frames"))
    directory = tfds.find("toy_frames", str(DATA))
    example = tfds.TFDSExample(directory, "train", 0, "frames", 8.0)
    stored = tfds._images(example)
    out = tmp_path / "out"
    ingest(options("toy_frames", out=str(out), workers=0), quiet=True)
    _, source = manifest.open_split(out, "train")
    records = {record.media_id: record for record in map(schema.decode, source)}
    assert list(records["toy_frames/train/0"].frames) == list(stored)


def test_bytes_do_not_depend_on_the_workers(tmp_path):
    for workers in (0, 2):
        out = tmp_path / str(workers)
        ingest(options("toy_video", out=str(out), workers=workers, shards=2), quiet=True)
    first, second = (
        {p.name: p.read_bytes() for p in (tmp_path / n).iterdir() if p.suffix != ".lock"}
        for n in ("0", "2")
    )
    assert first == second


def test_names_configurations_and_versions(copy, monkeypatch):
    root = copy.parent.parent
    shutil.copytree(copy, copy.parent / "1.10.0")
    assert tfds.find("toy_video", str(root)) == str(copy.parent / "1.10.0")
    assert tfds.find("toy_video:1.0.0", str(root)) == str(copy)
    assert tfds.find(str(copy), None) == str(copy)
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert tfds.find("toy_video:1.0.0", None) == str(copy)
    for config in ("one", "two"):
        shutil.copytree(copy, root / "many" / config / "2.0.0")
    assert tfds.find("many/two", str(root)) == str(root / "many/two/2.0.0")
    with pytest.raises(ValueError, match="name one of tfds:many/one, tfds:many/two"):
        tfds.find("many", str(root))
    shutil.rmtree(root / "many" / "two")
    assert tfds.find("many", str(root)) == str(root / "many/one/2.0.0")


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        ("nothing", {}, r"tfds:nothing: is not prepared in .*'tfds build nothing'"),
        ("toy_video:3.0.0", {}, r"versions there: 1\.0\.0"),
        ("toy_video", {"frame_fps": None}, "stores no frame rate; give it with --frame-fps"),
        ("toy_video", {"columns": {"path": "clip"}}, "no feature 'clip'.*found caption, key"),
        ("toy_video", {"columns": {"path": "label"}}, "'label' .classLabel. holds no frames"),
        ("toy_video", {"columns": {"start": "score"}}, "--columns names 'start'"),
        ("toy_video", {"columns": {"id": "label"}}, "have the same id"),
    ],
)
def test_wrong_use_is_explained(name, changes, complaint):
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        sources.read(options(name, **changes))


def change(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "edit", "complaint"),
    [
        ("dataset_info.json", lambda d: d.update(fileFormat="riegeli"), "stored as riegeli"),
        ("dataset_info.json", lambda d: d.pop("splits"), "is not a dataset as TFDS"),
        ("features.json", lambda d: d.pop("featuresDict"), "is not a dataset as TFDS"),
        (
            "features.json",
            lambda d: d["featuresDict"]["features"].pop("video"),
            r"none of its features is a video; found caption \(text\)",
        ),
        (
            "features.json",
            lambda d: d["featuresDict"]["features"].update(
                other=d["featuresDict"]["features"]["video"],
                third=d["featuresDict"]["features"].pop("video"),
            ),
            "several features hold frames: other, third; choose with --columns path=other",
        ),
    ],
)
def test_descriptions_that_cannot_be_used(copy, file, edit, complaint):
    change(copy / file, edit)
    with pytest.raises(ValueError, match=complaint):
        sources.read(options("toy_video", copy.parent.parent))


def test_missing_and_damaged_files(copy):
    [path] = copy.glob("*-train.tfrecord-*")
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="train"):
        sources.read(options("toy_video", copy.parent.parent))
    tfds._source.cache_clear()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing; prepare the dataset again"):
        sources.read(options("toy_video", copy.parent.parent))
