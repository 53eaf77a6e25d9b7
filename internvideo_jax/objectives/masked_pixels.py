"""Reconstruction of hidden tubelets (VideoMAE), on all of them or on a part (VideoMAE V2)."""

from __future__ import annotations

import dataclasses
import math

import jax

from internvideo_jax.ops import masking
from internvideo_jax.ops.reconstruction import pixel_loss
from internvideo_jax.protocols import Model, ModelConfig, clip_of
from internvideo_jax.tasks import Objective
from internvideo_jax.types import Batch, Loss, Params


@dataclasses.dataclass(frozen=True)
class MaskedPixels(Objective):
    """Mean squared error on the pixels of hidden tokens.

    With `decoder_ratio` > 0 the decoder reconstructs only the tokens that a running cell leaves
    (dual masking, VideoMAE V2 section 3.2); those of them that the encoder saw carry no loss.
    """

    name: str = "masked_pixels"
    mask: str = "tube"  # ops/masking.py: tube | random | progressive | centering
    mask_ratio: float = 0.9  # share of tokens hidden from the encoder
    decoder_ratio: float = 0.0  # share of tokens not decoded; 0 = decode all hidden ones
    normalized: bool = True  # per-tubelet normalised target

    def check(self, config: ModelConfig) -> None:
        """Raises ValueError when the masks do not fit the model's token grid."""
        grid = clip_of(config).grid
        masking.check(self.mask, grid, self.mask_ratio)
        if self.decoder_ratio > 0:
            masking.running_cell_maps(grid, self.decoder_ratio)

    def draw(self, config: ModelConfig, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Visible (B, V) and decoded (B, M) token indices for (B,) keys."""
        grid = clip_of(config).grid
        visible, hidden = masking.sample(self.mask, keys, grid, self.mask_ratio)
        if self.decoder_ratio <= 0:
            return visible, hidden
        cell_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        return visible, masking.sample_running_cell(cell_keys, grid, self.decoder_ratio)

    def loss(
        self, model: Model, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Loss:
        """The mean over hidden tokens that are decoded.

        Args:
          model: gives `apply` and the model's `config`.
          batch: `video` (B, T, H, W, 3) and `position` (B,).
          key: of the run; the masks depend on it and on the positions only.
        """
        del step
        keys = masking.example_keys(key, batch["position"])
        visible, decoded = self.draw(model.config, keys)
        predicted = model.apply(params, batch["video"], visible, decoded)
        clip = clip_of(model.config)
        loss = pixel_loss(
            predicted,
            batch["video"],
            visible,
            decoded,
            tubelet=clip.tubelet,
            patch=clip.patch,
            normalized=self.normalized,
        )
        return Loss(loss)

    def flops(self, config: ModelConfig) -> float:
        """Model FLOPs of one training example: forward and twice that for the backward pass."""
        grid = clip_of(config).grid
        tokens = math.prod(grid)
        visible = sum(masking.visible_per_frame(self.mask, grid, self.mask_ratio))
        decoded = tokens - visible
        if self.decoder_ratio > 0:
            decoded = tokens * (4 - int(4 * self.decoder_ratio)) // 4
        return 3.0 * config.forward_flops(visible, decoded)
