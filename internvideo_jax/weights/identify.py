"""What a checkpoint is: model, size, classes, which published one it may be, how to use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from internvideo_jax.families import zoo
from internvideo_jax.families.entry import Entry
from internvideo_jax.families.videomae.model import SIZES as VIDEO_SIZES
from internvideo_jax.layers.tower import TowerConfig, preset_size
from internvideo_jax.registry import MODELS, resolve

TITLES = {
    "videomae_pretrain": "VideoMAE, pre-training (encoder and decoder)",
    "videomae_classifier": "VideoMAE, fine-tuned (classifier)",
    "uniformerv2": "UniFormerV2, fine-tuned (classifier)",
    "viclip": "ViCLIP (video and text encoder)",
    "clip": "CLIP, image and text; initial weights for ViCLIP and UniFormerV2",
    "clip_visual": "image half of CLIP; initial weights for ViCLIP and UniFormerV2",
    "internvideo2": "InternVideo2, video encoder and attention pool",
    "internvideo2_student": "InternVideo2, student of stage 1 or of a distillation",
    "internvideo2_classifier": "InternVideo2, fine-tuned or probed (classifier)",
    "umt_student": "Unmasked Teacher, pre-training (encoder and decoders)",
    "vit": "image transformer (DINO, DeiT); initial weights for UniFormerV2 with backbone=vit",
}
# Letters of InternVideo2's sizes in the names of its recipes, and data sets by number of classes.
INTERNVIDEO2 = {"small": "s", "base": "b", "large": "l", "1b": "1b", "6b": "6b"}
UMT = {"base": "b", "large": "l"}  # the same for Unmasked Teacher
BY_CLASSES = {400: "k400", 600: "k600", 700: "k700", 710: "k710", 174: "ssv2", 339: "mit"}
PIXELS, TIME_STEPS = 224, 8  # of published position tables; stage 2 has 4 time steps
DEFAULT_SIZES = ("small", "base", "large", "huge", "giant")  # of the VideoMAE fine-tuning recipes


@dataclasses.dataclass(frozen=True)
class Identity:
    """What is known about a checkpoint.

    `named` are published checkpoints of the same file name and shapes, `alike` those that only have
    its shapes. `commands` are ready to run but for the names in capitals.
    """

    kind: str
    size: str  # of `of_size`; empty: the size of no published model
    facts: Mapping[str, Any]
    named: tuple[Entry, ...]
    alike: tuple[Entry, ...]
    commands: tuple[str, ...]
    remarks: tuple[str, ...]

    def text(self) -> str:
        if self.kind not in TITLES:
            return f"  {self.kind}, not among the published checkpoints listed here"
        lines = [f"  {TITLES[self.kind]}", f"  {self._shape()}"]
        lines += [f"  note: {remark}" for remark in self.remarks]
        entries = self.named or self.alike
        if entries:
            by = "name and shapes" if self.named else "shapes alone"
            lines.append(f"  published checkpoints that fit, by {by}:")
            lines += [f"    {_entry_line(entry)}" for entry in entries[:6]]
            if len(entries) > 6:
                lines.append(f"    and {len(entries) - 6} more")
        elif self.kind in {entry.kind for entry in zoo.ENTRIES}:
            lines.append("  no published checkpoint has these shapes")
        for command in self.commands:
            lines += ["", command]
        return "\n".join(lines)

    def _shape(self) -> str:
        facts = self.facts
        parts = [
            f"size {self.size}" if self.size else "no published size",
            f"width {facts.get('width')}, {facts.get('depth')} layers, patch {facts.get('patch')}",
        ]
        if "tubelet" in facts:
            parts.append(f"tubelet {facts['tubelet']}")
        if "classes" in facts:
            parts.append(f"{facts['classes']} classes")
        if "decoder_width" in facts:
            parts.append(f"decoder {facts['decoder_width']} x {facts['decoder_depth']}")
        if self.kind == "uniformerv2":
            parts.append("frozen head" if facts["frozen"] else "head on query and class tokens")
            parts.append(f"{facts['global_blocks']} global blocks")
            parts.append("local blocks" if facts["local_blocks"] else "no local blocks")
        if self.kind != "uniformerv2" and "positions" in facts:
            parts.append(f"{facts['positions']} positions")
        elif "positions" in facts:
            side = round((facts["positions"] - 1) ** 0.5)
            parts.append(f"{side * facts['patch']} pixels")
        return ", ".join(parts)


def identify(
    kind: str, params: Mapping[str, Any], geometry: Mapping[str, int], path: str
) -> Identity:
    """Says what the parameters are.

    Args:
      kind: name of the model in the registry, or `clip` / `clip_visual`.
      params: path -> anything with a `shape`.
      geometry: patch size, and tubelet where there is one.
      path: of the file, or of the run; its name counts and it goes into the commands.
    """
    if kind not in TITLES:
        return Identity(kind, "", {"kind": kind, **geometry}, (), (), (), ())
    facts = zoo.facts_of_params(kind, params, geometry)
    if kind.startswith("internvideo2"):
        facts |= _internvideo2_facts(params, geometry)
    size = zoo.size_of(facts)
    found = zoo.match(path, facts) if kind in MODELS else ()
    named = tuple(entry for entry in found if zoo.is_named(entry, path))
    alike = () if named else found
    remarks = _remarks(facts, size, named, path)
    return Identity(kind, size, facts, named, alike, _commands(facts, size, found, path), remarks)


def _internvideo2_facts(params: Mapping[str, Any], geometry: Mapping[str, int]) -> zoo.Facts:
    """Time steps of the position table, where it is of 224 pixels, and what the head reads."""
    facts: zoo.Facts = {}
    joint, temporal = (params.get(f"encoder/pos_embed/{leaf}") for leaf in ("table", "temporal"))
    places = (PIXELS // geometry["patch"]) ** 2
    if temporal is not None:
        facts["time_steps"] = temporal.shape[0]
    elif joint is not None and (joint.shape[0] - 1) % places == 0:
        facts["time_steps"] = (joint.shape[0] - 1) // places
    if "extra_mlp/fc1/kernel" in params:
        facts["probe"] = "attentive"
    elif "down/kernel" in params:
        facts["probe"] = "linear"
    elif "down_norm/scale" in params or "down_norm/mean" in params:
        facts["probe"] = "other"
    return facts


def _remarks(facts: zoo.Facts, size: str, named: tuple[Entry, ...], path: str) -> tuple[str, ...]:
    remarks = []
    kind = facts["kind"]
    for entry in () if named else (entry for entry in zoo.ENTRIES if zoo.is_named(entry, path)):
        other = zoo.facts_of_entry(entry)
        name, value = next((n, v) for n, v in other.items() if facts.get(n, v) != v)
        remarks.append(
            f"named like {entry.name}, but that has {name} = {value} and this {facts[name]}"
        )
    if not size and kind in MODELS:
        for known in zoo.ENTRIES:
            theirs = zoo.facts_of_entry(known)
            same = all(theirs.get(each) == facts.get(each) for each in ("width", "hidden", "patch"))
            if theirs["kind"] == kind and same and theirs["depth"] > facts["depth"]:
                remarks.append(
                    f"{facts['depth']} layers of the {theirs['depth']} that {known.size} has: "
                    "the file may be cut off"
                )
                break
    if kind == "videomae_pretrain" and "decoder_width" not in facts:
        remarks.append("no decoder: enough to fine-tune, not to go on with pre-training")
    if (
        kind in ("videomae_classifier", "uniformerv2", "internvideo2_classifier")
        and "classes" not in facts
    ):
        remarks.append("no head: enough to fine-tune, not to evaluate")
    if kind == "videomae_classifier" and "positions" not in facts:
        remarks.append("frames and pixels are not in the file, its positions are computed")
    if "time_steps" in facts:
        remarks.append(
            f"frames and pixels are not in the file; its positions fit {facts['time_steps']} time "
            f"steps of {PIXELS} pixels"
        )
    if kind == "umt_student":
        remarks.append("a classifier takes the encoder; decoders and last norm stay behind")
    if kind == "internvideo2_student":
        remarks.append("a classifier takes encoder and pool; decoders and their tables stay behind")
    if facts.get("classes") == 174 and kind == "internvideo2_classifier":
        remarks.append("174 classes: Something-Something, version 1 or 2")
    if kind == "uniformerv2":
        remarks.append("frames are not in the file, all have the same positions")
    return tuple(remarks)


def _commands(facts: zoo.Facts, size: str, found: tuple[Entry, ...], path: str) -> tuple[str, ...]:
    """Command lines to evaluate and to fine-tune; none where no recipe has this size."""
    first = found[0] if found else None
    config = _config(facts, size, first)
    if not config:
        return ()
    settings = first.settings if first is not None and not first.pretrained else ()
    if facts.get("time_steps", TIME_STEPS) != TIME_STEPS:
        settings = (*settings, f"--config.model.pos_frames={facts['time_steps']}")
    start = (
        f"ivj train --config={config} "
        f"--config.init_from={path} --workdir=runs/finetune --config.data.train=SHARDS"
    )
    if "classes" not in facts and facts["kind"] != "viclip":
        return (" ".join((start, *settings)),)
    test = (
        f"ivj evaluate --config={config} "
        f"--checkpoint={path} --out=results.json --config.data.eval=SHARDS"
    )
    return (" ".join((test, *settings)), " ".join((start, *settings)))


def _config(facts: zoo.Facts, size: str, first: Entry | None) -> str:
    if first is not None:
        return first.finetune if first.pretrained else first.config
    kind = facts["kind"]
    if kind.startswith("clip") and size:
        return f"configs/uniformerv2/finetune.py:data=kinetics,start=clip,size={size}"
    if kind == "viclip" and size:
        return f"configs/viclip/pretrain.py:size={size}"
    if kind.startswith("internvideo2") and size in INTERNVIDEO2:
        return _internvideo2_config(facts, INTERNVIDEO2[size])
    if facts.get("tubelet") == 1 and size in UMT and not kind.startswith("internvideo2"):
        return f"configs/umt/finetune.py:recipe={UMT[size]}_k710"
    if kind.startswith("videomae") and size.partition("_")[0] in DEFAULT_SIZES:
        return f"configs/videomae/finetune.py:size={size.partition('_')[0]}"
    return ""


def _internvideo2_config(facts: zoo.Facts, size: str) -> str:
    """The recipe of that head and number of classes; Kinetics-710 where the file has no head."""
    large, probe = size in ("1b", "6b"), facts.get("probe")
    if probe:
        found = large and probe in ("attentive", "linear")
        return f"configs/internvideo2/probe.py:recipe={probe}/{size}_ssv2" if found else ""
    data = BY_CLASSES.get(facts.get("classes", 710), "k400")
    if data == "mit" and not large:
        data = "k400"
    return f"configs/internvideo2/finetune.py:recipe={size}_{data}"


def _entry_line(entry: Entry) -> str:
    parts = [entry.name, entry.data, f"{entry.frames} x {entry.pixels} pixels"]
    if entry.protocol:
        parts.append(f"test {entry.protocol.segments} x {entry.protocol.crops}")
    if entry.reported:
        parts.append(f"reported {entry.reported}")
    return ", ".join(parts)


def guess_config(
    kind: str,
    params: Mapping[str, Any],
    geometry: Mapping[str, int],
    given: Mapping[str, int] | None = None,
) -> Any:
    """The config of a VideoMAE model from its parameters, as far as they tell.

    Number of heads, frames and pixels are not in them: heads are those of the published model of
    the same shapes, the rest is 16 frames of 224 pixels, with the flat sine table.

    Args:
      given: `frames`, `size`, `heads`, `decoder_heads` where they are known; 0 = not.

    Raises:
      ValueError: another model than VideoMAE, or no published model of these shapes and no heads.
    """
    given = {name: value for name, value in (given or {}).items() if value}
    if kind not in ("videomae_pretrain", "videomae_classifier"):
        raise ValueError(f"only VideoMAE has a Hugging Face layout, this is {kind}")
    facts = zoo.facts_of_params(kind, params, geometry)
    size = zoo.size_of(facts)
    preset = preset_size(VIDEO_SIZES, size) if size else None

    def heads(flag: str, known: int) -> int:
        found = given.get(flag, known)
        if not found:
            raise ValueError(
                f"the file does not tell the number of heads, and no published model is "
                f"{facts['width']} wide with {facts['depth']} layers; add --{flag}"
            )
        return found

    settings: dict[str, Any] = {
        **geometry,
        "encoder": TowerConfig(
            facts["width"],
            facts["depth"],
            heads("heads", facts.get("heads", preset.encoder.heads if preset else 0)),
            facts["hidden"],
        ),
        "frames": given.get("frames", 16),
        "size": given.get("size", 224),
        "qkv_bias": "encoder/blocks/attn/qkv/q_bias" in params,
        "cosine": "encoder/blocks/attn/scale" in params,
        "layer_scale": 1.0 if "encoder/blocks/gamma1" in params else 0.0,
        "pos_table": "learnable" if "encoder/pos_embed" in params else "sincos",
    }
    if kind == "videomae_classifier":
        for fact, meaning in (("classes", "head"), ("pooling", "norm before the head")):
            if fact not in facts:
                raise ValueError(f"the file has no {meaning}: not a whole classifier")
            settings[fact] = facts[fact]
    elif "decoder_width" not in facts:
        raise ValueError("the file has no decoder: not a whole pre-training model")
    else:
        settings["decoder"] = TowerConfig(
            facts["decoder_width"],
            facts["decoder_depth"],
            heads("decoder_heads", preset.decoder_heads if preset else 0),
            params["decoder/blocks/mlp/fc1/kernel"].shape[2],
        )
    return resolve("model", kind)(**settings)
