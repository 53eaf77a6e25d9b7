"""Exports in the layout of Hugging Face: what a run or a file says of itself goes along."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax.weights import files, huggingface, model_card
from internvideo_jax.weights.rules import Tensors

# What a file does not tell, flags that give it.
FROM_FILE = ("frames", "resolution", "heads", "decoder_heads", "text_heads")
SCALE = "logit_scale"


@dataclasses.dataclass(frozen=True)
class Exported:
    """What is exported, beside its weights.

    Attributes:
      config: of the model.
      classes: names of its head's classes; empty: not known.
      stride: stored frames between two frames of a clip; 0: not known.
      provenance, tested: of the run; empty: of a file.
      note: a line about what was taken for granted.
    """

    config: Any
    classes: tuple[str, ...] = ()
    stride: int = 0
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    tested: tuple[model_card.Tested, ...] = ()
    note: str = ""


def add_options(one: argparse.ArgumentParser) -> None:
    """Those of `export --layout=huggingface`."""
    group = one.add_argument_group("with --layout=huggingface")
    for name in FROM_FILE:
        group.add_argument(
            f"--{name}",
            type=int,
            default=0,
            help="of a file that does not tell: default that of the published size",
        )
    group.add_argument(
        "--logit_scale", type=float, help="of a CLIP under its original names, which leave it out"
    )
    group.add_argument(
        "--labels", default="", help="names of the classes, a,b,c or @FILE with one a line"
    )
    group.add_argument("--licence", default="", help="for the model card, such as apache-2.0")
    group.add_argument(
        "--results", type=Path, action="append", default=[],
        help="file of `ivj evaluate --out`, for the model card; may be repeated",
    )  # fmt: skip


def check_layout(options: argparse.Namespace) -> None:
    """ValueError for an option that only --layout=huggingface reads."""
    names = (*FROM_FILE, SCALE, "labels", "licence", "results")
    given = [name for name in names if vars(options)[name] not in (0, None, "", [])]
    if given and options.layout != "huggingface":
        raise ValueError(f"--{given[0]} is for --layout=huggingface")


def to_folder(
    options: argparse.Namespace,
    weights: files.Weights,
    labels: tuple[str, ...],
    run: Callable[[], Exported] | None,
    digest_of: Callable[[Tensors], str],
) -> None:
    """Writes weights in the layout of transformers, as `options` ask.

    Args:
      labels: names of the classes that were given.
      run: says what is known of the run that they are of; None: of a file.
      digest_of: gives the digest of parameters by path.

    Raises:
      ValueError: transformers has no such model or option of it, or the file tells too little.
    """
    model_card.check_licence(options.licence)
    huggingface.layout_of(weights.kind)
    asked = [name for name in FROM_FILE if vars(options)[name]]
    if run is not None and asked:
        raise ValueError(f"--{asked[0]} is for files; a run knows its own")
    model = _of_file(options, weights) if run is None else run()
    params = dict(weights.params)
    lacks_scale = weights.kind == "clip" and SCALE not in params
    if options.logit_scale is not None and not lacks_scale:
        raise ValueError("--logit_scale is for a CLIP whose weights have none")
    if lacks_scale:
        if options.logit_scale is None:
            raise ValueError(
                "these weights have no logit_scale, which CLIPModel needs: a CLIP read under its "
                "original names leaves it out. Give --logit_scale=4.6052 for OpenAI's models"
            )
        params[SCALE] = np.asarray(options.logit_scale, np.float32)
    digest = digest_of(params)
    tested = list(model.tested)
    for path in options.results:
        tested += model_card.read_results(path, digest)
    classes = labels or model.classes
    origin = model_card.Origin(digest, options.licence, model.provenance, tested)
    content = huggingface.config_json(model.config, classes)
    if labels and "id2label" not in content:
        raise ValueError(f"--labels: {content['architectures'][0]} has no classes to name")
    card = model_card.card(content, origin, options.out.resolve().name)
    if model.note:
        print(model.note)
    huggingface.save(options.out, params, model.config, classes, stride=model.stride, card=card)


def _of_file(options: argparse.Namespace, weights: files.Weights) -> Exported:
    given = {name: vars(options)[name] for name in FROM_FILE}
    config, known = huggingface.config_of(weights, given)
    note = ""
    if not known:
        frames = getattr(config, "frames", 0)
        video = f"{frames} frames, {config.resolution} pixels, flat sine positions"
        note = (
            f"taken for granted, since a file does not tell: {config.encoder.heads} heads, "
            + (video if frames else f"{config.resolution} pixels")
            + "; a run knows, export from there where you have it"
        )
    return Exported(config, weights.stated.classes, weights.stated.stride, note=note)
