"""What a record holds beside its frames: audio, segments, boxes, images."""

import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.records import waveform
from data_pipelines.records.schema import Box, SchemaError, Segment, Waveform, decode, encode
from tests.data_pipelines.records.damage import damaged
from tests.data_pipelines.records.test_schema import (
    JPEG,
    bytes_feature,
    fields,
    float_feature,
    int_feature,
    make_record,
    sequence_example,
)

RAMP = np.arange(-8000, 8000, dtype="<i2")
AUDIO = Waveform(RAMP.tobytes(), 16_000, 2_000_000)
SEGMENTS = (
    Segment(0, 40_000, 3, "sit", "she sits, ü"),
    Segment(20_000, 90_000),
    Segment(50_000, 60_000, -1, "", "猫"),
)
BOXES = (
    Box(0, 0.1, 0.25, 0.5, 1.0, (3, 1), ("sit", "jump"), 7),
    Box(0, 0.0, 0.0, 1.0, 1.0),
    Box(33_367, 0.2, 0.2, 0.30000001192092896, 0.4, (0,), ("run",), -1),
)


def keys_of(data: bytes) -> tuple[set[bytes], list[bytes]]:
    (_, context), (_, lists) = fields(data)
    entries = [
        [fields(entry)[0][1] for _, entry in fields(part)]  # type: ignore[arg-type]
        for part in (context, lists)
    ]
    return set(entries[0]), entries[1]  # type: ignore[arg-type, return-value]


def test_everything_round_trips():
    record = make_record(audio=AUDIO, segments=SEGMENTS, boxes=BOXES, media_type="image")
    found = decode(encode(record))
    assert found.audio == AUDIO and found.segments == SEGMENTS and found.media_type == "image"
    assert found.boxes[:2] == BOXES[:2]
    assert found.boxes[2].y2 == pytest.approx(0.3)  # single precision, as decimal
    again = decode(encode(found))
    assert again == found and pickle.loads(pickle.dumps(found)) == found


def test_keys_are_the_documented_ones():
    context, lists = keys_of(encode(make_record(audio=AUDIO, segments=SEGMENTS, boxes=BOXES)))
    assert {
        b"audio/sample_rate",
        b"audio/start/timestamp",
        b"segment/start/timestamp",
        b"segment/end/timestamp",
        b"segment/label/index",
        b"segment/label/string",
        b"segment/caption/string",
        b"box/timestamp",
        b"box/y1",
        b"box/x1",
        b"box/y2",
        b"box/x2",
        b"box/track",
        b"box/label/count",
        b"box/label/index",
        b"box/label/string",
    } <= context
    assert lists == [b"WAVEFORM/feature/bytes", b"image/encoded", b"image/timestamp"]
    # What a clip does not have costs nothing, and records from before stay as they were.
    context, lists = keys_of(encode(make_record()))
    assert not [key for key in context if key.startswith((b"audio", b"segment", b"box", b"media"))]
    assert lists == [b"image/encoded", b"image/timestamp"]


def test_samples_are_stored_as_plain_little_endian_bytes():
    data = encode(make_record(audio=Waveform(struct.pack("<3h", 1, -2, 32767), 16_000)))
    assert struct.pack("<3h", 1, -2, 32767) in data


def test_dmvr_floats_are_read_and_written():
    values = (0.0, 0.5, -1.0, 1.5, float("nan"))
    data = sequence_example(
        {},
        {
            "image/encoded": [bytes_feature(JPEG)],
            "WAVEFORM/feature/floats": [float_feature(*values)],
        },
    )
    record = decode(data)
    assert record.audio is not None and record.audio.encoding == "float32"
    assert record.audio.sample_rate == waveform.DMVR_SAMPLE_RATE
    assert list(record.audio.samples) == [0, 16384, -32768, 32767, 0]
    window, valid = record.audio_window(0, 1_000_000, 4)
    assert valid == 4 and window.tolist() == list(values[:4])
    assert decode(encode(record)).audio == record.audio
    long = Waveform(np.linspace(-1, 1, 5000, dtype="<f4").tobytes(), 8000, 0, "float32")
    assert decode(encode(make_record(audio=long))).audio == long


def test_window_is_the_same_time_as_the_frames():
    """The ramp's value tells the sample's number: 16 per millisecond from 2 s on."""

    def numbers(start_us, end_us, samples):
        window, valid = make_record(audio=AUDIO).audio_window(start_us, end_us, samples)
        assert window.shape == (samples,) and window.dtype == np.float32
        return np.rint(window * 32768).astype(int) + 8000, valid

    found, valid = numbers(2_000_000, 2_010_000, 160)
    assert valid == 160 and found.tolist() == list(range(160))
    found, valid = numbers(2_500_000, 2_501_000, 20)  # shorter than the array: padded
    assert valid == 16 and found[:16].tolist() == list(range(8000, 8016))
    assert (found[16:] == 8000).all()  # zero
    found, valid = numbers(2_500_000, 2_600_000, 20)  # longer: the beginning
    assert valid == 20 and found.tolist() == list(range(8000, 8020))
    found, valid = numbers(2_999_000, 3_001_000, 32)  # beyond the end
    assert valid == 16 and found[:16].tolist() == list(range(15984, 16000))
    found, valid = numbers(1_999_000, 2_001_000, 32)  # before the beginning: silence
    assert valid == 32 and (found[:16] == 8000).all() and found[16:].tolist() == list(range(16))
    for outside in ((0, 1_000_000), (4_000_000, 5_000_000), (2_500_000, 2_500_000)):
        found, valid = numbers(*outside, 16)
        assert valid == 0 and (found == 8000).all()


def test_samples_are_read_when_they_are_asked_for():
    reads = []

    def read():
        reads.append(1)
        return AUDIO.data

    audio = Waveform(read, 16_000, 2_000_000)
    assert audio and "16000 samples per second" in repr(audio) and not reads
    assert audio.window(2_000_000, 2_010_000, 160)[1] == 160 and len(audio) == len(RAMP)
    assert audio == AUDIO and pickle.loads(pickle.dumps(audio)) == AUDIO and reads == [1]


def test_clip_without_audio_has_a_window_of_nothing():
    window, valid = make_record().audio_window(0, 1_000_000, 10)
    assert valid == 0 and window.tolist() == [0.0] * 10 and window.dtype == np.float32


@given(st.integers(-(10**6), 4 * 10**6), st.integers(0, 3 * 10**6), st.integers(1, 3000))
def test_windows_never_exceed_what_is_asked_for(start, length, samples):
    window, valid = AUDIO.window(start, start + length, samples)
    assert window.shape == (samples,) and 0 <= valid <= samples
    assert valid <= length * 0.016 + 1 and not window[valid:].any()


def image(context: dict[str, bytes], lists: dict[str, list[bytes]] | None = None) -> bytes:
    return sequence_example(context, {"image/encoded": [bytes_feature(JPEG)], **(lists or {})})


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (image({"media/type": bytes_feature(b"smell")}), "media/type is 'smell'"),
        (
            image({}, {"WAVEFORM/feature/bytes": [bytes_feature(b"ab")]}),
            "audio/sample_rate is not",
        ),
        (
            image(
                {"audio/sample_rate": int_feature(16000)},
                {"WAVEFORM/feature/bytes": [bytes_feature(b"abc")]},
            ),
            "3 bytes of audio are not whole pcm16 samples",
        ),
        (
            image(
                {"audio/sample_rate": int_feature(-1)},
                {"WAVEFORM/feature/bytes": [bytes_feature(b"ab")]},
            ),
            "sample rate is -1",
        ),
        (
            image(
                {
                    "segment/start/timestamp": int_feature(1, 2),
                    "segment/end/timestamp": int_feature(5),
                }
            ),
            "segment/end/timestamp has 1 values, 2 expected",
        ),
        (
            image(
                {
                    "segment/start/timestamp": int_feature(5),
                    "segment/end/timestamp": int_feature(5),
                }
            ),
            "segment 0 ends at 5 us",
        ),
        (
            image({"box/timestamp": int_feature(1), "box/y1": float_feature(0.5)}),
            "box/x1 has 0 values, 1 expected",
        ),
        (
            image(
                {
                    "box/timestamp": int_feature(1),
                    **{f"box/{k}": float_feature(0.1) for k in ("y1", "x1")},
                    **{f"box/{k}": float_feature(0.4) for k in ("y2", "x2")},
                    "box/label/count": int_feature(2),
                    "box/label/index": int_feature(1),
                }
            ),
            "box/label/index has 1 values, 2 expected",
        ),
    ],
)
def test_records_whose_content_contradicts_itself_are_refused(data, complaint):
    with pytest.raises(SchemaError, match=complaint):
        record = decode(data)
        record.audio_window(0, 1_000_000, 10)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"media_type": "smell"}, "media type 'smell', expected video or image"),
        ({"audio": Waveform(b"abc", 16_000)}, "not whole pcm16"),
        ({"audio": Waveform(b"", 0)}, "sample rate is 0"),
        ({"audio": Waveform(b"", 1, 2**63)}, "does not fit 64 bits"),
        ({"audio": Waveform(b"", 1, 0, "mp3")}, "encoding 'mp3'"),
        ({"segments": (Segment(5, 4),)}, "segment 0 ends at 4 us"),
        ({"segments": (Segment(0, 2**63),)}, "does not fit 64 bits"),
        ({"boxes": (Box(0, 0.5, 0, 0.5, 1),)}, "box 0 is y 0.5 to 0.5"),
        ({"boxes": (Box(0, 0.3, 0, 0.3 + 1e-9, 1),)}, "box 0 is y 0.3 to 0.3"),
        ({"boxes": (Box(0, 0, -0.1, 1, 1),)}, "expected 0 <= y1"),
        ({"boxes": (Box(0, 0, float("nan"), 1, 1),)}, "expected 0 <= y1"),
        ({"boxes": (Box(0, 0, 0, 1, 1, (1,)),)}, "0 label names for 1 labels"),
        ({"boxes": (Box(0, 0, 0, 1, 1, track=2**63),)}, "does not fit 64 bits"),
    ],
)
def test_content_that_contradicts_itself_is_not_written(changes, complaint):
    with pytest.raises(SchemaError, match=complaint):
        encode(make_record(**changes))


FULL = encode(
    make_record(
        frames=(JPEG[:300],) * 3,
        height=48,
        audio=Waveform(b"\1\2" * 40, 16_000),
        segments=SEGMENTS,
        boxes=BOXES,
    )
)


@given(damaged(FULL))
def test_fuzz_damaged_content(data):
    try:
        record = decode(data)
    except SchemaError:
        return
    try:
        record.audio_window(0, 10_000, 100)
    except SchemaError:
        return
    assert record.audio is None or len(record.audio.samples) == len(record.audio)
