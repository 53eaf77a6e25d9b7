"""One opened split: record numbers to records, records to decoded frames.

With a frame table in the index only the context of a record and the frames of a clip are read;
without one (an index of version 1, a scanned shard) the whole record is.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, SupportsIndex, TypeVar, overload

import numpy as np

from data_pipelines.records import encoded, memory, schema
from data_pipelines.records.frame_table import FrameTable
from data_pipelines.records.leave_out import kept
from data_pipelines.records.manifest import Manifest, open_split
from data_pipelines.records.reader import CorruptRecordError, RecordSource

TIMELINES = 64  # videos of a split whose frame times are looked at
_READERS = 8  # at the same time: of remote sets each is a request or two
_Result = TypeVar("_Result")
_TIMES_KEY = "image/timestamp"


class UnreadableRecordError(ValueError):
    """A record that cannot become a clip; says which one and why."""


class FrameBuffer:
    """Memory that decoded frames use again; a frame lives until its thread decodes the next clip.

    Fresh memory for every frame costs a quarter of the decoding time in page faults.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return FrameBuffer, ()

    def rows(self, count: int, size: int) -> np.ndarray:
        """(count, size) uint8 of this thread, with anything in it."""
        memory = getattr(self._local, "memory", None)
        if memory is None or memory.size < count * size:
            memory = self._local.memory = np.empty(count * size, np.uint8)
        return memory[: count * size].reshape(count, size)


class _Parts:
    """The parts of one record, read when they are asked for."""

    def __init__(self, source: RecordSource, index: int, table: FrameTable):
        self.source, self.index, self.table = source, index, table

    def read(self, parts: Sequence[np.ndarray]) -> list[bytes]:
        return _readable(self.source, self.index, lambda: self.source.parts(self.index, parts))

    def feature_list(self, key: str) -> Any:
        (data,) = self.read([self.table.lists[key]])
        return _readable(self.source, self.index, lambda: schema.parse_list(data))


class _StoredFrames(schema.EncodedFrames):
    """Those of a record in a shard; neighbours are one read."""

    __slots__ = ("_parts",)

    def __init__(self, parts: _Parts):
        self._parts = parts

    def __len__(self) -> int:
        return len(self._parts.table.frames)

    def fetch(self, numbers: Sequence[int]) -> list[bytes]:
        table = self._parts.table.frames
        return self._parts.read([table[number] for number in numbers])


class _Times(Sequence[int]):
    """The frame times of a record, read at the first use."""

    def __init__(self, parts: _Parts):
        self._parts = parts
        self._values: tuple[int, ...] | None = None

    def _read(self) -> tuple[int, ...]:
        if self._values is None:
            values = schema.list_ints(self._parts.feature_list(_TIMES_KEY))
            if len(values) != len(self):
                raise UnreadableRecordError(
                    f"{_address(self._parts.source, self._parts.index)}: {_TIMES_KEY} has "
                    f"{len(values)} values for {len(self)} frames"
                )
            self._values = values
        return self._values

    def __len__(self) -> int:
        return len(self._parts.table.frames)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        return self._read()[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._read(), dtype=dtype)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._read() == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return (tuple, (self._read(),))

    def __repr__(self) -> str:
        return repr(self._read())


class _Lists(Mapping[str, Any]):
    """Key -> feature list of a record, each read when it is asked for."""

    def __init__(self, parts: _Parts):
        self._parts = parts

    def __getitem__(self, key: str) -> Any:
        return self._parts.feature_list(key)

    def __contains__(self, key: object) -> bool:
        return key in self._parts.table.lists

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts.table.lists)

    def __len__(self) -> int:
        return len(self._parts.table.lists)


@dataclasses.dataclass(frozen=True)
class FrameTimes:
    """When the frames of a video are shown.

    Attributes:
      times_us: of every frame, microseconds.
      fps: nominal rate of the stored frames.
    """

    times_us: tuple[int, ...]
    fps: float


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One opened split: its description and its records.

    Attributes:
      kept: numbers of the records that are used, where some are left out (`records.leave_out`);
        None: all. Numbers, `len` and indexing are those of all records, with or without.

    With `len` and indexing it is a `grain.sources.RandomAccessDataSource` of records, as its
    `source` is one of their bytes: local or remote, checksums compared.
    """

    manifest: Manifest
    split: str
    source: RecordSource
    kept: np.ndarray | None = None

    @property
    def used(self) -> Sequence[int] | np.ndarray:
        """Numbers of the records that training and evaluation see."""
        return range(len(self)) if self.kept is None else self.kept

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.manifest.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: SupportsIndex) -> schema.Record:
        return self.load(int(index))

    def load(self, index: int) -> schema.Record:
        """Record number `index`; UnreadableRecordError with its address when it is damaged.

        Its frames and frame times may be read only when they are asked for, and raise the same.
        """
        record = _readable(self.source, index, lambda: self._decode(index))
        wrong = [label for label in record.labels if not 0 <= label < len(self.classes)]
        if wrong and self.classes:
            raise UnreadableRecordError(
                f"{self.address(index, record)}: label {wrong[0]} is outside the class list of "
                f"{len(self.classes)} names; repeat the ingest, or fix the manifest's classes"
            )
        self._check_names(index, record)
        return record

    def _check_names(self, index: int, record: schema.Record) -> None:
        """Records of an ingest hold the names of their classes; no checksum covers the manifest."""
        named = zip(record.labels, record.label_names, strict=False)
        other = [(k, name) for k, name in named if self.classes and name != self.classes[k]]
        if other and "adopted" not in self.manifest.options:
            label, name = other[0]
            raise UnreadableRecordError(
                f"{self.address(index, record)}: calls class {label} {name!r}, the manifest "
                f"{self.classes[label]!r}; copy manifest.json again from its origin"
            )

    def _decode(self, index: int) -> schema.Record:
        table = self.source.table(index)
        if table is None:
            return schema.decode(self.source[index])
        parts = _Parts(self.source, index, table)
        (context,) = parts.read([table.context])
        times = _Times(parts) if _TIMES_KEY in table.lists else None
        return schema.decode_parts(context, _Lists(parts), _StoredFrames(parts), times)

    def frames(
        self,
        index: int,
        record: schema.Record,
        wanted: np.ndarray,
        buffer: FrameBuffer | None = None,
    ) -> list[np.ndarray]:
        """Decoded frames (H, W, 3) uint8 for the numbers in `wanted`, each decoded once.

        With a buffer they are valid until the same thread decodes into it again.
        """
        numbers = sorted({int(number) for number in wanted})
        if isinstance(record.frames, schema.EncodedFrames):
            images = record.frames.fetch(numbers)
        else:
            images = [record.frames[number] for number in numbers]
        shape, size = (record.height, record.width), record.height * record.width * 3
        if 0 < memory.installed() < len(numbers) * size:
            raise UnreadableRecordError(
                f"{self.address(index, record)}: {len(numbers)} frames of {record.width}x"
                f"{record.height} pixels are more than the memory of this machine"
            )
        rows = itertools.repeat(None) if buffer is None else buffer.rows(len(numbers), size)
        decoded: dict[int, np.ndarray] = {}
        for frame, image, row in zip(numbers, images, rows, strict=False):
            try:
                decoded[frame] = encoded.decode_frame(frame, image, shape, row)
            except ValueError as error:
                where = self.address(index, record)
                raise UnreadableRecordError(f"{where}: {error}") from error
        return [decoded[int(frame)] for frame in wanted]

    @functools.cached_property
    def frame_times(self) -> tuple[FrameTimes, ...]:
        """Of up to TIMELINES videos, evenly spaced; without those that cannot be read.

        Read once: their contexts and frame times only.
        """
        count = min(len(self), TIMELINES)

        def one(place: int) -> FrameTimes | None:
            try:
                record = self.load(place * len(self) // count)
                return FrameTimes(tuple(map(int, record.timestamps_us)), record.fps)
            except UnreadableRecordError:
                return None

        with ThreadPoolExecutor(_READERS) as pool:
            return tuple(each for each in pool.map(one, range(count)) if each and each.times_us)

    def audio(self, index: int, record: schema.Record) -> schema.Waveform | None:
        """The audio of a record, read; None without. UnreadableRecordError as `load`."""
        audio = record.audio
        if audio is not None:
            _readable(self.source, index, lambda: audio.data)
        return audio

    def address(self, index: int, record: schema.Record | None = None) -> str:
        """Where a record is, for messages."""
        name = f" ({record.media_id})" if record is not None and record.media_id else ""
        return f"{_address(self.source, index)}{name}"


def _address(source: RecordSource, index: int) -> str:
    shard, number, offset = source.locate(index)
    return f"{shard}: record {number} at offset {offset}"


def _readable(source: RecordSource, index: int, read: Callable[[], _Result]) -> _Result:
    """What `read` gives; UnreadableRecordError with the record's address when it is damaged."""
    try:
        return read()
    except CorruptRecordError as error:
        raise UnreadableRecordError(str(error)) from error
    except schema.SchemaError as error:
        raise UnreadableRecordError(f"{_address(source, index)}: {error}") from error


def open_dataset(
    directory: str | Manifest, split: str, *, check_crc: bool = True, leave_out: str = ""
) -> Dataset:
    """Opens a split made by the ingest; one clear error for everything that is wrong with it.

    Args:
      directory: of the set, or its manifest where that was read already.
      leave_out: a file of records that are not used (`records.leave_out`); empty: all are.
    """
    if not directory:
        raise ValueError(
            "no data directory given; make one with `ivj ingest` and pass it "
            "as --config.data.train=DIR"
        )
    manifest, source = open_split(directory, split, check_crc=check_crc)
    return Dataset(manifest, split, source, kept(leave_out, manifest, split))


def label_of(record: schema.Record) -> np.int32:
    """The class index, -1 without one; multi-label records give their first."""
    return np.int32(record.labels[0] if record.labels else -1)
