"""The command lines of `ivj data audit` and `ivj data missing`."""

from __future__ import annotations

import argparse
import json

from data_pipelines.audit.options import THRESHOLD, AuditOptions
from data_pipelines.commands.arguments import add_quiet, add_workers
from data_pipelines.commands.ending import BAD_DATA, GOOD
from data_pipelines.records.outputs import check_file

AUDIT = """\
Find clips that two splits or sets share: the same video under another name, encoded again, resized,
mirrored, cut in time, at another frame rate.

Without --against the splits of DIR are compared with each other. Pictures of a few frames of each
record are compared, whatever their size and codec; a copy of another aspect ratio is found, a crop
or a clip played faster is not. Writes OUT.json and OUT.csv (the pairs), OUT.html (the pairs side by
side, to look at), and OUT.leave_out.json, the records of DIR to leave out:
  ivj train --config.data.leave_out=OUT.leave_out.json ...

Exit code 0 when no more than --most pairs were found, 1 when more. Started again after an
interruption it goes on; with the same --out, shards that were seen once are not read again.

examples:
  ivj data audit shards/
  ivj data audit train-shards/ --against test-shards/ --out audits/k400
"""

MISSING = """\
Compare a split with a published list of clips: how many are missing, per class.

LIST is CSV, TSV or JSONL with a column of ids (id, video_id, youtube_id, path, ...), with times as
Kinetics has them, or text with a path in every line. With --remember the result is written beside
the manifest, and evaluations of this split say `N of M of LIST` in their protocol.

Exit code 0 when no more than the share --most is missing, 1 when more.

example:
  ivj data missing shards/ --list k400_test.csv --split test --remember
"""


def add_audit(command: argparse.ArgumentParser) -> None:
    """The arguments of `audit`."""
    command.add_argument(
        "--against", metavar="DIR", action="append", default=[],
        help="set that DIR should share nothing with; may be given several times",
    )  # fmt: skip
    command.add_argument(
        "--split", metavar="NAME", action="append", default=[],
        help="split of DIR; may be given several times (default: all)",
    )  # fmt: skip
    command.add_argument(
        "--against-split", metavar="NAME", action="append", default=[],
        help="split of those sets (default: test and val, or all where there is neither)",
    )  # fmt: skip
    command.add_argument(
        "--within", action="store_true", help="also look for copies within one split of DIR"
    )
    command.add_argument(
        "--threshold", metavar="D", type=float, default=THRESHOLD,
        help="distance up to which two clips are the same (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--most", metavar="N", type=int, default=0,
        help="pairs up to which the exit code is 0 (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--show", metavar="N", type=int, default=100,
        help="pairs on the page, the nearest first (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--out", metavar="PATH", default="audit",
        help="path of the results without ending (default: %(default)s)",
    )  # fmt: skip
    add_workers(command, "reads")
    add_quiet(command)


def add_missing(command: argparse.ArgumentParser) -> None:
    """The arguments of `missing`."""
    command.add_argument(
        "--list", metavar="LIST", required=True, dest="path", help="the published list"
    )
    command.add_argument(
        "--split", metavar="NAME", help="split of DIR (default: test, else val, else train)"
    )
    command.add_argument(
        "--list-split", metavar="NAME", default="",
        help="rows of the list that count (default: those of --split, where it names splits)",
    )  # fmt: skip
    command.add_argument("--column", metavar="NAME", default="", help="column of the ids")
    command.add_argument(
        "--most", metavar="SHARE", type=float, default=0.0,
        help="missing share up to which the exit code is 0 (default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--out", metavar="FILE.json", help="also write the result as JSON")
    command.add_argument(
        "--remember", action="store_true", help="write it beside the manifest, for evaluations"
    )


def audit(arguments: argparse.Namespace) -> int:
    """Runs `audit`; the exit code."""
    from data_pipelines.audit import page, run

    for suffix in (".json", ".csv", ".html", ".leave_out.json"):
        check_file("--out", f"{arguments.out}{suffix}")
    if min(arguments.most, arguments.show, arguments.workers) < 0:
        raise ValueError("--most, --show and --workers must be 0 or more")
    result = run.audit(
        AuditOptions(
            arguments.directory,
            arguments.out,
            tuple(arguments.against),
            tuple(arguments.split),
            tuple(arguments.against_split),
            arguments.within,
            arguments.threshold,
            arguments.workers,
        ),
        quiet=arguments.quiet,
    )
    for text in run.lines(result):
        print(text)
    page.write(result, f"{arguments.out}.html", arguments.show)
    print(f"wrote {arguments.out}.json, .csv, .html and .leave_out.json")
    return BAD_DATA if len(result.pairs) > arguments.most else GOOD


def missing(arguments: argparse.Namespace) -> int:
    """Runs `missing`; the exit code."""
    from data_pipelines.audit.missing import lines, missing
    from data_pipelines.records import manifest, published, split_names
    from data_pipelines.records.index import write_atomic

    if not 0 <= arguments.most <= 1:
        raise ValueError(f"--most {arguments.most:g}: expected a share from 0 to 1")
    if arguments.out:
        check_file("--out", arguments.out, (".json",))
    found = manifest.load(arguments.directory)
    split = arguments.split or split_names.to_evaluate(list(found.splits))
    result = missing(
        arguments.directory, split, arguments.path, arguments.column, arguments.list_split
    )
    for text in lines(result, split):
        print(text)
    if arguments.out:
        write_atomic(arguments.out, (json.dumps(result.summary(), indent=1) + "\n").encode())
        print(f"wrote {arguments.out}")
    if arguments.remember:
        place = published.remember(
            found, split, arguments.path, result.sha256, result.held, len(result.listed)
        )
        print(f"wrote {place}")
    return BAD_DATA if result.share > arguments.most else GOOD
