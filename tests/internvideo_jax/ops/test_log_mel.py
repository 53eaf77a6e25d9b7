"""Log-mel features against the written formula in float64 and against the reference's output."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from internvideo_jax.ops.log_mel import BEATS, STAGE2, LogMelConfig, log_mel, mel_bank, taper
from tests.parity.cases import Case, discover

KALDI = LogMelConfig()
OTHER = LogMelConfig(
    sample_rate=8000,
    window=200,
    hop=84,
    fft=256,
    mels=20,
    low=60.0,
    high=3500.0,
    taper="hamming",
    preemphasis=0.0,
    remove_mean=False,
    scale=1.0,
    floor=1e-5,
    mean=-3.0,
    std=2.0,
)
features = jax.jit(log_mel, static_argnums=2)


def written_formula(audio: np.ndarray, c: LogMelConfig) -> np.ndarray:
    """One row of float audio, frame by frame and triangle by triangle, in float64."""
    audio = audio.astype(np.float64) * c.scale
    phase = 2 * np.pi * np.arange(c.window) / (c.window - 1)
    hann = 0.5 * (1 - np.cos(phase))
    window = {"povey": hann**0.85, "hann": hann, "hamming": 0.54 - 0.46 * np.cos(phase)}[c.taper]

    def mel(f):
        return 1127.0 * np.log(1 + f / 700.0)

    width = (mel(c.high) - mel(c.low)) / (c.mels + 1)
    rows = []
    for start in range(0, len(audio) - c.window + 1, c.hop):
        frame = audio[start : start + c.window].copy()
        if c.remove_mean:
            frame -= frame.mean()
        frame -= c.preemphasis * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.rfft(frame * window, c.fft)) ** 2
        row = []
        for m in range(c.mels):
            left = mel(c.low) + m * width
            energy = 0.0
            for k in range(c.fft // 2):
                position = (mel(k * c.sample_rate / c.fft) - left) / width
                if 0 < position < 2:
                    energy += power[k] * min(position, 2 - position)
            row.append((np.log(max(energy, c.floor)) - c.mean) / c.std)
        rows.append(row)
    return np.array(rows)


def noise(rows: int, samples: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    loudness = np.geomspace(1, 1e-3, rows)[:, None]
    return (0.2 * loudness * rng.standard_normal((rows, samples))).astype(np.float32)


@pytest.mark.parametrize("config", [KALDI, STAGE2, OTHER], ids=["kaldi", "stage2", "other"])
def test_equals_the_written_formula(config):
    audio = noise(2, 3000)
    audio += 0.5 * audio.std(axis=1, keepdims=True)  # an offset, which `remove_mean` takes out
    ours, mask = features(audio, None, config)
    expected = np.stack([written_formula(row, config) for row in audio])
    assert ours.shape == expected.shape and ours.dtype == np.float32 and np.asarray(mask).all()
    # The tolerance of the reference's own case: float32 cannot do better in the quietest bins.
    np.testing.assert_allclose(ours, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("case", [c for c in discover() if c.name.startswith("beats")], ids=str)
def test_equals_the_reference(case: Case):
    """Only the front end of the case; its encoder is another matter."""
    audio = case.io["waveform"]
    for bins in (64, 128):
        raw, _ = features(audio, None, dataclasses.replace(KALDI, mels=bins))
        case.close(f"fbank_raw_{bins}", raw)
        normalised, _ = features(audio, None, dataclasses.replace(BEATS, mels=bins))
        case.close(f"fbank_norm_{bins}", normalised)
    case.close("mel_bank_64", mel_bank(STAGE2))
    case.close("povey_window", taper(STAGE2))


def test_ten_seconds_are_998_frames():
    ours, _ = jax.eval_shape(
        lambda a: log_mel(a, config=STAGE2), jax.ShapeDtypeStruct((3, 160000), np.int16)
    )
    assert ours.shape == (3, 998, 64)


def test_lengths_mask_frames_that_are_not_all_audio():
    audio = noise(5, 1200)
    lengths = np.array([1200, 879, 880, 400, 0], np.int32)
    ours, mask = features(audio, lengths, STAGE2)
    assert np.asarray(mask).sum(axis=1).tolist() == [6, 3, 4, 1, 0]
    assert (np.asarray(ours)[~np.asarray(mask)] == 0).all()
    whole, _ = features(audio, None, STAGE2)
    np.testing.assert_array_equal(np.asarray(ours)[np.asarray(mask)], whole[np.asarray(mask)])


def test_integers_are_taken_as_recorded():
    audio = np.round(noise(2, 900) * 32768).astype(np.int16)
    whole, _ = features(audio, None, STAGE2)
    unit, _ = features(audio.astype(np.float32) / 32768, None, STAGE2)
    np.testing.assert_array_equal(whole, unit)


def test_silence_is_the_floor():
    ours, _ = features(np.zeros((1, 800), np.float32), None, KALDI)
    np.testing.assert_allclose(ours, np.log(KALDI.floor), rtol=1e-6)


def test_a_tone_lands_in_its_band():
    time = np.arange(4000) / 16000
    for frequency in (250.0, 1000.0, 4000.0):
        tone = (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)[None]
        ours, _ = features(tone, None, STAGE2)
        centres = np.arange(1, 65) / 65 * (1127 * np.log(1 + 8000 / 700) - 31.75) + 31.75
        nearest = np.abs(centres - 1127 * np.log(1 + frequency / 700)).argmin()
        assert (np.asarray(ours)[0].argmax(axis=1) == nearest).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 399), "399 samples are less than one frame of 400"), ((900,), "found shape")],
)
def test_wrong_audio(shape, message):
    with pytest.raises(ValueError, match=message):
        log_mel(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hop": 0}, "hop 0 must be positive"),
        ({"window": 600}, "window 600 between 2 and the transform length 512"),
        ({"high": 9000.0}, "half the sample rate, 8000.0 Hz"),
        ({"low": 8000.0}, "the band 8000.0..8000.0 Hz"),
        ({"taper": "kaiser"}, "there are povey, hann"),
        ({"std": 0.0}, "std 0.0 must be positive"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(KALDI, **change)
