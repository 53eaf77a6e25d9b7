"""The text transformer of CLIP (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.layers.block import BlockConfig, layer_norm
from internvideo_jax.layers.block_stack import run_stack, stacked_blocks
from internvideo_jax.layers.clip import NORM_EPS, PositionTable, projection
from internvideo_jax.layers.init import Init

# CLIP's own initial standard deviations.
TOKEN_STD, POSITION_STD = 0.02, 0.01


class TextTransformer(nnx.Module):
    """Causal blocks over a caption of fixed length; the vector at its end token, projected.

    Padding is not masked: it stands behind the end token, and no token sees what follows it.

    Attributes:
      context: ids per caption, special tokens and padding included.
    """

    def __init__(
        self,
        block: BlockConfig,
        *,
        depth: int,
        vocab: int,
        context: int,
        embedding: int,
        init: Init,
        dtype: jnp.dtype,
        remat: str = "none",
        scan: bool = True,
        rngs: nnx.Rngs,
    ):
        width = block.width
        self.context, self.dtype, self.remat, self.scan = context, dtype, remat, scan
        table = jax.random.normal(rngs.params(), (vocab, width))
        self.token_embed = nnx.Param(TOKEN_STD * table)
        self.pos_embed = PositionTable(context, width, std=POSITION_STD, rngs=rngs)
        self.blocks = stacked_blocks(block, depth, init=init, dtype=dtype, rngs=rngs)
        # Norm and projection of one token work in float32: they cost nothing.
        self.norm = layer_norm(width, dtype=jnp.dtype("float32"), rngs=rngs, eps=NORM_EPS)
        self.proj = projection(width, embedding, rngs=rngs)

    def embed(self, ids: jax.Array) -> jax.Array:
        """Tokens with positions: (B, S) ids -> (B, S, W); NaN for ids outside the vocabulary."""
        if ids.ndim != 2 or ids.shape[1] != self.context:
            raise ValueError(
                f"text ids are {ids.shape}, the model expects (B, {self.context}); pad or cut "
                "captions to config.model.context (config.data.text_length)"
            )
        tokens = jnp.take(self.token_embed[...], ids, axis=0, mode="fill")
        return (tokens + self.pos_embed.table[...]).astype(self.dtype)

    def tokens(
        self, ids: jax.Array, intermediate_layers: Sequence[int] = ()
    ) -> tuple[jax.Array, jax.Array | None]:
        """(B, S, W) after the last block, and after those of `intermediate_layers`."""
        return run_stack(
            self.blocks,
            self.embed(ids),
            remat=self.remat,
            scan=self.scan,
            intermediate_layers=intermediate_layers,
        )

    def __call__(self, ids: jax.Array) -> jax.Array:
        """(B, S) int32 ids, 0 behind the end -> (B, E) float32, not normalised.

        The end token has the largest id of the vocabulary; where it stands several times its first
        place counts, as in the reference.
        """
        x, _ = self.tokens(ids)
        return self.proj(self.norm(x[jnp.arange(len(ids)), jnp.argmax(ids, axis=1)]))
