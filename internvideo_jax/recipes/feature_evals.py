"""What pre-training recipes follow the features with, where the data have labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from data_pipelines.config import ViewConfig
from internvideo_jax.evaluators.collapse import Collapse
from internvideo_jax.evaluators.knn import NearestNeighbours
from internvideo_jax.evaluators.probes import AttentiveProbe, LinearProbe


def on_features(options: Mapping[str, Any], views: ViewConfig, every: int) -> dict[str, Any]:
    """The evaluators of a recipe's options `monitor` and `probes`.

    Args:
      every: steps between two looks of the monitor.
    """
    evals: dict[str, Any] = {}
    if options["monitor"]:
        evals["knn"] = NearestNeighbours(views=views, every=every)
        two = dataclasses.replace(views, clips=2)
        evals["collapse"] = Collapse(views=two, every=every)
    if options["probes"]:
        evals["linear_probe"] = LinearProbe(views=views)
        evals["attentive_probe"] = AttentiveProbe(views=views)
    return evals
