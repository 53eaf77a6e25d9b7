"""Log-mel spectrograms on the device, by Kaldi's filter-bank formula.

This is the front end of BEATs and of the audio branch of InternVideo2 stage 2. The Fourier
transform is a product with a constant matrix: at these lengths that is cheap on a matrix unit, and
unlike an FFT, whose input the partitioner gathers, it stays split over the batch.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class LogMelConfig:
    """The defaults are Kaldi's for 16 kHz with BEATs' 128 bins, not normalised."""

    sample_rate: int = 16000  # Hz
    window: int = 400  # samples of a frame, 25 ms
    hop: int = 160  # samples from frame to frame, 10 ms
    fft: int = 512  # transform length; frames are padded with zeros on the right
    mels: int = 128
    low: float = 20.0  # Hz, lower end of the first triangle
    high: float = 8000.0  # Hz, upper end of the last triangle
    taper: str = "povey"  # povey | hann | hamming | rectangular
    preemphasis: float = 0.97  # 0 = off
    remove_mean: bool = True  # of every frame
    scale: float = 32768.0  # brings float audio in [-1, 1] to the range of 16-bit integers
    floor: float = 1.1920929e-07  # least energy before the logarithm
    mean: float = 0.0  # of the result: (x - mean) / std
    std: float = 1.0

    def __post_init__(self):
        if self.hop < 1 or not 2 <= self.window <= self.fft:
            raise ValueError(
                f"hop {self.hop} must be positive, window {self.window} between 2 and the "
                f"transform length {self.fft}"
            )
        if not 0 <= self.low < self.high <= self.sample_rate / 2:
            raise ValueError(
                f"the band {self.low}..{self.high} Hz must lie between 0 and half the sample rate, "
                f"{self.sample_rate / 2} Hz"
            )
        if self.taper not in _TAPERS:
            raise ValueError(f"unknown taper {self.taper!r}; there are {', '.join(_TAPERS)}")
        if self.mels < 1 or not self.std > 0:
            raise ValueError(f"mels {self.mels} and std {self.std} must be positive")

    def frames(self, samples: int) -> int:
        """Frames of that many samples; only whole windows count."""
        return 1 + (samples - self.window) // self.hop if samples >= self.window else 0


_TAPERS = {
    "povey": lambda phase: (0.5 - 0.5 * np.cos(phase)) ** 0.85,
    "hann": lambda phase: 0.5 - 0.5 * np.cos(phase),
    "hamming": lambda phase: 0.54 - 0.46 * np.cos(phase),
    "rectangular": np.ones_like,
}

# InternVideo2 stage 2: 64 bins, although BEATs was trained with 128; 10 s give 998 frames.
STAGE2 = LogMelConfig(mels=64, mean=15.41663, std=2 * 6.55582)
# What BEATs' own preprocessing does.
BEATS = dataclasses.replace(STAGE2, mels=128)


def log_mel(
    audio: jax.Array, lengths: jax.Array | None = None, config: LogMelConfig = BEATS
) -> tuple[jax.Array, jax.Array]:
    """Log-mel features of a batch; use under jit with `config` static.

    Per frame: mean removed, pre-emphasis with the first sample repeated, taper, power spectrum,
    triangles evenly spaced on the mel scale 1127 ln(1 + f / 700), logarithm, normalisation. No
    dither.

    Args:
      audio: (B, S) mono, floats in [-1, 1] or int16 as recorded.
      lengths: (B,) samples of each row that are audio; 0 for a clip without audio. None: all S.

    Returns:
      features: (B, F, mels) float32 with F = `config.frames(S)`; zeros where the mask is False,
        since the reference pads after the normalisation.
      mask: (B, F) bool, frames that lie inside the audio as a whole.

    Raises:
      ValueError: not two axes, or shorter than one frame.
    """
    if audio.ndim != 2:
        raise ValueError(f"audio must be (batch, samples), found shape {audio.shape}")
    rows, samples = audio.shape
    count = config.frames(samples)
    if not count:
        raise ValueError(
            f"{samples} samples are less than one frame of {config.window}; pad with zeros"
        )
    scale = 1.0 if jnp.issubdtype(audio.dtype, jnp.integer) else config.scale
    frames = _frames(audio.astype(jnp.float32) * scale, config, count)
    if config.remove_mean:
        frames = frames - frames.mean(axis=-1, keepdims=True)
    before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
    frames = frames - config.preemphasis * before

    transform = jnp.asarray(_tapered_fourier(config))
    real, imaginary = jnp.einsum("bfw,wck->cbfk", frames, transform, precision=_HIGHEST)
    power = real**2 + imaginary**2
    energy = jnp.einsum("bfk,mk->bfm", power, jnp.asarray(mel_bank(config)), precision=_HIGHEST)
    features = (jnp.log(jnp.maximum(energy, config.floor)) - config.mean) / config.std

    if lengths is None:
        return features, jnp.ones((rows, count), bool)
    inside = (jnp.asarray(lengths)[:, None] - config.window) // config.hop
    mask = jnp.arange(count) <= inside
    return jnp.where(mask[..., None], features, 0.0), mask


def _frames(audio: jax.Array, config: LogMelConfig, count: int) -> jax.Array:
    """(B, S) -> (B, count, window) by strided slices of whole blocks, which need no gather."""
    block = math.gcd(config.window, config.hop)
    step, width = config.hop // block, config.window // block
    used = (count - 1) * step + width
    blocks = audio[:, : used * block].reshape(len(audio), used, block)
    last = (count - 1) * step + 1
    return jnp.concatenate([blocks[:, i : i + last : step] for i in range(width)], axis=-1)


def taper(config: LogMelConfig) -> np.ndarray:
    """(window,) float64, symmetric: the period is window - 1."""
    phase = 2 * np.pi * np.arange(config.window) / (config.window - 1)
    return _TAPERS[config.taper](phase)


@functools.lru_cache(maxsize=8)
def _tapered_fourier(config: LogMelConfig) -> np.ndarray:
    """(window, 2, fft // 2) float32: taper times cosine and sine, without the Nyquist bin."""
    turns = np.outer(np.arange(config.window), np.arange(config.fft // 2)) % config.fft
    phase = 2 * np.pi * turns / config.fft
    waves = np.stack([np.cos(phase), -np.sin(phase)], axis=1)
    return (taper(config)[:, None, None] * waves).astype(np.float32)


@functools.lru_cache(maxsize=8)
def mel_bank(config: LogMelConfig) -> np.ndarray:
    """(mels, fft // 2) float32 weights; the Nyquist bin has none, as in Kaldi."""

    def to_mel(frequency):
        return 1127.0 * np.log(1.0 + np.asarray(frequency) / 700.0)

    points = np.linspace(to_mel(config.low), to_mel(config.high), config.mels + 2)[:, None]
    bins = to_mel(np.arange(config.fft // 2) * config.sample_rate / config.fft)
    up = (bins - points[:-2]) / (points[1:-1] - points[:-2])
    down = (points[2:] - bins) / (points[2:] - points[1:-1])
    return np.maximum(0.0, np.minimum(up, down)).astype(np.float32)
