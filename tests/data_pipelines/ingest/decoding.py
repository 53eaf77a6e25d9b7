"""Shorthand for the tests of the decoder."""

import av
import pytest
import simplejpeg

from data_pipelines.ingest.container import VideoError
from data_pipelines.ingest.decode import DecodeOptions, decode_clip

HAS_X264 = "libx264" in av.codecs_available


needs_x264 = pytest.mark.skipif(not HAS_X264, reason="this PyAV was built without libx264")


def clip_of(path, start=None, end=None, **options):
    return decode_clip(str(path), DecodeOptions(**options), start, end)


def numbers(clip) -> list[int]:
    """The numbers drawn into the top left corner by ``picture``."""
    corners = [simplejpeg.decode_jpeg(f)[:10, :14].astype(float).mean() for f in clip.frames]
    return [round((corner - 40) / 4) for corner in corners]


def stage_of(path, start=None, end=None, **options) -> tuple[str, str]:
    with pytest.raises(VideoError) as caught:
        clip_of(path, start, end, **options)
    return caught.value.stage, str(caught.value)
