"""A transformer that reads ids and says of every place which id stands there."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.layers.attention import AttentionConfig
from internvideo_jax.layers.block import BLOCK_SHARDING, BlockConfig, layer_norm
from internvideo_jax.layers.block_stack import run_stack, stacked_blocks
from internvideo_jax.layers.functional import FunctionalModel
from internvideo_jax.layers.init import Init
from internvideo_jax.layers.mlp import MLPConfig
from internvideo_jax.layers.tower import TowerConfig, tower
from internvideo_jax.protocols import Inputs, ShardingRules, TextInput, Traits

SIZES = {"tiny": tower(32, 2, 4)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Factory: `ToyConfig.of_size("tiny")`."""

    name: str = "toy_text"
    encoder: TowerConfig
    vocab: int = 40  # the last id stands for a hidden token
    context: int = 8
    dtype: str = "float32"

    @classmethod
    def of_size(cls, name: str, /, **changes: Any) -> ToyConfig:
        return cls(encoder=SIZES[name], **changes)

    @property
    def inputs(self) -> Inputs:
        return Inputs(text=TextInput(self.context, self.vocab))

    @property
    def traits(self) -> Traits:
        return Traits(stacks={"encoder": self.encoder})

    @property
    def sharding_rules(self) -> ShardingRules:
        return BLOCK_SHARDING

    def forward_flops(self) -> float:
        """Of the products of one caption."""
        tower, ids = self.encoder, self.context
        block = 2 * ids * tower.width * (4 * tower.width + 2 * tower.hidden + 2 * ids)
        return float(tower.depth * block + 2 * ids * tower.width * self.vocab)

    def smallest(self) -> ToyConfig:
        return self

    def model(self) -> FunctionalModel:
        return FunctionalModel(self, ToyText)


class Encoder(nnx.Module):
    """Ids -> tokens."""

    def __init__(self, config: ToyConfig, *, rngs: nnx.Rngs):
        dtype, width = jnp.dtype(config.dtype), config.encoder.width
        self.token_embed = nnx.Param(jax.random.normal(rngs.params(), (config.vocab, width)))
        self.pos_embed = nnx.Param(jnp.zeros((config.context, width)))
        tower = config.encoder
        block = BlockConfig(
            width, AttentionConfig(tower.heads, key_bias=True), MLPConfig(tower.hidden)
        )
        self.blocks = stacked_blocks(
            block, config.encoder.depth, init=Init("xavier"), dtype=dtype, rngs=rngs
        )
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """(B, L) int32 -> (B, L, D)."""
        x = self.token_embed[...][ids] + self.pos_embed[...]
        return self.norm(run_stack(self.blocks, x)[0])


class ToyText(nnx.Module):
    """See `ToyConfig`."""

    def __init__(self, config: ToyConfig, *, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs=rngs)
        width, dtype = config.encoder.width, jnp.dtype(config.dtype)
        self.head = Init("xavier").layer(width, config.vocab, dtype=dtype, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """(B, L) int32 -> (B, L, V) logits."""
        return self.head(self.encoder(ids))
