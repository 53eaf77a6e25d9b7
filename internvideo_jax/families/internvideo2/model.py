"""InternVideo2's video encoder and the attention pool on top of it.

Wang et al. 2024 (InternVideo2), stage 1: a plain transformer on all patches of a clip and one class
token, with RMSNorm, normalised queries and keys, LayerScale, and no norm after the last block. The
same modules make the image tower of InternVL (Chen et al. 2023): a clip of one frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.limits import limited
from internvideo_jax.layers.attention import AttentionConfig
from internvideo_jax.layers.attention_pool import POOL_SHARDING, AttentionPool, pool_flops
from internvideo_jax.layers.block import BlockConfig, NormConfig, block_sharding
from internvideo_jax.layers.block_stack import stacked_blocks
from internvideo_jax.layers.clip import inflate
from internvideo_jax.layers.functional import FunctionalModel
from internvideo_jax.layers.init import Init, torch_layer
from internvideo_jax.layers.mlp import MLPConfig
from internvideo_jax.layers.pos_embed import Grid, start_table
from internvideo_jax.layers.tower import SMALLEST, VideoTowerConfig, preset_size, tower
from internvideo_jax.ops.position_tables import FORMS, adapt_tables
from internvideo_jax.parallel.mesh import constrain
from internvideo_jax.protocols import Adaptation, ShardingRules, TokenFeatures, Traits
from internvideo_jax.registry import suggest

INIT = Init("normal", by_depth=True)
POSITION_SHARDING = (r"pos_embed/(table|spatial|temporal)", (None, "fsdp"))
POS_TABLES = FORMS
# Position tables of the encoder and of a student's decoders, with the rows of the class token.
TABLES = {"encoder/pos_embed": 1, "clip_pos_embed": 1, "mae_pos_embed": 0}
ACTIVATIONS = ("gelu_tanh", "gelu")

# Published sizes, all of patch 14; `tiny` is for trials.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"encoder": tower(96, 4, 4), "patch": 8, "embedding": 64, "pool_heads": 4},
    "small": {"encoder": tower(384, 12, 6)},
    "base": {"encoder": tower(768, 12, 12)},
    "large": {"encoder": tower(1024, 24, 16)},
    "1b": {"encoder": tower(1408, 40, 16, 48 / 11)},
    "6b": {"encoder": tower(3200, 48, 25)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(VideoTowerConfig):
    """Factory: `EncoderConfig.of_size("1b")`."""

    name: str = "internvideo2"
    embedding: int = limited(768, least=1)  # channels of the pooled vector
    pool_heads: int = limited(16, least=1)
    tubelet: int = limited(1, least=1)  # frames per token
    patch: int = 14  # pixels per token, height and width
    qkv_bias: bool = False
    qk_norm: bool = True
    layer_scale: float = limited(1e-5, least=0)  # initial LayerScale; 0 = none
    # gelu_tanh is what the published models were trained and run with (their fused MLP); gelu, the
    # exact one, is what the same code computes without it. Files do not tell them apart.
    activation: str = "gelu_tanh"
    pos_table: str = "joint"  # joint | separable, both learned
    pos_frames: int = 8  # of the position table in a weight file of another length
    drop_path: float = limited(0.0, least=0, below=1)  # of the last layer; the others have less

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, value, known in (
            ("pos_table", self.pos_table, POS_TABLES),
            ("activation", self.activation, ACTIVATIONS),
        ):
            if value not in known:
                raise ValueError(f"config.model.{field} = {value!r}: {suggest(value, known)}")
        if self.encoder.width % self.pool_heads:
            raise ValueError(
                f"config.model.pool_heads = {self.pool_heads} does not divide the width "
                f"{self.encoder.width} of config.model.encoder"
            )

    @classmethod
    def of_size(cls, name: str, /, **changes: Any) -> Self:
        """A size of SIZES with changes; ValueError with the near matches for an unknown one."""
        return cls(**{**preset_size(SIZES, name), **changes})

    def smallest(self) -> Self:
        """The same kind of model with two thin layers, four tokens a frame, few frames."""
        pool = {"embedding": SMALLEST.width, "pool_heads": SMALLEST.heads}
        return self.shrunk(4 * self.tubelet, **pool)

    def model(self) -> FunctionalModel:
        """The encoder with its attention pool."""
        return FunctionalModel(self, InternVideo2)

    @property
    def traits(self) -> Traits:
        """Weights of other clips are adapted; probes can read its tokens."""
        return dataclasses.replace(
            super().traits,
            clip_tables=True,
            adaptation=Adaptation(self.adapt_weights),
            features=TokenFeatures(self.tokens, self.encoder.width, self.forward_flops()),
        )

    @property
    def sharding_rules(self) -> ShardingRules:
        """Which axes of its parameters are split over which axes of the mesh."""
        return (*block_sharding(self.block()), *POOL_SHARDING, POSITION_SHARDING)

    def block(self) -> BlockConfig:
        """Of the encoder."""
        tower = self.encoder
        return BlockConfig(
            tower.width,
            AttentionConfig(
                tower.heads,
                qkv_bias=self.qkv_bias,
                key_bias=True,
                qk_norm=self.qk_norm,
                form=self.attention,
            ),
            MLPConfig(tower.hidden, self.activation),
            norm=NormConfig("rms"),
            layer_scale=self.layer_scale,
        )

    def encoder_flops(self, visible: int | None = None) -> float:
        """Of one clip through the blocks, with `visible` patch tokens (default: all)."""
        tokens = self.tokens if visible is None else visible
        return self.embed_flops(tokens) + self.encoder.flops(1 + tokens)

    def forward_flops(self, visible: int | None = None) -> float:
        """Of one clip through blocks and pool, with `visible` patch tokens (default: all)."""
        tokens = 1 + (self.tokens if visible is None else visible)
        pool = pool_flops(tokens, self.encoder.width, self.pool_heads, self.embedding)
        return self.encoder_flops(visible) + pool

    def adapt_weights(
        self, source: Mapping[str, np.ndarray], frames: int = 0
    ) -> dict[str, np.ndarray]:
        """Weights of another clip length, image size or tubelet as those of this model.

        Position tables are resized, linearly in time and bicubically in space (those in front of
        a student's decoders too, which the reference does not need). A patch embedding of single
        frames becomes the middle frame of a tubelet, the others zero.

        Args:
          frames: time steps that the tables are known to have; 0 = not known, as in a file: then
            tables with the rows of this model are taken as they are, and others to have
            `pos_frames` steps.

        Raises:
          ValueError: tables of the other form, or of rows that do not fit the number of steps.
        """
        adapted, path = dict(source), "encoder/patch_embed/kernel"
        if self.tubelet > 1 and path in source and len(source[path]) == self.patch**2 * 3:
            adapted[path] = inflate(source[path], self.tubelet)
        for prefix, leading in TABLES.items():
            adapted = adapt_tables(
                adapted,
                prefix,
                form=self.pos_table,
                grid=self.grid,
                frames=frames or self.pos_frames,
                known=bool(frames),
                leading=leading,
            )
        return adapted


class Positions(nnx.Module):
    """Learned positions of the class token and of the patches, which start as sines and cosines.

    `joint` keeps a row per token; `separable` one per place and one per frame, which are added.
    """

    def __init__(self, kind: str, grid: Grid, width: int, *, class_token: bool = True):
        self.class_token = class_token
        joint, apart = kind == "joint", kind == "separable"

        def param(start: np.ndarray) -> nnx.Param:
            return nnx.Param(jnp.asarray(start))

        start = start_table(kind, grid, width)
        # The class token has the first row, which starts at zero.
        first = [(int(class_token), 0), (0, 0)]
        self.table = param(np.pad(start[0], first)) if joint else None
        self.spatial = param(start[0]) if apart else None
        self.temporal = param(start[1]) if apart else None
        self.cls = param(np.zeros(width, np.float32)) if apart and class_token else None

    def __call__(self, visible: jax.Array | None = None) -> jax.Array:
        """What is added to the tokens, class token first where there is one.

        Args:
          visible: (B, V) numbers of patches, or None for all.

        Returns:
          (B, 1 + V, D), or (1, 1 + N, D), float32; without the 1 where there is no class token.
        """
        first = int(self.class_token)
        if self.table is not None:
            table = self.table[...]
        else:
            assert self.spatial is not None and self.temporal is not None  # noqa: S101
            spatial, temporal = self.spatial[...], self.temporal[...]
            table = (temporal[:, None] + spatial).reshape(-1, spatial.shape[-1])
            if self.cls is not None:
                table = jnp.concatenate([self.cls[...][None], table])
        if visible is None:
            return table[None]
        rows = visible + first
        if first:
            rows = jnp.pad(rows, [(0, 0), (1, 0)])  # row 0, the class token's
        # NaN for a patch that the clip does not have
        return jnp.take(table, rows, axis=0, mode="fill")


class InternVideo2Encoder(nnx.Module):
    """Patch embedding, class token, positions and blocks; the output is not normalised."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype, width = jnp.dtype(config.dtype), config.encoder.width
        self.patch_embed = torch_layer(config.token_pixels, width, dtype=dtype, rngs=rngs)
        self.cls_token = nnx.Param(INIT.linear(rngs.params(), 1, width)[0])
        self.pos_embed = Positions(config.pos_table, config.grid, width)
        self.blocks = stacked_blocks(
            config.block(), config.encoder.depth, init=INIT, dtype=dtype, rngs=rngs
        )

    def embed(self, video: jax.Array, visible: jax.Array | None = None) -> jax.Array:
        """What the first block takes: class token, then patches, with positions (B, 1 + V, D)."""
        x = self.patch_embed(self.config.pixels(video, visible))
        cls = self.cls_token[...].astype(x.dtype)
        cls = jnp.broadcast_to(cls, (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([cls, x], axis=1)
        return constrain(x + self.pos_embed(visible).astype(x.dtype), "batch", "tokens")

    def __call__(
        self,
        video: jax.Array,
        visible: jax.Array | None = None,
        *,
        keys: jax.Array | None = None,
        intermediate_layers: Sequence[int] = (),
    ) -> tuple[jax.Array, jax.Array | None]:
        """Tokens after the last block, and after those in `intermediate_layers`.

        Args:
          video: (B, T, H, W, 3) uint8, or float in 0..1.
          visible: (B, V) int32 increasing numbers of the patches that are kept, time-major, then
            row, then column; None keeps all.
          keys: (B,) keys for drop path in training; None in evaluation.
          intermediate_layers: numbers of blocks.

        Returns:
          (B, 1 + V, D), class token first, and (number of `intermediate_layers`, B, 1 + V, D) or
          None without any.

        Raises:
          ValueError: a clip of other frames or pixels.
        """
        config = self.config
        x = self.embed(video, visible)
        return config.run(self.blocks, x, keys, config.drop_path, intermediate_layers)


def attention_pool(config: EncoderConfig, *, rngs: nnx.Rngs) -> AttentionPool:
    """The pool that belongs to an encoder."""
    return AttentionPool(
        config.encoder.width,
        config.pool_heads,
        config.embedding,
        init=Init("normal"),
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )


class InternVideo2(nnx.Module):
    """Encoder and attention pool."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = InternVideo2Encoder(config, rngs=rngs)
        self.pool = attention_pool(config, rngs=rngs)

    def __call__(self, video: jax.Array) -> jax.Array:
        """(B, E) float32, not normalised, of (B, T, H, W, 3) uint8 or float in 0..1."""
        return self.pool(self.encoder(video)[0]).astype(jnp.float32)

    def features(self, video: jax.Array) -> jax.Array:
        """Tokens (B, 1 + N, D) after the last block, class token first, not normalised."""
        return self.encoder(video)[0]
