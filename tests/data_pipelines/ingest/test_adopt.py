"""Shards in Scenic's layout read by us, and ours read by others."""

from __future__ import annotations

import struct
from pathlib import Path

import grain
import numpy as np
import pytest
import simplejpeg

from data_pipelines.config import ClipConfig, DataConfig, ReaderConfig
from data_pipelines.ingest.adopt import adopt
from data_pipelines.records import schema
from data_pipelines.records.dataset import open_dataset
from data_pipelines.records.manifest import load
from data_pipelines.records.reader import CorruptRecordError, ShardWriter
from data_pipelines.stream.pipeline import TrainStream
from tests.data_pipelines.records.flaky import flaky, upload
from tests.data_pipelines.records.test_reader import crc32c
from tests.data_pipelines.records.test_schema import bytes_feature, make_record, message, varint

CLASSES = ("archery", "ükulele")


def jpeg(seed: int) -> bytes:
    # Not smooth noise: a coarse pattern keeps the frames small.
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return simplejpeg.encode_jpeg(np.kron(coarse, np.ones((16, 16, 1), np.uint8)), 90, "RGB", "420")


def int_feature(*values: int) -> bytes:
    packed = b"".join(map(varint, values))
    return message(3, message(1, packed))


def float_feature(*values: float) -> bytes:
    return message(2, message(1, struct.pack(f"<{len(values)}f", *values)))


def entry(key: str, value: bytes) -> bytes:
    return message(1, message(1, key.encode()) + message(2, value))


def scenic_record(i: int, label: int, frames: int = 12, name: str | None = None) -> bytes:
    """A SequenceExample with the keys DMVR's generator writes, put together by hand."""
    context = {
        "clip/label/index": int_feature(label),
        "clip/label/text": bytes_feature((name or CLASSES[label]).encode()),
        "video/filename": bytes_feature(f"video {i}.mp4".encode()),
        "clip/start/timestamp": int_feature(1_000_000),
        "clip/end/timestamp": int_feature(1_000_000 + 100_000 * frames),
        "clip/media_id": bytes_feature(f"id{i}".encode()),
    }
    lists = {
        "image/encoded": b"".join(
            message(1, bytes_feature(jpeg(100 * i + t))) for t in range(frames)
        ),
        "WAVEFORM/feature/floats": message(1, float_feature(*np.linspace(-1, 1, 480))),
    }
    return message(1, b"".join(entry(*item) for item in context.items())) + message(
        2, b"".join(entry(*item) for item in lists.items())
    )


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def frame_by_hand(path: Path, records: list[bytes]) -> None:
    with open(path, "wb") as file:
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(length + masked(length) + data + masked(data))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, bytes]:
    """The bytes of the files; the checksums bit by bit are slow, so they are made once."""
    directory = tmp_path_factory.mktemp("scenic")
    for shard in range(2):
        records = [scenic_record(3 * shard + i, (shard + i) % 2, 4 + i) for i in range(3)]
        frame_by_hand(directory / f"kin-train-{shard:05d}-of-00002", records)
    frame_by_hand(directory / "kin-val-00000-of-00001", [scenic_record(9, 1, 4)])
    return {path.name: path.read_bytes() for path in directory.iterdir()}


SPLITS = {"train": "kin-train-*", "val": "kin-val-*"}


@pytest.fixture
def scenic(written, tmp_path) -> Path:
    for name, data in written.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_shards_in_scenics_layout_are_used_in_place(scenic, written):
    result = adopt(scenic, SPLITS, "kin")
    assert result == load(scenic) and result.classes == CLASSES
    train = result.split("train")
    assert (train.records, train.frames, train.label_counts) == (6, 30, (3, 3))
    for name, data in written.items():  # not a byte of the shards changes
        assert (scenic / name).read_bytes() == data
    dataset = open_dataset(str(scenic), "train")
    assert dataset.source.table(0) is not None
    for i in range(6):
        record = dataset.load(i)
        whole = schema.decode(dataset.source[i])
        assert record == whole and record.media_id == f"id{i}"
        assert record.frames[1] == jpeg(100 * i + 1)
        assert (record.height, record.width, record.fps) == (64, 80, 10.0)


def test_the_training_stream_reads_them(scenic):
    adopt(scenic, SPLITS, "kin")
    stream = TrainStream(
        DataConfig(
            train=str(scenic),
            split="train",
            global_batch=6,
            clip=ClipConfig(frames=4, stride=1, resolution=32),
            reader=ReaderConfig(threads=1),
        )
    )
    batch = next(stream)
    stream.close()
    assert batch["video"].shape == (6, 4, 32, 32, 3) and sorted(batch["index"]) == list(range(6))
    for index, label in zip(batch["index"], batch["label"], strict=True):
        assert label == (index // 3 + index % 3) % 2


def test_adopting_again_and_remotely_gives_the_same(scenic):
    first = adopt(scenic, SPLITS, "kin")
    assert adopt(scenic, SPLITS, "kin") == first
    with flaky():
        upload(scenic, "flaky://b/kin")
        there = adopt("flaky://b/kin", SPLITS, "kin")
        assert there.splits == first.splits


def test_a_class_list_may_be_given(scenic):
    assert adopt(scenic, SPLITS, "kin", (*CLASSES, "zorbing")).split("val").label_counts == (
        0,
        1,
        0,
    )
    with pytest.raises(ValueError, match=r"class 1 is called 'ükulele', in the given .* 'violin'"):
        adopt(scenic, SPLITS, "kin", ("archery", "violin"))
    with pytest.raises(ValueError, match="class index 1, expected 0 to 0"):
        adopt(scenic, SPLITS, "kin", ("archery",))


def test_classes_without_a_name_are_called_by_their_number(tmp_path):
    with ShardWriter(tmp_path / "a.tfrecord") as writer:
        writer.append(schema.encode(make_record(labels=(2,), label_names=())))
    assert adopt(tmp_path, {"train": "a*"}, "a").classes == ("0", "1", "2")


def unclear_names(directory: Path) -> None:
    frame_by_hand(directory / "kin-val-00000-of-00001", [scenic_record(9, 1, 1, "violin")])


def no_index(directory: Path) -> None:
    with ShardWriter(directory / "kin-val-00000-of-00001") as writer:
        image = entry("image/encoded", message(1, bytes_feature(jpeg(0))))
        text = entry("clip/label/text", bytes_feature(b"archery"))
        writer.append(message(1, text) + message(2, image))


def not_records(directory: Path) -> None:
    with ShardWriter(directory / "kin-val-00000-of-00001") as writer:
        writer.append(b"something else", 1)


def damaged(directory: Path) -> None:
    path = directory / "kin-val-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        (unclear_names, ValueError, r"class 1 is called 'violin', in .*record 1 it is 'ükulele'"),
        (no_index, ValueError, "clip/label/index has 0"),
        (not_records, ValueError, "00000-of-00001: record 0: .* not a tf.train.SequenceExample"),
        (damaged, CorruptRecordError, "record 0 .*checksum"),
        (
            lambda d: (d / "kin-train-00000-of-00002").unlink(),
            ValueError,
            "train-00000-of-00002 is",
        ),
        (lambda d: (d / "kin-val-00000-of-00001").unlink(), ValueError, "no file matches 'kin-val"),
    ],
)
def test_shards_that_cannot_be_adopted(scenic, change, error, complaint):
    change(scenic)
    with pytest.raises(error, match=complaint):
        adopt(scenic, SPLITS, "kin")
    assert not (scenic / "manifest.json").exists()


def test_patterns_that_overlap_and_sets_that_were_ingested(scenic):
    with pytest.raises(ValueError, match="matches the patterns of split 'a' and of 'b'"):
        adopt(scenic, {"a": "kin-*", "b": "kin-val-*"}, "kin")
    with pytest.raises(ValueError, match="no splits given"):
        adopt(scenic, {}, "kin")
    found = adopt(scenic, SPLITS, "kin")
    text = (scenic / "manifest.json").read_text()
    (scenic / "manifest.json").write_text(text.replace('"adopted"', '"quality"'))
    with pytest.raises(ValueError, match="was not made by adopting"):
        adopt(scenic, SPLITS, "kin")
    assert found.name == "kin"


def wire_fields(data: bytes) -> list[tuple[int, bytes]]:
    """(number, content) of the length-delimited fields of a message; written for this test."""
    fields, at = [], 0
    while at < len(data):
        tag, at = data[at], at + 1
        assert tag & 7 == 2
        size = shift = 0
        while True:
            byte, at = data[at], at + 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        fields.append((tag >> 3, data[at : at + size]))
        at += size
    return fields


def test_our_shards_are_read_by_an_independent_reader(tmp_path):
    path = tmp_path / "ours.tfrecord"
    records = [make_record(media_id=f"r{i}", labels=(i,), label_names=("x",)) for i in range(4)]
    with ShardWriter(path) as writer:
        for record in records:
            writer.append(schema.encode(record), 3)
    found = list(grain.experimental.TFRecordIterDataset(str(path)))
    assert len(found) == 4
    for record, data in zip(records, found, strict=True):
        (_, context), (_, lists) = wire_fields(data)
        maps = [
            {
                wire_fields(item)[0][1].decode(): wire_fields(item)[1][1]
                for _, item in wire_fields(m)
            }
            for m in (context, lists)
        ]
        frames = [
            wire_fields(wire_fields(step)[0][1])[0][1]
            for _, step in wire_fields(maps[1]["image/encoded"])
        ]
        assert frames == list(record.frames)
        assert maps[0]["clip/media_id"] == bytes_feature(record.media_id.encode())
        assert maps[0]["clip/label/index"] == int_feature(*record.labels)
