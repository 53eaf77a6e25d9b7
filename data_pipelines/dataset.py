"""One opened split: record numbers to records, records to decoded frames."""

from __future__ import annotations

import dataclasses

import numpy as np
import simplejpeg

from data_pipelines import schema
from data_pipelines.manifest import Manifest, open_split
from data_pipelines.records import CorruptRecordError, RecordSource


class UnreadableRecordError(ValueError):
    """A record that cannot become a clip; says which one and why."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One opened split: its description and its records."""

    manifest: Manifest
    split: str
    source: RecordSource

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> schema.Record:
        """Record number `index`; UnreadableRecordError with its address when it is damaged."""
        try:
            record = schema.decode(self.source[index])
        except CorruptRecordError as error:
            raise UnreadableRecordError(str(error)) from error
        except schema.SchemaError as error:
            raise UnreadableRecordError(f"{self.address(index)}: {error}") from error
        wrong = [label for label in record.labels if not 0 <= label < len(self.classes)]
        if wrong and self.classes:
            raise UnreadableRecordError(
                f"{self.address(index, record)}: label {wrong[0]} is outside the class list of "
                f"{len(self.classes)} names; repeat the ingest, or fix the manifest's classes"
            )
        return record

    def frames(self, index: int, record: schema.Record, wanted: np.ndarray) -> list[np.ndarray]:
        """Decoded frames (H, W, 3) uint8 for the numbers in `wanted`, each decoded once."""
        decoded: dict[int, np.ndarray] = {}
        for frame in sorted({int(number) for number in wanted}):
            try:
                decoded[frame] = simplejpeg.decode_jpeg(record.frames[frame], colorspace="RGB")
            except ValueError as error:
                raise UnreadableRecordError(
                    f"{self.address(index, record)}: frame {frame} is not a readable JPEG ({error})"
                ) from error
        return [decoded[int(frame)] for frame in wanted]

    def address(self, index: int, record: schema.Record | None = None) -> str:
        shard, number, offset = self.source.locate(index)
        name = f" ({record.media_id})" if record is not None and record.media_id else ""
        return f"{shard}: record {number} at offset {offset}{name}"


def open_dataset(directory: str, split: str, *, check_crc: bool = True) -> Dataset:
    """Opens a split made by the ingest; one clear error for everything that is wrong with it."""
    if not directory:
        raise ValueError(
            "no data directory given; make one with `python -m data_pipelines.ingest` and pass it "
            "as --config.data.train=DIR"
        )
    manifest, source = open_split(directory, split, check_crc=check_crc)
    return Dataset(manifest, split, source)


def label_of(record: schema.Record) -> np.int32:
    """The class index, -1 without one; multi-label records give their first."""
    return np.int32(record.labels[0] if record.labels else -1)
