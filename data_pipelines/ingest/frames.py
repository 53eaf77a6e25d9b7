"""Clips from images instead of a video file: folders of frames, arrays of a dataset.

JPEG frames that already are what a record holds (4:2:0, even size, small enough) are stored as
they are, whatever the storage: encoding them again would cost time and quality. All others are
decoded and go the way of video frames.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import av
import simplejpeg
from av.error import FFmpegError

from data_pipelines.ingest.address import Address
from data_pipelines.ingest.container import Note, VideoError, check_file
from data_pipelines.ingest.decode import MAX_RECORD_BYTES, DecodedClip, DecodeOptions
from data_pipelines.ingest.encode import FrameEncoder
from data_pipelines.ingest.image import decode_image
from data_pipelines.ingest.path_template import fields
from data_pipelines.ingest.rate import RateSampler
from data_pipelines.records import encoded

DEFAULT_TEMPLATE = "img_{:05d}.jpg"

_JPEG = b"\xff\xd8"

# An image: JPEG bytes to store as they are, or a frame to encode.
StorableImage = bytes | av.VideoFrame


@dataclass(frozen=True, slots=True)
class FrameFolder(Address):
    """A clip as numbered image files.

    Attributes:
      folder: where they are.
      template: their names, a format string of the number such as `img_{:05d}.jpg`.
      first: number of the first one.
      count: how many.
      fps: their rate, which image files do not tell.
    """

    SCHEME: ClassVar[str] = "frames:?"

    folder: str
    template: str
    first: int
    count: int
    fps: float

    def file(self, index: int) -> str:
        """Path of the frame with this index from 0."""
        return os.path.join(self.folder, self.template.format(self.first + index))

    def first_file(self) -> str:
        """Path of the first frame that is there.

        Raises:
          VideoError: stage `open`, there is none.
        """
        if not os.path.isdir(self.folder):
            raise VideoError("open", "cannot open the folder of frames: no such folder")
        found = (path for path in map(self.file, range(self.count)) if os.path.exists(path))
        path = next(found, None)
        if path is None:
            found = next(iter(sorted(os.listdir(self.folder))), "nothing")
            raise VideoError(
                "open",
                f"has no {os.path.basename(self.file(0))}; --frame-template and --frame-start tell "
                f"how frames are named (found {found}, none of the {self.count} expected)",
            )
        return path

    def misnumbered(self) -> str:
        """Advice where the frames that are there begin one sooner or later than was said."""
        for start, beside, end in (
            (self.first - 1, -1, self.count - 1),
            (self.first + 1, self.count, 0),
        ):
            if start < 0 or os.path.exists(self.file(end)) or not os.path.exists(self.file(beside)):
                continue
            name = os.path.basename(self.file(beside))
            return f"there is a {name}: are they numbered from {start} (--frame-start {start})?"
        return ""


def check_template(template: str) -> None:
    """ValueError for a template that does not number files."""
    fields("--frame-template", template, DEFAULT_TEMPLATE)
    try:
        good = template.format(1) != template.format(2)
    except (ValueError, LookupError):
        good = False
    if not good:
        raise ValueError(
            f"--frame-template: found {template!r}, expected a file name with one number, such as "
            f"{DEFAULT_TEMPLATE}"
        )


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a source that makes a clip; see `ingest.decode.decode_clip`."""

    start: float | None
    end: float | None
    tick: Callable[[], None]


def load_folder(source: FrameFolder, options: DecodeOptions, span: Span) -> DecodedClip:
    """The clip of a folder of frames; as `ingest.decode.decode_clip`."""
    if source.count:
        source.first_file()
    encoder = ImageEncoder(options)
    return assemble(
        source.count,
        source.fps,
        lambda index: encoder.encode(read_image_file(source.file(index))),
        encoder,
        options,
        span,
        source.misnumbered(),
    )


def assemble(
    count: int,
    fps: float,
    load: Callable[[int], bytes],
    encoder: "ImageEncoder",
    options: DecodeOptions,
    span: Span,
    advice: str = "",
) -> DecodedClip:
    """A clip of `count` images that follow each other at `fps`.

    Args:
      load: index -> encoded image; a VideoError leaves the image out.
      encoder: what `load` encodes with; knows the size afterwards.
      advice: what to say if images are missing.

    Raises:
      VideoError: no clip could be made.
    """
    low = round((span.start or 0.0) * 1e6)
    ends = [round(count * 1e6 / fps)]
    if span.end is not None:
        ends.append(round(span.end * 1e6))
    if options.max_seconds is not None:
        ends.append(low + round(options.max_seconds * 1e6))
    high = min(ends)
    sampler = RateSampler(options.fps, Fraction(fps).limit_denominator(1_000_000))
    frames: list[bytes] = []
    times: list[int] = []
    lost: list[str] = []
    size = 0
    all_times = ((round(index * 1e6 / fps), index) for index in range(count))
    inside = (item for item in all_times if low <= item[0] < high)
    for time_us, index in sampler.sample(inside):
        span.tick()
        try:
            frame = load(index)
        except VideoError as error:
            lost.append(str(error))
            continue
        size += len(frame)
        if size > MAX_RECORD_BYTES:
            raise VideoError(
                "long",
                f"more than {MAX_RECORD_BYTES >> 20} MiB of images after {len(frames)} frames; "
                "use --max-seconds, --fps or a smaller --short-side",
            )
        frames.append(frame)
        times.append(time_us)
    if lost and advice:
        lost[0] += f"; {advice}"
    _accept(frames, lost, low, high, options)
    notes = []
    if lost:
        notes.append(
            Note("partial", f"{len(frames)} of {len(frames) + len(lost)} frames: {lost[0]}")
        )
    if options.audio != "off":
        notes.append(Note("silent", "is made of images; audio is read from video files only"))
    return DecodedClip(
        frames=frames,
        timestamps_us=times,
        fps=sampler.fps,
        height=encoder.height,
        width=encoder.width,
        source_height=encoder.source_height,
        source_width=encoder.source_width,
        start_us=low,
        end_us=max(high, times[-1]),
        notes=tuple(notes),
    )


def _accept(
    frames: Sequence[bytes], lost: Sequence[str], low: int, high: int, options: DecodeOptions
) -> None:
    if lost and not frames:
        raise VideoError("decode", f"none of its frames can be read: {lost[0]}")
    if not frames:
        raise VideoError("short", f"no frame from {low / 1e6:g} s to {high / 1e6:g} s")
    if len(frames) < options.min_frames:
        raise VideoError("short", f"{len(frames)} frames, at least {options.min_frames} needed")
    if lost and options.partial == "reject":
        raise VideoError("decode", f"{len(lost)} frames cannot be read: {lost[0]}")


def read_image_file(path: str) -> StorableImage:
    """An image file as `picture_of` gives it; VideoError when it is missing or damaged."""
    name = os.path.basename(path)
    try:
        check_file(path)
        with open(path, "rb") as file:
            return image_of(file.read())
    except VideoError as error:
        raise VideoError(error.stage, f"{name}: {error}") from error
    except OSError as error:
        raise VideoError("open", f"{name}: {error.strerror}") from error


def image_of(data: bytes) -> StorableImage:
    """The bytes of an image file if a record can hold them, else the image as it is shown.

    Raises:
      VideoError: as `.image.decode_image`.
    """
    if data.startswith(_JPEG):
        try:
            encoded.size_of(data)  # before anything is allocated for it
            # Other decoders fill what is damaged with grey and say nothing.
            simplejpeg.decode_jpeg(data, "GRAY", fastdct=True, strict=True)
        except ValueError as error:
            raise VideoError("decode", f"damaged image: {error}") from error
        if is_storable(data):
            return data
    return av.VideoFrame.from_ndarray(decode_image(data), format="rgb24")


def is_storable(data: bytes) -> bool:
    """Whether these are JPEG bytes as records hold them, whatever their size in pixels."""
    if not data.startswith(_JPEG) or b"Exif\0\0" in data[:65536]:
        return False  # Exif may tell to turn the image
    try:
        height, width, space, sampling = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    height, width = int(height), int(width)
    return space == "YCbCr" and sampling == "420" and height % 2 == 0 and width % 2 == 0


class ImageEncoder:
    """Images of one size for a record; the first one decides.

    Attributes (after the first image): `height`, `width` as stored; `source_height`,
    `source_width` before shrinking.
    """

    def __init__(self, options: DecodeOptions):
        self._limit = options.short_side
        self._encoder = FrameEncoder(None, options.short_side, options.quality, options.storage)
        self._first = b""  # when stored as it was
        self.height = self.width = self.source_height = self.source_width = 0

    def encode(self, image: StorableImage) -> bytes:
        """Bytes of an image of the size of the first; VideoError when that is impossible."""
        try:
            if isinstance(image, bytes):
                height, width = map(int, simplejpeg.decode_jpeg_header(image)[:2])
                small = not self._limit or min(height, width) <= self._limit
                if small and (not self.height or (height, width) == (self.height, self.width)):
                    if not self.height:
                        self._first = image
                        self._set_size(height, width, height, width)
                    return image
                image = _decode(image)
            if self._first:
                self._encoder.encode(_decode(self._first))  # brings this one to that size
                self._first = b""
            data = self._encoder.encode(image)
        except (FFmpegError, ValueError) as error:
            raise VideoError("decode", f"{type(error).__name__}: {error}") from error
        made = self._encoder
        if not self.height:
            self._set_size(made.height, made.width, made.source_height, made.source_width)
        return data

    def _set_size(self, height: int, width: int, source_height: int, source_width: int) -> None:
        self.height, self.width = height, width
        self.source_height, self.source_width = source_height, source_width


def _decode(jpeg: bytes) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(simplejpeg.decode_jpeg(jpeg, "RGB"), format="rgb24")
