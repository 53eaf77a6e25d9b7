"""Tables of docs/choose.md and docs/memory.md, which follow from zoo, models and compiled steps.

python -m tests.docs.generated     # writes them anew
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from benchmarks import aot
from internvideo_jax.weights import zoo
from internvideo_jax.weights.entry import Entry
from internvideo_jax.weights.family import kinds
from tests.docs.pages import ROOT
from tests.internvideo_jax.models_page import between, parameters

GIB = 2**30
# What users have, and what of it a program may take.
GPUS = {"24 GB": 24e9, "40 GB": 40e9, "80 GB": 80e9}
USABLE = 0.9
# Models that a source is asked for, each with the set whose accuracy is compared.
CLASSIFIERS = {"K400": "Kinetics-400", "SSv2": "Something-Something V2"}


def config_of(entry: Entry) -> Any:
    return kinds()[entry.kind].config_of(entry)


def clip_flops(entry: Entry) -> float:
    """Of a forward pass over one view, by the count that a run's MFU is made of."""
    return config_of(entry).forward_flops()


def name_of(entry: Entry) -> str:
    return f"`{entry.short or entry.name}`"


def fetched(entry: Entry) -> str:
    """How its file comes."""
    return f"[file]({entry.url})" if entry.url else "by hand"


def number(text: str) -> float:
    """The first number of a reported accuracy."""
    return float(re.findall(r"\d+(?:\.\d+)?", text)[0])


def classifiers(data: str) -> list[str]:
    """Published classifiers of a set, those that cost less for one view first."""
    rows = [
        "| model | size | frames x pixels | GFLOPs of a view | views | top-1 (top-5), as published "
        "| licence of the repository | file |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = [
        entry for entry in zoo.entries()
        if entry.data == data and not entry.pretrained and entry.reported
    ]  # fmt: skip
    for entry in sorted(found, key=lambda entry: (clip_flops(entry), -number(entry.reported))):
        views = f"{test.clips} x {test.crops}" if (test := entry.protocol) else ""
        first, _, second = entry.reported.partition(" / ")
        rows.append(
            f"| {name_of(entry)} | {entry.size} | {entry.frames} x {entry.pixels}² "
            f"| {clip_flops(entry) / 1e9:,.0f} | {views} "
            f"| {first}{f' ({second})' if second else ''} | {entry.licence} | {fetched(entry)} |"
        )
    return rows


@cache
def millions(size: str) -> str:
    """Parameters of both encoders."""
    first = next(entry for entry in zoo.sources()["viclip"] if entry.size == size)
    return f"{parameters(config_of(first)) / 1e6:,.0f} M"


def with_texts() -> list[str]:
    """Models that read texts; accuracies are of recognition without training."""
    rows = [
        "| model | size | parameters | frames x pixels | GFLOPs of a clip "
        "| zero-shot top-1 of Kinetics-400 / 600 / 700, as published | licence | file |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in zoo.sources()["viclip"]:
        rows.append(
            f"| {name_of(entry)} | {entry.size} | {millions(entry.size)} "
            f"| {entry.frames} x {entry.pixels}² | {clip_flops(entry) / 1e9:,.0f} "
            f"| {entry.reported} | {entry.licence} | {fetched(entry)} |"
        )
    return rows


def memory() -> list[str]:
    """Compiled steps with what a chip holds, and clips that fit GPUs by the same figures."""
    gpus = " | ".join(f"clips on {name}" for name in GPUS)
    rows = [
        f"| recipe | compiled for | mesh | clips per chip | state and batch, GiB "
        f"| temporaries, GiB | peak, GiB | {gpus} |",
        "|---|---|---|---|---|---|---|" + "---|" * len(GPUS),
    ]
    stored = json.loads(aot.STORED.read_text())
    for name, row in aot.ROWS.items():
        if row.remat or row.overrides or row.batch or name not in stored:
            continue  # no shipped recipe at its own batch
        facts = stored[name]
        clips = facts["batch"] / facts["chips"] / facts["microbatches"]
        found = facts["memory"]
        each = found["temporaries"] / clips
        fits = [max(0, int((USABLE * size - found["arguments"]) // each)) for size in GPUS.values()]
        axes = ", ".join(f"{axis}={size}" for axis, size in facts["mesh"].items() if size > 1)
        shown = [found[part] / GIB for part in ("arguments", "temporaries", "peak")]
        rows.append(
            f"| `{row.config.removeprefix('configs/').replace('.py:', ':')}` | {facts['topology']} "
            f"| {axes} | {clips:g} | {' | '.join(f'{value:.2f}' for value in shown)} "
            f"| {' | '.join(str(count) for count in fits)} |"
        )
    return rows


def parts() -> dict[str, dict[str, str]]:
    """Page -> name of a part -> its lines, as they stand between two marks on the page."""
    tables = {
        "choose.md": {
            "texts": with_texts(),
            **{f"classifiers {data}": classifiers(data) for data in CLASSIFIERS},
        },
        "memory.md": {"memory": memory()},
    }
    return {
        page: {name: "\n".join(lines) for name, lines in found.items()}
        for page, found in tables.items()
    }


def main() -> None:
    for page, found in parts().items():
        path = ROOT / "docs" / page
        text = path.read_text(encoding="utf-8")
        for name, lines in found.items():
            text = between(name).sub(lambda part, lines=lines: f"{part[1]}{lines}\n{part[3]}", text)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
