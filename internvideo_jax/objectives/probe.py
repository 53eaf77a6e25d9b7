"""Classification by many heads on one frozen backbone, each learning as if it were alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from internvideo_jax.objectives.classification import Classification
from internvideo_jax.ops.losses import soft_cross_entropy
from internvideo_jax.protocols import ModelConfig, heads_of
from internvideo_jax.types import Batch, Mean


@dataclasses.dataclass(frozen=True)
class Probe(Classification):
    """Cross entropy summed over heads.

    No parameter belongs to two heads, so the gradient of the sum is, head by head, the gradient of
    that head alone. Every `config.model.hold_out`-th record of the training split (and whatever is
    mixed with it) has weight 0: those records choose between the heads.
    """

    name: str = "probe"
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def check(self, config: ModelConfig) -> None:
        """ValueError for a model without heads side by side, and as of one head."""
        super().check(config)
        if config.traits.heads is None:
            raise ValueError(
                f"config.objective = probe trains the heads of config.model = probe, found "
                f"{config.name!r}; take config.objective.name = 'classification' for that model"
            )

    def measure(
        self, logits: jax.Array, target: jax.Array, batch: Batch, config: ModelConfig
    ) -> tuple[Mean, dict[str, Mean]]:
        """Loss and metrics of (P, B, K) logits for (B, K) targets.

        A head whose logits are not finite gets no gradient and is counted in `heads_lost`, so that
        it does not stop the others.
        """
        sound = jnp.isfinite(logits).all(axis=(1, 2))
        logits = jnp.where(sound[:, None, None], logits, 0.0)
        losses = jnp.where(sound[:, None], soft_cross_entropy(logits, target), 0.0)  # (P, B)
        weight = jnp.ones(len(target))
        hold_out = heads_of(config).hold_out
        if hold_out:
            weight = (batch["index"] % hold_out != 0).astype(jnp.float32)
            if self.pairs:  # clip i is mixed with clip B-1-i
                weight = weight * weight[::-1]
        heads = len(logits)
        metrics = {
            "head_loss": Mean.of(losses.sum(axis=0) / jnp.maximum(sound.sum(), 1), weight),
            "heads_lost": Mean(heads - sound.sum(dtype=jnp.float32), jnp.float32(1.0)),
        }
        if not self.pairs:
            hits = (jnp.argmax(logits, axis=-1) == batch["label"]) & sound[:, None]
            metrics["accuracy"] = Mean.of(hits.mean(axis=0), weight)  # mean over heads
        return Mean.of(losses.sum(axis=0), weight), metrics

    def flops(self, config: ModelConfig) -> float:
        """Of one training example: the backbone forward, the heads forward and backward."""
        heads = heads_of(config).head_flops()
        return config.forward_flops() + 2.0 * heads
