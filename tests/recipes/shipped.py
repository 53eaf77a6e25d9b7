"""Every recipe that ships, by name, and its fully resolved config as text.

python -m tests.recipes.shipped     # writes the texts anew, after a wanted change
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from internvideo_jax.config import TrainConfig, as_plain, to_typed
from internvideo_jax.evaluators import protocols

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
    uniformerv2 = "uniformerv2/finetune.py"
    found = {
        "videomae-pretrain-tiny": (pretrain, "size=tiny"),
        "videomae-finetune-tiny": (finetune, "size=tiny"),
        "uniformerv2-tiny": (uniformerv2, "size=tiny"),
    }
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
    finetune, uniformerv2 = module("videomae/finetune.py"), module("uniformerv2/finetune.py")
    for name, recipe in finetune.RECIPES.items():
        start = f"`{recipe.start}`" if recipe.start else ""
        like = f"`{recipe.like}`" if recipe.like else ""
        test = _views(recipe.protocol)
        yield (
            f"| `{name}` | {recipe.batch} | {recipe.epochs} | {test} | {start} | "
            f"{recipe.reported} | {like} |"
        )
    for (data, start, size), recipe in uniformerv2.RECIPES.items():
        longer = uniformerv2.LONGER.get((data, start, size), {})
        yield from _frames(f"data={data},start={start},size={size}", recipe, longer)
    for start, recipe in uniformerv2.FROZEN.items():
        longer = uniformerv2.LONGER.get(("frozen", start, "large336"), {})
        yield from _frames(f"backbone=frozen,start={start},size=large336", recipe, longer)


def _views(protocol: str) -> str:
    found = protocols.find(protocol)
    return f"{found.segments} x {found.crops}"


def _frames(arg: str, recipe: Any, longer: Mapping[int, tuple[int, str]]) -> Iterator[str]:
    test = _views(recipe.protocol)
    yield (
        f"| `{arg}` | {recipe.frames} | {recipe.batch} | {recipe.epochs} | {test} | "
        f"{recipe.reported} |"
    )
    for frames, (batch, reported) in longer.items():
        yield (
            f"| `{arg},frames={frames}` | {frames} | {batch} | {recipe.epochs} | {test} | "
            f"{reported} |"
        )


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
