"""A part of a source that names no splits, kept from training.

Which side a clip falls on is decided by a hash of its source video alone: all clips of a video
fall on the same side, and a source that grows moves none of those that were there. The price is
that the share is met on average, not exactly: a class of few videos may have none on one side.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from data_pipelines.ingest.rows import Row
from data_pipelines.records import split_names

# Columns that name the source video of a clip, where a table has one of them.
GROUP_COLUMNS = ("group", "YoutubeID", "youtube_id", "video_id")
# What clips of one video end with: Kinetics' seconds, times, UCF101's number of the clip.
_CLIP = re.compile(r"(?<=.)(_\d{6}_\d{6}|[_-]\d+\.\d+[_-]\d+\.\d+|(?<=_g\d\d)_c\d+)$")
_FRAMES = re.compile(r"#\d+\+\d+$")  # which ones of a folder of frames


def apply(rows: Sequence[Row], share: float, name: str) -> tuple[list[Row], str]:
    """Rows with about `share` of the source videos in split `name`, and a sentence about it.

    Raises:
      ValueError: the source names splits, or nothing would be left on one side.
    """
    splits = sorted({row.split for row in rows})
    held = [split for split in splits if split_names.is_held_out(split)]
    if len(splits) > 1 or held:
        raise ValueError(
            f"--hold-out {share:g}: the source names its splits already ({', '.join(splits)}); "
            "leave it out"
        )
    if splits[0] == name:
        raise ValueError(f"--hold-out {share:g}: --split is {name} too; name another --hold-out-as")
    result = [
        replace(row, split=name) if is_held_out(group_of(row), share) else row for row in rows
    ]
    groups = {group_of(row): row.split for row in result}
    taken = sum(split == name for split in groups.values())
    if not 0 < taken < len(groups):
        raise ValueError(
            f"--hold-out {share:g}: would keep {taken} of the {len(groups)} source videos from "
            "training; each falls on its side by a hash of its name, so a source of few needs "
            "another share, or a table with a column 'split'"
        )
    return result, _describe(result, taken, len(groups), name)


def group_of(row: Row) -> str:
    """What names the source video of a row: a column, or the file without what numbers a clip."""
    for column in GROUP_COLUMNS:
        if row.extra.get(column) not in (None, ""):
            return str(row.extra[column])
    name = os.path.normpath(_FRAMES.sub("", row.name))
    stem = os.path.splitext(os.path.basename(name))[0]
    video = _CLIP.sub("", stem)
    # A name with the times of a clip is the same video in whatever folder it lies.
    return video if video != stem else name


def is_held_out(group: str, share: float) -> bool:
    """Whether a source video belongs to the part held out; the same for ever."""
    digest = hashlib.sha256(b"hold-out:" + group.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _describe(rows: Sequence[Row], taken: int, groups: int, name: str) -> str:
    clips = sum(row.split == name for row in rows)
    text = f"held out {clips} of {len(rows)} clips ({taken} of {groups} source videos) as {name}"
    sides = {True: Counter[str](), False: Counter[str]()}
    for row in rows:
        sides[row.split == name].update(row.labels)
    for side, where in ((True, f"in {name}"), (False, "left for training")):
        missing = sorted(set(sides[not side]) - set(sides[side]))
        if missing:
            shown = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
            text += f"; {len(missing)} classes have no clip {where}: {shown}"
    return text
