"""The two blocks that UniFormerV2 adds to an image transformer: local and global."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.layers.attention import Attention
from internvideo_jax.layers.batch_norm import BatchNorm
from internvideo_jax.layers.block import Block, layer_norm
from internvideo_jax.layers.clip import NORM_EPS
from internvideo_jax.layers.depthwise_conv import DepthwiseConv
from internvideo_jax.layers.drop_path import drop_path
from internvideo_jax.layers.init import Init, torch_uniform
from internvideo_jax.layers.mlp import MLP

if TYPE_CHECKING:
    from internvideo_jax.families.uniformerv2.model import UniFormerV2Config


class LocalMHRA(nnx.Module):
    """Local multi-head relation aggregator: norm, fewer channels, mix three frames, back.

    Starts as zero, so that a model begins as the image transformer that it was made from.
    """

    def __init__(self, config: UniFormerV2Config, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, inner = config.encoder.width, config.local_width
        self.norm = BatchNorm(width, dtype=dtype)
        self.reduce = nnx.Linear(
            width,
            inner,
            dtype=dtype,
            rngs=rngs,
            kernel_init=lambda key, shape, _=None: torch_uniform(key, shape, width),
        )
        self.temporal = DepthwiseConv(inner, (3, 1, 1), dtype=dtype, rngs=rngs)
        zeros = nnx.initializers.zeros
        self.expand = nnx.Linear(inner, width, dtype=dtype, rngs=rngs, kernel_init=zeros)

    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Patch tokens (B, T, N, D) -> the same shape, and running statistics in training."""
        y, running = self.norm(x, train)
        y = self.temporal(self.reduce(y)[:, :, :, None])[:, :, :, 0]
        return self.expand(y), running


class LocalUniBlock(Block):
    """A transformer block on every frame, with local MHRA before its two halves.

    Drop path of attention and MLP drops single tokens, each at its place in all frames of a clip.
    That is what the reference's rate does, whose first axis is the token there; it draws once for
    the whole batch, here every clip draws. Local MHRA is dropped whole.
    """

    def __init__(self, config: UniFormerV2Config, *, init: Init, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(config.block(), init=init, dtype=dtype, rngs=rngs)
        self.dropping = config.drop_path > 0
        count = config.local_blocks
        self.local1 = LocalMHRA(config, dtype=dtype, rngs=rngs) if count > 0 else None
        self.local2 = LocalMHRA(config, dtype=dtype, rngs=rngs) if count > 1 else None

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: jax.Array, keys: jax.Array | None = None, rate: jax.Array | float = 0.0
    ) -> tuple[jax.Array, dict[str, Any]]:
        """One layer.

        Args:
          x: (B, T, 1 + N, D), the class token of a frame first.
          keys: (B,) keys in training, None in evaluation.
          rate: of drop path.

        Returns:
          The same shape, and in training {"local1": {"mean": (D,), "var": (D,)}, ...}.
        """
        running = {}
        x = self._local("local1", x, keys, rate, 2, running)
        x = x + self._drop(self._per_frame(self.attn, self.norm1(x)), keys, rate, 0)
        x = self._local("local2", x, keys, rate, 3, running)
        x = x + self._drop(self.mlp(self.norm2(x)), keys, rate, 1)
        return x, running

    def _per_frame(self, layer: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        return layer(x.reshape(-1, *x.shape[2:])).reshape(x.shape)

    def _drop(self, y, keys, rate, which):
        if keys is None or not self.dropping:
            return y
        return drop_path(y, keys, rate, which, (1, y.shape[2]))

    def _local(self, name, x, keys, rate, which, running):
        layer = vars(self)[name]
        if layer is None:
            return x
        y, statistics = layer(x[:, :, 1:], keys is not None)
        if statistics:
            running[name] = {"norm": statistics}
        if keys is not None and self.dropping:
            y = drop_path(y, keys, rate, which)
        return x.at[:, :, 1:].add(y)


class GlobalUniBlock(nnx.Module):
    """One query token attends to all tokens of a layer, positions encoded by a convolution (DPE).

    Attention and MLP start as zero: a fresh block hands the query on.
    """

    def __init__(self, config: UniFormerV2Config, *, init: Init, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = config.encoder.width
        self.dropping = config.global_drop_path > 0
        self.mlp_dropout = config.mlp_dropout
        self.grid = config.grid
        self.dpe = DepthwiseConv(width, (3, 3, 3), dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(width, dtype=dtype, rngs=rngs, eps=NORM_EPS)
        self.norm_context = layer_norm(width, dtype=dtype, rngs=rngs, eps=NORM_EPS)
        self.attn = Attention(
            width,
            config.encoder.heads,
            key_bias=True,
            form=config.attention,
            init=init,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = layer_norm(width, dtype=dtype, rngs=rngs, eps=NORM_EPS)
        self.mlp = MLP(
            width,
            config.global_hidden,
            activation="quick_gelu",
            init=init,
            dtype=dtype,
            rngs=rngs,
        )
        for last in (self.attn.proj, self.mlp.fc2):
            last.kernel[...] = jnp.zeros_like(last.kernel[...])

    def __call__(
        self, q: jax.Array, keys: jax.Array | None, rate: jax.Array | float, x: jax.Array
    ) -> jax.Array:
        """Query (B, 1, D) and tokens of the layer (B, T, 1 + N, D) -> query (B, 1, D)."""
        context = x.at[:, :, 1:].add(self.positions(x)).reshape(len(x), -1, x.shape[-1])
        y = self.attn(self.norm1(q), self.norm_context(context))
        q = q + self._drop(y, keys, rate, 0)
        unit_keys = None
        if keys is not None and self.mlp_dropout > 0:
            unit_keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)
        return q + self._drop(self.mlp(self.norm2(q), unit_keys, self.mlp_dropout), keys, rate, 1)

    def positions(self, x: jax.Array) -> jax.Array:
        """Dynamic position encoding of the patch tokens: (B, T, 1 + N, D) -> (B, T, N, D)."""
        patches = x[:, :, 1:]
        video = patches.reshape(len(x), *self.grid, x.shape[-1])
        return self.dpe(video).reshape(patches.shape)

    def _drop(self, y, keys, rate, which):
        return drop_path(y, keys, rate, which) if keys is not None and self.dropping else y
