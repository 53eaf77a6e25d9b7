"""The published checkpoints: what each is, the recipe and the test it belongs to, finding one.

`find` takes a name, `match` the name of a file or the shapes of its weights. The rows are in
`zoo.py` of every family. Which torch names a checkpoint has is told by
its `kind`, under which `internvideo_jax.weights` keeps one rule table; weights are never touched
here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from internvideo_jax.families.entry import Entry
from internvideo_jax.families.internvideo2.zoo import INTERNVIDEO2
from internvideo_jax.families.umt.zoo import UMT
from internvideo_jax.families.uniformerv2.zoo import UNIFORMERV2
from internvideo_jax.families.videomae import zoo as videomae
from internvideo_jax.registry import resolve, suggest

SOURCES: dict[str, tuple[Entry, ...]] = {
    "videomae": videomae.VIDEOMAE,
    "v2": videomae.V2,
    "internvideo1": videomae.INTERNVIDEO1,
    "uniformerv2": UNIFORMERV2,
    "internvideo2": INTERNVIDEO2,
    "umt": UMT,
}
ENTRIES = tuple(entry for entries in SOURCES.values() for entry in entries)
SUFFIXES = (".pth", ".pyth", ".pt", ".bin", ".safetensors")
COMMON = ("pretrain", "pytorch_model")  # file names that say nothing without their folder

# What the shapes of a checkpoint tell: `width`, `depth`, `classes` ... Only what is there.
Facts = dict[str, Any]


def find(name: str) -> Entry:
    """The entry `name`, by its full name or, where only one has it, by the part after the slash.

    Raises:
      ValueError: no such entry, with the near matches.
    """
    wanted = _stem(name)
    full = [entry for entry in ENTRIES if entry.name == name]
    found = full or [entry for entry in ENTRIES if entry.name.partition("/")[2] == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{name!r} is ambiguous: {', '.join(entry.name for entry in found)}")
    raise ValueError(f"no published checkpoint {name!r}: {suggest(name, _names())}")


def match(name: str = "", facts: Facts | None = None) -> tuple[Entry, ...]:
    """Entries that a file may be: those whose name fits, else those whose shapes fit.

    A name is believed only as far as the shapes agree. A file name that several entries share
    (`ViT-H.pth`) is told apart by its folders, and by the shapes.

    Args:
      name: path of the file; empty = unknown.
      facts: of `facts_of_params`; None = unknown, only the name counts.
    """
    fits = [entry for entry in ENTRIES if facts is None or agree(facts_of_entry(entry), facts)]
    named = [entry for entry in fits if name and is_named(entry, name)]
    deepest = max((_depth(entry, name) for entry in named), default=0)
    named = [entry for entry in named if _depth(entry, name) == deepest]
    return tuple(named or (fits if facts is not None else ()))


def is_named(entry: Entry, name: str) -> bool:
    """Whether the file `name` has the published name, of file or model, whatever its ending."""
    stem = _stem(name)
    if entry.file and stem == _stem(entry.file):
        return stem not in COMMON or _depth(entry, name) > 0
    return stem == entry.name.partition("/")[2]


def model_config(entry: Entry) -> Any:
    """The config of the entry's model, as its recipe has it but for drop path and the like."""
    changes = {**entry.changes, "frames": entry.frames}
    if entry.kind != "uniformerv2":
        changes["size"] = entry.pixels  # there the size name has it
    if not entry.pretrained:
        changes["classes"] = entry.classes
    return resolve("model", entry.kind).of_size(entry.size, **changes)


def facts_of_entry(entry: Entry) -> Facts:
    return facts_of_config(model_config(entry))


def facts_of_config(config: Any) -> Facts:
    """What the shapes of this model's parameters will tell."""
    tower = config.encoder
    facts: Facts = {
        "kind": config.name,
        "width": tower.width,
        "depth": tower.depth,
        "hidden": tower.hidden,
        "patch": config.patch,
    }
    if config.name == "uniformerv2":
        facts |= {
            "kernel_frames": config.kernel_frames,
            "positions": 1 + config.grid[1] * config.grid[2],
            "local_blocks": config.local_blocks,
            "global_blocks": len(config.global_layers),
            "frozen": config.frozen,
        }
    else:
        facts["tubelet"] = config.tubelet
    if config.name.startswith("internvideo2") and config.pos_table == "joint":
        facts["positions"] = 1 + config.tokens
    if config.name == "videomae_pretrain":
        facts |= {"decoder_width": config.decoder.width, "decoder_depth": config.decoder.depth}
    if config.name == "videomae_classifier":
        facts["pooling"] = config.pooling
    if getattr(config, "classes", 0):
        facts["classes"] = config.classes
    return facts


def facts_of_params(kind: str, params: Mapping[str, Any], geometry: Mapping[str, int]) -> Facts:
    """What the shapes of these parameters tell.

    Args:
      kind: name of the model in the registry, or `clip` / `clip_visual`.
      params: path -> anything with a `shape`.
      geometry: patch size, and tubelet where there is one.
    """
    shapes = {path: tuple(value.shape) for path, value in params.items()}
    facts: Facts = {"kind": kind, **geometry}
    for fact, path, axis in (
        ("width", "encoder/blocks/norm1/scale", 1),
        ("depth", "encoder/blocks/norm1/scale", 0),
        ("hidden", "encoder/blocks/mlp/fc1/kernel", 2),
        ("decoder_width", "decoder/blocks/norm1/scale", 1),
        ("decoder_depth", "decoder/blocks/norm1/scale", 0),
        ("heads", "encoder/blocks/attn/scale", 1),
        ("classes", "head/bias", 0),
        ("positions", "encoder/pos_embed/table", 0),
        ("positions", "encoder/pos_embed", 0),
        ("global_blocks", "global_blocks/norm1/scale", 0),
    ):
        if path in shapes and axis < len(shapes[path]):
            facts[fact] = shapes[path][axis]
    if kind == "videomae_classifier":
        for pooling, path in (("mean", "fc_norm/scale"), ("first_token", "encoder/norm/scale")):
            if path in shapes:
                facts["pooling"] = pooling
    if kind == "uniformerv2":
        rows = shapes["encoder/patch_embed/kernel"][0]
        facts["kernel_frames"] = rows // (3 * geometry["patch"] ** 2)
        facts["local_blocks"] = sum(
            f"encoder/blocks/local{number}/reduce/kernel" in shapes for number in (1, 2)
        )
        facts["frozen"] = "balance" not in shapes
    return facts


def agree(one: Facts, other: Facts) -> bool:
    """Whether the facts that both have are the same."""
    return all(other[name] == value for name, value in one.items() if name in other)


def size_of(facts: Facts) -> str:
    """The size name of these facts, empty when no published model has these shapes."""
    shape = [facts.get(name) for name in ("width", "depth", "hidden", "patch")]
    kind = facts["kind"]
    if kind in ("uniformerv2", "viclip", "clip", "clip_visual", "vit"):
        module = "viclip" if kind == "viclip" else "uniformerv2"
        image_sizes = importlib.import_module(f"internvideo_jax.families.{module}.model").SIZES

        for name, size in image_sizes.items():
            tower = size.encoder
            rows = 1 + (size.size // size.patch) ** 2
            same = shape == [tower.width, tower.depth, tower.hidden, size.patch]
            if same and facts.get("positions") == rows:
                return name
        return ""
    if kind.startswith("internvideo2"):
        from internvideo_jax.families.internvideo2.model import SIZES as encoder_sizes

        for name, preset in encoder_sizes.items():
            tower = preset["encoder"]
            patch = preset.get("patch", 14)
            if shape == [tower.width, tower.depth, tower.hidden, patch]:
                return name
        return ""
    if not kind.startswith(("videomae", "umt")):
        return ""
    from internvideo_jax.families.videomae.model import SIZES as video_sizes

    for name, size in video_sizes.items():
        tower = size.encoder
        same = shape == [tower.width, tower.depth, tower.hidden, size.patch]
        if same and facts.get("decoder_width", size.decoder_width) == size.decoder_width:
            return name
    return ""


def table(source: str) -> list[str]:
    """The entries of a source as the lines of a Markdown table."""
    rows = [
        "| name | file | model | trained on | input | test | reported | recipe |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in SOURCES[source]:
        file = entry.file
        if file == entry.name.partition("/")[2] + PurePath(file).suffix:
            file = f"…{PurePath(file).suffix}"  # the name says it
        test = entry.protocol
        kind = "pre-trained" if entry.pretrained else f"{entry.classes} classes"
        recipe = entry.config.removeprefix("configs/")
        cells = (
            f"`{entry.name}`",
            f"`{file}`" if file else "",
            f"{entry.size}, {kind}",
            entry.data,
            f"{entry.frames} x {entry.pixels}²",
            f"{test.segments} x {test.crops}, {test.sampling}" if test else "",
            entry.reported,
            f"`{recipe}`{'' if entry.made else ' *'}",
        )
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def notes(source: str) -> list[str]:
    """The notes of a source's entries as Markdown lines, entries that share one together."""
    shared: dict[str, list[str]] = {}
    for entry in SOURCES[source]:
        if entry.note:
            shared.setdefault(entry.note, []).append(f"`{entry.name.partition('/')[2]}`")
    return [f"- {', '.join(names)}: {note}." for note, names in shared.items()]


def _names() -> list[str]:
    return [entry.name for entry in ENTRIES]


def _stem(name: str) -> str:
    path = PurePath(name)
    return path.name.removesuffix(path.suffix) if path.suffix in SUFFIXES else path.name


def _depth(entry: Entry, name: str) -> int:
    """How many folders at the end of `name` are those of the published file."""
    here, there = PurePath(name).parent.parts[::-1], PurePath(entry.file).parent.parts[::-1]
    same = 0
    for one, other in zip(here, there, strict=False):
        if one != other:
            break
        same += 1
    return same
