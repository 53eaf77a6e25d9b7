"""The audio of a clip: mono samples on the clock of its frames, and how a record holds them.

====================================  ========  ==============================================
`WAVEFORM/feature/bytes`            sequence  bytes, one step: all samples, 16-bit signed
                                                little endian, full scale 32768
`WAVEFORM/feature/floats`           sequence  float, one step: DMVR's form, full scale 1
`audio/sample_rate`                 int64     samples per second
`audio/start/timestamp`             int64     microseconds in the source video
====================================  ========  ==============================================
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_pipelines.records.messages import INT64, SchemaError, ints

BYTES_KEY = "WAVEFORM/feature/bytes"
FLOATS_KEY = "WAVEFORM/feature/floats"

# What DMVR's own generator extracts; it stores no rate.
DMVR_SAMPLE_RATE = 48_000

_DTYPES = {"pcm16": np.dtype("<i2"), "float32": np.dtype("<f4")}


class Waveform:
    """Mono samples; equal audio compares equal.

    Args:
      data: the samples as stored, little endian, or a function that reads them at the first use.
      sample_rate: samples per second.
      start_us: time of the first sample, microseconds from the start of the source video, the
        clock of `Record.timestamps_us`.
      encoding: `pcm16` (ours) or `float32` (DMVR).
    """

    __slots__ = ("_data", "encoding", "sample_rate", "start_us")

    def __init__(
        self,
        data: bytes | Callable[[], bytes],
        sample_rate: int,
        start_us: int = 0,
        encoding: str = "pcm16",
    ):
        self._data = data
        self.sample_rate = sample_rate
        self.start_us = start_us
        self.encoding = encoding

    @property
    def data(self) -> bytes:
        """The samples; SchemaError where they are not what was promised."""
        if not isinstance(self._data, bytes):
            self._data = self._data()
            problem = check(self)
            if problem:
                raise SchemaError(problem)
        return self._data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Waveform) and self._values() == other._values()

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Waveform, self._values()

    def _values(self) -> tuple[bytes, int, int, str]:
        return self.data, self.sample_rate, self.start_us, self.encoding

    def __len__(self) -> int:
        return len(self.data) // _DTYPES[self.encoding].itemsize

    def __bool__(self) -> bool:
        return True  # also without samples: asking should not read them

    def __repr__(self) -> str:
        return f"<audio, {self.sample_rate} samples per second from {self.start_us} us>"

    @property
    def samples(self) -> np.ndarray:
        """All samples (n,) int16, a read-only view where the encoding is `pcm16`."""
        return _as_integers(np.frombuffer(self.data, _DTYPES[self.encoding]))

    def window(
        self, start_us: int, end_us: int, samples: int, *, dtype: type[np.generic] = np.float32
    ) -> tuple[np.ndarray, int]:
        """The audio from `start_us` up to `end_us` in an array of fixed length.

        Sample `k` of the result is the audio at `start_us + k * 1e6 / sample_rate`, so two
        windows of one clip stay aligned with its frames. Where the window begins before the
        audio does there is silence, which counts as audio; what lies behind its end is padding,
        which does not.

        Args:
          start_us, end_us: microseconds from the start of the source video.
          samples: length of the result; what the window has beyond it is left out.
          dtype: float32, or int16 for the samples as `samples` has them.

        Returns:
          Samples (samples,), float32 in [-1, 1] or int16 of full scale 32768, zero where there is
          none, and how many from the beginning on are valid.
        """
        result = np.zeros(samples, dtype)
        first = _round_div((start_us - self.start_us) * self.sample_rate, 1_000_000)
        wanted = _round_div((end_us - start_us) * self.sample_rate, 1_000_000)
        low, high = max(0, first), min(len(self), first + max(0, min(wanted, samples)))
        if high <= low:
            return result, 0
        part = np.frombuffer(self.data, _DTYPES[self.encoding])[low:high]
        out = result[low - first : high - first]
        if dtype is np.int16:
            out[:] = _as_integers(part)
        else:
            scale = np.float32(1 / 32768) if self.encoding == "pcm16" else np.float32(1)
            np.multiply(part, scale, out=out, casting="same_kind")
        return result, high - first


def _as_integers(stored: np.ndarray) -> np.ndarray:
    if stored.dtype == _DTYPES["pcm16"]:
        return stored
    return np.clip(np.rint(np.nan_to_num(stored) * 32768), -32768, 32767).astype(np.int16)


def _round_div(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def check(audio: Waveform) -> str:
    """What keeps an audio from being stored, or an empty text."""
    if audio.encoding not in _DTYPES:
        return f"audio encoding {audio.encoding!r}, expected {' or '.join(_DTYPES)}"
    if audio.sample_rate <= 0:
        return f"audio sample rate is {audio.sample_rate}; it must be positive"
    if audio.sample_rate not in INT64 or audio.start_us not in INT64:
        return "the audio's rate or start does not fit 64 bits"
    if len(audio.data) % _DTYPES[audio.encoding].itemsize:
        return f"{len(audio.data)} bytes of audio are not whole {audio.encoding} samples"
    return ""


def put(message: Any, audio: Waveform) -> None:
    """Store into a SequenceExample."""
    message.context.feature["audio/sample_rate"].int64_list.value.append(audio.sample_rate)
    message.context.feature["audio/start/timestamp"].int64_list.value.append(audio.start_us)
    lists = message.feature_lists.feature_list
    if audio.encoding == "pcm16":
        lists[BYTES_KEY].feature.add().bytes_list.value.append(audio.data)
    else:
        values = lists[FLOATS_KEY].feature.add().float_list
        values.MergeFromString(b"\x0a" + _varint(len(audio.data)) + audio.data)


def get(context: Any, lists: Mapping[str, Any], start_us: int, *, lazy: bool) -> Waveform | None:
    """The audio of a SequenceExample; None when it has none.

    Args:
      context: its context features.
      lists: key -> feature list.
      start_us: where the audio begins in a record that does not say so.
      lazy: take the samples from `lists` only when they are asked for.

    Raises:
      SchemaError: bytes that are not samples; a lazy audio raises it at the first use.
    """
    # DMVR's own name for the rate is a float; readers of its records find it in either type.
    known = ints(context, "audio/sample_rate") or ints(context, "WAVEFORM/sample_rate")
    if not known and "WAVEFORM/sample_rate" in context:
        known = tuple(round(v) for v in context["WAVEFORM/sample_rate"].float_list.value if v < 1e9)
    rate = known[0] if known else DMVR_SAMPLE_RATE
    start = (ints(context, "audio/start/timestamp") or (start_us,))[0]
    # A list without steps means no audio, which only an eager look can tell.
    stored = [key for key in (BYTES_KEY, FLOATS_KEY) if key in lists]
    key = next((key for key in stored if lazy or lists[key].feature), None)
    if key is None:
        return None
    if key == BYTES_KEY and not known:
        raise SchemaError(f"{BYTES_KEY} is there, audio/sample_rate is not")

    def read() -> bytes:
        steps = lists[key].feature
        if key == FLOATS_KEY:
            return b"".join(_packed(step.float_list) for step in steps)
        return b"".join(value for step in steps for value in step.bytes_list.value)

    encoding = "pcm16" if key == BYTES_KEY else "float32"
    audio = Waveform(read, rate, start, encoding)
    if not lazy:
        _ = audio.data
    return audio


def _packed(values: Any) -> bytes:
    """The bytes of a FloatList; element by element, 10 s of audio would cost 20 ms."""
    count = len(values.value)
    if not count:
        return b""
    data = values.SerializeToString()
    # Field 1, packed: a tag byte, the length as a varint, the floats; unknown fields follow.
    start = 1 + len(_varint(4 * count))
    return data[start : start + 4 * count]


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes([*result, value])
