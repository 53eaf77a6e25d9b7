"""Which files are videos and images, by the ends of their names."""

import os

from data_pipelines.ingest.image import IMAGE_SUFFIXES

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv",
))
# fmt: on


def names_media(text: str) -> bool:
    """Whether a text ends as the name of a video or an image does."""
    suffix = os.path.splitext(text.strip().strip('"'))[1].lower()
    return suffix in VIDEO_SUFFIXES or suffix in IMAGE_SUFFIXES
