"""Filling in hidden ids."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from internvideo_jax.ops import masking
from internvideo_jax.protocols import Model, ModelConfig
from internvideo_jax.tasks import Objective
from internvideo_jax.types import Batch, Loss, Mean, Params


@dataclasses.dataclass(frozen=True)
class MaskedIds(Objective):
    """Cross entropy of the ids that were hidden, each place with probability `ratio`."""

    name: str = "masked_ids"
    ratio: float = 0.3

    @property
    def reads(self) -> tuple[str, ...]:
        return ("text",)

    def check(self, config: ModelConfig) -> None:
        if config.inputs.text is None:
            raise ValueError(f"config.objective=masked_ids needs text; {config.name!r} reads none")

    def loss(
        self, model: Model, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Loss:
        ids = batch["text"]
        keys = masking.example_keys(key, batch["position"])
        hidden = jax.vmap(lambda key: jax.random.bernoulli(key, self.ratio, ids.shape[1:]))(keys)
        logits = model.apply(params, jnp.where(hidden, model.config.vocab - 1, ids))
        right = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]
        return Loss(Mean.of(-right, hidden))

    def flops(self, config: ModelConfig) -> float:
        return 3.0 * config.forward_flops()
