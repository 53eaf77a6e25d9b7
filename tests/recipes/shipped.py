"""Every recipe that ships, by name, and its fully resolved config as text.

python -m tests.recipes.shipped     # writes the texts anew, after a wanted change
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from internvideo_jax.compile_check import length
from internvideo_jax.config import TrainConfig, as_plain, to_typed
from internvideo_jax.evaluators.published import protocols

# A step is taken to need twice the larger of its compute and memory bounds.
EFFICIENCY = 0.5
SETS = {**length.SHORT, "ucf101": "ucf101", "hmdb51": "hmdb51"}
SOURCES = {
    "kinetics400": "VideoMAE V2 counts 240,436",
    "kinetics600": "VideoMAE V2 counts 366,006",
    "kinetics700": "published size of the training split",
    "kinetics710": "UniFormerV2; VideoMAE V2 counts 658,340",
    "something1": "published split",
    "something2": "published split; the same in VideoMAE V2",
    "moments": "published split",
    "unlabeled_hybrid": "VideoMAE V2",
    "activitynet": "published split (version 1.3)",
    "hacs": "published split of HACS Segments",
    "ucf101": "split 1",
    "hmdb51": "split 1",
    "k_mash_1.1m": "InternVideo2, stage 1 of 1B",
    "k_mash_2m": "InternVideo2, stage 1 of 6B",
}
UNIFORMER_SETS = {
    "kinetics": ("kinetics400", "kinetics600", "kinetics700"),
    "frozen": ("kinetics400", "kinetics600", "kinetics700"),
    "moments": ("moments",),
    "something": ("something1", "something2"),
    "activitynet": ("activitynet", "hacs"),
}
# (data, frames) whose step has the shapes of the compiled rows of UniFormerV2.
COMPILED = {("kinetics", 8), ("moments", 8)}

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RESOLVED = Path(__file__).parent / "resolved"


def module(path: str) -> Any:
    """The module of a config file, which is no part of a package."""
    name = f"shipped_{path.replace('/', '_').removesuffix('.py')}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, CONFIGS / path)
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def recipes() -> dict[str, tuple[str, str]]:
    """Name -> (file in configs/, options)."""
    pretrain, finetune = "videomae/pretrain.py", "videomae/finetune.py"
    uniformerv2, viclip = "uniformerv2/finetune.py", "viclip/pretrain.py"
    found = {
        "videomae-pretrain-tiny": (pretrain, "size=tiny"),
        "videomae-finetune-tiny": (finetune, "size=tiny"),
        "uniformerv2-tiny": (uniformerv2, "size=tiny"),
        "viclip-tiny": (viclip, "size=tiny"),
        **internvideo2(),
        **umt(),
        **probes(),
    }
    for size, stage in module(viclip).RECIPES:
        found[f"viclip-{size}-{stage}"] = (viclip, f"size={size},stage={stage}")
    for source, size in module(pretrain).RECIPES:
        found[f"videomae-pretrain-{source}-{size}"] = (pretrain, f"recipe={source},size={size}")
    for name in module(finetune).RECIPES:
        found[f"videomae-finetune-{name.replace('/', '-')}"] = (finetune, f"recipe={name}")
    family = module(uniformerv2)
    for data, start, size in family.RECIPES:
        arg = f"data={data},start={start},size={size}"
        found[f"uniformerv2-{data}-{start}-{size}"] = (uniformerv2, arg)
    for start in family.FROZEN:
        arg = f"backbone=frozen,start={start},size=large336"
        found[f"uniformerv2-frozen-{start}-large336"] = (uniformerv2, arg)
    for (data, start, size), frames in family.LONGER.items():
        kind = "backbone=frozen" if data == "frozen" else f"data={data}"
        for count in frames:
            arg = f"{kind},start={start},size={size},frames={count}"
            found[f"uniformerv2-{data}-{start}-{size}-{count}f"] = (uniformerv2, arg)
    return found


def internvideo2() -> dict[str, tuple[str, str]]:
    """The recipes of InternVideo2 stage 1, as `recipes`."""
    pretrain, distill, finetune, probe = (
        f"internvideo2/{kind}.py" for kind in ("pretrain", "distill", "finetune", "probe")
    )
    found = {}
    for size in (*module(pretrain).RECIPES, "tiny"):
        found[f"internvideo2-pretrain-{size}"] = (pretrain, f"size={size}")
    found["internvideo2-pretrain-cached-1b"] = (pretrain, "size=1b,targets=cached")
    for size in (*module(distill).BATCHES, "tiny"):
        found[f"internvideo2-distill-{size}"] = (distill, f"size={size}")
    for teacher in list(module(distill).TEACHERS)[1:]:
        arg = f"size=base,teacher={teacher}"
        found[f"internvideo2-distill-base-from-{teacher}"] = (distill, arg)
    for path in (finetune, probe):
        kind = path.split("/")[1].removesuffix(".py")
        for name in module(path).RECIPES:
            found[f"internvideo2-{kind}-{name.replace('/', '-')}"] = (path, f"recipe={name}")
        found[f"internvideo2-{kind}-tiny"] = (path, "size=tiny")
    found["internvideo2-probe-linear-tiny"] = (probe, "size=tiny,kind=linear")
    return found


def umt() -> dict[str, tuple[str, str]]:
    """The recipes of Unmasked Teacher, as `recipes`."""
    pretrain, finetune = "umt/pretrain.py", "umt/finetune.py"
    sizes = (*module(pretrain).RECIPES, "tiny")
    found = {f"umt-pretrain-{size}": (pretrain, f"size={size}") for size in sizes}
    rows = module(finetune).RECIPES
    return found | {f"umt-finetune-{name}": (finetune, f"recipe={name}") for name in rows}


def probes() -> dict[str, tuple[str, str]]:
    """Probes of other recipes' models, one of each head and kind of clip, as `recipes`."""
    backbones = {
        "linear": "videomae/pretrain,size=base",
        "concat": "internvideo2/pretrain,size=1b",
        "attentive": "uniformerv2/finetune,size=base",
        "attentive-umt": "umt/pretrain,size=base",
        "attentive-tiny": "internvideo2/pretrain,size=tiny",
    }
    return {
        f"probe-{name}": ("probe.py", f"of={of},head={name.partition('-')[0]}")
        for name, of in backbones.items()
    }


def config(name: str, *options: str) -> TrainConfig:
    """The typed config of a recipe, with further options such as `smoke`."""
    path, arg = recipes()[name]
    plain = module(path).get_config(",".join((arg, *options))).to_dict()
    return to_typed(TrainConfig, plain)


def text(name: str) -> str:
    """One line per field, in the order of the schema, after the line that loads it."""
    path, arg = recipes()[name]
    fields = "".join(f"{key} = {value!r}\n" for key, value in _fields(as_plain(config(name))))
    return f"# --config=configs/{path}:{arg}\n{fields}"


def _fields(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        if isinstance(value, Mapping) and value:
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def rows() -> Iterator[str]:
    """The rows of the tables in docs/recipes.md, in Markdown."""
    for name, clips in length.RECORDS.items():
        yield f"| {name} | {clips:,} | {length.CLASSES.get(name, '')} | {SOURCES[name]} |"
    finetune, uniformerv2 = module("videomae/finetune.py"), module("uniformerv2/finetune.py")
    for name, recipe in finetune.RECIPES.items():
        start = f"`{recipe.start}`" if recipe.start else ""
        like = f"`{recipe.like}`" if recipe.like else ""
        sets = [SETS[name.partition("_")[2].split("_")[-1 if recipe.start else 0]]]
        size = finetune.size_of(name)
        clips = recipe.batch * recipe.repeats
        cost = _slice_and_hours(f"finetune-{size}", sets, recipe.epochs, clips, recipe.repeats)
        yield (
            f"| `{name}` | {recipe.batch} | {recipe.epochs} | `{recipe.protocol}`, "
            f"{_views(recipe.protocol)} | {start} | {recipe.reported} | {like} | "
            f"{cost} |"
        )
    for (data, start, size), recipe in uniformerv2.RECIPES.items():
        longer = uniformerv2.LONGER.get((data, start, size), {})
        options = f"data={data},start={start},size={size}"
        yield from _frames(options, recipe, longer, (data, size))
    for start, recipe in uniformerv2.FROZEN.items():
        longer = uniformerv2.LONGER.get(("frozen", start, "large336"), {})
        options = f"backbone=frozen,start={start},size=large336"
        yield from _frames(options, recipe, longer, ("frozen", "large336"))
    for (size, stage), recipe in module("viclip/pretrain.py").RECIPES.items():
        start = "CLIP" if stage == 1 else "stage 1"
        yield (
            f"| `size={size},stage={stage}` | {recipe.batch} | {recipe.lr:g} | {recipe.epochs:g} | "
            f"{recipe.mask_ratio:g} | {start} | {recipe.reported} |"
        )
    yield from internvideo2_rows()
    yield from umt_rows()


def internvideo2_rows() -> Iterator[str]:
    """Stage 1, distillation, fine-tuning and probing of InternVideo2."""
    pretrain, distill = module("internvideo2/pretrain.py"), module("internvideo2/distill.py")
    for size, recipe in pretrain.RECIPES.items():
        like = f"`size={recipe.like}`" if recipe.like else ""
        sets = [recipe.videos.lower().replace("-", "_")] if recipe.videos else []
        for option, suffix in (("", ""), (",targets=cached", "-cached")):
            cost = _slice_and_hours(f"stage1-{size}{suffix}", sets, 301, recipe.batch, 1)
            yield (
                f"| `size={size}{option}` | {recipe.batch} | 301 | {recipe.drop_path:g} | "
                f"{recipe.videos} | {like} | {cost} |"
            )
    for size, batch in distill.BATCHES.items():
        reported = ", ".join(_reported(size, data) for data in ("k710", "k400", "ssv2"))
        cost = _slice_and_hours(f"distill-{size}", ["k_mash_1.1m"], 101, batch, 1)
        yield f"| `size={size}` | {batch} | 101 | {reported} | {cost} |"
    for name, recipe in module("internvideo2/finetune.py").RECIPES.items():
        start = f"`{recipe.start}`" if recipe.start else "student"
        clips = recipe.batch * recipe.repeats
        sets = [SETS[name.split("_")[1]]]
        row = f"internvideo2-finetune-{name.split('_')[0]}" if name.count("_") == 1 else ""
        cost = _slice_and_hours(row, sets, recipe.epochs, clips, recipe.repeats)
        yield (
            f"| `{name}` | {recipe.frames} | {recipe.batch} | {recipe.epochs} | {recipe.lr:g} | "
            f"`{recipe.protocol}`, {_views(recipe.protocol)} | {start} | {recipe.reported} | "
            f"{cost} |"
        )
    for name, recipe in module("internvideo2/probe.py").RECIPES.items():
        start = recipe.start or "stage 1"
        start = f"`{start}`" if "_" in start else start
        yield (
            f"| `{name}` | {recipe.batch} | {recipe.epochs} | {recipe.lr:g} | "
            f"`{recipe.protocol}`, {_views(recipe.protocol)} | {start} | {recipe.reported} |"
        )


def umt_rows() -> Iterator[str]:
    """Pre-training and fine-tuning of Unmasked Teacher."""
    for size in module("umt/pretrain.py").RECIPES:
        made = config(f"umt-pretrain-{size}")
        teacher: Any = made.objective.clip_teacher
        yield (
            f"| `size={size}` | {made.data.global_batch} | {made.epochs:g} | "
            f"{made.model.drop_path:g} | `{teacher.name}`, {teacher.encoder.depth} layers, "
            f"{teacher.resolution} pixels |"
        )
    for name, recipe in module("umt/finetune.py").RECIPES.items():
        start = f"`{recipe.start}`" if recipe.start else "student"
        yield (
            f"| `{name}` | {recipe.frames} | {recipe.pixels} | {recipe.batch} | {recipe.epochs} | "
            f"{recipe.lr:g} | `{recipe.protocol}`, {_views(recipe.protocol)} | {start} | "
            f"{recipe.reported} |"
        )


def _reported(size: str, data: str) -> str:
    finetune = module("internvideo2/finetune.py")
    short = {name: key for key, name in finetune.SIZES.items()}[size]
    return (
        f"{data.upper() if data[0] == 'k' else 'SSv2'} "
        + finetune.RECIPES[f"{short}_{data}"].reported
    )


def _frames(
    arg: str, recipe: Any, longer: Mapping[int, tuple[int, str]], kind: tuple[str, str]
) -> Iterator[str]:
    counts = {recipe.frames: (recipe.batch, recipe.reported), **longer}
    for frames, (batch, reported) in counts.items():
        name = arg if frames == recipe.frames else f"{arg},frames={frames}"
        # The compiled rows are those of 8 frames on Kinetics; other shapes cost something else.
        row = f"uniformerv2-{kind[1]}" if (kind[0], frames) in COMPILED else ""
        sets, clips = UNIFORMER_SETS[kind[0]], batch * recipe.repeats
        cost = _slice_and_hours(row, sets, recipe.epochs, clips, recipe.repeats)
        yield (
            f"| `{name}` | {frames} | {batch} | {recipe.epochs} | `{recipe.protocol}`, "
            f"{_views(recipe.protocol)} | {reported} | {cost} |"
        )


def _views(protocol: str) -> str:
    found = protocols.find(protocol)
    return f"{found.clips} x {found.crops}"


def _slice_and_hours(row: str, sets: Sequence[str], epochs: float, clips: int, repeats: int) -> str:
    """Two cells: the slice a row was compiled for, and hours of training on it for each set.

    Empty where nothing of that shape was compiled, or the batch does not split over the slice.

    Args:
      clips: per step, repeats counted.
    """
    if row not in _compiled() or clips % _compiled()[row]["chips"]:
        return "|"
    step = _compiled()[row]
    share = clips / step["batch"]
    # Of what a step moves through HBM, parameters and optimizer (read, written) come once per step,
    # the rest per clip; gradients are sent once per step.
    once = min(2 * step["memory"]["arguments"] / step["hbm_bytes"], 1.0)
    bound = max(
        step["seconds"]["compute"] * share,
        step["seconds"]["HBM"] * (once + (1 - once) * share),
        step["seconds"]["ICI"],
    )
    hours = [
        length.RECORDS[name] * repeats / clips * epochs * bound / EFFICIENCY / 3600 for name in sets
    ]
    texts = [f"{each:.2g}" if each < 100 else f"{each:.0f}" for each in hours]
    return f"{step['topology']} | {', '.join(texts)}"


@functools.cache
def _compiled() -> dict[str, Any]:
    return json.loads((CONFIGS.parent / "benchmarks/aot.json").read_text())


def main() -> None:
    RESOLVED.mkdir(exist_ok=True)
    for old in RESOLVED.glob("*.txt"):
        old.unlink()
    for name in recipes():
        (RESOLVED / f"{name}.txt").write_text(text(name))
    print(f"{len(recipes())} recipes written to {RESOLVED}; rows for docs/recipes.md:")
    print(*rows(), sep="\n")


if __name__ == "__main__":
    main()
