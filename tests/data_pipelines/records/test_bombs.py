"""Headers and counts that claim more than there is: refused before anything is allocated."""

from __future__ import annotations

import io
import json
import resource
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_pipelines.ingest.__main__ import main as ingest
from data_pipelines.ingest.adopt import adopt
from data_pipelines.records import encoded, manifest, memory, schema
from data_pipelines.records.dataset import FrameBuffer, UnreadableRecordError, open_dataset
from data_pipelines.records.messages import SequenceExample, put_ints
from data_pipelines.records.reader import ShardWriter
from data_pipelines.tools.verify import verify

HUGE = 65500
SMALL = np.zeros((16, 16, 3), np.uint8)


def jpeg(width: int = HUGE, height: int = HUGE, progressive: bool = False) -> bytes:
    """An image of 16x16 whose header says something else."""
    if progressive:
        buffer = io.BytesIO()
        Image.fromarray(SMALL).save(buffer, "JPEG", progressive=True)
        data = bytearray(buffer.getvalue())
    else:
        data = bytearray(simplejpeg.encode_jpeg(SMALL, 80))
    place = data.find(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def png(width: int = HUGE, height: int = HUGE) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(999))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


BOMBS = {
    "jpeg": jpeg(),
    "wide jpeg": jpeg(HUGE, 16),
    "progressive jpeg": jpeg(progressive=True),
    "jpeg of a screen": jpeg(3840, 2160),
    "png": png(),
    "long png": png(16, 2**31 - 1),
    "png of a screen": png(3840, 2160),
}


@pytest.fixture(autouse=True)
def little_memory():
    """What is allocated all the same fails, and not this machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def write(folder, frames: tuple[bytes, ...], edit=lambda context: None) -> str:
    times = tuple(range(0, 40_000 * len(frames), 40_000))
    record = schema.Record("id", frames, times, 25.0, 16, 16, labels=(0,), label_names=("a",))
    message = SequenceExample.FromString(schema.encode(record))
    edit(message.context.feature)
    data = message.SerializeToString(deterministic=True)
    with ShardWriter(folder / "x-train.tfrecord") as writer:
        writer.append(data, len(frames))
    info = manifest.ShardInfo("x-train.tfrecord", 1, writer.bytes, writer.sha256, writer.index_crc)
    split = manifest.SplitInfo((info,), 1, len(frames), (1,))
    version = schema.version_of(frames)
    manifest.save(
        manifest.Manifest(str(folder), "x", version, ("a",), False, {"q": 1}, {"train": split})
    )
    return str(folder)


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("place", [0, 1])
def test_a_frame_has_the_size_of_its_record(tmp_path, bomb, place):
    good = simplejpeg.encode_jpeg(SMALL, 80)
    frames = (BOMBS[bomb], good) if place == 0 else (good, BOMBS[bomb])
    folder = write(tmp_path, frames)
    dataset = open_dataset(folder, "train")
    record = dataset.load(0)
    wanted = rf"frame {place} (is \d+x\d+, the record says 16x16|is not .*the header claims)"
    for buffer in (None, FrameBuffer()):
        with pytest.raises(UnreadableRecordError, match=wanted):
            dataset.frames(0, record, np.array([0, 1]), buffer)
        (frame,) = dataset.frames(0, record, np.array([1 - place]), buffer)
        assert frame.shape == (16, 16, 3)
    faults, _, _ = verify(folder, 0, quiet=True)
    assert len(faults) == 1 and f"frame {place} " in faults[0], faults


@pytest.mark.parametrize(("height", "width"), [(HUGE, HUGE), (2**62, 16), (1, 2**63 - 1)])
def test_a_record_that_claims_it_too(tmp_path, height, width):
    def edit(context) -> None:
        for name, value in (("video/height", height), ("video/width", width)):
            context[name].Clear()
            put_ints(context, name, value)

    folder = write(tmp_path, (jpeg(), jpeg()), edit)
    with pytest.raises(UnreadableRecordError, match=rf"frames of {width}x{height} pixels, at most"):
        open_dataset(folder, "train").load(0)
    faults, _, _ = verify(folder, 0, quiet=True)
    assert len(faults) == 1 and "pixels, at most" in faults[0]


def test_a_clip_that_no_memory_holds(tmp_path, monkeypatch):
    """Images that may be as large, but not so many."""
    folder = write(tmp_path, (simplejpeg.encode_jpeg(SMALL, 80),) * 4)
    dataset = open_dataset(folder, "train")
    record = dataset.load(0)
    monkeypatch.setattr(memory, "installed", lambda: 3 * 16 * 16 * 3)
    assert len(dataset.frames(0, record, np.arange(3), FrameBuffer())) == 3
    with pytest.raises(
        UnreadableRecordError, match="4 frames of 16x16 pixels are more than the mem"
    ):
        dataset.frames(0, record, np.arange(4), FrameBuffer())


@pytest.mark.parametrize("bomb", ["jpeg", "progressive jpeg", "png", "long png"])
def test_shards_of_others_are_adopted_by_the_size_of_their_frames(tmp_path, bomb):
    def plain(context) -> None:
        for name in list(context):
            if name.startswith(("video/", "schema/")):
                del context[name]

    write(tmp_path, (BOMBS[bomb],) * 2, plain)
    for path in (*tmp_path.glob("*.json"), *tmp_path.glob("*.idx")):
        path.unlink()
    with pytest.raises(
        ValueError, match=r"record 0: the first frame is not a JPEG or PNG \(the header"
    ):
        adopt(tmp_path, {"train": "x-*"}, "x")


def webp() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(SMALL).save(buffer, "WEBP", lossless=True)
    data = bytearray(buffer.getvalue())
    place = data.find(b"VP8L") + 9
    bits = struct.unpack_from("<I", data, place)[0] & ~0xFFFFFFF | 16383 | 16383 << 14
    struct.pack_into("<I", data, place, bits)
    return bytes(data)


def bmp() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(SMALL).save(buffer, "BMP")
    data = bytearray(buffer.getvalue())
    struct.pack_into("<ii", data, 18, HUGE, HUGE)
    return bytes(data)


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(SMALL).save(buffer, "GIF")
    data = bytearray(buffer.getvalue())
    struct.pack_into("<HH", data, 6, HUGE, HUGE)
    return bytes(data)


PICTURES = {
    "jpg": jpeg(), "png": png(), "webp": webp(), "jpeg": jpeg(progressive=True),
}  # fmt: skip


def rejected(out) -> list[dict]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def test_images_that_claim_too_much_are_rejected_rows(tmp_path):
    source = tmp_path / "images" / "a"
    source.mkdir(parents=True)
    for suffix, data in PICTURES.items():
        (source / f"bomb.{suffix}").write_bytes(data)
    (source / "e.png").write_bytes(bmp())  # by its content, whatever its name
    (source / "good.png").write_bytes(encoded.encode_png(SMALL))
    out = tmp_path / "out"
    arguments = [f"--source={tmp_path}/images", f"--out={out}", "--name=x", "--media=image"]
    assert ingest([*arguments, "--workers=0", "--quiet", "--max-bad=1"]) == 0
    rows = rejected(out)
    assert len(rows) == 5 and all(row["stage"] in ("long", "decode") for row in rows), rows
    assert sum("too large" in row["error"] or "claims" in row["error"] for row in rows) == 5, rows
    assert verify(str(out), 0, quiet=True)[0] == []


@pytest.mark.parametrize("bomb", ["jpg", "png", "jpeg"])
@pytest.mark.parametrize("place", [1, 3])
def test_a_frame_of_a_folder_that_claims_too_much_is_left_out(tmp_path, bomb, place):
    folder = tmp_path / "frames" / "a"
    folder.mkdir(parents=True)
    for number in range(1, 5):
        data = PICTURES[bomb] if number == place else simplejpeg.encode_jpeg(SMALL, 80)
        (folder / f"{number:05d}.jpg").write_bytes(data)
    (tmp_path / "list.txt").write_text("a 4 0\n")
    out = tmp_path / "out"
    arguments = [f"--source={tmp_path}/list.txt", f"--root={tmp_path}/frames", f"--out={out}"]
    arguments += ["--format=rawframes", "--frame-template={:05d}.jpg", "--frame-fps=10"]
    assert ingest([*arguments, "--name=x", "--workers=0", "--quiet", "--max-bad=1"]) == 0
    dataset = open_dataset(str(out), "train")
    record = dataset.load(0)
    assert (record.height, record.width, len(record.frames)) == (16, 16, 3)


def test_a_video_that_claims_too_much_is_a_rejected_row(tmp_path):
    (tmp_path / "v" / "a").mkdir(parents=True)
    (tmp_path / "v" / "a" / "bomb.gif").write_bytes(gif())
    (tmp_path / "list.csv").write_text(f"path,label\n{tmp_path}/v/a/bomb.gif,a\n")
    out = tmp_path / "out"
    arguments = [f"--source={tmp_path}/list.csv", f"--out={out}", "--name=x", "--media=video"]
    code = ingest([*arguments, "--workers=0", "--quiet", "--max-bad=1"])
    (row,) = rejected(out)
    assert code == 0 and row["stage"] == "decode"
