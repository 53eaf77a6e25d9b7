"""What a row's path may name, and the clip behind it.

============  =====================================================================
a file        a video, `.decode`
`frames:?`  a folder of image files, `.frames.FrameFolder`
`tfds:?`    an example of a prepared TFDS dataset, `.tfds.Example`
============  =====================================================================
"""

from collections.abc import Callable

from data_pipelines.ingest import tfds
from data_pipelines.ingest.decode import DecodedClip, DecodeOptions, decode_clip
from data_pipelines.ingest.frames import (
    FrameFolder,
    ImageEncoder,
    Span,
    load_folder,
    read_image_file,
)


def load_clip(
    path: str,
    options: DecodeOptions,
    start: float | None = None,
    end: float | None = None,
    tick: Callable[[], None] = lambda: None,
) -> DecodedClip:
    """The clip of a row; arguments and errors as `.decode.decode_clip`."""
    span = Span(start, end, tick)
    if path.startswith(FrameFolder.SCHEME):
        return load_folder(FrameFolder.parse(path), options, span)
    if path.startswith(tfds.TFDSExample.SCHEME):
        return tfds.load_example(tfds.TFDSExample.parse(path), options, span)
    return decode_clip(path, options, start, end, tick)


def measure_images(path: str) -> tuple[int, int, float, float] | None:
    """(width, height, frames/s, seconds) of what is not a video file; None for a file.

    Raises:
      VideoError: it cannot be opened or has no image.
    """
    if path.startswith(FrameFolder.SCHEME):
        folder = FrameFolder.parse(path)
        # Side 0: nothing is to be done to the image but to be measured.
        encoder = ImageEncoder(DecodeOptions(short_side=0))
        encoder.encode(read_image_file(folder.first_file()))
        return encoder.width, encoder.height, folder.fps, folder.count / folder.fps
    if path.startswith(tfds.TFDSExample.SCHEME):
        example = tfds.TFDSExample.parse(path)
        count, height, width = tfds.measure(example)
        return width, height, example.fps, count / example.fps
    return None
