"""The options of one ingest, and which of them shape the bytes of the shards."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from data_pipelines.commands.arguments import default_workers
from data_pipelines.records import storage

PARTIAL_POLICIES = ("accept", "reject")
FORMATS = ("auto", "table", "kinetics", "rawframes", "json")
CUT_POLICIES = ("auto", "yes", "no")
RUNNERS = ("local", "beam")
AUDIO_FORMATS = ("off", "pcm16")
MEDIA_KINDS = ("video", "image", "auto", "features")
PIXEL_SHAPES = ("stored", "display")
STORAGE_FORMATS = ("jpeg", "png")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """What to make of a video; see `IngestOptions`."""

    short_side: int = 256
    pixels: str = "stored"
    storage: str = "jpeg"
    quality: int = 90
    fps: float | None = None
    max_seconds: float | None = None
    min_frames: int = 2
    partial: str = "accept"
    audio: str = "off"
    media: str = "video"


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestOptions(DecodeOptions):
    """Everything an ingest is told.

    Attributes:
      source: folder of videos, CSV/TSV or JSONL table, list or JSON file, or `tfds:NAME`.
      format: what a source file is; `auto` looks at its name and first line.
      out: directory for the shards, local or on an object store.
      name: prefix of the shard names; by default made from the source's name.
      root: what relative paths of a table are relative to; by default the table's folder.
      split: split of rows that name none.
      hold_out: share of the source videos to put into a split of their own, where the source names
        no splits; None for none.
      hold_out_as: name of that split.
      columns: our column name -> the table's, where they differ; numbers from 1 for lists.
      path_template: names of the files, made from the columns of a table.
      cut: whether the times of a table are to be cut from its files; `auto`: unless the
        template names them.
      frame_template: names of the files in a folder of frames, a format string of their number.
      frame_start: number of the first of them, where the list does not tell;
        by default 1.
      frame_fps: rate of frames that come without one: folders of frames and TFDS.
      shards: number of shards per split; by default from `shard_mb`.
      shard_mb: intended shard size in 10^6 bytes.
      short_side: pixels of the shorter side after shrinking; smaller videos are not enlarged;
        0 keeps the size.
      pixels: `stored` keeps pixels that are not square as they are, as decord does; `display`
        stretches them to the shape that players show.
      storage: `jpeg`, or `png` for the decoded pixels without loss.
      quality: JPEG quality, 1 to 100.
      fps: frames per second to keep at most; None keeps all.
      max_seconds: keep at most this much of each clip; None keeps all.
      min_frames: reject clips with fewer frames.
      partial: what to do with a video that decodes only in part.
      audio: `pcm16` stores the audio of each clip at 16 kHz mono; `off` stores none.
      media: `video`; `image` for images, each a record of one frame; `auto` decides by the
        suffix of each file; `features` reads no files: records without frames, of what a table
        says.
      classes_file: fixed class list; by default the sorted labels of the source.
      flip_changes_label: recorded for training, which then does not flip horizontally.
      workers: processes; 0 decodes in this process.
      runner: where the shards are written: `local` processes or Apache `beam`.
      beam_options: arguments for Beam's pipeline.
      max_bad: share of rejected rows up to which the run counts as good.
      stall_seconds: give up a file on which the decoder makes no progress for so long.

    Raises:
      ValueError: a value outside its range.
    """

    source: str
    out: str
    name: str = ""
    root: str | None = None
    split: str = "train"
    hold_out: float | None = None
    hold_out_as: str = "test"
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    path_template: str | None = None
    cut: str = "auto"
    frame_template: str | None = None
    frame_start: int | None = None
    frame_fps: float | None = None
    shards: int | None = None
    shard_mb: float = 256.0
    classes_file: str | None = None
    flip_changes_label: bool = False
    workers: int = field(default_factory=default_workers)
    runner: str = "local"
    beam_options: tuple[str, ...] = ()
    max_bad: float = 0.01
    stall_seconds: float = 300.0

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", _name_from(self.source))
        self._need(
            "out",
            self.runner == "local" or not storage.is_remote(self.out),
            "a local or mounted directory with --runner beam, whose machines rename files there",
        )
        self._check_sources()
        check_name("--name", self.name)
        check_name("--split", self.split)
        check_name("--hold-out-as", self.hold_out_as)
        share = self.hold_out is None or 0 < self.hold_out < 1
        self._need("hold_out", share, "a share between 0 and 1")
        self._need("shards", self.shards is None or self.shards >= 1, "1 or more")
        self._need("shard_mb", _positive(self.shard_mb), "more than 0")
        even = self.short_side == 0 or (self.short_side >= 16 and self.short_side % 2 == 0)
        self._need("short_side", even, "0 (keep the size) or an even number from 16")
        self._need("quality", 1 <= self.quality <= 100, "1 to 100")
        for name in ("fps", "max_seconds"):
            value = getattr(self, name)
            self._need(name, value is None or _positive(value), "more than 0")
        self._need("min_frames", self.min_frames >= 1, "1 or more")
        for name, known in (
            ("partial", PARTIAL_POLICIES),
            ("format", FORMATS),
            ("cut", CUT_POLICIES),
            ("runner", RUNNERS),
            ("audio", AUDIO_FORMATS),
            ("media", MEDIA_KINDS),
            ("pixels", PIXEL_SHAPES),
            ("storage", STORAGE_FORMATS),
        ):
            self._need(name, getattr(self, name) in known, " or ".join(known))
        silent = self.media != "features" or self.audio == "off"
        self._need("audio", silent, "off with --media features, which reads no files")
        self._need("frame_start", self.frame_start is None or self.frame_start >= 0, "0 or more")
        rate = self.frame_fps is None or _positive(self.frame_fps)
        self._need("frame_fps", rate, "more than 0")
        found, alone = " ".join(self.beam_options), self.runner == "beam" or not self.beam_options
        _require(alone, "--beam-options", found, "none without --runner beam")
        self._need("workers", self.workers >= 0, "0 or more")
        self._need("max_bad", 0 <= self.max_bad <= 1, "a share from 0 to 1")
        self._need("stall_seconds", _positive(self.stall_seconds), "more than 0")

    def _need(self, name: str, good: bool, expected: str) -> None:
        _require(good, f"--{name.replace('_', '-')}", getattr(self, name), expected)

    def _check_sources(self) -> None:
        expected = "a local or mounted path: videos and lists are opened as files"
        for option, place in (
            ("--source", self.source),
            ("--root", self.root),
            ("--classes", self.classes_file),
        ):
            _require(place is None or not storage.is_remote(place), option, place, expected)

    def record_options(self) -> dict[str, Any]:
        """The options that decide what is inside a record; the manifest repeats them."""
        return {each.name: getattr(self, each.name) for each in fields(DecodeOptions)}

    def hold_out_options(self) -> dict[str, Any]:
        """What was held out, for the manifest and the plan; nothing where nothing is."""
        if self.hold_out is None:
            return {}
        return {"hold_out": self.hold_out, "hold_out_as": self.hold_out_as}

    def plan_options(self) -> dict[str, Any]:
        """The options a resumed run must share with the run it continues."""
        return {
            "name": self.name,
            "shards": self.shards,
            "shard_mb": self.shard_mb if self.shards is None else None,
            "frame_template": self.frame_template,
            "frame_start": self.frame_start,
            "frame_fps": self.frame_fps,
            "flip_changes_label": self.flip_changes_label,
            **self.record_options(),
            **self.hold_out_options(),
        }


def check_name(what: str, name: str) -> None:
    """Names become parts of file names; ValueError for what cannot."""
    _require(
        _NAME.fullmatch(name) is not None,
        what,
        repr(name),
        "letters, digits, '_', '-' and '.', starting with a letter or digit",
    )


def _name_from(source: str) -> str:
    if source.startswith("tfds:") and not os.path.exists(source):
        source = source.removeprefix("tfds:").replace("/", "_").replace(":", "_").replace(".", "_")
    base = os.path.basename(os.path.abspath(source))
    stem = base if os.path.isdir(source) else os.path.splitext(base)[0]
    return re.sub(r"[^A-Za-z0-9_]+", "_", stem).strip("_") or "videos"


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _require(good: bool, option: str, found: object, expected: str) -> None:
    if not good:
        raise ValueError(f"{option}: found {found}, expected {expected}")
