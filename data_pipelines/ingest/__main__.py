"""Command line of the ingest: `ivj ingest --help`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields

from data_pipelines.commands.arguments import Parser, add_max_bad, add_quiet, add_workers
from data_pipelines.commands.ending import BAD_DATA, GOOD, run_command
from data_pipelines.commands.progress import say
from data_pipelines.ingest.frames import DEFAULT_TEMPLATE
from data_pipelines.ingest.options import (
    AUDIO_FORMATS,
    CUT_POLICIES,
    FORMATS,
    MEDIA_KINDS,
    PARTIAL_POLICIES,
    PIXEL_SHAPES,
    RUNNERS,
    STORAGE_FORMATS,
    DecodeOptions,
    IngestOptions,
)
from data_pipelines.ingest.run import Report, ingest, summary
from data_pipelines.records import storage

_DESCRIPTION = """\
Turn video files into indexed TFRecord shards, once, before training.

The source is a folder (class = parent folder; SPLIT/CLASS/file is understood), a list of
"path label" or "folder frames label" lines, a JSON list of {"video", "caption"}, a prepared TFDS
dataset (tfds:NAME), InternVid's JSONL, or a CSV or TSV with a header, or JSONL with the same keys:
  path                required
  label | labels      class name or index; several as "a|b" or a JSON list
  caption | captions  text; several as a JSON list
  start, end          seconds or HH:MM:SS.mmm
  segments, boxes,    JSON lists of objects, times as in start and end:
  turns
                      {"start", "end", "label", "caption"},
                      {"time", "y1", "x1", "y2", "x2", "labels", "track"}
                      {"role", "text"}
  split, id           optional
  any other column    stored with the record
"""

_EPILOG = """\
examples:
  ivj ingest --source videos/ --out shards/
  ivj ingest --source clips.csv --out shards/ --fps 10 --shards 64
  ivj ingest --source c.jsonl --out shards/ --columns path=video,caption=text
  ivj ingest --source k400/train.csv --root k400/ --out shards/
  ivj ingest --source ssv2/train.csv --frame-fps 12 --out shards/
  ivj ingest --source iv.jsonl --path-template '{YoutubeID}.mp4' --out shards/
  ivj ingest --source tfds:ucf101 --frame-fps 25 --out shards/
  ivj ingest --source c.csv --out /nfs/s --runner beam -- --runner FlinkRunner

Run the same command again after an interruption: finished shards are kept.
`ivj data verify shards/` reads everything back.
Exit code: 0 good, 1 more than --max-bad rejected, 2 wrong use, 3 the run could not finish,
75 a fault outside that may pass (run again), 130 interrupted; docs/launch.md has all.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(
        prog="ivj ingest",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--out",
        metavar="DIR",
        required=True,
        help="directory of the shards, local or a URL of an object store",
    )

    _add_source(result.add_argument_group("source"))
    _add_clips(result.add_argument_group("clips"))
    _add_shards(result.add_argument_group("shards"))
    _add_run(result.add_argument_group("run"))
    return result


def _add_source(source: argparse._ArgumentGroup) -> None:
    source.add_argument(
        "--source", metavar="PATH", required=True, help="folder, file, or tfds:NAME"
    )
    source.add_argument(
        "--format",
        choices=FORMATS,
        default="auto",
        help="what a file is: a table with column names, a list without (kinetics, rawframes), "
        "JSON; auto looks at it and says (default: %(default)s)",
    )
    source.add_argument(
        "--root",
        metavar="DIR",
        help="what relative paths start from (default: the table's folder); "
        "for tfds, the data directory",
    )
    source.add_argument(
        "--columns",
        metavar="OURS=THEIRS,...",
        default="",
        help="names of the table's columns where they differ, such as path=video,label=class; "
        "numbers from 1 for a list",
    )
    source.add_argument(
        "--path-template",
        metavar="TEXT",
        help="file names made from columns, such as '{YoutubeID}_{start:.3f}.mp4'",
    )
    source.add_argument(
        "--cut",
        choices=CUT_POLICIES,
        default="auto",
        help="cut files at start and end; auto: unless the path template names the times, as for "
        "clips that are cut already (default: %(default)s)",
    )
    source.add_argument(
        "--frame-template",
        metavar="TEXT",
        help=f"names of image files in a folder of frames (default: {DEFAULT_TEMPLATE})",
    )
    source.add_argument(
        "--frame-start", metavar="N", type=int, help="number of the first image file (default: 1)"
    )
    source.add_argument(
        "--frame-fps", metavar="N", type=float, help="rate of frame folders and of TFDS videos"
    )
    source.add_argument(
        "--split", default="train", help="split of rows that name none (default: %(default)s)"
    )
    source.add_argument(
        "--hold-out",
        metavar="SHARE",
        type=float,
        help="keep about this share of the source videos from training, in a split of their own; "
        "for sources without splits",
    )
    source.add_argument(
        "--hold-out-as",
        metavar="SPLIT",
        default="test",
        help="what that split is called (default: %(default)s)",
    )
    source.add_argument(
        "--classes",
        metavar="FILE",
        help="fixed class list: names, 'id,name' or a JSON object (default: the sorted labels)",
    )
    source.add_argument(
        "--flip-changes-label",
        action="store_true",
        help="left and right matter (push left / push right): training will not mirror",
    )


def _add_clips(clips: argparse._ArgumentGroup) -> None:
    clips.set_defaults(**{each.name: each.default for each in fields(DecodeOptions)})
    clips.add_argument(
        "--short-side",
        metavar="PIXELS",
        type=int,
        help="shrink to this; smaller videos are not enlarged, 0 keeps all (default: %(default)s)",
    )
    clips.add_argument(
        "--pixels",
        choices=PIXEL_SHAPES,
        help="pixels that are not square: as they are in the file, which is what decord and so "
        "published models see, or stretched as players display them (default: %(default)s)",
    )
    clips.add_argument(
        "--storage",
        choices=STORAGE_FORMATS,
        help="png keeps the decoded pixels without loss, at six times the bytes "
        "(default: %(default)s)",
    )
    clips.add_argument(
        "--quality", metavar="1-100", type=int, help="JPEG quality (default: %(default)s)"
    )
    clips.add_argument(
        "--fps",
        metavar="N",
        type=_rate,
        help="keep at most N frames per second, or 'native' (default: native)",
    )
    clips.add_argument(
        "--max-seconds", metavar="S", type=float, help="keep the first S seconds of each clip"
    )
    clips.add_argument(
        "--min-frames", metavar="N", type=int, help="reject shorter clips (default: %(default)s)"
    )
    clips.add_argument(
        "--partial",
        choices=PARTIAL_POLICIES,
        help="damaged videos of which the beginning can be read (default: %(default)s)",
    )

    clips.add_argument(
        "--audio",
        choices=AUDIO_FORMATS,
        help="store the audio at 16 kHz mono (default: %(default)s)",
    )
    clips.add_argument(
        "--media",
        choices=MEDIA_KINDS,
        help="what the files are; auto goes by their suffixes; features: there are none, and a "
        "record holds what its row says (default: %(default)s)",
    )


def _add_shards(shards: argparse._ArgumentGroup) -> None:
    shards.add_argument("--name", default="", help="prefix of the files (default: from the source)")
    shards.add_argument("--shards", metavar="N", type=int, help="number of shards per split")
    shards.add_argument(
        "--shard-mb",
        metavar="MB",
        type=float,
        default=256.0,
        help="choose the number for about this size (default: %(default)s)",
    )


def _add_run(run: argparse._ArgumentGroup) -> None:
    add_workers(run, "works")
    run.add_argument(
        "--runner",
        choices=RUNNERS,
        default="local",
        help="processes of this machine, or an Apache Beam pipeline (default: %(default)s)",
    )
    run.add_argument(
        "--beam-options",
        metavar="TEXT",
        type=shlex.split,
        default=[],
        help="arguments for the Beam pipeline, as in --beam-options='--runner=FlinkRunner'; may "
        "also follow after --",
    )
    add_max_bad(run, "a larger share of the rows is rejected")
    run.add_argument(
        "--stall-seconds",
        metavar="S",
        type=float,
        default=300.0,
        help="give up a file the decoder hangs on (default: %(default)s)",
    )
    add_quiet(run)


def _rate(text: str) -> float | None:
    return None if text == "native" else float(text)


def _columns(text: str) -> dict[str, str]:
    pairs = [pair.split("=", 1) for pair in text.split(",") if pair]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError(f"--columns: found {text!r}, expected OURS=THEIRS,OURS=THEIRS")
    return {ours.strip(): theirs.strip() for ours, theirs in pairs}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; what follows `--` is for Beam."""
    arguments = list(argv)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    result = parser().parse_args(arguments[:end])
    result.beam_options = [*result.beam_options, *arguments[end + 1 :]]
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    return run_command(
        lambda: _run(arguments),
        "stopped; finished shards are kept, run the same command again to continue",
    )


def _run(arguments: argparse.Namespace) -> int:
    report = ingest(_options(arguments), quiet=arguments.quiet)
    for line in summary(report):
        print(line)
    return _judge(report, arguments.max_bad)


def _options(arguments: argparse.Namespace) -> IngestOptions:
    given = {**vars(arguments), "classes_file": arguments.classes}
    given |= {"columns": _columns(arguments.columns), "beam_options": tuple(given["beam_options"])}
    return IngestOptions(**{each.name: given[each.name] for each in fields(IngestOptions)})


def _judge(report: Report, max_bad: float) -> int:
    if report.bad_share <= max_bad:
        return GOOD
    reasons = storage.join(report.manifest.directory, "rejected.jsonl")
    if report.bad_share >= 1:
        say(f"error: every row was rejected, there is nothing to train on; see {reasons}")
        return BAD_DATA
    say(
        f"error: {report.bad_share:.1%} of the rows were rejected, more than --max-bad "
        f"{max_bad:.1%}. The shards in {report.manifest.directory} are complete and usable "
        f"without them; see {reasons}, or accept it with a higher --max-bad"
    )
    return BAD_DATA


if __name__ == "__main__":
    sys.exit(main())
