"""Weight files from the command line.

ivj weights list [WORD ...]
ivj weights get NAME
ivj weights prove NAME [--config=RECIPE] [--config.FIELD=VALUE ...]
ivj weights inspect FILE
ivj weights import FILE --out ours.safetensors
ivj weights export RUN_OR_FILE --out torch.safetensors (or torch.pth)
ivj weights export RUN_OR_FILE --layout=huggingface --out FOLDER
ivj weights average RUN_OR_FILE RUN_OR_FILE --out ours.safetensors

FILE may be an index of several files, a folder of Hugging Face, or what `get` takes: the name of a
published checkpoint, hf://OWNER/REPOSITORY/FILE or https://... (docs/weights.md). `inspect` of
weights that are NaN or infinite ends with 1, and so does `prove` unless they are proved.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.commands.arguments import Parser
from data_pipelines.commands.exit_codes import ExitCode, exit_code_of, message_of
from data_pipelines.records.outputs import local_argument
from internvideo_jax.checkpoint.initial import checkpoint_weights, model_of
from internvideo_jax.checkpoint.metadata import digest_of
from internvideo_jax.checkpoint.reading import step_of
from internvideo_jax.checkpoint.steps import FOLDER
from internvideo_jax.cli import quiet_libraries, read_labels
from internvideo_jax.config import to_typed
from internvideo_jax.recipes.options import assigned
from internvideo_jax.registry import resolve as registered
from internvideo_jax.weights import average, export, files, huggingface, model_card, wrappers, zoo
from internvideo_jax.weights.folders import is_weights
from internvideo_jax.weights.identify import identify
from internvideo_jax.weights.named import resolve

FIELD = "--config."
SOURCE = "file, folder, NAME of `list`, hf://OWNER/REPOSITORY/FILE or https://..."


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `ivj weights`; its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Fields of a recipe are overridden as everywhere: --config.model.frames=8.
    fields = [word for word in given if word.startswith(FIELD)]
    line = parser()
    options = line.parse_args([word for word in given if word not in fields])
    if fields and options.command != "prove":
        line.error(f"unrecognized arguments: {' '.join(fields)}")
    options.fields = [word.removeprefix(FIELD) for word in fields]
    quiet_libraries()
    try:
        return run(options)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return exit_code_of(error)


def run(options: argparse.Namespace) -> int:
    """Does what was asked for; the exit code."""
    if options.command == "list":
        print(listing(options.words))
        return 0
    to_folder = options.command == "export" and options.layout == "huggingface"
    if options.command == "export":
        export.check_layout(options)
    if to_folder:
        huggingface.check_out(options.out)
    elif "out" in options:
        files.check_out(options.out, ours=options.command != "export")
    if options.command == "get":
        for source in options.sources:
            print(get(source))
        return 0
    if options.command == "prove":
        return proved(options.source, options.config, options.fields)
    options.source = resolve(options.source)
    if options.command == "average":
        options.second = resolve(options.second)
        average.run(options, sound)
        return 0
    weights = read(options.source, vars(options).get("key", ""))
    print(describe(options.source, weights))
    bad = files.not_finite(weights)
    if options.command == "inspect":
        if bad:
            print(bad)
        return ExitCode.BAD_DATA if bad else ExitCode.GOOD
    refuse_not_finite(options.source, bad)
    if options.command == "import":
        files.save_ours(options.out, weights)
    elif to_folder:
        is_run = options.source.is_dir() and not is_weights(options.source)
        of_run = functools.partial(exported_run, options.source) if is_run else None
        export.to_folder(options, weights, read_labels(options.labels), of_run, params_digest)
    else:
        files.save_torch(options.out, weights)
    print(f"written to {options.out}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = Parser(
        prog="ivj weights",
        description="Published torch weights <-> ours. Values are moved, never changed.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("list", help="the published checkpoints and their recipes")
    one.add_argument("words", nargs="*", help="only rows with all of these, as v2 K400")
    one = commands.add_parser("get", help="fetch published weights; prints where they are")
    one.add_argument("sources", nargs="+", help=SOURCE)
    one = commands.add_parser(
        "prove", help="compare first outputs on a clip of the package with stored ones"
    )
    one.add_argument("source", help=SOURCE)
    one.add_argument(
        "--config",
        default="",
        metavar="RECIPE",
        help=f"where the file does not tell it; {FIELD}FIELD=VALUE changes a field of it",
    )
    one = commands.add_parser("inspect", help="say what a file holds")
    one.add_argument("source", help=SOURCE)
    _key(one)
    one = commands.add_parser("import", help="published file -> safetensors with our names")
    one.add_argument("source", help=SOURCE)
    one.add_argument("--out", type=local_argument, required=True)
    _key(one)
    one = commands.add_parser(
        "export", help="training run, checkpoint or our file -> torch names, the ending says how"
    )
    one.add_argument("source", help=SOURCE)
    one.add_argument(
        "--out",
        type=local_argument,
        required=True,
        help=".safetensors or .pth file; huggingface: folder",
    )
    one.add_argument("--layout", choices=("torch", "huggingface"), default="torch")
    export.add_options(one)
    average.add_command(commands)
    return parser


def _key(one: argparse.ArgumentParser) -> None:
    one.add_argument("--key", default="", help="where in a torch file the weights lie: model_ema")


def get(source: str) -> Path:
    """Where the weights are that a name or address stands for, fetched if need be.

    Raises:
      ValueError: neither a name nor an address, nor anything that is there.
    """
    place = resolve(source)
    if not place.exists():
        zoo.find(source)  # raises with the near matches
        raise ValueError(f"{source}: no such file")
    return place


def proved(source: str, recipe: str, fields: Sequence[str] = ()) -> int:
    """Prints what became of the proof; the exit code.

    Args:
      recipe: empty: what the file tells.
      fields: `model.frames=8` each.
    """
    from internvideo_jax.api.prove import prove  # late: it loads what models need

    outcome = prove(source, recipe=recipe, settings=assigned(fields, FIELD))
    print(outcome.text())
    return ExitCode.GOOD if outcome.state == "proved" else ExitCode.BAD_DATA


def read(source: Path, key: str = "") -> files.Weights:
    """Weights of a run, a checkpoint, or what `files.load` reads."""
    if not source.is_dir() or is_weights(source):
        return files.load(source, key)
    if key:
        raise ValueError(f"--key {key} is for torch files; {source} is a folder")
    return checkpoint_weights(source)


def sound(source: Path) -> files.Weights:
    """The same; ValueError where some are NaN or infinite."""
    weights = read(source)
    refuse_not_finite(source, files.not_finite(weights))
    return weights


def refuse_not_finite(source: Path, bad: str) -> None:
    """ValueError where there is something `bad` to say of the values."""
    if bad:
        raise ValueError(f"{source}: {bad}; nothing was written. Take an earlier checkpoint")


def describe(source: Path, weights: files.Weights) -> str:
    """Lines about a file: kind, parameters, what became of its tensors, what it may be."""
    count = sum(value.size for value in weights.params.values())
    geometry = ", ".join(f"{name} {size}" for name, size in weights.geometry.items())
    lines = [f"{source}: {weights.kind}, {count:,} parameters, {geometry}"]
    if weights.layout:
        lines.append(f"names of {weights.layout}")
    if weights.place != wrappers.TOP:
        lines.append(f"under {weights.place!r} in the file")
    if weights.elsewhere:
        lines.append(f"other weights in the file, for --key: {', '.join(weights.elsewhere)}")
    if weights.coverage is not None:
        lines.append(weights.coverage.text())
    lines += [f"note: {remark}" for remark in weights.stated.remarks]
    if names := weights.stated.classes:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"classes: {', '.join(names[:3])}{more}")
    lines.append(identify(weights.kind, weights.params, weights.geometry, str(source)).text())
    return "\n".join(lines)


def listing(words: Sequence[str]) -> str:
    """The zoo, or those of its rows that hold all words."""
    lines = []
    for entry in zoo.entries():
        test = entry.protocol
        line = "  ".join(
            (
                f"{entry.name:<52}",
                f"{entry.size:<9}{entry.data:<15}{entry.frames:>2} x {entry.pixels}",
                f"{f'test {test.clips} x {test.crops}' if test else '':<11}",
                f"{entry.reported:<14}",
                (entry.config or entry.finetune).removeprefix("configs/")
                + ("" if entry.made else " *"),
                *((f"({entry.short})",) if entry.short else ()),
                *(("no address",) if not entry.url else ()),
            )
        )
        if all(word.lower() in line.lower() for word in words):
            lines.append(line.rstrip())
    if not lines:
        raise ValueError(f"no published checkpoint has {' and '.join(words)} in its row")
    columns = (
        "name, size, set, frames x pixels, clips x crops of its test, top-1 (/ top-5) in % as its "
        "authors state it, recipe (* made otherwise; docs/models.md says how), (short name)"
    )
    return "\n".join([*lines, "", columns])


def exported_run(run: Path) -> export.Exported:
    """What an export says of a run or checkpoint beside its weights."""
    step = step_of(run)
    model = model_of(step)
    config = to_typed(registered("model", model["name"]), model, "config.model")
    clip = step.meta.get("config", {}).get("data", {}).get("clip", {})
    folder, number = step.path.parent, step.path.name
    tested = model_card.of_step(folder.parent, int(number)) if folder.name == FOLDER else []
    classes = tuple(step.meta.get("classes") or ())
    return export.Exported(config, classes, int(clip.get("stride", 0)), step.meta, tuple(tested))


def params_digest(params: Mapping[str, np.ndarray]) -> str:
    """Of parameters by path, as results show it."""
    return digest_of(sorted(params.items()))


if __name__ == "__main__":
    sys.exit(main())
