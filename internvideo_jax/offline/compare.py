"""Where two results differ: in weights, data, pixels, protocol or numbers.

    ivj compare results.json other.json

Each is a file of `ivj evaluate --out` or `ivj predict --out` (.json), `results/LABEL.json` of a
run, or what `ivj extract` and `ivj score` leave beside their output (features-SPLIT.json,
similarity-SPLIT.json). Ends with 0 where they are the same, with 1 where they differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.commands.arguments import Parser
from data_pipelines.commands.exit_codes import ExitCode, exit_code_of, message_of

ALL = ""  # label of a file that has the result of one evaluator
SHOWN = 10  # videos that are named
# Of a config: where it lies and how it is computed, not what.
FREE = ("init_from", "dtype", "attention", "remat", "scan")
PROTOCOLS = ("protocol", "windows", "scoring")  # of evaluators and predictions, extract, score


def read(path: Path) -> dict[str, Any]:
    """The content of a file with results; ValueError for any other."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    known = isinstance(content, dict) and any(
        isinstance(content.get(key), kind)
        for key, kind in (
            ("results", dict),
            ("videos", list),
            ("metrics", dict),
            ("windows", dict),
            ("scoring", dict),
        )
    )
    if not known:
        raise ValueError(
            f"{path}: no results in it; expected a .json of `ivj evaluate`, of `ivj predict`, "
            "results/LABEL.json of a run, or what `ivj extract` or `ivj score` was made with"
        )
    return content


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """A line for everything in which two results differ; empty: they are the same.

    What neither has is not compared; a digest that only one has is named as not stored.
    """
    lines = list(_digest("weights", one, other, "params_digest"))
    lines += _digest("data", one, other, "data_fingerprint")
    lines += _fields("versions", one.get("versions", {}), other.get("versions", {}))
    lines += _fields("model", _model(one), _model(other))
    results, others = _results(one), _results(other)
    for label in sorted(results.keys() | others.keys()):
        if label not in results or label not in others:
            lines.append(f"{label}: only in the {'first' if label in results else 'second'}")
            continue
        lines += _compared(label, results[label], others[label])
    if "videos" in one and "videos" in other:
        lines += _videos(one["videos"], other["videos"])
    return lines


def _results(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Label -> what an evaluator found; a prediction is one without metrics."""
    return content["results"] if isinstance(content.get("results"), dict) else {ALL: content}


def _model(content: Mapping[str, Any]) -> Mapping[str, Any]:
    model = content.get("model") or content.get("config", {}).get("model", {})
    return {name: value for name, value in model.items() if name not in FREE}


def _compared(label: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    name = f"{label}: " if label else ""
    lines = [name + line for line in _pixels(one.get("pixels", {}), other.get("pixels", {}))]
    for kind in PROTOCOLS:
        lines += _fields(f"{name}{kind}", one.get(kind, {}), other.get(kind, {}))
    return lines + _fields(f"{name}metric", one.get("metrics", {}), other.get("metrics", {}))


def _pixels(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    if one.get("clips") != other.get("clips") and one and other:
        yield f"pixels differ: {one['clips']} clips and {other['clips']}"
    else:
        yield from _digest("pixels", one, other, "digest")


def _digest(what: str, one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> Iterator[str]:
    found, there = one.get(key), other.get(key)
    if found and there and found != there:
        yield f"{what} differ: {found} and {there}"
    elif bool(found) != bool(there):
        which = "second" if found else "first"
        yield f"{what}: the {which} has no digest (older versions stored none): not compared"


def _fields(what: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [
        f"{what} {name}: {one.get(name, 'absent')} and {other.get(name, 'absent')}"
        for name in sorted({*one, *other})
        if one.get(name, "absent") != other.get(name, "absent")
    ]


def _videos(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> list[str]:
    """Videos whose pixels or best label differ, by their names."""
    found, there = ({row["video"]: row for row in rows} for rows in (one, other))
    both = [name for name in found if name in there]
    kinds = {
        "only in the first": [name for name in found if name not in there],
        "only in the second": [name for name in there if name not in found],
        "other pixels": [
            name
            for name in both
            if found[name].get("pixels") and there[name].get("pixels")
            and found[name]["pixels"] != there[name]["pixels"]
        ],
        "another best label": [
            name
            for name in both
            if found[name]["top"][0]["label"] != there[name]["top"][0]["label"]
        ],
    }  # fmt: skip
    return [
        f"videos, {kind}: {len(names)}: {', '.join(names[:SHOWN])}"
        + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        for kind, names in kinds.items()
        if names
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `ivj compare`; its exit code."""
    parser = Parser(
        prog="ivj compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("first", type=Path, help="file with results")
    parser.add_argument("second", type=Path, help="file with results")
    options = parser.parse_args(arguments)
    try:
        lines = differences(read(options.first), read(options.second))
    except (ValueError, OSError) as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return exit_code_of(error)
    print("\n".join(lines) if lines else "the same weights, pixels, protocol and numbers")
    return ExitCode.BAD_DATA if lines else ExitCode.GOOD


if __name__ == "__main__":
    sys.exit(main())
