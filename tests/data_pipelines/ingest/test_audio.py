"""The audio of a clip: at its time, at its length, and never the reason to lose the frames."""

import av
import numpy as np
import pytest

from data_pipelines.ingest import decode
from data_pipelines.ingest.audio import SAMPLE_RATE
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.run import ingest
from data_pipelines.records import schema
from data_pipelines.records.dataset import open_dataset
from tests.data_pipelines.ingest.audio_files import BEEP_US, beep, make_audio_file
from tests.data_pipelines.ingest.clips import make_audio, make_video, scramble
from tests.data_pipelines.ingest.decoding import clip_of, stage_of


def beep_of(clip) -> tuple[float, float]:
    """First and last time at which the clip sounds, microseconds in the source video."""
    loud = np.flatnonzero(np.abs(clip.audio.samples.astype(int)) > 3000)
    return tuple(clip.audio.start_us + loud[[0, -1]] * 1e6 / SAMPLE_RATE)


def close(found, expected=BEEP_US, us: float = 2000) -> bool:
    # A lossy codec smears an edge over some samples.
    return bool(np.all(np.abs(np.subtract(found, expected)) < us))


def sweep(seconds: float, rate: int) -> np.ndarray:
    """A tone (1, n) that rises from 200 to 1000 Hz: no two moments of it sound alike."""
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (200 * t + 400 * t**2 / seconds)
    return (0.5 * np.sin(phase)).astype(np.float32)[None]


def same_audio(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for a shift of half a sample: a run of audio begins anywhere between two."""
    assert len(found) == len(expected)
    a, b = found[50:-50].astype(float), expected.astype(float)
    fits = [np.corrcoef(a, b[50 + lag : len(b) - 50 + lag])[0, 1] for lag in range(-50, 50)]
    assert np.argmax(fits) == 50 and fits[50] > 0.98


@pytest.mark.parametrize(
    ("name", "codec", "rate", "channels"),
    [
        ("a.mp4", "aac", 48_000, 2),
        ("a.mp4", "aac", 44_100, 1),
        ("a.mkv", "aac", 22_050, 2),
        ("a.mkv", "pcm_s16le", 16_000, 1),
        ("a.avi", "pcm_s16le", 32_000, 2),
        ("a.mov", "pcm_s16le", 8_000, 1),
    ],
)
def test_audio_is_at_its_time(tmp_path, name, codec, rate, channels):
    path = make_audio_file(tmp_path / name, beep(3, rate, channels), rate, codec=codec)
    clip = clip_of(path, audio="pcm16")
    assert clip.audio.sample_rate == SAMPLE_RATE and clip.audio.start_us == 0
    assert len(clip.audio) == pytest.approx(3 * SAMPLE_RATE, abs=1024 * SAMPLE_RATE / rate)
    assert close(beep_of(clip)), beep_of(clip)
    assert np.abs(clip.audio.samples).max() == pytest.approx(0.5 * 32768, rel=0.1)
    assert clip.notes == ()


@pytest.mark.parametrize("cut", [(0.55, 1.2), (1.1, None), (0.0, 0.7)])
def test_cut_takes_the_audio_of_the_frames(tmp_path, cut):
    path = make_audio_file(tmp_path / "a.mp4", sweep(3, 48_000), 48_000)
    whole, part = clip_of(path, audio="pcm16"), clip_of(path, *cut, audio="pcm16")
    assert part.audio.start_us == part.start_us == round(cut[0] * 1e6)
    low = round(cut[0] * SAMPLE_RATE)
    same_audio(part.audio.samples, whole.audio.samples[low : low + len(part.audio)])
    seconds = (part.end_us - part.start_us) / 1e6
    assert len(part.audio) == pytest.approx(seconds * SAMPLE_RATE, abs=400)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "pcm_s16le")])
def test_cut_that_is_sought_gives_the_audio_of_reading_through(tmp_path, monkeypatch, name, codec):
    path = make_audio_file(tmp_path / name, sweep(6, 44_100), 44_100, frames=60, codec=codec)
    sought = clip_of(path, 3.7, 4.4, audio="pcm16")
    monkeypatch.setattr("data_pipelines.ingest.audio._SEEK_FROM_US", 2**60)
    through = clip_of(path, 3.7, 4.4, audio="pcm16")
    assert sought.audio.start_us == 3_700_000 and len(sought.audio) == round(0.7 * SAMPLE_RATE)
    same_audio(sought.audio.samples, through.audio.samples)
    assert np.array_equal(sought.frames, through.frames)


def test_file_whose_times_do_not_begin_at_zero(tmp_path):
    path = make_audio_file(tmp_path / "a.mkv", beep(3, 48_000), 48_000, shift_us=7_000_000)
    clip = clip_of(path, audio="pcm16")
    assert clip.timestamps_us[0] == 0
    assert close(beep_of(clip)), beep_of(clip)


def test_audio_that_begins_late_is_preceded_by_silence(tmp_path):
    path = make_audio_file(tmp_path / "a.mkv", beep(2, 16_000, 1), 16_000, delay_us=500_000)
    clip = clip_of(path, audio="pcm16")
    assert close(beep_of(clip), (1_500_000, 1_750_000)), beep_of(clip)
    assert not clip.audio.samples[: round(0.45 * SAMPLE_RATE)].any()


def test_gap_in_the_audio_does_not_move_what_follows(tmp_path):
    path = make_audio_file(
        tmp_path / "a.mkv", beep(3, 16_000, 1), 16_000, codec="pcm_s16le", gap=(3, 10)
    )
    clip = clip_of(path, audio="pcm16")
    assert close(beep_of(clip)), beep_of(clip)
    assert [(note.kind, note.detail) for note in clip.notes] == [
        ("audio", "0.45 s of audio are missing; silence took their place")
    ]
    assert clip_of(path, 1.0, 2.0, audio="pcm16").notes == ()


def test_audio_that_ends_early_is_short(tmp_path):
    path = make_audio_file(tmp_path / "a.mp4", beep(1.25, 16_000, 1), 16_000, frames=30)
    clip = clip_of(path, audio="pcm16")
    assert len(clip.frames) == 30 and clip.notes == ()
    assert 1.2 * SAMPLE_RATE < len(clip.audio) < 1.4 * SAMPLE_RATE


def test_audio_does_not_change_the_frames_and_is_left_out_unless_wanted(tmp_path):
    path = make_audio_file(tmp_path / "a.mp4", beep(3, 48_000), 48_000)
    with_audio, without = clip_of(path, audio="pcm16"), clip_of(path)
    assert without.audio is None and with_audio.frames == without.frames
    assert clip_of(path, audio="pcm16") == with_audio


def test_video_without_audio_is_accepted_and_counted(tmp_path):
    clip = clip_of(make_video(tmp_path / "a.mp4", 5), audio="pcm16")
    assert clip.audio is None and len(clip.frames) == 5
    assert [(note.kind, note.detail) for note in clip.notes] == [("silent", "has no audio stream")]


def test_audio_outside_the_cut_is_silence(tmp_path):
    path = make_audio_file(tmp_path / "a.mp4", beep(1, 16_000, 1), 16_000, frames=30)
    clip = clip_of(path, 2.0, 2.5, audio="pcm16")
    assert clip.audio is None and [note.kind for note in clip.notes] == ["silent"]


def test_audio_alone_is_still_no_video(tmp_path):
    assert stage_of(make_audio(tmp_path / "a.mp4"), audio="pcm16")[0] == "empty"


def test_damaged_audio_is_a_warning(tmp_path):
    # FLAC has checksums; what other decoders make of noise depends on their build.
    path = make_audio_file(tmp_path / "a.mkv", beep(3, 16_000, 1), 16_000, codec="flac")
    with av.open(str(path)) as file:
        packets = [
            bytes(packet)
            for packet in file.demux(audio=0)
            if packet.size and 0.3 < packet.pts * packet.time_base < 0.6
        ]
    data = path.read_bytes()
    noise = np.random.default_rng(0)
    for packet in packets:
        assert data.count(packet) >= 1
        data = data.replace(packet, noise.bytes(len(packet)))
    path.write_bytes(data)
    clip = clip_of(path, audio="pcm16")
    assert len(clip.frames) == 30
    assert [note.kind for note in clip.notes] == ["audio"], clip.notes
    assert "silence took their place" in clip.notes[0].detail
    samples = clip.audio.samples
    beep_at = np.flatnonzero(np.abs(samples[14_000:].astype(int)) > 3000)[[0, -1]] + 14_000
    assert close(beep_at * 1e6 / SAMPLE_RATE), beep_at


@pytest.mark.parametrize("error", [ValueError, MemoryError, ZeroDivisionError])
def test_surprises_in_the_audio_cost_the_audio_only(tmp_path, monkeypatch, error):
    def fail(*args):
        raise error("surprise")

    path = make_audio_file(tmp_path / "a.mp4", beep(1, 16_000, 1), 16_000)
    monkeypatch.setattr("data_pipelines.ingest.audio._Reading._add", fail)
    clip = clip_of(path, audio="pcm16")
    assert len(clip.frames) == 30 and clip.audio is None
    assert [note.kind for note in clip.notes] == ["audio"]
    assert f"{error.__name__}: surprise" in clip.notes[0].detail


def test_audio_too_long_for_a_record_is_refused(tmp_path, monkeypatch):
    path = make_audio_file(tmp_path / "a.mp4", beep(3, 16_000, 1), 16_000)
    frames = sum(map(len, clip_of(path).frames))
    monkeypatch.setattr(decode, "MAX_RECORD_BYTES", frames + 50_000)
    stage, message = stage_of(path, audio="pcm16")
    assert stage == "long" and "the audio of 3 s does not fit" in message


def test_scrambled_file_keeps_what_it_has(tmp_path):
    path = scramble(make_audio_file(tmp_path / "a.mkv", beep(3, 48_000), 48_000), 0.5, 0.7)
    clip = clip_of(path, audio="pcm16")
    assert "partial" in {note.kind for note in clip.notes}
    assert clip.audio is None or len(clip.audio) <= round(clip.end_us * SAMPLE_RATE / 1e6)


def test_reader_moves_the_audio_only_when_it_is_wanted(tmp_path, monkeypatch):
    make_audio_file(tmp_path / "a.mp4", beep(3, 16_000, 1), 16_000)
    source = tmp_path / "t.csv"
    source.write_text("path\na.mp4\n")
    options = IngestOptions(
        source=str(source), out=str(tmp_path / "o"), workers=0, shards=1, audio="pcm16"
    )
    ingest(options, quiet=True)
    dataset = open_dataset(str(tmp_path / "o"), "train")
    moved = []
    parts = type(dataset.source).parts

    def count(self, index, wanted):
        found = parts(self, index, wanted)
        moved.append(sum(map(len, found)))
        return found

    monkeypatch.setattr(type(dataset.source), "parts", count)
    record = dataset.load(0)
    dataset.frames(0, record, np.array([3, 4]))
    assert record.audio is not None and sum(moved) < 20_000
    window, valid = record.audio_window(*BEEP_US, 4000)
    assert sum(moved) > 96_000 and valid == 4000
    assert np.abs(window).mean() == pytest.approx(0.5 * 2 / np.pi, rel=0.05)
    assert record.audio == schema.decode(dataset.source[0]).audio
