"""Every shipped recipe: its values as reviewed, and a run of it in small."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from data_pipelines.records import manifest
from internvideo_jax.config import as_plain
from internvideo_jax.train import train
from tests.recipes import shipped

RECIPES = shipped.recipes()


def test_every_text_belongs_to_a_recipe():
    assert {path.stem for path in shipped.RESOLVED.glob("*.txt")} == set(RECIPES)


def test_the_guide_lists_them():
    guide = (shipped.CONFIGS.parent / "docs/recipes.md").read_text().splitlines()
    assert [row for row in shipped.rows() if row not in guide] == []


@pytest.mark.parametrize("name", RECIPES)
def test_values_are_the_reviewed_ones(name):
    """After a wanted change: python -m tests.recipes.shipped, and look at the diff."""
    assert shipped.text(name) == (shipped.RESOLVED / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.endswith("-tiny")])
def test_the_recipe_fits_together(name):
    config = shipped.config(name)
    frames = getattr(config.model, "clip_frames", config.model.frames)
    assert (config.data.clip.frames, config.data.clip.resolution) == (
        frames,
        config.model.resolution,
    )
    config.objective.check(config.model)
    # Rates count videos, but those of InternVideo2 every crop of one.
    crops = 1 if name.startswith(("internvideo2", "umt")) else config.data.repeats
    assert config.optim.lr_batch in (0, 256 * crops)
    assert config.data.global_batch % config.data.repeats == 0


# Resuming is the loop's work and costs a second compilation: one of each family.
RESUMED = (
    "videomae-pretrain-v2-giant",
    "videomae-finetune-internvideo1-h_k400",
    "uniformerv2-something-clip-base",
    "internvideo2-pretrain-1b",
    "umt-pretrain-base",
    "probe-concat",
)


def settings(name: str) -> set[tuple[str, str]]:
    """What a recipe in small switches on; the rest are rates and lengths.

    Of a model, its objective and its optimizer it counts where (in which config file), of data and
    evaluators not.
    """
    file, _ = shipped.recipes()[name]
    plain = as_plain(shipped.config(name, "smoke"))
    model, optim, evals = plain["model"], plain["optim"], plain["evals"]
    # Rates, names and what has tests of its own.
    for part in (model, plain["objective"].get("clip_teacher") or {}, *evals.values()):
        for field in ("protocol", "remat", "pos_frames"):
            part.pop(field, None)
    rates = {key: model.pop(key) > 0 for key in list(model) if key.endswith(("path", "dropout"))}
    used = {key: optim[key] for key in ("schedule", "freeze")}
    used |= {"clip_norm": optim["clip_norm"] > 0, "layer_decay": optim["layer_decay"] < 1}
    own = {"model": model, "rates": rates, "objective": plain["objective"], "optim": used}
    shared = {"data": plain["data"], "evals": list(evals.values())}
    return {*flat(file, own), *flat("", shared)}


def flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """(place, value) of everything in a tree of JSON values."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from flat(f"{prefix}.{key}", part)
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        for part in value:
            yield from flat(prefix, part)
    else:
        yield prefix, json.dumps(value)


@functools.cache
def run_in_small() -> list[str]:
    """The resumed ones, and further ones until every setting that any recipe has was run."""
    # Cached targets need a companion of teacher features: tests of internvideo_jax.offline.teach.
    every = {
        name: settings(name)
        for name in RECIPES
        if not name.endswith("-tiny") and "-cached-" not in name
    }
    chosen, left = list(RESUMED), set().union(*every.values())
    while left := left.difference(*(every[name] for name in chosen)):
        chosen.append(max(every, key=lambda name: len(every[name] & left)))
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("name", run_in_small())
def test_three_steps_evaluation_and_resume(name, shards, tmp_path):
    config = shipped.config(name, "smoke")
    assert manifest.load(str(shards)).splits["train"].records > config.data.global_batch
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, train=str(shards)))
    assert train(config, tmp_path) == 0
    for label in config.evals:
        assert json.loads((tmp_path / f"results/{label}.json").read_text())["metrics"]
    if name not in RESUMED:
        return
    first = json.loads((tmp_path / "run.json").read_text())
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints" / "3")
    assert train(config, tmp_path) == 0
    again = json.loads((tmp_path / "run.json").read_text())
    assert again["params_digest"] == first["params_digest"]
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
