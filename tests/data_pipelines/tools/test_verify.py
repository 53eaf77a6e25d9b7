"""Reading everything back, and rebuilding the index."""

import json
import os
import re
from pathlib import Path

import pytest
import simplejpeg

from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.run import ingest
from data_pipelines.records import manifest, schema, storage
from data_pipelines.records.dataset import Dataset, UnreadableRecordError, open_dataset
from data_pipelines.records.localisation import Box, Segment
from data_pipelines.records.reader import ShardWriter, build_index, read_index, write_index
from data_pipelines.records.reindex import reindex
from data_pipelines.tools.verify import verify
from tests.data_pipelines.ingest.clips import make_folder, picture
from tests.data_pipelines.records.flaky import flaky, upload


@pytest.fixture
def dataset(tmp_path):
    source = tmp_path / "videos"
    for label in ("run", "sit"):
        make_folder(source / label, (5, 5, 5))
    out = tmp_path / "out"
    ingest(
        IngestOptions(source=str(source), out=str(out), workers=0, shards=2, name="toy"), quiet=True
    )
    return out


def shard(dataset: Path, number: int = 0) -> Path:
    return dataset / f"toy-train-{number:05d}-of-00002.tfrecord"


def faults(dataset: Path, workers: int = 0) -> list[str]:
    return verify(str(dataset), workers, quiet=True)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_good_data(dataset, workers):
    assert verify(str(dataset), workers, quiet=True) == ([], 6, 30)


def test_remote_data(dataset):
    with flaky():
        upload(dataset, "flaky://bucket/set")
        assert verify("flaky://bucket/set", 0, quiet=True) == ([], 6, 30)
        name = shard(dataset).name
        data = bytearray(shard(dataset).read_bytes())
        data[-10] ^= 1
        storage.write_atomic(f"flaky://bucket/set/{name}", bytes(data))
        found, *_ = verify("flaky://bucket/set", 0, quiet=True)
        assert "sha256 differs" in found[0] and "record 2 at byte" in found[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_bit_flip_is_found_where_it_is(dataset, workers):
    entry = read_index(shard(dataset)).entries[1]
    data = bytearray(shard(dataset).read_bytes())
    data[int(entry["offset"]) + 100] ^= 1
    shard(dataset).write_bytes(data)
    found = faults(dataset, workers)
    assert len(found) == 2
    assert "sha256 differs" in found[0]
    assert f"record 1 at byte {entry['offset']}: checksum" in found[1]


def test_missing_shard_and_index(dataset):
    os.unlink(shard(dataset, 0))
    os.unlink(f"{shard(dataset, 1)}.idx")
    found = faults(dataset)
    assert "the shard is missing" in found[0] and "the index is missing" in found[1]


def test_truncation_at_a_record_boundary(dataset):
    os.truncate(shard(dataset), int(read_index(shard(dataset)).entries[2]["offset"]))
    [fault] = faults(dataset)
    assert "bytes, manifest.json says" in fault


def rewrite(dataset: Path, **changes) -> None:
    """Write shard 0 anew with changed records, and make manifest and index agree with it."""
    _, source = manifest.open_split(dataset, "train")
    found = manifest.load(dataset)
    count = found.split("train").shards[0].records
    old = [schema.decode(source[i]) for i in range(count)]
    with ShardWriter(shard(dataset)) as writer:
        for record in old:
            values = {name: getattr(record, name) for name in record.__slots__} | changes
            writer.append(schema.encode(schema.Record(**values)), len(record.frames))
    content = json.loads((dataset / "manifest.json").read_text())
    content["splits"]["train"]["shards"][0] |= {
        "bytes": writer.bytes,
        "sha256": writer.sha256,
        "index_crc": writer.index_crc,
    }
    (dataset / "manifest.json").write_text(json.dumps(content))


JPEG = simplejpeg.encode_jpeg(picture(0), 90, "RGB", "420")
SMALL = simplejpeg.encode_jpeg(picture(0, 32, 32), 90, "RGB", "420")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"labels": (7,), "label_names": ()}, r"label \(7,\) outside the 2 classes"),
        ({"frames": (JPEG,) * 4 + (SMALL,)}, "frame 4 is 32x32, the record says 64x48"),
        ({"frames": (JPEG,) * 4 + (b"no",)}, "frame 4 is not a readable JPEG"),
        ({"frames": (JPEG,), "timestamps_us": (0,)}, "1 frames, the index says 5"),
        ({"media_id": "same"}, "3 ids occur twice|2 ids occur twice|1 ids occur twice"),
        ({"labels": (0,), "label_names": ()}, "records per class differ from the manifest"),
    ],
)
def test_records_that_checksums_cannot_catch(dataset, changes, complaint):
    rewrite(dataset, **changes)
    assert any(re.search(complaint, fault) for fault in faults(dataset)), faults(dataset)


def test_wrong_totals(dataset):
    content = json.loads((dataset / "manifest.json").read_text())
    content["splits"]["train"]["frames"] = 29
    (dataset / "manifest.json").write_text(json.dumps(content))
    assert faults(dataset) == ["split train: 30 frames, the manifest says 29"]


@pytest.mark.parametrize("with_list", [True, False])
def test_a_flipped_bit_in_a_class_name(dataset, with_list):
    """No checksum covers the manifest; the records and classes.json have the name too."""
    text = (dataset / "manifest.json").read_text()
    (dataset / "manifest.json").write_text(text.replace('"run"', '"ruo"'))
    if not with_list:
        (dataset / "classes.json").unlink()
    found = faults(dataset)
    assert ("disagree: class 0 is 'ruo' and 'run'" in found[0]) == with_list
    assert len(found) == 3 + with_list  # every record of that class
    assert "calls class 0 'run', the manifest 'ruo'" in found[-1] and "record" in found[-1]
    if with_list:
        with pytest.raises(ValueError, match="manifest.json and classes.json disagree"):
            open_dataset(str(dataset), "train")
        return
    opened = open_dataset(str(dataset), "train")
    named = [opened.source.locate(i) for i in range(len(opened)) if not readable(opened, i)]
    assert len(named) == 3


def readable(opened: Dataset, number: int) -> bool:
    try:
        opened.load(number)
    except UnreadableRecordError as error:
        assert "calls class 0 'run', the manifest 'ruo'" in str(error)
        return False
    return True


@pytest.mark.parametrize("part", ["segments", "boxes"])
def test_class_names_of_segments_and_boxes(dataset, part):
    values = {
        "segments": (Segment(0, 100_000, 1, "stand"),),
        "boxes": (Box(0, 0.0, 0.0, 1.0, 1.0, (1,), ("stand",)),),
    }
    rewrite(dataset, **{part: values[part]})
    assert any("calls class 1 'stand', the manifest 'sit'" in fault for fault in faults(dataset))


def test_a_ruined_shard_is_not_listed_record_by_record(dataset, monkeypatch):
    monkeypatch.setattr("data_pipelines.tools.verify._FAULTS_SHOWN", 1)
    data = bytearray(shard(dataset).read_bytes())
    for entry in read_index(shard(dataset)).entries:
        data[int(entry["offset"]) + 50] ^= 1
    shard(dataset).write_bytes(data)
    assert "more faults follow" in faults(dataset)[-1]


def test_no_manifest(tmp_path):
    with pytest.raises(FileNotFoundError, match="is empty"):
        verify(str(tmp_path), 0)


@pytest.mark.parametrize(
    "damage",
    [
        os.unlink,
        lambda path: os.truncate(path, 10),
        lambda path: write_index(str(path)[:-4], build_index(str(path)[:-4]).entries, 1),
    ],
)
def test_reindex_restores_exactly_the_index_of_the_ingest(dataset, damage):
    path = Path(f"{shard(dataset)}.idx")
    before = path.read_bytes()
    damage(path)
    assert faults(dataset)
    said: list[str] = []
    assert reindex(str(dataset), said.append) == 0 and not said
    assert path.read_bytes() == before
    assert faults(dataset) == []


def test_reindex_tells_of_a_shard_it_cannot_index(dataset):
    os.truncate(shard(dataset), 500)
    said: list[str] = []
    assert reindex(str(dataset), said.append) == 1
    assert "truncated" in said[0]


def test_reindex_does_not_bless_a_shard_of_another_run(dataset):
    with ShardWriter(shard(dataset)) as writer:
        record = schema.Record("x", (JPEG,), (0,), 1.0, 48, 64)
        writer.append(schema.encode(record), 1)
    said: list[str] = []
    assert reindex(str(dataset), said.append) == 1
    assert "is not the one the manifest describes" in said[0]
