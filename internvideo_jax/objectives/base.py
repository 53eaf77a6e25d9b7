"""What a run asks of its objective, and what an objective says that has no answer of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from internvideo_jax.protocols import Model, ModelConfig
from internvideo_jax.types import Batch, Found, Params, Tree

Frozen = Mapping[str, tuple[Any, Params]]  # by name as in `networks`: the network and its weights


class Objective:
    """What is minimised. A subclass is a frozen dataclass; its fields are config.objective.

    It defines `check`, `loss` and `flops`; the rest are abilities that it may have. All methods are
    pure, and what they draw derives from the key of the run and the positions in the batch.
    """

    name: str

    @property
    def across(self) -> bool:
        """Whether the loss compares the examples of the whole batch.

        Then `embed` and `compare` stand beside `loss`, so that microbatches leave it as it is
        (parallel/microbatch.py).
        """
        return False

    @property
    def beside(self) -> Objective | None:
        """Of `across`: what `compare` does not give, as an objective; None: it gives all."""
        return None

    @property
    def reads(self) -> tuple[str, ...]:
        """What it takes of the batch beside the video: text, audio, features."""
        return ()

    @property
    def pairs(self) -> bool:
        """Whether the clips of a microbatch are mixed in pairs, so that it must be even."""
        return False

    def check(self, config: ModelConfig) -> None:
        """Raises ValueError where the settings contradict each other or config.model."""
        raise NotImplementedError

    def loss(
        self, model: Model, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Found:
        """The terms of a part of a batch, each with its own count, and further means to log.

        Args:
          model: gives `apply` and its `config`.
          key: of the run. step: number of finished steps.
        """
        raise NotImplementedError

    def flops(self, config: ModelConfig) -> float:
        """Model FLOPs of one training example, forward and backward."""
        raise NotImplementedError

    def embed(
        self, model: Model, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Any:
        """Of `across`: a tree of arrays with a row per example, a function of this example only.

        Totals and counts of terms that an example has alone may be among them.
        """
        raise NotImplementedError

    def compare(self, params: Params, embeddings: Tree, batch: Batch) -> Found:
        """Of `across`: the terms between the embeddings of a whole batch."""
        raise NotImplementedError

    def project(self, params: Params) -> Params:
        """The parameters put back into their bounds, after every update."""
        return params

    def networks(self) -> dict[str, Any]:
        """Configs of frozen networks in the step (teachers), by field below config.objective."""
        return {}

    def targets(self, frozen: Frozen, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """What the frozen networks make of a batch: parts `features/NAME` that join it."""
        raise NotImplementedError

    def teacher_flops(self) -> float:
        """FLOPs of the frozen networks for one training example."""
        return sum((each.forward_flops() for each in self.networks().values()), 0.0)

    def cached_shapes(self, config: ModelConfig) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Parts `features/NAME` that come with the batch: shapes of one example's, and types."""
        del config
        return {}

    def target_settings(self) -> dict[str, Any]:
        """Fields that decide what the targets mean, for those that are computed beforehand."""
        return {"name": self.name}

    def smallest(self, model: ModelConfig) -> tuple[Objective, ModelConfig]:
        """For a rehearsal: the objective and config.model in small, as they fit each other."""
        return self, model
