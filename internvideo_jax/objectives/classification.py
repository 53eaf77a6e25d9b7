"""Supervised classification with random erasing, mixup, CutMix and label smoothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from data_pipelines.limits import limited
from internvideo_jax.ops import erasing, masking
from internvideo_jax.ops.losses import smooth_labels, soft_cross_entropy
from internvideo_jax.ops.mixup import mix_batch, mix_targets
from internvideo_jax.ops.pixels import to_unit
from internvideo_jax.protocols import Model, ModelConfig, classes_of, clip_of
from internvideo_jax.tasks import Objective
from internvideo_jax.types import Batch, Loss, Mean, Params

ERASING = 0x45  # folded into the keys of random erasing


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Cross entropy against soft targets."""

    name: str = "classification"
    smoothing: float = limited(0.1, least=0, most=1)  # label smoothing
    mixup: float = limited(0.8, least=0)  # alpha; 0 = off
    cutmix: float = limited(1.0, least=0)  # alpha; 0 = off
    switch: float = 0.5  # probability of CutMix when both are on
    # Probability of random erasing per clip; 0 = off.
    erasing: float = limited(0.0, least=0, most=1)
    erasing_mode: str = "pixel"  # ops/erasing.py: const | rand | pixel
    erasing_area: Sequence[float] = (0.02, 1 / 3)  # share of the frame
    erasing_ratio: Sequence[float] = (0.3, 1 / 0.3)  # height over width

    @property
    def pairs(self) -> bool:
        """Whether the clips of a microbatch are mixed in pairs, so that it must be even."""
        return self.mixup > 0 or self.cutmix > 0

    def check(self, config: ModelConfig) -> None:
        """ValueError for settings of random erasing that cannot be."""
        del config
        erasing.check(self.erasing_mode, self.erasing, self.erasing_area, self.erasing_ratio)

    def loss(
        self, model: Model, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Loss:
        """Cross entropy, and the training accuracy where nothing is mixed.

        Args:
          batch: `video` (B, T, H, W, 3), `label` (B,), `position` (B,).
        """
        head = classes_of(model.config)
        classes = head.classes
        video, label = batch["video"], batch["label"]
        keys = masking.example_keys(key, batch["position"])
        if self.erasing > 0:
            video = self.erase(video, keys, model.config)
        mixing = self.pairs
        if mixing:
            mix_key = jax.random.fold_in(jax.random.fold_in(key, step), batch["position"][0])
            video, lam = mix_batch(
                mix_key, to_unit(video), mixup=self.mixup, cutmix=self.cutmix, switch=self.switch
            )
            target = mix_targets(label, classes, lam, self.smoothing)
        else:
            target = smooth_labels(label, classes, self.smoothing)
        statistics = {}
        if head.trains_statistics:
            logits, statistics = model.apply(params, video, keys, method="train")
        else:
            logits = model.apply(params, video, keys)
        mean, metrics = self.measure(logits, target, batch, model.config)
        updates = {path: Mean(value, jnp.float32(1.0)) for path, value in statistics.items()}
        return Loss(mean, metrics, updates)

    def measure(
        self, logits: jax.Array, target: jax.Array, batch: Batch, config: ModelConfig
    ) -> tuple[Mean, dict[str, Mean]]:
        """Loss and metrics of (B, K) logits for (B, K) targets."""
        del config
        label = batch["label"]
        if len(logits) != len(label):  # clips of one video averaged by the model
            target = target[:: len(label) // len(logits)]
            label = label[:: len(label) // len(logits)]
        metrics = {}
        if not self.pairs:
            metrics["accuracy"] = Mean.of(jnp.argmax(logits, axis=-1) == label)
        return Mean.of(soft_cross_entropy(logits, target)), metrics

    def erase(self, video: jax.Array, keys: jax.Array, config: ModelConfig) -> jax.Array:
        """Random erasing in the model's units: (B, T, H, W, 3) float, 0..1 but for the noise."""
        # Apart from the draws of the model, which start from the same keys.
        keys = jax.vmap(lambda key: jax.random.fold_in(key, ERASING))(keys)
        clip = clip_of(config)
        return erasing.erase(
            to_unit(video),
            keys,
            probability=self.erasing,
            mode=self.erasing_mode,
            area=self.erasing_area,
            ratio=self.erasing_ratio,
            mean=clip.pixel_mean,
            std=clip.pixel_std,
        )

    def flops(self, config: ModelConfig) -> float:
        """Model FLOPs of one training example: forward and twice that for the backward pass."""
        return 3.0 * config.forward_flops()
