"""Command line of the data tools: `ivj data --help`."""

import argparse
import os
import sys
from collections.abc import Sequence

from data_pipelines.audit import command as audits
from data_pipelines.commands.arguments import Parser, add_quiet, add_workers, default_workers
from data_pipelines.commands.ending import BAD_DATA, GOOD, run_command
from data_pipelines.commands.progress import say
from data_pipelines.records.outputs import check_file
from data_pipelines.subset.options import add_arguments as add_subset_arguments

_DESCRIPTION = """\
Look at, check, repair, measure and compare datasets made by `ivj ingest`, and
choose from lists of clips before that.
`ivj data COMMAND --help` describes a command.
"""

_EPILOG = """\
Exit code: 0 good, 1 a fault was found, 2 wrong use, 3 the run could not finish, 75 a fault outside
that may pass, 130 interrupted; docs/launch.md has all.
"""

_SETTINGS = """\
The stream is described as for training: --config names a recipe, of which only the data section
is used, and every field can be set with --config.data.FIELD=VALUE. Without a recipe the fields
have the defaults of data_pipelines.config.DataConfig. Without DIR the recipe or the fields name the
data, for example a mixture.
"""

_STREAMS = ("inspect", "bench")

_INSPECT = f"""\
Say what a dataset holds, and draw the clips a step of training or evaluation shows.

Writes OUT.png, a contact sheet with one row per clip, and OUT.html, the same as a self-contained
page with ids, labels, captions, positions and the shapes of the batch. The clips are the pixels
the model gets, after sampling, cropping and flipping. Of a larger step the
first --clips are shown.

{_SETTINGS}
examples:
  ivj data inspect shards/
  ivj data inspect shards/ --step 9 --config=configs/videomae/pretrain.py:size=base
  ivj data inspect shards/ --config.data.crop=random_resized --config.data.flip=on
  ivj data inspect shards/ --split test --views --segments 2 --crops 3
"""

_VERIFY = """\
Read everything back: sizes, counts, indexes and checksums of all shards against the manifest, every
record's checksum and fields, every frame. Faults name shard, record and byte.

Exit code 0 when all is well, 1 when there is a fault.
"""

_REINDEX = """\
Write the .idx file of every shard anew, from the shard. Exit code 1 when a shard cannot be indexed,
or is not the one the manifest describes.
"""

_ADOPT = """\
Use TFRecord shards that another program wrote (DMVR, Scenic) in place: writes an index beside each
shard and a manifest into the directory, and converts nothing.

example:
  ivj data adopt dmvr/ --name kinetics --split train='train-*' --split test='test-*'
"""

_BENCH = f"""\
Measure how fast this machine turns records into training clips, and say how many accelerators that
can feed.

The bare functions (read, decode, crop) run in one thread; then the whole stream runs, with its
threads and batches. Rates per core are per second of CPU time, so that they hold on a busy machine.
The clips/s an accelerator takes are calculated for VideoMAE pre-training: FLOPs of a training clip,
peak FLOP/s, and an assumed model FLOP utilisation (--mfu).

{_SETTINGS}
examples:
  ivj data bench shards/
  ivj data bench shards/ --config.data.crop=random_resized --cores 112 --mfu 0.5
  ivj data bench shards/ --clips-per-second-per-chip 250
"""


_SUBSET = """\
Choose from a list of captioned clips (JSONL, JSONL.gz or Parquet, InternVid's columns or our own):
filters, the best share by similarity, a draw in which every video has the same chance, and a report
of captions that repeat each other. The list is streamed; it may be larger than memory.

OUT has the rows as they were, OUT.summary.json the counts per reason, thresholds and checksums. An
interrupted run continues with the same command. Exit code 1 when more rows than --max-bad are
malformed.

examples:
  ivj data subset --source all.jsonl --out flt.jsonl --top-share 0.3 --sample 100000
  ivj data subset --source all.jsonl --out long.jsonl --min-words 10 --language en
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(
        prog="ivj data",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name != "subset":
            places = "?" if name in _STREAMS else None
            command.add_argument(
                "directory", metavar="DIR", nargs=places, help="directory with the shards"
            )
        return command

    _add_inspect(add("inspect", "what a dataset holds and what the model sees of it", _INSPECT))
    verify = add("verify", "read everything back", _VERIFY)
    add_workers(verify, "reads")
    add_quiet(verify)

    _add_bench(add("bench", "clips/s of this machine, and what they can feed", _BENCH))
    add("reindex", "rebuild the indexes", _REINDEX)

    adopt = add("adopt", "use shards of another program in place", _ADOPT)
    adopt.add_argument("--name", metavar="NAME", required=True, help="name of the dataset")
    adopt.add_argument(
        "--split",
        metavar="NAME=GLOB",
        action="append",
        required=True,
        help="a split and the files that make it up; may be given several times",
    )
    adopt.add_argument(
        "--classes", metavar="FILE", help="class names in index order, or with their numbers"
    )
    adopt.add_argument(
        "--flip-changes-label",
        action="store_true",
        help="left and right matter to the labels: training will not mirror",
    )

    audits.add_audit(add("audit", "clips that two splits or sets share", audits.AUDIT))
    audits.add_missing(add("missing", "clips of a published list that it lacks", audits.MISSING))
    add_subset_arguments(add("subset", "choose from a list of captioned clips", _SUBSET))
    return result


def _add_inspect(inspect: argparse.ArgumentParser) -> None:
    _add_settings(inspect)
    inspect.add_argument(
        "--step", metavar="N", type=int, default=0, help="step to show (default: %(default)s)"
    )
    inspect.add_argument(
        "--clips", metavar="N", type=int, default=8, help="at most so many (default: %(default)s)"
    )
    inspect.add_argument(
        "--views",
        action="store_true",
        help="show an evaluation pass instead of the training stream",
    )
    inspect.add_argument(
        "--segments",
        metavar="N",
        type=int,
        default=1,
        help="with --views: windows in time (default: %(default)s)",
    )
    inspect.add_argument(
        "--crops",
        metavar="N",
        type=int,
        default=1,
        help="with --views: windows in space (default: %(default)s)",
    )
    inspect.add_argument(
        "--sample",
        metavar="N",
        type=int,
        default=64,
        help="records read for the summary (default: %(default)s)",
    )
    inspect.add_argument(
        "--out",
        metavar="PATH",
        default="inspect",
        help="path of the sheet without its ending (default: %(default)s)",
    )


def _add_bench(bench: argparse.ArgumentParser) -> None:
    _add_settings(bench)
    bench.add_argument(
        "--seconds",
        metavar="S",
        type=float,
        default=5.0,
        help="time for each of the two measurements (default: %(default)s)",
    )
    bench.add_argument(
        "--cores",
        metavar="N",
        type=int,
        default=default_workers(),
        help="cores of the host to feed accelerators from (default: %(default)s, those available)",
    )
    bench.add_argument(
        "--mfu",
        metavar="SHARE",
        type=float,
        default=0.4,
        help="assumed model FLOP utilisation of the accelerators (default: %(default)s)",
    )
    bench.add_argument(
        "--clips-per-second-per-chip",
        metavar="X",
        type=float,
        help="measured rate of one accelerator, instead of the assumption",
    )


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--split", metavar="NAME", help="split to read (default: the recipe's)")
    command.add_argument("--config", metavar="FILE[:OPTIONS]", help="recipe of a training run")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    line = parser()
    given = list(sys.argv[1:] if argv is None else argv)
    # Set apart first: argparse takes an unknown option with a space in its value for a directory.
    overrides = [item for item in given if item.startswith("--config.")]
    arguments = line.parse_args([item for item in given if item not in overrides])
    if overrides and arguments.command not in _STREAMS:
        line.error(f"unrecognized arguments: {' '.join(overrides)}")
    arguments.overrides = overrides
    return run_command(lambda: _COMMANDS[arguments.command](arguments), "stopped")


# Each command imports what it needs: `verify --help` should not wait for grain.


def _inspect(arguments: argparse.Namespace) -> int:
    from data_pipelines.tools import inspect, settings

    config = settings.data_config(
        arguments.directory, arguments.split, arguments.config, arguments.overrides
    )
    if min(arguments.clips, arguments.sample, arguments.segments, arguments.crops) < 1:
        raise ValueError("--clips, --sample, --segments and --crops must be at least 1")
    for suffix in inspect.SUFFIXES:
        check_file("--out", f"{arguments.out}{suffix}")
    for text in inspect.summary(config, arguments.sample):
        print(text)
    if arguments.views:
        if not config.train:
            raise ValueError("--views shows one dataset, found none or a mixture; give its DIR")
        page = inspect.view_page(
            config, arguments.step, arguments.clips, arguments.segments, arguments.crops
        )
    else:
        page = inspect.train_page(settings.as_declared(config), arguments.step, arguments.clips)
    for path in inspect.write(page, arguments.out):
        print(f"wrote {path}")
    return GOOD


def _verify(arguments: argparse.Namespace) -> int:
    from data_pipelines.tools.verify import verify

    faults, records, frames = verify(arguments.directory, arguments.workers, quiet=arguments.quiet)
    for fault in faults:
        print(f"fault: {fault}")
    print(
        f"{arguments.directory}: {'FAULTY' if faults else 'good'}; {records} records, "
        f"{frames} frames read, {len(faults)} faults"
    )
    return BAD_DATA if faults else GOOD


def _reindex(arguments: argparse.Namespace) -> int:
    from data_pipelines.records.reindex import reindex

    bad = reindex(arguments.directory, say)
    print(f"{arguments.directory}: indexes rebuilt, {bad} shards with problems")
    return BAD_DATA if bad else GOOD


def _bench(arguments: argparse.Namespace) -> int:
    from data_pipelines.tools import bench, feed, settings

    config = settings.data_config(
        arguments.directory, arguments.split, arguments.config, arguments.overrides
    )
    if not (arguments.seconds > 0 and arguments.cores > 0 and 0 < arguments.mfu <= 1):
        raise ValueError("--seconds and --cores must be positive, --mfu between 0 and 1")
    own = arguments.clips_per_second_per_chip
    if own is not None and not own > 0:
        raise ValueError(f"--clips-per-second-per-chip: found {own:g}, expected more than 0")
    speed = bench.measure(settings.as_declared(config), arguments.seconds)
    for text in bench.report(speed):
        print(text)
    print()
    for text in feed.report(
        speed.stream_per_core,
        arguments.cores,
        frames=config.clip.frames,
        size=config.clip.resolution,
        bytes_per_clip=speed.bytes_per_clip,
        mfu=arguments.mfu,
        per_chip=own,
    ):
        print(text)
    return GOOD


def _adopt(arguments: argparse.Namespace) -> int:
    from data_pipelines.ingest.adopt import adopt
    from data_pipelines.ingest.labels import read_classes

    splits: dict[str, str] = {}
    for item in arguments.split:
        name, _, pattern = item.partition("=")
        if not (name and pattern):
            raise ValueError(f"--split: found {item!r}, expected NAME=GLOB such as train='train-*'")
        if name in splits:
            raise ValueError(f"--split: {name!r} is given twice; one glob can match all its files")
        splits[name] = pattern
    classes = None if arguments.classes is None else read_classes(arguments.classes)
    adopt(
        arguments.directory,
        splits,
        arguments.name,
        classes,
        flip_changes_label=arguments.flip_changes_label,
    )
    print(f"{os.path.join(arguments.directory, 'manifest.json')}: written; check it with verify")
    return GOOD


def _subset(arguments: argparse.Namespace) -> int:
    from data_pipelines.subset import options, run

    chosen = options.options(arguments)
    check_file("--out", chosen.out)
    summary = run.build(chosen, arguments.quiet)
    for text in run.report(summary):
        print(text)
    print(f"wrote {chosen.out} and {chosen.out}.summary.json")
    bad = summary["left_out"]["malformed"]
    if bad > chosen.max_bad * summary["rows"]:
        print(f"{bad} rows are malformed, more than --max-bad {chosen.max_bad:g} allows")
        return BAD_DATA
    return GOOD


_COMMANDS = {
    "inspect": _inspect,
    "verify": _verify,
    "bench": _bench,
    "reindex": _reindex,
    "adopt": _adopt,
    "audit": audits.audit,
    "missing": audits.missing,
    "subset": _subset,
}


if __name__ == "__main__":
    sys.exit(main())
