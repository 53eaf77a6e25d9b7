"""Unmasked Teacher: a plain video transformer whose last layers are aligned with CLIP's.

Li et al. 2023, arXiv 2303.16058. The encoder is VideoMAE's at patch 16, tubelet 1 and 8 frames,
without class token; it sees the patches that the teacher attends to. The classifier fine-tuned from
it is `videomae_classifier` with tubelet 1 and `pos_frames=8`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self, cast

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipelines.limits import limited
from internvideo_jax.families.videomae.model import SIZES, VideoConfig, VideoMAEEncoder
from internvideo_jax.layers.block_stack import stacked
from internvideo_jax.layers.decoders import DECODER_SHARDING, FeatureDecoder, decode, decoder_flops
from internvideo_jax.layers.functional import FunctionalModel
from internvideo_jax.layers.init import Init
from internvideo_jax.layers.pos_embed import fixed_table
from internvideo_jax.layers.tower import SMALLEST, check_layers, last_layers, preset_size
from internvideo_jax.protocols import Inputs, ShardingRules, TokenFeatures, Traits

DECODER_EPS = 1e-6  # of the norms in the decoders, as in the encoder

# What a classifier of the family differs in from VideoMAE's: the table of other grids than
# 8 x 14 x 14 is resized from that one.
CLASSIFIER = {"tubelet": 1, "pos_table": "resized", "pos_frames": 8}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UMTStudentConfig(VideoConfig):
    """The student of pre-training. Factory: `UMTStudentConfig.of_size("base")`."""

    name: str = "umt_student"
    frames: int = 8
    tubelet: int = 1
    pos_frames: int = 8
    clip_width: int = 512  # of the teacher's aligned features: CLIP B/16 512, L/14 768
    clip_layers: Sequence[int] = ()  # aligned blocks, ascending; empty: the last six
    drop_path: float = limited(0.0, least=0, below=1)

    # What alignment asks of a student, and this one does not have.
    class_token: ClassVar[bool] = False
    stride: ClassVar[int] = 1
    final_width: ClassVar[int] = 0
    mae_width: ClassVar[int] = 0
    mae_layers: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        depth, layers = self.encoder.depth, tuple(self.clip_layers)
        if not layers:
            layers = last_layers(depth, min(depth, 6))
            object.__setattr__(self, "clip_layers", layers)
        check_layers("config.model.clip_layers", layers, depth)

    @classmethod
    def of_size(cls, name: str, /, **changes: Any) -> Self:
        """A size of VideoMAE's SIZES with changes; ValueError with the near matches for another."""
        preset = preset_size(SIZES, name)
        return cls(encoder=preset.encoder, **{"patch": preset.patch, **changes})

    @property
    def clip_frames(self) -> int:
        """Frames of a clip in the batch."""
        return self.stride * self.frames

    @property
    def inputs(self) -> Inputs:
        """Clips of `stride` times as many frames as it sees."""
        return Inputs(self.clip_input(stride=self.stride))

    @property
    def traits(self) -> Traits:
        """It can be taught, and probes can read its tokens."""
        return dataclasses.replace(
            super().traits,
            student=self,
            features=TokenFeatures(self.tokens, self.encoder.width, self.forward_flops()),
        )

    @property
    def sharding_rules(self) -> ShardingRules:
        """Which axes of its parameters are split over which axes of the mesh."""
        return (*super().sharding_rules, DECODER_SHARDING[0])

    def smallest(self) -> Self:
        """Two thin layers; as many of them are aligned as were, at most both."""
        depth = SMALLEST.depth
        kept = min(depth, len(self.clip_layers))
        fewer = dataclasses.replace(self, clip_layers=last_layers(depth, kept))
        return super(UMTStudentConfig, fewer).smallest()

    def model(self) -> FunctionalModel:
        """Encoder and a linear decoder for every aligned layer."""
        return FunctionalModel(self, UMTStudent)

    def forward_flops(self, visible: int | None = None) -> float:
        """Of one example of which the student sees `visible` tokens; None = all."""
        tokens = self.tokens if visible is None else visible
        decoders = decoder_flops("linear", self.encoder.width, self.clip_width, tokens)
        encoder = self.embed_flops(tokens) + self.encoder.flops(tokens)
        return encoder + len(self.clip_layers) * decoders


class UMTStudent(nnx.Module):
    """Encoder on visible tokens; each aligned block's output through a decoder of its own."""

    def __init__(self, config: UMTStudentConfig, *, rngs: nnx.Rngs):
        self.config = config
        init = Init("xavier")
        self.encoder = VideoMAEEncoder(config, norm=True, init=init, rngs=rngs)
        width, dtype = config.encoder.width, jnp.dtype(config.dtype)
        self.clip_decoder = stacked(
            lambda rngs: FeatureDecoder(
                width, config.clip_width, eps=DECODER_EPS, init=init, dtype=dtype, rngs=rngs
            ),
            len(config.clip_layers),
            rngs,
        )

    def __call__(
        self, video: jax.Array, visible: jax.Array, keys: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Features to compare with the teacher's.

        Args:
          video: (B, T, H, W, 3) uint8, or float in 0..1.
          visible: (B, V) int32 increasing indices of the tokens that the encoder sees.
          keys: (B,) keys in training; None switches drop path off.

        Returns:
          `clip_middle`: (K, B, V, C) float32 of length one, the aligned blocks in ascending order.
        """
        return {"clip_middle": decode(self.clip_decoder, self.aligned(video, visible, keys))}

    def aligned(
        self, video: jax.Array, visible: jax.Array, keys: jax.Array | None = None
    ) -> jax.Array:
        """What the decoders read, (K, B, V, D): normed block outputs and the decoder's positions.

        One norm, the encoder's last, is shared by all aligned blocks.
        """
        x = self.normed(video, visible, keys)
        config = self.config
        table = fixed_table("sincos", config.grid, config.encoder.width, config.grid)
        return x + jnp.asarray(table)[visible].astype(x.dtype)

    def normed(
        self, video: jax.Array, visible: jax.Array, keys: jax.Array | None = None
    ) -> jax.Array:
        """Outputs of the aligned blocks through the shared norm, (K, B, V, D)."""
        config = self.config
        _, intermediates = self.encoder(
            video,
            visible,
            keys=keys,
            drop_path=config.drop_path,
            intermediate_layers=config.clip_layers,
        )
        return cast(nnx.LayerNorm, self.encoder.norm)(cast(jax.Array, intermediates))

    def features(self, video: jax.Array) -> jax.Array:
        """Encoder output of all tokens, (B, N, D), for probes and nearest neighbours."""
        return self.encoder(video)[0]
