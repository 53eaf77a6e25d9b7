"""VideoMAE: masked pre-training (V1 and V2) and the classifier fine-tuned from it.

Tong et al. 2022 (VideoMAE), Wang et al. 2023 (VideoMAE V2), Wang et al. 2022 (InternVideo, whose
generative half is VideoMAE). The three released code bases share parameter names and arithmetic;
where they differ the option is named here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.limits import limited
from internvideo_jax.layers.attention import AttentionConfig
from internvideo_jax.layers.block import BlockConfig, layer_norm
from internvideo_jax.layers.block_stack import stacked_blocks
from internvideo_jax.layers.drop_path import head_dropout
from internvideo_jax.layers.functional import FunctionalModel, classifier
from internvideo_jax.layers.init import Init, torch_layer, torch_uniform
from internvideo_jax.layers.linear import Linear
from internvideo_jax.layers.mlp import MLPConfig
from internvideo_jax.layers.pos_embed import Grid, fixed_table
from internvideo_jax.layers.tower import SMALLEST, TowerConfig, VideoTowerConfig, preset_size, tower
from internvideo_jax.ops.pixels import token_grid
from internvideo_jax.parallel.mesh import constrain
from internvideo_jax.protocols import Classes, TokenFeatures, Traits


@dataclasses.dataclass(frozen=True)
class VideoMAESize:
    """A published size: encoder, decoder without its depth, patch."""

    encoder: TowerConfig
    decoder_width: int
    decoder_heads: int
    patch: int = 16
    mlp_ratio: float = 4.0

    def decoder(self, depth: int) -> TowerConfig:
        """The decoder of so many blocks."""
        return tower(self.decoder_width, depth, self.decoder_heads, self.mlp_ratio)


# MCG-NJU's ViT-H has a decoder of width 640 with 8 heads; `huge_nju` is that one.
SIZES = {
    "tiny": VideoMAESize(tower(96, 4, 4), 64, 4, patch=8),
    "small": VideoMAESize(tower(384, 12, 6), 192, 3),
    "base": VideoMAESize(tower(768, 12, 12), 384, 6),
    "large": VideoMAESize(tower(1024, 24, 16), 512, 8),
    "huge": VideoMAESize(tower(1280, 32, 16), 512, 8),
    "huge_nju": VideoMAESize(tower(1280, 32, 16), 640, 8),
    "giant": VideoMAESize(tower(1408, 40, 16, 48 / 11), 512, 8, patch=14, mlp_ratio=48 / 11),
    "giant16": VideoMAESize(tower(1408, 40, 16, 48 / 11), 512, 8, patch=16, mlp_ratio=48 / 11),
    "gigantic": VideoMAESize(tower(1664, 48, 16, 64 / 13), 512, 8, patch=14, mlp_ratio=64 / 13),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoConfig(VideoTowerConfig):
    """What pre-training model and classifier have in common."""

    frames: int = 16
    tubelet: int = limited(2, least=1)  # frames per token
    qkv_bias: bool = True
    # Initial LayerScale; 0 = none, as in every published model.
    layer_scale: float = limited(0.0, least=0)
    cosine: bool = False  # cosine attention of VideoMAE V2
    # sincos | resized | separable | learnable; see layers/pos_embed.py.
    pos_table: str = "sincos"
    # Grid of the table that `resized` starts from: 16 frames of 224 pixels.
    pos_frames: int = 16
    pos_size: int = 224

    def smallest(self) -> Self:
        """The same kind of model with two thin layers and four tokens a frame pair."""
        return self.shrunk(4 * self.tubelet, **dict.fromkeys(self.traits.stacks, SMALLEST))

    @property
    def traits(self) -> Traits:
        """Position tables are of whole clips, fixed or learned."""
        return dataclasses.replace(super().traits, clip_tables=True)

    def block(self, tower: TowerConfig) -> BlockConfig:
        """Of the encoder or the decoder."""
        attention = AttentionConfig(
            tower.heads, qkv_bias=self.qkv_bias, cosine=self.cosine, form=self.attention
        )
        return BlockConfig(
            tower.width, attention, MLPConfig(tower.hidden), layer_scale=self.layer_scale
        )

    def fixed_positions(self) -> np.ndarray:
        """(N, D) float32, the encoder's position table where it is no parameter.

        Raises:
          ValueError: an unknown table, or a base grid to resize that cannot be cut evenly.
        """
        base = self.base_grid() if self.pos_table == "resized" else self.grid
        return fixed_table(self.pos_table, self.grid, self.encoder.width, base)

    def base_grid(self) -> Grid:
        """Tokens of the clip whose table `resized` starts from; no other table looks at it."""
        try:
            return token_grid(self.pos_frames, self.pos_size, self.tubelet, self.patch)
        except ValueError as error:
            raise ValueError(
                f"pos_table = 'resized' starts from the table of pos_frames = {self.pos_frames} "
                f"and pos_size = {self.pos_size}: {error}"
            ) from error


class VideoMAEEncoder(nnx.Module):
    """Tubelet embedding, position table, blocks and, where the model has one, a final norm."""

    def __init__(self, config: VideoConfig, *, norm: bool, init: Init, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        width, pixels = config.encoder.width, config.token_pixels
        self.patch_embed = torch_layer(pixels, width, dtype=dtype, rngs=rngs)
        learnable = config.pos_table == "learnable"
        self.pos_embed = nnx.Param(jnp.zeros((config.tokens, width))) if learnable else None
        self.blocks = stacked_blocks(
            config.block(config.encoder), config.encoder.depth, init=init, dtype=dtype, rngs=rngs
        )
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs) if norm else None

    def table(self) -> jax.Array:
        """(N, D) float32 position table. No gradient flows into it.

        That holds for the learnable one too: all three released code bases detach it, so a trained
        table equals its initial value. Reproduced, since published weights were made so.
        """
        if self.pos_embed is not None:
            return jax.lax.stop_gradient(self.pos_embed[...])
        return jnp.asarray(self.config.fixed_positions())

    def embed(self, video: jax.Array, visible: jax.Array | None = None) -> jax.Array:
        """Tokens with positions: (B, T, H, W, 3) and (B, V) indices or None -> (B, V or N, D)."""
        table = self.table()
        positions = table[None] if visible is None else table[visible]
        x = self.patch_embed(self.config.pixels(video, visible))
        return constrain(x + positions.astype(x.dtype), "batch", "tokens")

    def __call__(
        self,
        video: jax.Array,
        visible: jax.Array | None = None,
        *,
        keys: jax.Array | None = None,
        drop_path: float = 0.0,
        intermediate_layers: Sequence[int] = (),
    ) -> tuple[jax.Array, jax.Array | None]:
        """Encoded tokens (B, V or N, D) and intermediates (K, B, V or N, D)."""
        x = self.embed(video, visible)
        x, intermediates = self.config.run(self.blocks, x, keys, drop_path, intermediate_layers)
        return (x if self.norm is None else self.norm(x)), intermediates


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(VideoConfig):
    """Masked autoencoder. Factory: `PretrainConfig.of_size("base", decoder_depth=4)`."""

    name: str = "videomae_pretrain"
    decoder: TowerConfig

    @classmethod
    def of_size(cls, name: str, /, *, decoder_depth: int, **changes: Any) -> PretrainConfig:
        """A size of SIZES with changes; ValueError with the near matches for another."""
        preset = preset_size(SIZES, name)
        settings = {"patch": preset.patch, **changes}
        return cls(encoder=preset.encoder, decoder=preset.decoder(decoder_depth), **settings)

    @property
    def traits(self) -> Traits:
        """Encoder and decoder; probes can read the tokens of the encoder."""
        # The decoder stays idle.
        flops = self.embed_flops(self.tokens) + self.encoder.flops(self.tokens)
        return dataclasses.replace(
            super().traits,
            stacks={"encoder": self.encoder, "decoder": self.decoder},
            features=TokenFeatures(self.tokens, self.encoder.width, flops),
        )

    def model(self) -> FunctionalModel:
        """Encoder, decoder and mask token."""
        return FunctionalModel(self, PretrainModel)

    def forward_flops(self, visible: int, decoded: int) -> float:
        """Of one example: `visible` encoder tokens, `decoded` reconstructed tokens."""
        bridge = 2.0 * visible * self.encoder.width * self.decoder.width
        head = 2.0 * decoded * self.decoder.width * self.token_pixels
        encoder = self.embed_flops(visible) + self.encoder.flops(visible)
        return encoder + bridge + self.decoder.flops(visible + decoded) + head


class Decoder(nnx.Module):
    """Blocks, norm and the linear map to pixels."""

    def __init__(self, config: PretrainConfig, *, init: Init, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        tower = config.decoder
        self.blocks = stacked_blocks(
            config.block(tower), tower.depth, init=init, dtype=dtype, rngs=rngs
        )
        self.norm = layer_norm(tower.width, dtype=dtype, rngs=rngs)
        self.head = init.layer(tower.width, config.token_pixels, dtype=dtype, rngs=rngs)


class PretrainModel(nnx.Module):
    """Encoder on visible tokens, light decoder on all of them or on a part (V2)."""

    def __init__(self, config: PretrainConfig, *, rngs: nnx.Rngs):
        self.config = config
        init, width = Init("xavier"), config.decoder.width
        self.encoder = VideoMAEEncoder(config, norm=True, init=init, rngs=rngs)
        self.encoder_to_decoder = Linear(
            config.encoder.width,
            width,
            use_bias=False,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
            kernel_init=lambda key, shape, _=None: torch_uniform(key, shape, shape[0]),
        )
        # Cut at one standard deviation: the reference passes its 0.02 as the bound as well.
        mask_token = 0.02 * jax.random.truncated_normal(rngs.params(), -1.0, 1.0, (width,))
        self.mask_token = nnx.Param(mask_token)
        self.decoder = Decoder(config, init=init, rngs=rngs)

    def __call__(self, video: jax.Array, visible: jax.Array, decoded: jax.Array) -> jax.Array:
        """Predicts the pixels of the decoded tokens.

        Args:
          video: (B, T, H, W, 3) uint8, or float in 0..1.
          visible: (B, V) int32 increasing indices of the tokens that the encoder sees.
          decoded: (B, M) int32 increasing indices of the tokens to reconstruct.

        Returns:
          (B, M, tubelet * patch * patch * 3) float32, order of `ops.pixels.patchify`.
        """
        x, _ = self.encoder(video, visible)
        x = self.decoder_input(x, visible, decoded)
        x, _ = self.config.run(self.decoder.blocks, x)
        x = self.decoder.norm(x[:, visible.shape[1] :])
        return self.decoder.head(x).astype(jnp.float32)

    def decoder_input(self, x: jax.Array, visible: jax.Array, decoded: jax.Array) -> jax.Array:
        """Visible tokens, then mask tokens, each with its position: (B, V + M, Dd).

        Tokens are not put back in spatial order; only the position table tells them apart.
        """
        x = self.encoder_to_decoder(x)
        table = jnp.asarray(self.decoder_table())
        mask_tokens = self.mask_token[...] + table[decoded]
        seen = x + table[visible].astype(x.dtype)
        return constrain(
            jnp.concatenate([seen, mask_tokens.astype(x.dtype)], axis=1), "batch", "tokens"
        )

    def decoder_table(self) -> np.ndarray:
        """(N, Dd) float32; the flat table unless the encoder's is separable."""
        config = self.config
        kind = "separable" if config.pos_table == "separable" else "sincos"
        return fixed_table(kind, config.grid, config.decoder.width, config.grid)

    def features(self, video: jax.Array) -> jax.Array:
        """Encoder output of all tokens, (B, N, D), for probes and nearest neighbours."""
        return self.encoder(video)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoMAEClassifierConfig(VideoConfig):
    """Classifier. Factory: `VideoMAEClassifierConfig.of_size("base", classes=400)`."""

    name: str = "videomae_classifier"
    classes: int = 0  # 0 = as many as the dataset has
    pooling: str = "mean"  # mean | first_token
    drop_path: float = limited(0.0, least=0, below=1)
    head_dropout: float = limited(0.0, least=0, below=1)
    head_scale: float = 0.001  # factor on the initial head
    # In training, logits of this many consecutive clips are averaged (InternVideo1's num_segment,
    # 1 in every script).
    clips: int = limited(1, least=1)

    @classmethod
    def of_size(cls, name: str, /, **changes: Any) -> VideoMAEClassifierConfig:
        """A size of SIZES with changes; ValueError with the near matches for another."""
        preset = preset_size(SIZES, name)
        return cls(encoder=preset.encoder, **{"patch": preset.patch, **changes})

    @property
    def traits(self) -> Traits:
        """A classifier on pooled tokens; probes can read them."""
        return dataclasses.replace(
            super().traits,
            classifier=Classes(self.classes, pooled=True),
            features=TokenFeatures(self.tokens, self.encoder.width, self.forward_flops()),
        )

    def model(self) -> FunctionalModel:
        """The network; ValueError where `classes` is not known yet."""
        return classifier(self, VideoMAEClassifier)

    def forward_flops(self) -> float:
        """Of one clip, encoder and head."""
        head = 2.0 * self.encoder.width * self.classes
        return self.embed_flops(self.tokens) + self.encoder.flops(self.tokens) + head


class VideoMAEClassifier(nnx.Module):
    """Encoder on all tokens, pooling, linear head.

    `mean` pooling averages the tokens and then normalises (`fc_norm`). `first_token` normalises and
    takes token 0, the first top-left tubelet: the models have no class token, the reference's
    `--use_cls` means this.
    """

    def __init__(self, config: VideoMAEClassifierConfig, *, rngs: nnx.Rngs):
        if config.pooling not in ("mean", "first_token"):
            raise ValueError(f"unknown pooling {config.pooling!r}; known: mean, first_token")
        self.config = config
        dtype, init = jnp.dtype(config.dtype), Init("normal")
        width, mean = config.encoder.width, config.pooling == "mean"
        self.encoder = VideoMAEEncoder(config, norm=not mean, init=init, rngs=rngs)
        self.fc_norm = layer_norm(width, dtype=dtype, rngs=rngs) if mean else None
        # The head works in float32: it costs nothing and logits feed the loss.
        self.head = init.head(width, config.classes, config.head_scale, rngs=rngs)

    def __call__(self, video: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Logits (B, classes) float32.

        Args:
          video: (B, T, H, W, 3) uint8, or float in 0..1.
          keys: (B,) keys in training; None switches drop path, dropout and the mean over clips off.
        """
        config = self.config
        x, _ = self.encoder(video, keys=keys, drop_path=config.drop_path)
        x = self.pool(x).astype(jnp.float32)
        # Layer keys fold in 0..depth-1; the head takes the next number.
        x = head_dropout(x, keys, config.head_dropout, config.encoder.depth)
        logits = self.head(x)
        if keys is not None and config.clips > 1:
            logits = logits.reshape(-1, config.clips, logits.shape[-1]).mean(axis=1)
        return logits

    def pool(self, x: jax.Array) -> jax.Array:
        """(B, N, D) -> (B, D)."""
        return x[:, 0] if self.fc_norm is None else self.fc_norm(x.mean(axis=1))

    def features(self, video: jax.Array) -> jax.Array:
        """Tokens (B, N, D) before pooling, for probes and nearest neighbours."""
        return self.encoder(video)[0]
