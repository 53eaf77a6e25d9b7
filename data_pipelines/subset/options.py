"""What a subset is made of, and the reasons for which a row is left out."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from data_pipelines.commands.arguments import add_max_bad, add_quiet
from data_pipelines.subset.rows import COLUMNS

# In the order in which they are looked for; a row has the first that applies. The number in this
# list is what the columns on disk hold.
REASONS = (
    "kept",
    "malformed",  # no JSON, a column of another type, end before start, a score that is NaN
    "words",
    "duration",
    "language",
    "no_similarity",
    "similarity",
    "no_aesthetic",
    "aesthetic",
    "repeated_clip",
    "near_duplicate",
    "top_share",
    "top_aesthetic",
    "not_sampled",
)
CODE = {reason: number for number, reason in enumerate(REASONS)}

SAMPLES = ("video", "clip", "reference")
DUPLICATES = ("off", "report", "drop")


@dataclass(frozen=True)
class SubsetOptions:
    """One subset; None is no limit. Limits are inclusive."""

    sources: tuple[str, ...]
    out: str
    columns: Mapping[str, str] = field(default_factory=dict)
    min_similarity: float | None = None
    min_aesthetic: float | None = None
    languages: tuple[str, ...] = ()
    min_seconds: float | None = None
    max_seconds: float | None = None
    min_words: int | None = None  # after clean_caption, as ViCLIP's training counts
    max_words: int | None = None
    repeated: str = "report"  # rows with the clip and the times of an earlier one
    near_duplicates: str = "off"
    top_share: float | None = None  # best by similarity of the rows that are left by then
    top_aesthetic: int | None = None  # best by aesthetic score of the rows that are left then
    sample: int | None = None
    # `video`: every video the same chance; `clip`: every clip; `reference`: `video` with the
    # generator and the order of the reference's script, in memory.
    sample_by: str = "video"
    seed: int = 42
    max_bad: float = 0.01

    def check(self) -> None:
        """ValueError for settings that make no sense."""
        for key in self.columns:
            if key not in COLUMNS:
                raise ValueError(f"--columns names {key!r}, expected one of {', '.join(COLUMNS)}")
        if self.top_share is not None and not 0 < self.top_share <= 1:
            raise ValueError(f"--top-share: found {self.top_share:g}, expected a share up to 1")
        for name in ("sample", "top_aesthetic"):
            if (wanted := getattr(self, name)) is not None and wanted < 1:
                raise ValueError(f"--{name.replace('_', '-')}: found {wanted}, expected at least 1")
        for what in ("seconds", "words"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"--min-{what} {low:g} is more than --max-{what} {high:g}")
        for name in ("min_similarity", "min_aesthetic", "min_seconds", "max_seconds"):
            if (limit := getattr(self, name)) is not None and not math.isfinite(limit):
                raise ValueError(f"--{name.replace('_', '-')}: found {limit}, expected a number")

    @property
    def needs_similarity(self) -> bool:
        """Whether it chooses by similarity."""
        return self.min_similarity is not None or self.top_share is not None

    @property
    def needs_aesthetic(self) -> bool:
        """Whether it chooses by aesthetic score."""
        return self.min_aesthetic is not None or self.top_aesthetic is not None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    number, whole = {"metavar": "X", "type": float}, {"metavar": "N", "type": int}
    parser.add_argument("--source", metavar="FILE", required=True, action="append", help="the list")
    parser.add_argument("--out", metavar="FILE", required=True, help="the subset; same format")
    parser.add_argument(
        "--columns", metavar="A=B,...", default="", help="columns under other names"
    )
    parser.add_argument("--min-similarity", **number, help="cosine of clip and caption")
    parser.add_argument("--min-aesthetic", **number, help="aesthetic score")
    parser.add_argument("--language", metavar="A,B", default="", help="these languages only")
    parser.add_argument("--min-seconds", **number, help="length of a clip")
    parser.add_argument("--max-seconds", **number, help="length of a clip")
    parser.add_argument("--min-words", **whole, help="words of the cleaned caption")
    parser.add_argument("--max-words", **whole, help="words of the cleaned caption")
    parser.add_argument(
        "--repeated",
        choices=("report", "drop"),
        default="report",
        help="rows with the video and times of an earlier one (default: %(default)s)",
    )
    parser.add_argument(
        "--near-duplicates",
        choices=DUPLICATES,
        default="off",
        help="captions that say nearly what an earlier one says (default: %(default)s)",
    )
    parser.add_argument("--top-share", **number, help="best share by similarity of what is left")
    parser.add_argument("--top-aesthetic", **whole, help="best N by aesthetic score of the rest")
    parser.add_argument("--sample", **whole, help="draw N of what is left")
    parser.add_argument(
        "--sample-by",
        choices=SAMPLES,
        default="video",
        help="who has the same chance; reference: the very draw of InternVid's script, in memory "
        "(default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=42, help="of the draw (default: %(default)s)")
    add_max_bad(parser, "more of the rows are malformed")
    add_quiet(parser)


def options(arguments: argparse.Namespace) -> SubsetOptions:
    """The command line as options; ValueError as in `check`."""
    columns = {}
    for item in filter(None, arguments.columns.split(",")):
        ours, _, theirs = item.partition("=")
        if not (ours and theirs):
            raise ValueError(f"--columns: found {item!r}, expected OURS=THEIRS")
        columns[ours] = theirs
    result = SubsetOptions(
        sources=tuple(arguments.source),
        columns=columns,
        languages=tuple(filter(None, arguments.language.lower().split(","))),
        **{
            name: getattr(arguments, name)
            for name in SubsetOptions.__dataclass_fields__
            if name not in ("sources", "columns", "languages")
        },
    )
    result.check()
    return result
