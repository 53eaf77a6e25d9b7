"""The media types: what the records of a set have, and so what its examples have."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Media:
    """One row of the table.

    Attributes:
      name: in `media/type` of a record, where `stored`, and as the option media= of a set.
      holds: stored media types that a set of it may hold.
      pixels: whether examples have pixels; without, records need no frames.
      still: whether a clip is one frame.
      audio: whether examples have audio where it is asked for.
      stored: whether a record says it.
    """

    name: str
    holds: tuple[str, ...]
    pixels: bool = True
    still: bool = False
    audio: bool = False
    stored: bool = True


# Steps of a mixture hold one media type; their order in a tie is this one.
MEDIA = {
    media.name: media
    for media in (
        Media("video", holds=("video",), audio=True),
        Media("image", holds=("image",), still=True),
        # The audio of videos, or records of audio alone.
        Media("audio", holds=("audio", "video"), pixels=False, audio=True),
        # Videos whose audio is learned from, in steps apart from those of videos.
        Media("audio_video", holds=("video",), audio=True, stored=False),
        # Cached arrays and annotations of any records.
        Media(
            "features",
            holds=("features", "audio", "video", "image"),
            pixels=False,
        ),
    )
}
STORED = tuple(media.name for media in MEDIA.values() if media.stored)


def needs_frames(stored: str) -> bool:
    """Whether a record of this stored media type has frames."""
    return MEDIA[stored].pixels
