"""The frame table: where the parts of each record lie, so that a clip moves only its own frames.

One block per record, in the index file behind the entries; blocks are read one at a time, when
their record is. All numbers are little endian::

    u32 frames | u32 lists | u64 record length | u32 checksum field of the record
    then per part    u64 offset in the record | u32 length | u32 crc32c of the bytes
                     the parts are: the context, the other feature lists, the frames
    then the names of the lists, each followed by a zero byte
    then u32 crc32c of everything before

Every part has its own checksum, so damage is found by a partial read as well. A record that cannot
be sliced (`records.wire`) has an empty block and is read whole.
"""

import struct
from dataclasses import dataclass

import google_crc32c
import numpy as np

from data_pipelines.records.schema import SchemaError
from data_pipelines.records.wire import Extent, slice_record

PART = np.dtype([("offset", "<u8"), ("length", "<u4"), ("crc", "<u4")])

_HEAD = struct.Struct("<IIQI")
_CRC = struct.Struct("<I")


class FrameTableError(ValueError):
    """A block that is damaged or contradicts itself."""


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Parts of one record; each part is one element of dtype `PART`.

    Attributes:
      context: the `Features` message of the record.
      lists: key -> `FeatureList` message, of all keys but `image/encoded`.
      frames: (frames,) the encoded image of every frame.
      data_crc: the checksum TFRecord stores behind the record.
    """

    context: np.ndarray
    lists: dict[str, np.ndarray]
    frames: np.ndarray
    data_crc: int


def pack(data: bytes, data_crc: int) -> tuple[bytes, int]:
    """The block of a record and its number of frames; (b"", 0) for one that cannot be sliced.

    Args:
      data: the serialised record.
      data_crc: its checksum as TFRecord stores it.
    """
    try:
        layout = slice_record(data)
    except SchemaError:
        return b"", 0
    extents: list[Extent] = [layout.context, *layout.lists.values(), *layout.frames]
    if any(length >= 2**32 for _, length in extents):
        return b"", 0
    view = memoryview(data)
    parts = np.array(
        [
            (at, length, google_crc32c.value(bytes(view[at : at + length])))
            for at, length in extents
        ],
        dtype=PART,
    )
    names = "".join(f"{name}\0" for name in layout.lists).encode()
    head = _HEAD.pack(len(layout.frames), len(layout.lists), len(data), data_crc)
    block = head + parts.tobytes() + names
    return block + _CRC.pack(google_crc32c.value(block)), len(layout.frames)


def unpack(block: bytes, record_length: int) -> FrameTable:
    """Read and check a block.

    Args:
      block: its bytes.
      record_length: of the record it should describe.

    Raises:
      FrameTableError: it is damaged, contradicts itself, or describes another record.
    """
    if len(block) < _HEAD.size + _CRC.size:
        raise FrameTableError(f"{len(block)} bytes, too short for a frame table")
    (crc,) = _CRC.unpack_from(block, len(block) - _CRC.size)
    found = google_crc32c.value(block[: -_CRC.size])
    if crc != found:
        raise FrameTableError(f"checksum of the frame table is {found:#010x}, expected {crc:#010x}")
    frames, lists, length, data_crc = _HEAD.unpack_from(block)
    if length != record_length:
        raise FrameTableError(
            f"the frame table is of a record of {length} bytes, this one has {record_length}"
        )
    count = 1 + lists + frames
    names_at = _HEAD.size + count * PART.itemsize
    # Python integers: an absurd count fails here and allocates nothing.
    if frames == 0 or names_at + _CRC.size > len(block):
        raise FrameTableError(f"{frames} frames and {lists} lists do not fit {len(block)} bytes")
    parts = np.frombuffer(block, PART, count, _HEAD.size)
    if int(parts["offset"].max()) > length or int(
        (parts["offset"] + parts["length"]).max()
    ) > length:  # fmt: skip
        raise FrameTableError(f"a part lies outside the {length} bytes of the record")
    try:
        names = block[names_at : -_CRC.size].decode("utf-8").split("\0")
    except UnicodeDecodeError as error:
        raise FrameTableError(f"the names of the lists are not text ({error})") from error
    if names.pop() or len(names) != lists or len(set(names)) != lists:
        raise FrameTableError(f"{len(names)} names for {lists} lists")
    return FrameTable(
        parts[0], dict(zip(names, parts[1 : 1 + lists], strict=True)), parts[1 + lists :], data_crc
    )
