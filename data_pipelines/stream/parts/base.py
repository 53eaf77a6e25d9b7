"""What a part of a batch is: its arrays, how their rows are filled, and what it decides.

One list of parts makes a batch (`made`). The training stream, the evaluation pass, the shapes that
are compiled ahead of time, the estimate of memory and a feature companion all read the same spec.
A part of your own is a frozen dataclass with the methods of `Part`; give it in `config.data.parts`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from data_pipelines.config import DataConfig
from data_pipelines.records import schema
from data_pipelines.records.dataset import Dataset, FrameBuffer

Spec = Mapping[str, tuple[tuple[int, ...], np.dtype]]  # name -> shape and type of one example's
Rows = Mapping[str, np.ndarray]  # the rows of a part that one record fills
Batch = dict[str, np.ndarray]
Thing = TypeVar("Thing")


class Window(NamedTuple):
    """The part of the image that an example shows, in shares of its height and width."""

    top: float
    left: float
    bottom: float
    right: float
    mirrored: bool


@dataclasses.dataclass(frozen=True)
class Reading:
    """One record, for the rows of a batch that show it.

    Attributes:
      index: its number in the dataset.
      frames: (S, T) numbers of the frames that the rows show; R rows share S choices evenly, a
        training stream has one. None without pixels.
      positions: what the random draws of each row come from; None in an evaluation pass, which
        draws nothing.
      seed: of the stream.
      state: of the generator of the first row after the frames were drawn.
      view: number of the fixed view of the record.
      windows: row -> what it shows of the image.
      classes: its class numbers -> those of the stream, None where they are the same.
    """

    dataset: Dataset
    index: int
    record: schema.Record
    frames: np.ndarray | None
    buffer: FrameBuffer
    windows: Callable[[int], Window]
    positions: Sequence[int] | None = None
    seed: int = 0
    state: Any = None
    view: int = 0
    classes: np.ndarray | None = None

    @property
    def address(self) -> str:
        """Where the record is, for messages."""
        return self.dataset.address(self.index, self.record)

    def images(self) -> list[np.ndarray]:
        """The frames that the rows show, decoded, in memory that the next record uses again."""
        wanted = given(self.frames).ravel()
        return self.dataset.frames(self.index, self.record, wanted, self.buffer)

    def choice(self, row: int, rows: int) -> int:
        """Which of the S choices of frames a row of R shows."""
        return 0 if self.frames is None else row * len(self.frames) // rows

    def generator(self, row: int, counter: Any = None) -> np.random.Generator | None:
        """The random draws of a row; None in an evaluation pass.

        Args:
          counter: of a stream of draws apart from that of the pixels, such as [0, 0, 0, 7]; the
            high words 1 to 15 belong to the parts that are here.
        """
        if self.positions is None:
            return None
        found = generator(self.seed, self.positions[row], counter)
        if row == 0 and counter is None:
            found.bit_generator.state = self.state  # the frames are drawn once, for all rows
        return found

    def label(self, number: int) -> int:
        """A class number of the record as the stream has it; -1 for none."""
        return number if number < 0 or self.classes is None else int(self.classes[number])


class Part(Protocol):
    """Some arrays of a batch. Picklable, for worker processes."""

    def spec(self) -> Spec:
        """The arrays, from the settings alone."""
        raise NotImplementedError

    def fill(self, reading: Reading, out: Rows) -> None:
        """Writes all rows of a record.

        Args:
          out: of each array of `rows` the rows of the record.

        Raises:
          UnreadableRecordError: the record is damaged; under `substitute` another takes its place.
          ValueError: the record does not fit the settings.
        """
        raise ValueError(f"{self}: is not opened for a set; what `open` returns fills its rows")

    def identity(self) -> Mapping[str, Any]:
        """What of the settings decides its values, as JSON values."""
        return {}

    def check(self, config: DataConfig) -> None:
        """ValueError for settings that cannot work."""

    def open(self, dataset: Dataset) -> Part:
        """The part for the records of one set; itself where it needs nothing beside them."""
        return self

    def rows(self, count: int) -> Batch:
        """Memory for `count` rows."""
        return {
            name: np.empty((count, *shape), dtype) for name, (shape, dtype) in self.spec().items()
        }

    def finish(self, arrays: Batch) -> Batch:
        """The arrays of the batch, from those of `rows` with every row filled."""
        return arrays


def generator(seed: int, position: int, counter: Any = None) -> np.random.Generator:
    """The random draws of a position of the stream."""
    # Counter-based, so that neighbouring positions are independent without a long warm-up.
    return np.random.Generator(np.random.Philox(key=[seed, position], counter=counter))


def given(thing: Thing | None) -> Thing:
    """What a part that is opened for the records of a training stream has.

    Raises:
      ValueError: it was made for its shapes only, or reads for a pass that has no such thing.
    """
    if thing is None:
        raise ValueError("this part of the batch is not opened for what it is asked to fill")
    return thing


def row_bytes(spec: Spec) -> int:
    """Bytes of one example."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in spec.values())


def joined(parts: Iterable[Part]) -> Spec:
    """The arrays of several parts; ValueError where two have arrays of the same name."""
    spec: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    for part in parts:
        own = part.spec()
        if twice := spec.keys() & own.keys():
            raise ValueError(
                f"config.data.parts: two parts have an array {min(twice)!r}; give one of them "
                "another name"
            )
        spec.update(own)
    return spec


def padded(count: int, most: int, what: str, where: str, setting: str) -> np.ndarray:
    """(most,) bool, True for the first `count`; ValueError where there are more than fit.

    Args:
      what: is counted, in the plural.
      where: the record.
      setting: to raise.
    """
    if count > most:
        raise ValueError(
            f"{where}: has {count} {what}, a batch takes {most}; raise {setting}, since nothing is "
            "left out silently"
        )
    return np.arange(most) < count


def seconds(time_us: int, reading: Reading) -> float:
    """A time of the source video in seconds from the start of the clip."""
    return (time_us - reading.record.start_us) / 1e6
