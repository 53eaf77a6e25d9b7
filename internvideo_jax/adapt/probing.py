"""The probes on weights before and after, under one protocol and one budget."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from internvideo_jax.adapt.data import PIXELS, Clips
from internvideo_jax.checkpoint.initial import initialise
from internvideo_jax.checkpoint.metadata import weights_provenance
from internvideo_jax.config import TrainConfig, as_plain, to_typed
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.features import FeatureTask
from internvideo_jax.evaluators.per_video import Scored
from internvideo_jax.evaluators.run import (
    check_evaluators,
    headline,
    run_evaluators,
    write_json,
)
from internvideo_jax.inference.quantized import network
from internvideo_jax.inference.weights import on_devices
from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.protocols import clip_of
from internvideo_jax.recipes.loading import added
from internvideo_jax.tasks import Scores
from internvideo_jax.types import Params

RESULT = "probed.json"


def evaluators(
    config: TrainConfig, names: Sequence[str], clips: Clips, given: Collection[str]
) -> dict[str, Any]:
    """The probes by label, on the clips that the model trains on, and what needs no labels.

    Args:
      given: labels of evaluators that the command line changes: these stay as they are.
    """
    plain = as_plain(dataclasses.replace(config, evals={}))
    found = dict(to_typed(TrainConfig, {**plain, "evals": added(plain, names)}).evals)
    found |= {
        label: each
        for label, each in config.evals.items()
        if each.every >= 0 and (label in given or each.name == PIXELS)
    }
    takes, placed = clip_of(config.model), {}
    for label, each in found.items():
        changes: dict[str, Any] = {"data": clips.directory, "split": clips.test}
        if isinstance(each, FeatureTask):
            changes["train_split"] = clips.train
        if label not in given:
            clip = dataclasses.replace(
                each.views.clip,
                frames=takes.frames,
                resolution=takes.resolution,
                stride=config.data.clip.stride,
            )
            views = dataclasses.replace(each.views, clip=clip, batch=min(32, clips.tested))
            changes["views"] = views
        placed[label] = dataclasses.replace(each, **changes)
    return placed


class Prober:
    """A model whose weights change; what is compiled for one of them serves all.

    Raises:
      ValueError: a probe that the model or the data cannot give.
    """

    def __init__(self, config: TrainConfig, probes: Mapping[str, Any]):
        self.config, self.probes = config, probes
        self.model, self.mesh = network(config), make_mesh(config.mesh)
        # A seed is a part of what is compiled, such as of masks.
        self._contexts = functools.cache(
            lambda seed: EvalContext(self.model, self.mesh, config.data, seed)
        )
        check_evaluators(probes, self._contexts(0))

    def run(self, weights: str, seed: int, folder: Path) -> dict[str, Any]:
        """What the probes find; read from `folder` where it was found before.

        Returns:
          results: {label: {metrics, protocol, hits}}, the last only of those that score videos;
          params_digest, and what came from the weights.
        """
        place = folder / RESULT
        if place.exists():
            return json.loads(place.read_text(encoding="utf-8"))
        params, note = self._load(weights, seed)
        provenance = weights_provenance(weights, params)
        found = run_evaluators(
            self.probes, self._contexts(seed), params, folder=folder, provenance=provenance
        )
        print(headline(found), flush=True)
        content = {
            **provenance,
            "seed": seed,
            "weights": note,
            "results": {
                label: {
                    "metrics": dict(each.metrics),
                    "protocol": dict(each.protocol),
                    **({"hits": hits} if (hits := _hits(each.scored)) else {}),
                }
                for label, each in found.items()
            },
        }
        write_json(place, content)
        return content

    def _load(self, weights: str, seed: int) -> tuple[Params, str]:
        """The parameters, those that the weights lack drawn as a training run would draw them."""
        fresh = self.model.init(jax.random.key(seed))
        params, report = initialise(weights, fresh, self.config.model)
        return on_devices(self.config, self.model, params, self.mesh), report.text()


def _hits(scored: Scores | None) -> list[int]:
    """Of every test video in the order of the records: 1 where its label was found."""
    if not isinstance(scored, Scored):
        return []
    right = scored.scores.argmax(axis=1) == scored.label
    return right[np.argsort(scored.record, kind="stable")].astype(int).tolist()
